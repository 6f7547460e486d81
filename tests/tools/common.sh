# shellcheck shell=bash
# Sourced by the scripts beside it: which server, which user runs it, throw-away instances.

# What is installed and copied must be readable for the user the servers run as.
umask 022

# cargo is often installed without being in the PATH of a non-interactive shell.
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# The caller's connection settings must not lead a test to another server.
unset PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGSERVICE PGSERVICEFILE \
	PGOPTIONS PGAPPNAME PGDATA PGSSLMODE PGREQUIRESSL PGCLIENTENCODING PGTZ PGDATESTYLE PG_COLOR

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root

# A server started with it would append Rust backtraces to the DETAIL of errors.
unset RUST_BACKTRACE

# Where Debian and Ubuntu put each major version.
readonly debian_pg=/usr/lib/postgresql

note() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

die() {
	note "$*"
	exit 1
}

as_root() {
	if [[ $EUID -eq 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root or sudo: $*"
	fi
}

# Prints the major version of a pg_config: 15, ..., 18.
major_of() {
	"$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'
}

is_supported() { [[ $1 =~ ^1[5-8]$ ]]; }

# Prints the pg_config to use, or fails when there is none yet. What the user chose is taken even
# when it is too old or too new, so that use_server can say so.
find_pg_config() {
	local config=${PG_CONFIG:-} major bindir
	for major in 18 17 16 15; do
		if [[ -z $config && -x $debian_pg/$major/bin/pg_config ]]; then
			config=$debian_pg/$major/bin/pg_config
		fi
	done
	config=$(command -v -- "${config:-pg_config}") || return 1
	# Debian's /usr/bin/pg_config only forwards, and may forward elsewhere tomorrow.
	bindir=$("$config" --bindir 2>/dev/null) || return 1
	if [[ -x $bindir/pg_config ]]; then config=$bindir/pg_config; fi
	[[ -n ${PG_CONFIG:-} ]] || is_supported "$(major_of "$config")" || return 1
	echo "$config"
}

# Prints the folder of the test tools that came with the server of a pg_config.
test_tools_of() {
	(cd "$(dirname "$("$1" --pgxs)")/.." && echo "$PWD/test")
}

# Sets pg_config, feature, bindir and pg_tests (PostgreSQL's own test tools). PG_TEST_TOOLS names those
# of another server, for one that comes without: they run the tests of any version.
use_server() {
	if [[ -n ${pg_config:-} ]]; then return; fi
	pg_config=$(find_pg_config) || die "no working pg_config${PG_CONFIG:+ at $PG_CONFIG}: run tests/tools/setup.sh"
	local major
	major=$(major_of "$pg_config")
	is_supported "$major" || die "$pg_config is of PostgreSQL $major; 15 to 18 are supported"
	feature=pg$major
	bindir=$("$pg_config" --bindir)
	pg_tests=${PG_TEST_TOOLS:-$(test_tools_of "$pg_config")}
	# shellcheck disable=SC2034 # used by the scripts that source this one
	readonly pg_config feature bindir pg_tests
}

# Whoever may write the server's folders installs directly, root or the owner of a private server.
as_installer() {
	if [[ -w $("$pg_config" --pkglibdir) && -w $("$pg_config" --sharedir)/extension ]]; then
		"$@"
	else
		as_root "$@"
	fi
}

# Makes the work folder $work, which belongs to the user the servers run as: PostgreSQL refuses to
# run as root, and that user may not be able to enter the checkout.
make_workdir() {
	server_user=$(id -un)
	if [[ $EUID -eq 0 ]]; then
		server_user=postgres
		if ! id -u "$server_user" >/dev/null 2>&1; then server_user=nobody; fi
	fi
	work=$(mktemp -d "${TMPDIR:-/tmp}/pg_test.XXXXXX")
	readonly server_user work
	if [[ $EUID -eq 0 ]]; then chown "$server_user" "$work"; fi
	if ! as_server test -w "$work"; then
		rmdir "$work"
		die "user $server_user cannot enter $work: set TMPDIR to a folder that it can"
	fi
	if ! as_server test -x "$bindir/postgres"; then
		rmdir "$work"
		die "user $server_user cannot run the server in $bindir"
	fi
	cp -R "$root/tests" "$work/tests"
	if [[ $EUID -eq 0 ]]; then chown -R "$server_user" "$work/tests"; fi
}

# Runs a command as the server's user, in the work folder.
as_server() {
	local run=(env "HOME=$work" "TMPDIR=$work" LANG=C LC_ALL=C "PATH=$bindir:$PATH")
	if [[ $EUID -eq 0 ]]; then run=(runuser -u "$server_user" -- "${run[@]}"); fi
	(cd "$work" && exec "${run[@]}" "$@")
}

# start_server NAME SETTINGS: a new server in $work/NAME with superuser postgres. It listens on the
# socket folder $work/NAME/socket only, so its port can be the same one everywhere.
start_server() {
	local dir=$work/$1
	as_server mkdir -p "$dir/socket"
	if ! as_server initdb -D "$dir/data" -U postgres -A trust -N --no-locale -E UTF8 >"$work/$1-initdb.log" 2>&1; then
		cat "$work/$1-initdb.log" >&2
		return 1
	fi
	cat >>"$dir/data/postgresql.conf" <<-CONF
		listen_addresses = ''
		port = 5432
		unix_socket_directories = '$dir/socket'
		$2
	CONF
	as_server pg_ctl -D "$dir/data" -l "$dir/server.log" -w start >/dev/null
}

# stop_server NAME
stop_server() {
	as_server pg_ctl -D "$work/$1/data" -m fast -w stop >/dev/null
}

# Stops whatever still runs in the work folder, also what a killed test has left behind.
stop_all_servers() {
	local file
	while read -r file; do
		as_server pg_ctl -D "$(dirname "$file")" -m immediate -w stop </dev/null >/dev/null 2>&1 || true
	done < <(find "$work" -name postmaster.pid)
}

# Servers that listen on loopback, by name.
declare -A port

free_port() {
	perl -MIO::Socket::INET -e \
		'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'
}

# sql NODE STATEMENT: prints the result, one row a line.
sql() {
	as_server psql -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "${port[$1]}" -U postgres -d postgres -c "$2"
}
