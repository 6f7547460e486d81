#!/usr/bin/env bash
# Shows three databases that coordinate: they record at once and agree, one is killed and comes back,
# two are cut from each other and agree through the third, and lead one conversation. Exits non-zero when anything does not hold.
#
# KEEP=1 leaves the servers running, to try things.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly nodes=(a b c)
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

failed() {
	printf '\nThis did not hold: %s\n' "$*" >&2
	local name
	for name in "${nodes[@]}"; do
		printf -- '--- log of %s\n' "$name" >&2
		tail -n 20 "$work/$name/server.log" >&2 || true
	done
	exit 1
}

# Every node logs in to the others under a role of its own, which can do nothing but gossip.
start_node() {
	local name=$1 other
	port[$name]=$(free_port)
	start_server "$name" "listen_addresses = '127.0.0.1'
		port = ${port[$name]}
		shared_preload_libraries = 'pg_test'"
	sql "$name" "CREATE EXTENSION pg_test" >/dev/null
	sql "$name" "SELECT coord.node_init('$name')" >/dev/null
	for other in "${nodes[@]}"; do
		sql "$name" "CREATE ROLE node_$other LOGIN IN ROLE coord_peer" >/dev/null
	done
	echo "node $name: 127.0.0.1:${port[$name]}"
}

join_mesh() {
	local name other
	for name in "${nodes[@]}"; do
		for other in "${nodes[@]}"; do
			if [[ $name == "$other" ]]; then continue; fi
			sql "$name" "SELECT coord.add_peer('$other',
				'host=127.0.0.1 port=${port[$other]} dbname=postgres user=node_$name')" >/dev/null
		done
	done
}

# record NODE N: one constraint and N counts, each in a transaction of its own.
record() {
	local i statements="SELECT coord.state_add_constraint('fleet', '$1-battery-above-20');"
	for ((i = 0; i < $2; i++)); do
		statements+="SELECT coord.state_record_satisfied('fleet', 1);"
	done
	statements+="SELECT coord.state_record_violations('fleet', 1);"
	as_server psql -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "${port[$1]}" -U postgres -d postgres \
		>/dev/null <<<"$statements"
}

record_at_once() {
	local n=$1 name pid pids=()
	shift
	for name in "$@"; do
		record "$name" "$n" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || failed "recording on a node"; done
}

digest() { sql "$1" "SELECT encode(digest, 'hex') FROM coord.gossip_claim()"; }

# agree NODE…: waits until the nodes hold the same and say so of each other, and prints how long.
agree() {
	local start=${EPOCHREALTIME/./} name first others
	while true; do
		first=$(digest "$1")
		others=same
		for name in "${@:2}"; do
			if [[ $(digest "$name") != "$first" ]]; then others=different; fi
		done
		if [[ $others == same ]]; then break; fi
		if ((${EPOCHREALTIME/./} - start > 20000000)); then failed "$* agree within 20 s"; fi
		sleep 0.02
	done
	echo "$* agree after $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
}

show() {
	local name
	printf '%-5s %-11s %-10s %-11s %s\n' node satisfied violations digest constraints
	for name in "$@"; do
		sql "$name" "SELECT format('%-5s %-11s %-10s %-11s %s', '$name',
				coord.constraint_satisfied(value), coord.constraint_violations(value),
				left(encode(coord.state_digest(value), 'hex'), 10),
				(SELECT string_agg(id, ' ') FROM coord.constraint_ids(value) id))
			FROM coord.state WHERE name = 'fleet'"
	done
}

# holds NODE SATISFIED: no count was lost and none counted twice.
holds() {
	local found
	found=$(sql "$1" "SELECT coord.constraint_satisfied(value) FROM coord.state WHERE name = 'fleet'")
	[[ $found == "$2" ]] || failed "$1 counts $2 satisfied checks (it has $found)"
}

# sees NODE PEER STATE: waits until the node thinks so of the peer.
sees() {
	local start=${EPOCHREALTIME/./}
	while [[ $(sql "$1" "SELECT state FROM coord.peer_status WHERE peer = '$2'") != "$3" ]]; do
		if ((${EPOCHREALTIME/./} - start > 20000000)); then failed "$1 calls $2 $3 within 20 s"; fi
		sleep 0.02
	done
}

kill_node() {
	local pid
	pid=$(head -n 1 "$work/$1/data/postmaster.pid")
	kill -9 "$pid"
}

# After SIGKILL the first start can fail while children of the old server are still going.
restart_node() {
	local try
	for ((try = 0; try < 20; try++)); do
		if as_server pg_ctl -D "$work/$1/data" -l "$work/$1/server.log" -w start >/dev/null 2>&1; then return; fi
		sleep 0.5
	done
	failed "$1 starts again after SIGKILL"
}

