"""Checks that every command shares, of sizes, outputs, the initial image and the weights."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from nst_jax.checkpoint.records import check_weights
from nst_jax.checkpoint.store import Saved
from nst_jax.cli import record
from nst_jax.cli.checkpoints import check_checkpoints
from nst_jax.cli.messages import log
from nst_jax.cli.options import ImageOptions, RunOptions, WatchOptions
from nst_jax.cli.record import json_path
from nst_jax.config.checks import LARGEST_SIZE
from nst_jax.config.config import INITS, Config, to_flat
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.images.read import load_image, resize_to
from nst_jax.images.write import check_output
from nst_jax.system.files import check_folder, check_output_path
from nst_jax.system.memory import host_bytes, in_gib
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.problem import check_run
from nst_jax.transfer.types import Execution
from nst_jax.weights.canonical import Weights, WeightsInfo
from nst_jax.weights.load import WEIGHTS_VARIABLE, find_weights, is_shipped_slim, load_weights

MOST_PREVIEWS = 100_000

# Bytes per pixel that no execution plan can do without. Five images of 3 float32 values: the
# content, the present image, the best one, a gradient and a step.
LEAST_BYTES = 60


def check_size(size: int, *, what: str = "size") -> None:
    """Check the length of a side in pixels.

    Raises:
      InputError: if it is not positive, or too large for any device.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise InputError(f"{what} is {size}: expected 1 to {LARGEST_SIZE} pixels")


def check_room(shape: tuple[int, int], *, what: str = "image") -> None:
    """Check, before an image is read and scaled, that the images alone fit into memory.

    Args:
      shape: height and width of the result, or of a style image.
      what: the noun for the message, "image" or "style".

    Raises:
      InputError: if they do not fit.
    """
    needed, free = LEAST_BYTES * shape[0] * shape[1], host_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"a {what} of {shape[1]}x{shape[0]} px needs more than {in_gib(needed)}, "
            f"{in_gib(free)} are free: choose a smaller size, see 'nst-jax estimate'"
        )


def check_preset_fits(config: Config, *, preset: str, command: str) -> None:
    """Refuse settings of a preset that a command for many images cannot apply.

    Args:
      config: the run's settings; those that differ from the preset's are not refused here.
      preset: the preset's name.
      command: the name of the command.

    Raises:
      InputError: with the flags that switch these settings off.
    """
    flags = {"min_size": "--min-size None", "averaging": "--averaging 0"}
    given, from_preset, default = map(to_flat, (config, get_preset(preset).config, Config()))
    refused = [name for name in flags if given[name] == from_preset[name] != default[name]]
    if refused:
        raise InputError(
            f"preset {preset} sets {' and '.join(refused)}, for one image at a time and not for "
            f"{command}: add {' '.join(flags[name] for name in refused)}, or choose another preset"
        )


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
      InputError: if it is not an unsigned integer of 32 bits.
    """
    if not 0 <= seed < 2**32:  # JAX takes larger ones modulo 2**32, or not at all
        raise InputError(f"seed is {seed}: expected 0 to {2**32 - 1}")


def check_outputs(
    output: Path,
    run: RunOptions,
    watch: WatchOptions,
    image: ImageOptions = ImageOptions(),
    *,
    inputs: Sequence[Path],
    steps: int | None = None,
) -> None:
    """Check the outputs of a run before any image is read.

    Args:
      output, run, watch, image: the command's options.
      inputs: the images and masks that the command reads.
      steps: the number of steps over all scales; by default the config's.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    check_output(output, **asdict(image))
    check_seed(run.seed)
    if watch.save_every is not None and watch.save_every < 1:
        raise InputError(f"save_every is {watch.save_every}: expected 1 or more")
    check_checkpoints(watch.checkpoint, watch.checkpoint_every, overwrite=run.overwrite)
    if watch.animation is not None and watch.animation.suffix.lower() != ".gif":
        raise InputError(f"{watch.animation} is not the name of an animation: expected FILE.gif")
    if watch.plot is not None:
        record.check_plotting(watch.plot)
    if watch.save_every is not None and output == STANDARD:
        raise InputError(
            "save_every names previews after the output, which is standard output: name a file"
        )
    outputs = output_paths(output, watch, steps=run.config.steps if steps is None else steps)
    inputs = list(inputs)
    if run.weights is not None:
        inputs.append(run.weights)
    if inputs.count(STANDARD) > 1:
        raise InputError("- is given for several inputs, but there is one standard input")
    read = {os.path.realpath(path) for path in inputs}
    seen: set[str] = set()
    if watch.checkpoint is not None:
        seen.add(os.path.realpath(watch.checkpoint))
    for path in outputs:
        real = os.path.realpath(path)
        if real in read:
            raise InputError(f"{path} is an input: choose another name for the output")
        if real in seen:
            raise InputError(f"{path} is the name of two outputs: choose different names")
        seen.add(real)
        check_output_path(path, overwrite=run.overwrite, advice="give --overwrite")
    for folder in {path.parent for path in outputs}:
        check_folder(folder)


