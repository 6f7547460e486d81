#!/usr/bin/env bash
# Measures, always against something else in the same run, and prints the table of the README.
# Rounds are interleaved and medians taken: the machine is shared, so only ratios mean anything.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly rounds=15 lease_rounds=${LEASE_ROUNDS:-40} log_turns=${LOG_TURNS:-1000000}

start_node() {
	port[$1]=$(free_port)
	start_server "$1" "listen_addresses = '127.0.0.1'
		port = ${port[$1]}
		shared_preload_libraries = 'pg_test'
		wal_level = logical
		shared_buffers = 1GB # a table above a quarter of it is read through a ring, past the cache
		autovacuum = off
		max_parallel_workers_per_gather = 0
		jit = off"
	sql "$1" "CREATE EXTENSION pg_test" >/dev/null
	sql "$1" "SELECT coord.node_init('$1')" >/dev/null
}

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# compare NAME=QUERY…: median milliseconds over interleaved rounds, in the array `took`. All in one
# session: a new one would pay for mapping every page of the table again, and drown the difference.
declare -A took
compare() {
	local round pair script='' times index=0
	for ((round = 0; round < rounds; round++)); do
		for pair in "$@"; do script+="EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) ${pair#*=};"; done
	done
	times=$(sql "${compare_on:-a}" "$script" | sed -nE 's/^Execution Time: (.*) ms$/\1/p')
	for pair in "$@"; do
		took[${pair%%=*}]=$(awk -v of=$# -v nth=$index '(NR - 1) % of == nth' <<<"$times" | median)
		index=$((index + 1))
	done
}

calc() { awk "BEGIN { printf \"%.3g\", $1 }"; }

# row WHAT MEASURED BAR
row() { printf '| %s | %s | %s |\n' "$1" "$2" "$3"; }

# clocks_of N: two clocks of N actors as an SQL expression, every second counter ahead on either side.
clocks_of() {
	local side
	for side in 0 1; do
		printf "(SELECT format('{%%s}', string_agg(format('\"actor%%s\":%%s', lpad(n::text, 5, '0'), n + 1 + (n + %s) %% 2), ','))::coord.vclock FROM generate_series(0, %s) n) AS %s\n" \
			"$side" $(($1 - 1)) "$([[ $side == 0 ]] && echo a, || echo b)"
	done
}

make_clocks() {
	sql a "CREATE TABLE clocks AS SELECT c.* FROM (SELECT $(clocks_of 16)) c, generate_series(1, $1) i"
	sql a "CREATE TABLE jsonb_clocks AS SELECT a::jsonb, b::jsonb FROM clocks LIMIT 2000"
	sql a "VACUUM ANALYZE clocks"
	sql a "VACUUM ANALYZE jsonb_clocks"
}

# What a user writes without the extension.
make_jsonb_merge() {
	sql a "CREATE FUNCTION jsonb_merge(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
		'SELECT jsonb_object_agg(k, greatest((a->>k)::bigint, (b->>k)::bigint))
		   FROM (SELECT jsonb_object_keys(a) UNION SELECT jsonb_object_keys(b)) u(k)'"
}

# Clocks of 256 actors do not fit a page: they are held in memory, so that no toasting is measured.
bench_clocks() {
	local rows=200000 large=20000
	local from256="(SELECT $(clocks_of 256) OFFSET 0) c, generate_series(1, $large)"
	make_jsonb_merge
	make_clocks $rows
	compare "scan=SELECT count(a), count(b) FROM clocks" \
		"bytea=SELECT count(a::bytea || b::bytea) FROM clocks" \
		"merge=SELECT count(a OPERATOR(coord.||) b) FROM clocks" \
		"jsonb_scan=SELECT count(a), count(b) FROM jsonb_clocks" \
		"jsonb=SELECT count(jsonb_merge(a, b)) FROM jsonb_clocks" \
		"scan256=SELECT count(a), count(b) FROM $from256" \
		"merge256=SELECT count(a OPERATOR(coord.||) b) FROM $from256"
	local merge bytea jsonb merge256
	merge=$(calc "(${took[merge]} - ${took[scan]}) / $rows * 1e6")
	bytea=$(calc "(${took[bytea]} - ${took[scan]}) / $rows * 1e6")
	jsonb=$(calc "(${took[jsonb]} - ${took[jsonb_scan]}) / 2000 * 1e6")
	merge256=$(calc "(${took[merge256]} - ${took[scan256]}) / $large * 1e6")
	row "\`vclock\` merge, 16 entries, 200 000 rows: against \`bytea \|\| bytea\` of the same sizes" \
		"$merge / $bytea ns = $(calc "$merge / $bytea")" "≤ 3"
	row "… how much faster than the merge in SQL over jsonb" "$jsonb / $merge ns = $(calc "$jsonb / $merge")" "≥ 100"
	row "… against the crate \`crdts\` in memory" "$merge / ${crate[crdts_16]} ns = $(calc "$merge / ${crate[crdts_16]}")" "≤ 0.25"
	row "the same, 256 entries, against \`crdts\`" "$merge256 / ${crate[crdts_256]} ns = $(calc "$merge256 / ${crate[crdts_256]}")" "≤ 0.2"
}

bench_states() {
	sql a "CREATE TABLE states AS
		WITH chain AS (
			WITH RECURSIVE l(n, s) AS (
				SELECT 0, coord.constraint_state()
				UNION ALL SELECT n + 1, coord.constraint_add(s, format('constraint%s', lpad(n::text, 2, '0')), 'a') FROM l WHERE n < 25)
			SELECT s FROM l WHERE n = 25),
		sides AS (
			WITH RECURSIVE r(n, x, y) AS (
				SELECT 25, s, s FROM chain
				UNION ALL SELECT n + 1, coord.constraint_add(x, format('constraint%s', n), 'a'),
				                        coord.constraint_add(y, format('constraint%s', n + 25), 'b') FROM r WHERE n < 50)
			SELECT x, y FROM r WHERE n = 50)
		SELECT x, y FROM sides, generate_series(1, 50000)"
	sql a "VACUUM ANALYZE states"
	compare "scan=SELECT count(x::bytea), count(y::bytea) FROM states" \
		"merge=SELECT count(x OPERATOR(coord.||) y) FROM states"
	local merge
	merge=$(calc "(${took[merge]} - ${took[scan]}) / 50000 * 1e6")
	row "\`constraint_state\` merge, 50 + 50 with 25 shared: against the crate \`constraint-crdt\` 0.4 in memory" \
		"$merge / ${crate[constraint_crdt]} ns = $(calc "$merge / ${crate[constraint_crdt]}")" "≤ 0.333"
}

bench_aggregate() {
	sql a "CREATE TABLE events AS
		SELECT format('{\"a\":%s,\"b\":%s,\"c\":%s,\"d\":%s}', 1 + i % 97, 1 + i % 89, 1 + i % 83, 1 + i / 10)::coord.vclock AS clock,
		       md5(i::text) AS text
		  FROM generate_series(1, 1000000) i"
	sql a "VACUUM ANALYZE events"
	compare "max=SELECT max(text) FROM events" "agg=SELECT coord.vclock_merge_agg(clock) FROM events"
	row "\`vclock_merge_agg\` over 1 million rows, 4 actors: against \`max(text)\` over the same table" \
		"${took[agg]} / ${took[max]} ms = $(calc "${took[agg]} / ${took[max]}")" "≤ 3"
}

join_nodes() {
	local other
	for name in a b; do
		other=$([[ $name == a ]] && echo b || echo a)
		sql "$name" "SELECT coord.add_peer('$other', 'host=127.0.0.1 port=${port[$other]} dbname=postgres user=postgres')" >/dev/null
	done
}

# wait_for NODE CONDITION
wait_for() {
	local try
	for ((try = 0; try < 600; try++)); do
		if [[ $(sql "$1" "SELECT $2") == t ]]; then return; fi
		sleep 0.1
	done
	die "$1 did not reach: $2"
}

bench_latency() {
	local name conninfo_a conninfo_b
	for name in a b; do
		sql "$name" "CREATE TABLE trickle (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)"
		sql "$name" "CREATE TABLE bare_op (LIKE coord.op INCLUDING DEFAULTS INCLUDING INDEXES)"
	done
	sql a "CREATE PUBLICATION trickle FOR TABLE trickle, bare_op"
	sql b "CREATE SUBSCRIPTION trickle CONNECTION 'host=127.0.0.1 port=${port[a]} dbname=postgres user=postgres' PUBLICATION trickle" 2>/dev/null
	wait_for b "count(*) = 4 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel"
	wait_for b "EXISTS (SELECT FROM coord.stream_status WHERE direction = 'in' AND state = 'streaming')"
	conninfo_a="host=127.0.0.1 port=${port[a]} dbname=postgres user=postgres"
	conninfo_b="host=127.0.0.1 port=${port[b]} dbname=postgres user=postgres"
	local -A p50=()
	local what p99
	while read -r what median p99; do p50[$what]="$median"; done \
		< <("$examples/latency" "$conninfo_a" "$conninfo_b" 500)
	row "\`state_record_satisfied\` on a to visible on b, trickle, p50: against insert to apply of plain logical replication" \
		"${p50[gossip]} / ${p50[replication]} µs = $(calc "${p50[gossip]} / ${p50[replication]}")" "≤ 10"
	row "\`record_turn\` on a to visible in \`coord.turn\` on b by a stream, trickle, p50: against the same row in a bare table by plain logical replication" \
		"${p50[stream]} / ${p50[operations]} µs = $(calc "${p50[stream]} / ${p50[operations]}")" "≤ 2"
	sql b "DROP SUBSCRIPTION trickle" 2>/dev/null
	sql a "DROP PUBLICATION trickle"
	# What follows is about gossip.
	for name in a b; do
		sql "$name" "ALTER SYSTEM SET coord.streaming = off"
		sql "$name" "SELECT pg_reload_conf()" >/dev/null
		wait_for "$name" "count(*) = 0 FROM pg_replication_slots"
	done
}

# Statements that reach b, counted in its log, per round that a began.
bench_idle_round() {
	wait_for a "bool_and(converged) FROM coord.convergence"
	sql b "SELECT coord.remove_peer('a')" >/dev/null
	sql a "ALTER SYSTEM SET coord.gossip_interval = '50ms'"
	sql a "SELECT pg_reload_conf()" >/dev/null
	wait_for a "bool_and(converged) FROM coord.convergence"
	sql b "ALTER SYSTEM SET log_min_duration_statement = 0"
	sql b "ALTER SYSTEM SET log_line_prefix = '%a|'"
	sql b "SELECT pg_reload_conf()" >/dev/null
	sleep 0.5
	local before after lines_before lines_after wal_before wal_after
	sql b "CHECKPOINT"
	before=$(sql a "SELECT rounds FROM coord.peer_status")
	lines_before=$(grep -c 'pg_test gossip|.*execute' "$work/b/server.log" || true)
	wal_before=$(sql b "SELECT pg_current_wal_insert_lsn()")
	sleep 3
	wal_after=$(sql b "SELECT pg_current_wal_insert_lsn()")
	lines_after=$(grep -c 'pg_test gossip|.*execute' "$work/b/server.log" || true)
	after=$(sql a "SELECT rounds FROM coord.peer_status")
	row "round with nothing to say: statements per peer; bytes of WAL over $((after - before)) rounds" \
		"$(calc "($lines_after - $lines_before) / ($after - $before)"); $(sql b "SELECT '$wal_after'::pg_lsn - '$wal_before'::pg_lsn")" "≤ 2; 0"
	sql b "ALTER SYSTEM RESET ALL"
	sql b "SELECT pg_reload_conf()" >/dev/null
}

# Bytes that a sends for ten changed states, among few and among many.
bytes_for_ten() {
	sql a "SELECT coord.state_record_satisfied('bulk' || i, 1) FROM generate_series(1, $1) i" >/dev/null
	wait_for a "bool_and(converged) FROM coord.convergence"
	local before
	before=$(sql a "SELECT bytes_out FROM coord.peer_status")
	sql a "SELECT coord.state_record_satisfied('bulk' || i, 1) FROM generate_series(1, 10) i" >/dev/null
	wait_for a "bool_and(converged) FROM coord.convergence"
	echo $(($(sql a "SELECT bytes_out FROM coord.peer_status") - before))
}

bench_bytes() {
	sql a "ALTER SYSTEM SET coord.gossip_interval = '1h'"
	sql a "SELECT pg_reload_conf()" >/dev/null
	sleep 0.5
	local few many
	few=$(bytes_for_ten 10)
	many=$(bytes_for_ten 10000)
	row "10 changed states: bytes sent among 10 000 states against among 10" "$many / $few = $(calc "$many / $few")" "about 1"
}

# What a user writes without the extension: a table of leases, and a trigger that keeps the lease's row
# locked until the writer ends.
make_leases() {
	sql l "CREATE TABLE bare (resource text PRIMARY KEY, holder text, epoch bigint, expires_at timestamptz) WITH (fillfactor = 70)"
	sql l "INSERT INTO bare SELECT 'own' || i, 'a', 1, now() + '1 day' FROM generate_series(0, 31) i"
	sql l "INSERT INTO bare VALUES ('ledger', 'a', 1, now() + '1 day')"
	sql l "SELECT count(coord.lease_acquire(r, 'a', '1 day')) FROM (SELECT 'own' || i AS r FROM generate_series(0, 31) i) o" >/dev/null
	sql l "SELECT coord.lease_acquire('ledger', 'a', '1 day')" >/dev/null
	sql l "SELECT coord.lease_acquire('busy', 'a', '1 day')" >/dev/null
	local table
	for table in plain protected by_hand slow; do
		sql l "CREATE TABLE $table (id int PRIMARY KEY, n int, epoch bigint) WITH (fillfactor = 50)"
		sql l "INSERT INTO $table SELECT i, 0, 1 FROM generate_series(0, 10000) i"
	done
	sql l "SELECT coord.protect_table('protected', 'ledger', epoch_column => 'epoch')" >/dev/null
	sql l "CREATE FUNCTION by_hand() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM FROM bare WHERE resource = 'ledger' AND epoch = NEW.epoch AND expires_at > clock_timestamp() FOR SHARE;
			IF NOT FOUND THEN RAISE check_violation; END IF;
			RETURN NEW;
		END \$\$"
	sql l "CREATE TRIGGER by_hand BEFORE UPDATE ON by_hand FOR EACH ROW EXECUTE FUNCTION by_hand()"
	# A writer under whatever grant is current, with a row of its own; one that comes between two grants is refused.
	sql l "CREATE FUNCTION work_for_50ms() RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM coord.fence_set('handed', (SELECT epoch FROM coord.lease_current('handed')));
			UPDATE slow SET n = n + 1 WHERE id = pg_backend_pid() % 10000;
			PERFORM pg_sleep(0.05);
		EXCEPTION WHEN check_violation THEN
			NULL;
		END \$\$"
	sql l "SELECT coord.lease_acquire('handed', 'a', '1 day')" >/dev/null
	sql l "VACUUM ANALYZE"
}

# scripts_of FOLDER: sets scripts to a copy. The checkout may lie where the server's user cannot enter.
scripts_of() {
	local script
	scripts=$work/$1
	as_server mkdir "$scripts"
	for script in tests/bench/"$1"/*.sql; do
		as_server tee "$scripts/$(basename "$script")" <"$script" >/dev/null
	done
}

# run_pgbench SCRIPT CLIENTS: until it is told by SIGALRM that its time is up. Its process is in SCRIPT.pid.
run_pgbench() {
	as_server bash -c 'echo $$ >"$1.pid"; shift; exec "$@"' - "$work/$1" \
		pgbench -n -M "${protocol:-prepared}" -c "$2" -j 2 -T 1000000 -f "$scripts/$1.sql" \
		-h 127.0.0.1 -p "${port[l]}" -U postgres postgres >"$work/$1.out" 2>/dev/null &
}

# interleaved CLIENTS SCRIPT…: transactions a second, in the array `took`. All keep their sessions, and go on by turns
# of half a second: new ones would first map shared memory and fill their caches, and the disk has its moods.
interleaved() {
	local clients=$1 round script begun count
	local -A runner=() pid=() active=()
	shift
	for script in "$@"; do
		run_pgbench "$script" "$clients"
		runner[$script]=$!
		until [[ -s $work/$script.pid ]]; do sleep 0.05; done
		pid[$script]=$(<"$work/$script.pid")
		sleep 1
		kill -STOP "${pid[$script]}"
		active[$script]=1000000
	done
	for ((round = 0; round < lease_rounds; round++)); do
		for script in "$@"; do
			begun=${EPOCHREALTIME/./}
			kill -CONT "${pid[$script]}"
			sleep 0.5
			kill -STOP "${pid[$script]}"
			active[$script]=$((active[$script] + ${EPOCHREALTIME/./} - begun))
		done
	done
	for script in "$@"; do kill -ALRM "${pid[$script]}"; done
	# Who started it has stopped with it, where that is another process.
	for script in "$@"; do
		kill -CONT "${pid[$script]}"
		pkill -CONT -P "${runner[$script]}" || true
	done
	wait
	for script in "$@"; do
		count=$(sed -nE 's/^number of transactions actually processed: ([0-9]+).*/\1/p' "$work/$script.out")
		took[$script]=$((count * 1000000 / active[$script]))
		rm -f "$work/$script.pid" "$work/$script.out"
	done
}

# percentile_beside PART SCRIPT RATE OTHERS: the percentile (0.99; 1 for the longest) of what one client takes
# for the script, so many times a second, in milliseconds, while 8 clients run the others.
percentile_beside() {
	local log=$work/latencies
	as_server pgbench -n -c 8 -j 1 -T 4 -f "$scripts/$4.sql" -h 127.0.0.1 -p "${port[l]}" -U postgres postgres >/dev/null 2>&1 &
	sleep 0.5
	as_server pgbench -n -M prepared -c 1 -T 3 -R "$3" -l --log-prefix="$log" -f "$scripts/$2.sql" \
		-h 127.0.0.1 -p "${port[l]}" -U postgres postgres >/dev/null 2>&1
	wait $!
	awk '{ print $3 / 1000 }' "$log".* | sort -n | awk -v part="$1" '{ v[NR] = $1 } END { print v[int(NR * part)] }'
	as_server bash -c "rm -f '$log'.*"
}

bench_leases() {
	local clients before after
	start_node l
	wait_for l "coord.lease_memory_is_open()"
	make_leases
	scripts_of lease
	for clients in 8 32; do
		interleaved "$clients" acquire_bare acquire
		row "\`lease_try_acquire\` of 10 000 resources, $clients clients: against the bare \`INSERT … ON CONFLICT … WHERE\`" \
			"${took[acquire]} / ${took[acquire_bare]} per s = $(calc "${took[acquire]} / ${took[acquire_bare]}")" "≥ 0.9"
		interleaved "$clients" hot_bare hot
		row "… of one hot resource, $clients clients" \
			"${took[hot]} / ${took[hot_bare]} per s = $(calc "${took[hot]} / ${took[hot_bare]}")" "≥ 0.9"
		interleaved "$clients" renew_bare renew
		row "\`lease_renew\`, $clients clients: against a durable \`UPDATE\`" \
			"${took[renew]} / ${took[renew_bare]} per s = $(calc "${took[renew]} / ${took[renew_bare]}")" "≥ 2.5"
		interleaved "$clients" update_plain update_protected update_trigger
		row "\`UPDATE\` of a protected table, $clients clients: against an unprotected one (a PL/pgSQL trigger with \`FOR SHARE\`: $(calc "${took[update_trigger]} / ${took[update_plain]}"))" \
			"${took[update_protected]} / ${took[update_plain]} per s = $(calc "${took[update_protected]} / ${took[update_plain]}")" "≥ 0.9"
	done
	local beside without
	without=$(percentile_beside 0.99 heartbeat 100 idle_50ms)
	beside=$(percentile_beside 0.99 heartbeat 100 write_50ms)
	row "heartbeat while 8 writers of 50 ms are in flight under the lease, p99: against 8 that write under none" \
		"$beside / $without ms = $(calc "$beside / $without")" "≤ 2"
	local longest writer
	longest=$(percentile_beside 1 takeover 8 work_50ms)
	writer=$(percentile_beside 1 work_50ms 8 work_50ms)
	row "takeover from 8 writers of 50 ms in flight: the longest, against the longest writer beside them" \
		"$longest / $writer ms = $(calc "$longest / $writer")" "about 1"
	local updates="SELECT n_tup_upd FROM pg_stat_all_tables WHERE relid = 'coord.lease'::regclass"
	local updated
	updated=$(sql l "$updates")
	before=$(sql l "SELECT pg_current_wal_insert_lsn()")
	sql l "SELECT count(coord.lease_renew('own0', 'a', 1, '1 h')) FROM generate_series(1, 100000)" >/dev/null
	after=$(sql l "SELECT pg_current_wal_insert_lsn()")
	row "100 000 renewals: bytes of WAL; dead tuples" \
		"$(sql l "SELECT '$after'::pg_lsn - '$before'::pg_lsn"); $(($(sql l "$updates") - updated))" "0; 0"
	stop_server l
}

# The same rows in a table with the same indexes, and nothing made of them.
make_log() {
	sql l "CREATE SEQUENCE bare_seq"
	sql l "CREATE TABLE bare (
		origin text COLLATE \"C\" NOT NULL DEFAULT 'l', seq bigint NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
		local_xid xid8 NOT NULL DEFAULT pg_current_xact_id(), hlc coord.hlc NOT NULL DEFAULT coord.hlc_now(),
		op_id text COLLATE \"C\" NOT NULL, scope text COLLATE \"C\" NOT NULL DEFAULT 'personal',
		surface text COLLATE \"C\" NOT NULL DEFAULT 'conversation', payload jsonb NOT NULL,
		recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), tenant_id uuid, PRIMARY KEY (origin, seq))"
	sql l "CREATE INDEX ON bare (op_id)"
	sql l "CREATE INDEX ON bare (local_xid, seq)"
}

