"""Convert a file of VGG-19's weights to the canonical .safetensors."""

import argparse
import sys

from nst_jax.convert import convert_file
from nst_jax.errors import InputError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="Keras .h5, PyTorch .pth, MatConvNet .mat or .safetensors")
    parser.add_argument("destination", help="the .safetensors to write")
    parser.add_argument(
        "--preprocessing",
        choices=("caffe", "torchvision"),
        help="of weights that are neither of the two known networks",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args()
    try:
        path = convert_file(
            options.source,
            options.destination,
            preprocessing=options.preprocessing,
            overwrite=options.overwrite,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
