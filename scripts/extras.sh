#!/usr/bin/env bash
# What takes too long for every change: fuzz by the hundred, kills, small disks, long runs. The
# date and the result go into docs/reliability.md. Further arguments go to pytest, for example:
# -k fuzz.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/test.sh -m campaign "$@"
.venv/bin/python scripts/faults.py
