"""What ``nst-jax stylize`` reads, checked: options, initial picture, weights."""

import os
import sys
from pathlib import Path

import numpy as np

from nst_jax import report
from nst_jax.cli import Stylize
from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.files import check_folder, check_free
from nst_jax.images import check_output, load_image
from nst_jax.shares import check_blend
from nst_jax.weights import (
    WEIGHTS_VARIABLE,
    Weights,
    find_weights,
    is_shipped_slim,
    load_weights,
)


def json_path(output: Path) -> Path:
    """The record beside a picture: ``out.png`` -> ``out.json``."""
    return output.with_suffix(".json")


def check_options(options: Stylize) -> None:
    """Check what can be checked before any picture is read.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    check_output(options.output)
    if not options.style:
        raise InputError("no style picture: expected --style FILE")
    if options.size < 1:
        raise InputError(f"size is {options.size}: expected at least 1 pixel")
    if not 0 <= options.seed < 2**32:  # JAX takes larger ones modulo 2**32, or not at all
        raise InputError(f"seed is {options.seed}: expected 0 to {2**32 - 1}")
    if options.style_blend:
        if len(options.style_blend) != len(options.style):
            raise InputError(
                f"{len(options.style_blend)} blend factors for {len(options.style)} styles: "
                "expected one each"
            )
        check_blend(options.style_blend)
    if options.save_every is not None and options.save_every < 1:
        raise InputError(f"save_every is {options.save_every}: expected 1 or more")
    outputs = [options.output, json_path(options.output)]
    previews: list[Path] = []
    if options.animation is not None:
        if options.animation.suffix.lower() != ".gif":
            raise InputError(f"{options.animation} is no name of an animation: expected FILE.gif")
        outputs.append(options.animation)
    if options.plot is not None:
        report.check_plotting(options.plot)
        outputs.append(options.plot)
    if options.save_every is not None:
        steps = range(options.save_every, options.config.steps + 1, options.save_every)
        previews = [report.preview_path(options.output, step) for step in steps]
    inputs = [options.content, *options.style]
    if options.config.init not in INITS:
        inputs.append(Path(options.config.init))
    if options.weights is not None:
        inputs.append(options.weights)
    read = {os.path.realpath(path) for path in inputs}
    seen: set[str] = set()
    for path in outputs + previews:
        real = os.path.realpath(path)
        if real in read:
            raise InputError(f"{path} is an input: choose another name for the output")
        if real in seen:
            raise InputError(f"{path} is named for two outputs: choose different names")
        seen.add(real)
        check_free(path, overwrite=options.overwrite)
    for folder in {path.parent for path in outputs}:
        check_folder(folder)


def load_init(config: Config, *, shape: tuple[int, ...]) -> np.ndarray | None:
    """The initial picture where ``config.init`` names a file, scaled to the content's size.

    Raises:
      InputError: for a file of another aspect ratio, and as ``load_image``.
    """
    if config.init in INITS:
        return None
    image = load_image(config.init, size=max(shape))
    if image.shape != shape:
        raise InputError(
            f"the initial picture {config.init} becomes {image.shape[1]}x{image.shape[0]} px, the "
            f"content {shape[1]}x{shape[0]} px: expected the same aspect ratio"
        )
    return image


def obtain_weights(path: Path | None, *, model: str | None = None) -> Weights:
    """The weights of ``path``, or found on this machine: full ones first, else the shipped slim.

    Raises:
      InputError: where there are none of the wanted model, or they are no VGG-19.
    """
    found = find_weights(path=path, model=model)
    if found is None:
        raise InputError(_MISSING[model])
    return load_weights(found)


def tell_of_slim(options: Stylize, weights: Weights) -> None:
    """Say where the shipped slim weights are used because no others were found."""
    asked = options.weights or options.model or os.environ.get(WEIGHTS_VARIABLE)
    if not asked and is_shipped_slim(Path(weights.info.path)):
        print(
            "nst-jax: no full VGG-19 was found, so the slim weights that come with nst_jax are "
            "used; for the full network run 'nst-jax weights fetch'",
            file=sys.stderr,
        )


_MISSING = {
    None: "no weights on this machine: run 'nst-jax weights fetch', or name a file by --weights",
    "vgg19": (
        "no full VGG-19 on this machine: run 'nst-jax weights fetch', or name a file by --weights"
    ),
    "vgg19-slim": (
        "the slim weights that come with nst_jax are missing: install it again, or name a file by "
        "--weights"
    ),
}
