#!/usr/bin/env bash
# Runs the tests marked campaign, which take too long for every change: fuzzing with hundreds of
# cases, killed runs, small disks, long runs. Write the date and the results into
# docs/reliability.md. Further arguments go to pytest, for example: -k fuzz, or tests/faults
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/test.sh -m campaign "$@"
