#!/usr/bin/env bash
# Makes the environment, installs nst_jax with its development tools and runs the tests. Further
# arguments go to pytest, for example: -k losses, or -m "not campaign" to include slow tests
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev
cd "$root"
# Most of the time is compilation, on one core per worker; the tests of a file share programs.
workers="$(.venv/bin/python -c 'from nst_jax.system import usable_cpus; print(min(4, usable_cpus()))')"
# Threads of OpenBLAS wait for each other in busy loops, and every worker would have several.
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
.venv/bin/python -m pytest -n "$workers" --dist loadfile "$@"
