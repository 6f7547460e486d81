#!/usr/bin/env bash
# Runs the tests, the servers among them on throw-away instances, and closes with one line:
# N passed, N failed. The extension must be installed (tests/tools/setup.sh).
#
#   tests/tools/test.sh                                    everything
#   STAGES="rules sql" tests/tools/test.sh                 these stages
#   STAGES=sql TESTS="clock crdt" tests/tools/test.sh      these files of sql, concurrency, mesh
#   STAGES=soak tests/tools/test.sh                        the long mesh tests, which are not in everything
#   STAGES=matrix                                          those of several versions; see matrix.sh
#
# A failing stage does not keep the next ones from running.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly extension=pg_test
readonly all_stages="fmt clippy rules sql concurrency mesh"
# Such a test has deadlines of its own; this one, in seconds, stops a test that forgot.
readonly mesh_limit=900 soak_limit=7200

passed=0
failed=0

# count STAGE PASSED FAILED
count() {
	passed=$((passed + $2))
	failed=$((failed + $3))
	printf -- '-- %s: %s passed, %s failed, %s s\n' "$1" "$2" "$3" "$((SECONDS - stage_start))"
}

# The names of a stage's files, without folder and suffix; only those in TESTS when that is set.
names() {
	local file name LC_ALL=C
	for file in "$1"/*"$2"; do
		name=$(basename "$file" "$2")
		if [[ -e $file && (-z ${TESTS:-} || " $TESTS " == *" $name "*) ]]; then echo "$name"; fi
	done
}

# ---- source

# One command, one test.
stage_check() {
	local stage=$1
	shift
	if "$@"; then count "$stage" 1 0; else count "$stage" 0 1; fi
}

# The sum over cargo's lines "test result: ok. 12 passed; 0 failed; ...".
cargo_sum() {
	sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

stage_rules() {
	local log=$work/rules.log status=0 good bad
	CARGO_TERM_COLOR=never cargo test --no-default-features --features "$feature" --tests --no-fail-fast 2>&1 |
		tee "$log" || status=$?
	good=$(cargo_sum passed "$log")
	bad=$(cargo_sum failed "$log")
	# A build that fails or a test program that crashes has no result line, but still fails.
	if ((status != 0 && bad == 0)); then bad=1; fi
	if ((good + bad == 0)) && grep -rqF '#[test]' src; then
		note "rules: there are tests, and none ran"
		bad=1
	fi
	count rules "$good" "$bad"
}

# ---- SQL and concurrency: pg_regress and its sibling for isolation specs

# stage_regress STAGE TOOL FOLDER SUBFOLDER SUFFIX
stage_regress() {
	local stage=$1 tool=$2 folder=$work/tests/$3 log=$work/$1.log status=0 list name good bad
	mapfile -t list < <(names "$folder/$4" "$5")
	if ((${#list[@]} == 0)); then
		echo "-- $stage: no tests"
		return
	fi
	# Without an expected file the tool gives up on all that follows; with an empty one it shows
	# what a new test printed.
	as_server mkdir -p "$folder/expected"
	for name in "${list[@]}"; do as_server touch "$folder/expected/$name.out"; done

	# Nothing here survives a crash of the machine, so nothing needs to reach its disk.
	if start_server "$stage" "
		fsync = off
		shared_preload_libraries = '$extension'
		wal_level = logical
		max_prepared_transactions = 10
		max_worker_processes = 32"; then
		as_server "$pg_tests/$tool" --bindir="$bindir" --host="$work/$stage/socket" --port=5432 --user=postgres \
			--inputdir="$folder" --outputdir="$work/$stage" --load-extension="$extension" "${list[@]}" 2>&1 |
			tee "$log" || status=$?
		stop_server "$stage" || status=$?
	else
		status=1
		: >"$log"
	fi

	# PostgreSQL 15 says "test clock ... ok", later ones "ok 1 - clock". What is not ok has failed,
	# also when the tool gave up before it.
	good=$(grep -cE '^(test [^ ]+ +\.\.\. ok |ok [0-9]+ )' "$log" || true)
	bad=$((${#list[@]} - good))
	# Workers crash beside the tests.
	if grep -qsE 'was terminated by signal|PANIC: ' "$work/$stage/server.log"; then
		note "$stage: a server process crashed"
		status=1
	fi
	if ((status != 0 && bad == 0)); then bad=1; fi
	if ((bad > 0)); then
		if [[ -e $work/$stage/regression.diffs ]]; then cat "$work/$stage/regression.diffs"; fi
		echo "-- $stage: end of the server's log"
		tail -n 40 "$work/$stage/server.log" || true
	fi
	count "$stage" "$good" "$bad"
}

# ---- mesh and soak: several real servers

# What earlier versions installed: updates begin with it.
install_earlier_versions() {
	local file folder
	folder=$("$pg_config" --sharedir)/extension
	for file in tests/upgrade/"$extension"--*.sql; do
		if ! cmp -s "$file" "$folder/$(basename "$file")"; then as_installer install -m 644 "$file" "$folder/"; fi
	done
}

# Prints a folder on a file system that is easily full; nothing where none can be mounted.
small_disk() {
	local dir=$work/small
	mkdir "$dir"
	if as_root mount -t tmpfs -o size=96m,mode=777 tmpfs "$dir" 2>/dev/null; then
		echo "$dir"
	else
		rmdir "$dir"
	fi
}

# stage_tap STAGE LIMIT: the folder is named as the stage; the limit is in seconds a file.
stage_tap() {
	local stage=$1 limit=$2 disk list name log status good=0 bad=0 not_ok
	mapfile -t list < <(names "$work/tests/$stage" .pl)
	if ((${#list[@]} == 0)); then
		echo "-- $stage: no tests"
		return
	fi
	as_server mkdir -p "$work/$stage/tmp_check/log"
	disk=$(small_disk)
	install_earlier_versions
	for name in "${list[@]}"; do
		log=$work/$stage-$name.log
		status=0
		# PostgreSQL 15 knows TESTDIR, later ones TESTDATADIR and TESTLOGDIR.
		as_server env PG_REGRESS="$pg_tests/regress/pg_regress" PERL5LIB="$pg_tests/perl:$work/tests/mesh/lib" \
			TESTDIR="$work/$stage" TESTDATADIR="$work/$stage/tmp_check" TESTLOGDIR="$work/$stage/tmp_check/log" \
			SMALL_DISK="$disk" \
			timeout --kill-after=30 "$limit" prove --verbose "$work/tests/$stage/$name.pl" 2>&1 |
			tee "$log" || status=$?
		stop_all_servers
		# Subtests are indented; each counts as the one test that it is to the file.
		good=$((good + $(awk '/^ok [0-9]/ && !/# skip/ { n++ } END { print n + 0 }' "$log")))
		not_ok=$(awk '/^not ok [0-9]/ && !/# TODO/ { n++ } END { print n + 0 }' "$log")
		# A file also fails by dying, by the time limit, or by running other tests than planned.
		if ((status != 0 && not_ok == 0)); then not_ok=1; fi
		bad=$((bad + not_ok))
		if ((status == 124 || status == 137)); then note "$stage: $name.pl was stopped after $limit s"; fi
		if ((not_ok > 0)); then
			# Here Cluster.pm collects what a test prints, also why it died. The servers' logs, which
			# the test closes with, are on the screen already.
			echo "-- $stage: what $name.pl did at the end"
			sed '/---- end of the log of node/,$d' "$work/$stage/tmp_check/log/regress_log_$name" | tail -n 40 || true
		fi
	done
	if [[ -n $disk ]]; then
		as_root umount "$disk"
		rmdir "$disk"
	fi
	if ((good + bad == 0)); then
		note "$stage: there are tests, and none ran"
		bad=1
	fi
	count "$stage" "$good" "$bad"
}

# ---- all

run_stage() {
	stage_start=$SECONDS
	echo "== $1"
	case $1 in
	fmt) stage_check fmt cargo fmt --check ;;
	clippy) stage_check clippy cargo clippy --all-targets --no-default-features --features "$feature" -- -D warnings ;;
	rules) stage_rules ;;
	sql) stage_regress sql regress/pg_regress pg_regress sql .sql ;;
	concurrency) stage_regress concurrency isolation/pg_isolation_regress isolation specs .spec ;;
	mesh) stage_tap mesh "$mesh_limit" ;;
	soak) stage_tap soak "$soak_limit" ;;
	matrix) stage_tap matrix "$mesh_limit" ;;
	*) die "no stage $1; there are: $all_stages, and soak, matrix" ;;
	esac
}

clean_up() {
	trap - EXIT
	stop_all_servers
	if ((failed == 0 && passed > 0)); then
		rm -rf "$work"
	else
		echo "-- logs and results are in $work"
	fi
}

use_server
make_workdir
trap 'failed=1; clean_up' EXIT
for stage in ${STAGES:-$all_stages}; do run_stage "$stage"; done
clean_up
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
