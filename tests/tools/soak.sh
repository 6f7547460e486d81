#!/usr/bin/env bash
# The long runs: the simulator over many more seeds, the tests of tests/soak, and the mesh tests that
# kill and cut, again and again. SEEDS, SECONDS_STARVED and REPEATS set the size.
set -euo pipefail
# shellcheck source=tests/tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly seeds=${SEEDS:-50000} repeats=${REPEATS:-20}

use_server
note "simulated meshes over $seeds seeds"
SIMULATION_SEEDS=$seeds cargo test --quiet --no-default-features --features "$feature" --lib simulator

note "who is alive, and what an idle mesh costs"
STAGES=soak tests/tools/test.sh

note "mesh tests with kills and partitions, $repeats times"
for ((run = 1; run <= repeats; run++)); do
	echo "run $run of $repeats"
	STAGES=mesh TESTS="020_crash 030_partition 100_long_transaction 130_detector" tests/tools/test.sh
done