back_up() {
	as_server pg_basebackup -D "$work/$1/backup" -c fast -h 127.0.0.1 -p "${port[$1]}" -U postgres
}

# The data directory is lost; what the backup has is all there is.
restore() {
	as_server rm -rf "$work/$1/data"
	as_server mv "$work/$1/backup" "$work/$1/data"
}

# cut NODE OTHER: NODE refuses OTHER from now on and drops its connections.
cut() {
	local hba=$work/$1/data/pg_hba.conf
	as_server cp "$hba" "$hba.whole"
	as_server sed -i "1i host all node_$2 all reject" "$hba"
	sql "$1" "SELECT pg_reload_conf()" >/dev/null
	sql "$1" "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'node_$2'" >/dev/null
}

heal() {
	local hba=$work/$1/data/pg_hba.conf
	as_server mv "$hba.whole" "$hba"
	sql "$1" "SELECT pg_reload_conf()" >/dev/null
}

# A holder is stopped in the middle of its transaction, as by a long pause of its machine, and goes on
# after somebody else has been granted its lease.
paused_holder() {
	local pid epoch refused
	sql a "CREATE TABLE ledger (id int PRIMARY KEY, balance int)" >/dev/null
	sql a "INSERT INTO ledger VALUES (1, 100)" >/dev/null
	sql a "SELECT coord.protect_table('ledger', 'ledger')" >/dev/null
	sql a "SELECT format('%s holds the lease \"%s\" at epoch %s, for one second', holder, resource, epoch)
		FROM coord.lease_acquire('ledger', 'worker-1', '1 s')"
	coproc HOLDER { as_server psql -XAtq -h 127.0.0.1 -p "${port[a]}" -U postgres -d postgres 2>&1; }
	# Moved, not copied: psql ends when its last order has been given.
	exec {answers}<&"${HOLDER[0]}"- {orders}>&"${HOLDER[1]}"-
	echo "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_backend_pid() FROM ledger;" >&"$orders"
	read -r -t 20 pid <&"$answers" || failed "worker-1 begins its transaction"
	as_server kill -STOP "$pid"
	echo "worker-1 has begun to read, and is stopped (SIGSTOP)"
	echo "SELECT coord.fence_set('ledger', 1); UPDATE ledger SET balance = 0; COMMIT;" >&"$orders"
	exec {orders}>&-
	epoch=$(sql a "SELECT epoch FROM coord.lease_acquire('ledger', 'worker-2', '1 min', max_wait => '20 s')")
	echo "worker-2 is granted the lease at epoch $epoch, and writes"
	[[ $epoch == 2 ]] || failed "worker-2 has epoch 2"
	sql a "BEGIN; SELECT coord.fence_set('ledger', 2); UPDATE ledger SET balance = balance + 50; COMMIT" >/dev/null
	as_server kill -CONT "$pid"
	echo "worker-1 goes on, in its transaction, and wants to write what it read:"
	refused=$(cat <&"$answers")
	echo "$refused"
	exec {answers}<&-
	[[ $refused == *'stale fencing token 1 for lease "ledger"'* ]] || failed "worker-1 is refused"
	[[ $(sql a "SELECT balance FROM ledger") == 150 ]] || failed "what worker-2 wrote stays"
	echo "balance: $(sql a "SELECT balance FROM ledger")"
}

# said NODE N: waits until the node has N turns of the conversation.
said() {
	local deadline=$((SECONDS + 20))
	until [[ $(sql "$1" "SELECT count(*) FROM coord.transcript('trip')") == "$2" ]]; do
		((SECONDS < deadline)) || failed "$1 has $2 turns of the conversation"
		sleep 0.05
	done
}

# turn NODE ROLE CONTENT ARGUMENTS…: an agent there says something, and sees what was said before.
turn() {
	local told
	told=$(sql "$1" "SELECT coord.record_turn('personal', 'trip', '$2', '$3'${4:-}) ->> 'op_id'")
	echo "on $1, $2: $3 ($told)"
}

