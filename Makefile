# Thin on purpose: the work is in tests/tools/, which also runs without make.
#
# PG_CONFIG=/path/to/pg_config chooses the server, PostgreSQL 15 to 18.

PG_CONFIG ?=
export PG_CONFIG

# Cargo would look for this make's job server, which recipes here do not have.
unexport MAKEFLAGS MFLAGS MAKELEVEL

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix soak bench install clean
# The targets share one target directory and one installed library.
.NOTPARALLEL:

help:
	@echo "make demo         set up, build, install, and show a mesh of databases at work"
	@echo "make test         set up, build, install, and run every test"
	@echo "make test-matrix  every test on PostgreSQL 15, 16 and 18, a mesh of all three, and pg_upgrade"
	@echo "make soak         the long tests at full size"
	@echo "make bench        measure, always against something else in the same run"
	@echo "make install      set up, build and install the extension"
	@echo "make clean        remove what the build made"
	@echo
	@echo 'PG_CONFIG=/path/to/pg_config    the server to build for, PostgreSQL 15 to 18'
	@echo 'STAGES="rules sql" make test    some of: fmt clippy rules sql concurrency mesh'
	@echo 'TESTS="clock crdt" make test    these files of the sql, concurrency and mesh stages'

demo: install
	@tests/tools/demo.sh

test: install
	@tests/tools/test.sh

# It installs by itself, once for each server.
test-matrix:
	@tests/tools/matrix.sh

soak: install
	@tests/tools/soak.sh

bench: install
	@tests/tools/bench.sh

install:
	@tests/tools/setup.sh

clean:
	rm -rf target
