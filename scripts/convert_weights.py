"""Convert a file of VGG-19's weights: the same as ``nst-jax weights convert``."""

import sys

from nst_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["weights", "convert", *sys.argv[1:]]))
