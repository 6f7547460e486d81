#!/usr/bin/env bash
# Brings a machine from nothing but Rust to an installed extension. Each step checks first what is
# there, so that a second run is quick and needs no network.
#
#   tests/tools/setup.sh             all steps
#   tests/tools/setup.sh packages    PostgreSQL and what the build and the tests need
#   tests/tools/setup.sh toolchain   cargo-pgrx and its configuration
#   tests/tools/setup.sh install     build the extension and install it into the server
#
# PG_CONFIG chooses the server; default: the newest one that is here, else one the system offers.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

# ---- packages

is_debian() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

is_installed() {
	[[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

is_offered() {
	[[ $(LC_ALL=C apt-cache policy "$1") =~ Candidate:\ [0-9] ]]
}

# Once per run. A broken third-party source must not stop us: what is missing shows at install.
apt_updated=
apt_update() {
	if [[ -n $apt_updated ]]; then return; fi
	as_root apt-get update || note "apt-get update failed, going on with the lists that are here"
	apt_updated=yes
}

# Sets major to the PostgreSQL to install packages of; empty for a server that is not Debian's own.
choose_major() {
	local config bindir=
	major=
	if config=$(find_pg_config); then
		# A pg_config can be here without its server: clients and libpq bring one too.
		bindir=$("$config" --bindir)
	elif [[ -n ${PG_CONFIG:-} ]]; then
		bindir=${PG_CONFIG%/pg_config}
		[[ $bindir == "$debian_pg"/* ]] || die "PG_CONFIG=$PG_CONFIG does not work"
	else
		apt_update
		for major in 15 16 17 18; do
			if is_offered "postgresql-$major"; then return; fi
		done
		die "apt offers none of PostgreSQL 15 to 18"
	fi
	if [[ $bindir =~ ^"$debian_pg"/([0-9]+)/bin$ ]]; then major=${BASH_REMATCH[1]}; fi
}

# Installing a server makes Debian start a default cluster. It does no harm: the tests run on
# servers, ports and sockets of their own.
packages() {
	if ! is_debian; then return; fi
	local major package missing=()
	choose_major
	for package in ${major:+"postgresql-$major" "postgresql-server-dev-$major"} \
		gcc libc6-dev make pkg-config libclang-dev sudo perl libipc-run-perl openssl; do
		if ! is_installed "$package"; then missing+=("$package"); fi
	done
	if ((${#missing[@]} == 0)); then return; fi
	note "installing ${missing[*]}"
	apt_update
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

# Says in one go what is missing: elsewhere than on Debian nothing is installed for the user.
check_tools() {
	local tool missing=()
	for tool in cc make perl prove openssl; do
		command -v "$tool" >/dev/null || missing+=("$tool")
	done
	perl -MIPC::Run -e 1 2>/dev/null || missing+=("the perl module IPC::Run")
	if find_pg_config >/dev/null; then
		use_server
		[[ -d $("$pg_config" --includedir-server) ]] || missing+=("the server headers of PostgreSQL")
		[[ -x $pg_tests/regress/pg_regress && -x $pg_tests/isolation/pg_isolation_regress &&
			-e $pg_tests/perl/PostgreSQL/Test/Cluster.pm ]] ||
			missing+=("PostgreSQL's test tools (built from source: configure --enable-tap-tests, make install, and the same in src/test/isolation)")
	else
		missing+=("PostgreSQL 15 to 18 with its server headers and pg_config in PATH or PG_CONFIG")
	fi
	if ((${#missing[@]} == 0)); then return; fi
	note "please install (and libclang, which the build loads):"
	printf '  %s\n' "${missing[@]}" >&2
	exit 1
}

# ---- toolchain

# Both numbers are Cargo.toml's, so that they are written down once.
pgrx_version() { sed -nE 's/^pgrx = .*"=([0-9.]+)".*/\1/p' Cargo.toml; }
rust_version() { sed -nE 's/^rust-version = "([0-9.]+)".*/\1/p' Cargo.toml; }

check_rust() {
	command -v cargo >/dev/null ||
		die "cargo is not here: install Rust $(rust_version) or newer with rustup, then run this again"
	if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then return; fi
	# rustup's minimal profile comes without them.
	if command -v rustup >/dev/null; then rustup component add rustfmt clippy && return; fi
	die "cargo fmt or cargo clippy is not here: install rustfmt and clippy, then run this again"
}

install_cargo_pgrx() {
	local version
	version=$(pgrx_version)
	if [[ $(cargo pgrx --version 2>/dev/null) == "cargo-pgrx $version" ]]; then return; fi
	note "building cargo-pgrx $version, some minutes"
	# It spends its time in the compiler, so optimising it takes longer than it ever saves.
	CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-pgrx --version "$version" --locked --debug
}

# pgrx builds against the server that its own configuration names.
configure_pgrx() {
	local config=${PGRX_HOME:-$HOME/.pgrx}/config.toml
	if grep -qsxF "$feature = \"$pg_config\"" "$config"; then return; fi
	cargo pgrx init --no-run "--$feature=$pg_config"
}

toolchain() {
	check_rust
	install_cargo_pgrx
	use_server
	configure_pgrx
}

# ---- install

# Not `cargo pgrx install --sudo`: it overwrites the library in place, which crashes every server
# that has it loaded. install(1) puts a new file there, and sets the mode.
install_extension() {
	use_server
	local stage file
	stage=$(mktemp -d)
	# shellcheck disable=SC2064 # the folder's name is known now
	trap "rm -rf '$stage'" EXIT
	cargo pgrx package --pg-config "$pg_config" --out-dir "$stage" --no-default-features --features "$feature"
	while read -r file; do
		as_installer install -m 644 "$stage/$file" "/$file" </dev/null
	done < <(cd "$stage" && find . -type f)
}

case ${1:-all} in
packages)
	packages
	check_tools
	;;
toolchain) toolchain ;;
install) install_extension ;;
all)
	packages
	check_tools
	toolchain
	install_extension
	;;
*) die "usage: $0 [packages|toolchain|install|all]" ;;
esac