def output_paths(output: Path, watch: WatchOptions, *, steps: int) -> list[Path]:
    """The files that a run of ``steps`` steps writes, except checkpoints.

    Raises:
      InputError: for more than ``MOST_PREVIEWS`` previews.
    """
    outputs = [] if output == STANDARD else [output, json_path(output)]
    outputs += [path for path in (watch.animation, watch.plot) if path is not None]
    if watch.save_every is None:
        return outputs
    count = steps // watch.save_every  # len() of a range fails beyond 2**63
    if count > MOST_PREVIEWS:
        raise InputError(
            f"save_every {watch.save_every} makes {count} previews: expected at most "
            f"{MOST_PREVIEWS}, choose a larger number"
        )
    numbers = range(watch.save_every, steps + 1, watch.save_every)
    return outputs + [record.preview_path(output, step) for step in numbers]


def load_init(config: Config, *, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The initial image if ``config.initial.init`` names a file, scaled to the result's size.

    Args:
      config: the settings.
      shape: ``(height, width, 3)`` of the result.

    Returns:
      The image, ``[height, width, 3]`` float32 in [0, 1], or None.

    Raises:
      InputError: for a file of another aspect ratio, and as raised by ``load_image``.
    """
    if config.initial.init in INITS:
        return None
    image = load_image(config.initial.init)
    height, width, _ = image.shape
    # An earlier run's result, or its content, may be off by a pixel through rounding.
    if abs(width * shape[0] - height * shape[1]) > max(0.01 * width * shape[0], *shape[:2]):
        raise InputError(
            f"the initial image {config.initial.init} is {width}x{height} px, the result "
            f"{shape[1]}x{shape[0]} px: expected the same aspect ratio"
        )
    return resize_to(image, shape=shape[:2])


def obtain_weights(path: Path | None, *, model: str | None = None) -> Weights:
    """The weights from ``path``, else those found on this machine: full first, then slim.

    Raises:
      InputError: if there are none of the required model, or the file is not a VGG-19.
    """
    found = find_weights(path=path, model=model)
    if found is None:
        raise InputError(_MISSING[model])
    return load_weights(found)


def find_network(
    run: RunOptions,
    configs: Sequence[Config],
    *,
    balanced: bool = True,
    mesh: Mesh | None = None,
    resumed: Saved | None = None,
) -> Weights:
    """The weights of a run, checked against its settings.

    Logs a line if the slim weights stand in for missing full ones, and another if the preset's
    weights of the terms were chosen for another network.

    Args:
      run: the command's options.
      configs: the settings of all images of the run.
      balanced: whether the run weighs content against style; otherwise the second line is left
        out.
      mesh: the devices that divide the image, if any.
      resumed: the checkpoint from which the run continues, if any.

    Raises:
      InputError: if there are no such weights, or the checkpoint was made with others.
    """
    weights = obtain_weights(run.weights, model=run.model)
    if resumed is not None:
        check_weights(resumed, weights)
    for config in configs:
        check_run(weights.variables, config=config, execution=Execution(mesh=mesh))
    if resumed is None:
        log_slim(run, weights)
    if balanced:
        log_network(run, weights)
    return weights


def log_slim(run: RunOptions, weights: Weights) -> None:
    """Log a line if the installed slim weights are used because no others were found."""
    chosen = run.weights or run.model or os.environ.get(WEIGHTS_VARIABLE)
    if not chosen and is_shipped_slim(Path(weights.info.path)):
        log(
            "no full VGG-19 was found: using the slim weights that are installed with nst_jax; "
            "for the full network run 'nst-jax weights fetch'"
        )


def network_of(info: WeightsInfo) -> str:
    """The network of some weights, by the name that presets give it if they know it."""
    return info.preprocessing + "-normalized" * (info.normalized is not None)


def log_network(run: RunOptions, weights: Weights) -> None:
    """Log a line if a preset's weights of the terms were chosen for another network."""
    expected, found = get_preset(run.preset).weights, network_of(weights.info)
    if expected != found:
        log(
            f"preset {run.preset} is balanced for {expected} weights and these are {found}: "
            "content and style will weigh differently; --weights chooses other weights"
        )


_MISSING = {
    None: "no weights on this machine: run 'nst-jax weights fetch', or name a file with --weights",
    "vgg19": (
        "no full VGG-19 on this machine: run 'nst-jax weights fetch', or name a file with --weights"
    ),
    "vgg19-slim": (
        "the slim weights that are installed with nst_jax are missing: install it again, or name "
        "a file with --weights"
    ),
}
