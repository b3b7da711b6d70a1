#!/usr/bin/env bash
# Makes the environment, installs nst_jax and stylizes the demo image. The last line printed is the
# path of the result. Further arguments go to nst-jax stylize, for example: --steps 300
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
mkdir -p "$root/out"
echo "Reading the images, planning the memory and compiling: about ten seconds, up to a minute on a" \
    "busy machine; then a line now and then for the steps" >&2
"$root/.venv/bin/nst-jax" stylize "$root/docs/images/demo_content.jpg" \
    --style "$root/docs/images/demo_style.jpg" \
    --output "$root/out/demo.png" --overwrite --size 384 --steps 100 "$@"