# Statements with a thousand rows in them, as a client sends them.
make_batches() {
	local payload="format('{\"conversation_id\": \"c%s\", \"role\": \"user\", \"content\": \"The fjord is cold, and the sun is not out yet.\"}', i)"
	sql l "SELECT 'SELECT jsonb_array_length(coord.op_append_many(''[' || string_agg('{\"scope\": \"personal\", \"surface\": \"conversation\", \"payload\": ' || $payload || '}', ', ') || ']''));'
		FROM generate_series(1, 1000) i" | as_server tee "$scripts/batch.sql" >/dev/null
	sql l "SELECT 'INSERT INTO bare (seq, op_id, payload) VALUES ' || string_agg(format('(nextval(''bare_seq''), ''op-%s'', ''%s'')', md5(i::text), $payload), ', ') || ';'
		FROM generate_series(1, 1000) i" | as_server tee "$scripts/batch_bare.sql" >/dev/null
}

# A long log, but for the operations: turns alone are read.
make_turns() {
	sql l "INSERT INTO coord.turn SELECT 'personal', 'long' || i % ($log_turns / 1000), coord.hlc('2026-01-01 00:00+00'::timestamptz + i * interval '10 ms', 0),
		'op-' || md5(i::text), 'l', 'user', 'The fjord is cold, and the sun is not out yet.', NULL, NULL, now() FROM generate_series(1, $log_turns) i"
	sql l "SELECT coord.fold_digest_compact()" >/dev/null
	sql l "VACUUM ANALYZE coord.turn, coord.fold_digest"
}

