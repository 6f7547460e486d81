#!/usr/bin/env bash
# The long runs: the simulator over many more rounds and in large meshes, the tests of tests/soak, and
# the mesh tests that kill and cut, again and again. ROUNDS, SECONDS_STARVED, LEASE_ROUNDS,
# LEASE_KILLS and REPEATS set the size.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly rounds=${ROUNDS:-1000000} repeats=${REPEATS:-20}

use_server
# The path of a test and further options of the test program.
simulate() {
	cargo test --quiet --no-default-features --features "$feature" --lib "gossip::simulator::$1" -- --exact --nocapture "${@:2}"
}

note "$rounds simulated rounds"
SIMULATION_ROUNDS=$rounds simulate scenario::random_scenarios_hold

note "large simulated meshes"
simulate scale::time_grows_with_the_logarithm_of_a_large_mesh --ignored

note "the hand-over of a lease, every interleaving in larger models"
cargo test --quiet --no-default-features --features "$feature" --lib lease::model -- --ignored --nocapture

note "who is alive, what an idle mesh costs, and leases under kills"
STAGES=soak tests/tools/test.sh

note "mesh tests with kills and partitions, $repeats times"
for ((run = 1; run <= repeats; run++)); do
	echo "run $run of $repeats"
	STAGES=mesh TESTS="020_crash 030_partition 100_long_transaction 130_detector" tests/tools/test.sh
done