resumed_conversation() {
	local name
	turn a user "Is it warm enough to swim in Oslo?"
	said b 1
	turn b assistant "Let me look." ", '[{\"id\": \"call-1\", \"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}]'"
	said a 2
	turn a user "And in Rome?"
	said b 3
	turn b tool "Oslo: 19 degrees in the water" ", tool_use_id => 'call-1'"
	for name in "${nodes[@]}"; do said "$name" 4; done
	echo "c has heard all of it, and goes on with:"
	sql c "SELECT m FROM jsonb_array_elements(coord.resume('trip')) m"
	[[ $(sql c "SELECT string_agg(m ->> 'role', ' ') FROM jsonb_array_elements(coord.resume('trip')) m") == 'user assistant tool user' ]] ||
		failed "the late answer of the tool is where its call is"
	turn c assistant "Warm enough, for the brave."
	for name in "${nodes[@]}"; do said "$name" 5; done
	for name in "${nodes[@]}"; do sql "$name" "SELECT coord.node_name() || ' ' || coord.state_hash()"; done
	[[ $(for name in "${nodes[@]}"; do sql "$name" "SELECT coord.state_hash()"; done | sort -u | wc -l) == 1 ]] ||
		failed "the folded states are equal"
}

finish() {
	local status=$?
	if [[ -n ${KEEP:-} && $status -eq 0 ]]; then return; fi
	stop_all_servers
	if [[ $status -eq 0 ]]; then rm -rf "$work"; else echo "logs are kept in $work" >&2; fi
}

try_next() {
	step "To try next"
	if [[ -z ${KEEP:-} ]]; then echo "KEEP=1 make demo leaves the three servers running; then:"; fi
	local psql="$bindir/psql -h 127.0.0.1 -U postgres"
	cat <<-LINES
		  $psql -p ${port[a]} -c "SELECT coord.state_add_constraint('fleet', 'tidy-the-dock')"
		  $psql -p ${port[b]} -c "SELECT coord.constraint_ids(value) FROM coord.state WHERE name = 'fleet'"
		  $psql -p ${port[b]} -c "SELECT role, content FROM coord.transcript('trip')"
		  $psql -p ${port[c]} -c "SELECT * FROM coord.convergence" -c "SELECT * FROM coord.peer_status"
	LINES
	if [[ -n ${KEEP:-} ]]; then echo "Servers and logs are in $work."; fi
}

use_server
make_workdir
trap finish EXIT

step "Three PostgreSQL servers, one node each"
for name in "${nodes[@]}"; do start_node "$name"; done
join_mesh
echo "each knows the other two as peers"

step "Agents record on all three at once: 40 checks a node, each its own transaction"
record_at_once 40 a b c
agree a b c
show a b c
for name in a b c; do holds "$name" 120; done
back_up c
echo "a base backup of c is taken"

step "Node c is killed (SIGKILL); a and b go on"
kill_node c
killed=${EPOCHREALTIME/./}
record_at_once 40 a b
agree a b
show a b
for name in a b; do holds "$name" 200; done
for name in a b; do sees "$name" c dead; done
echo "c is dead to a and b, $(((${EPOCHREALTIME/./} - killed) / 1000)) ms after it was killed"
sql a "SELECT format('a says of its peer %s: %s; %s', peer, reason, last_error) FROM coord.peer_status WHERE state = 'dead'"

step "Node c comes back"
restart_node c
agree a b c
show a b c
holds c 200

step "Node c records 40 more, then loses its disk; it is restored from the old base backup"
record_at_once 40 c
agree a b c
kill_node c
restore c
restart_node c
agree a b c
record_at_once 40 c
agree a b c
show a b c
for name in a b c; do holds "$name" 280; done
sql c "SELECT format('c counts as %s since %s: %s', coord.node_actor(), date_trunc('second', at), reason)
	FROM coord.incarnation_log WHERE node = 'c' AND incarnation = 2 AND event = 'begun'"
[[ $(sql c "SELECT coord.node_actor()") == 'c#2' ]] || failed "c is in its second life"

step "a and b are cut from each other; c relays"
cut a b
cut b a
record_at_once 40 a b c
agree a b c
show a b c
for name in a b c; do holds "$name" 400; done
[[ $(sql b "SELECT count(*) FROM pg_stat_activity WHERE usename = 'node_a'") == 0 ]] || failed "a and b stay cut"
echo "no connection between a and b was open meanwhile"

step "The cut is healed; final digests"
heal a
heal b
agree a b c
for name in "${nodes[@]}"; do echo "$name $(digest "$name")"; done
[[ $(for name in "${nodes[@]}"; do digest "$name"; done | sort -u | wc -l) == 1 ]] || failed "the digests are equal"
sql a "SELECT coord.node_summary()"

step "A conversation: begun on a, answered on b, resumed on c"
resumed_conversation

step "On a, a holder of a lease is paused, superseded, and refused inside its own transaction"
paused_holder
echo
echo "Everything held: 400 checks recorded, 400 counted on every node, one conversation, and no stale write."
try_next