bench_log() {
	start_node l
	make_log
	scripts_of oplog
	make_batches
	sql l "VACUUM ANALYZE"
	interleaved 8 append_bare append
	row "\`op_append\`, 8 clients: against the bare \`INSERT\` of the same row into a table with the same indexes" \
		"${took[append]} / ${took[append_bare]} per s = $(calc "${took[append]} / ${took[append_bare]}")" "≥ 0.6"
	protocol=simple interleaved 1 batch_bare batch
	row "\`op_append_many\` of 1 000: against the bare \`INSERT\` of 1 000 rows" \
		"${took[batch]} / ${took[batch_bare]} per s = $(calc "${took[batch]} / ${took[batch_bare]}")" "≥ 0.7"
	sql l "SELECT coord.fold_digest_compact()" >/dev/null
	sql l "VACUUM coord.fold_digest"
	compare_on=l compare "short=SELECT coord.state_hash()"
	local short=${took[short]}
	make_turns
	compare_on=l compare "bare=SELECT * FROM coord.turn WHERE conversation_id = 'long7' ORDER BY hlc, op_id LIMIT 1000" \
		"transcript=SELECT * FROM coord.transcript('long7', max => 1000)" "long=SELECT coord.state_hash()"
	row "\`transcript\` of 1 000 turns among $log_turns: against the bare ordered \`SELECT\`" \
		"${took[transcript]} / ${took[bare]} ms = $(calc "${took[transcript]} / ${took[bare]}")" "≤ 2"
	row "\`state_hash\` with $log_turns turns more: against before" "${took[long]} / $short ms = $(calc "${took[long]} / $short")" "about 1"
	stop_server l
}

use_server
make_workdir
trap 'stop_all_servers; rm -rf "$work"' EXIT
note "building the programs to measure against"
cargo build --release --quiet --examples --no-default-features --features "$feature"
examples=$root/target/release/examples
declare -A crate
while read -r name value; do crate[$name]=$value; done < <("$examples/in_memory")
for name in a b; do start_node "$name"; done

printf '| what | measured | bar |\n|---|---|---|\n'
if [[ -z ${BENCH:-} || $BENCH == leases ]]; then bench_leases; fi
if [[ -z ${BENCH:-} || $BENCH == log ]]; then bench_log; fi
if [[ ${BENCH:-} == latency ]]; then
	join_nodes
	bench_latency
fi
if [[ -n ${BENCH:-} ]]; then exit; fi
bench_clocks
bench_states
bench_aggregate
join_nodes
bench_latency
bench_bytes
bench_idle_round
