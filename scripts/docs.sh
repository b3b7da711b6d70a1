#!/usr/bin/env bash
# Builds the documentation into docs/_build, with warnings as errors and without a network. Further
# arguments go to sphinx-build.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev
cd "$root"
.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going "$@" docs docs/_build
echo "$root/docs/_build/index.html"
