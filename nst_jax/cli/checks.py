"""What every job reads and writes, checked: outputs, initial image, weights."""

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
from nst_jax.system.files import check_folder, check_free
from nst_jax.system.memory import host_bytes, in_gib
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.problem import check_run
from nst_jax.transfer.types import Execution
from nst_jax.weights.canonical import Weights, WeightsInfo
from nst_jax.weights.load import WEIGHTS_VARIABLE, find_weights, is_shipped_slim, load_weights

MOST_PREVIEWS = 100_000

LEAST_BYTES = 60  # a pixel: the content, the image, the best one, a gradient, a step


def check_size(size: int, *, what: str = "size") -> None:
    """Check a side in pixels.

    Raises:
      InputError: where it is not positive, or beyond all devices.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise InputError(f"{what} is {size}: expected 1 to {LARGEST_SIZE} pixels")


def check_room(shape: tuple[int, int], *, what: str = "image") -> None:
    """Check, before an image is read and scaled, that there is memory for the images alone.

    Args:
      shape: height and width of the result, or of a style.
      what: it is.

    Raises:
      InputError: where there is not.
    """
    needed, free = LEAST_BYTES * shape[0] * shape[1], host_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"a {what} of {shape[1]}x{shape[0]} px needs more than {in_gib(needed)}, "
            f"{in_gib(free)} are free: choose a smaller size, see 'nst-jax estimate'"
        )


def check_preset_fits(config: Config, *, preset: str, command: str) -> None:
    """Refuse what a preset sets for one image at a time where there are many.

    Args:
      config: the settings, which may be others than the preset's.
      preset: its name.
      command: the name of what takes many.

    Raises:
      InputError: with the flags that go on without it.
    """
    flags = {"min_size": "--min-size None", "averaging": "--averaging 0"}
    given, its, default = map(to_flat, (config, get_preset(preset).config, Config()))
    own = [name for name in flags if given[name] == its[name] != default[name]]
    if own:
        raise InputError(
            f"preset {preset} sets {' and '.join(own)}, for one image at a time and not for "
            f"{command}: add {' '.join(flags[name] for name in own)}, or choose another preset"
        )


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
      InputError: where JAX does not take it as it is.
    """
    if not 0 <= seed < 2**32:  # larger ones it takes modulo 2**32, or not at all
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
    """Check what can be checked before any image is read.

    Args:
      output, run, watch, image: what the command was told.
      inputs: images and masks that it reads.
      steps: of the run; by default the config's.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    check_output(output, **asdict(image))
    check_seed(run.seed)
    if watch.save_every is not None and watch.save_every < 1:
        raise InputError(f"save_every is {watch.save_every}: expected 1 or more")
    check_checkpoints(watch.checkpoint, watch.checkpoint_every, overwrite=run.overwrite)
    if watch.animation is not None and watch.animation.suffix.lower() != ".gif":
        raise InputError(f"{watch.animation} is no name of an animation: expected FILE.gif")
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
        raise InputError("- stands for several inputs, and standard input is one: name files")
    read = {os.path.realpath(path) for path in inputs}
    seen: set[str] = set()
    if watch.checkpoint is not None:
        seen.add(os.path.realpath(watch.checkpoint))
    for path in outputs:
        real = os.path.realpath(path)
        if real in read:
            raise InputError(f"{path} is an input: choose another name for the output")
        if real in seen:
            raise InputError(f"{path} is named for two outputs: choose different names")
        seen.add(real)
        check_free(path, overwrite=run.overwrite, advice="give --overwrite")
    for folder in {path.parent for path in outputs}:
        check_folder(folder)


def output_paths(output: Path, watch: WatchOptions, *, steps: int) -> list[Path]:
    """The files that a run of so many steps writes, but its checkpoints.

    Raises:
      InputError: for more previews than anyone looks at.
    """
    outputs = [] if output == STANDARD else [output, json_path(output)]
    outputs += [path for path in (watch.animation, watch.plot) if path is not None]
    if watch.save_every is None:
        return outputs
    count = steps // watch.save_every  # a range has no length beyond 2**63
    if count > MOST_PREVIEWS:
        raise InputError(
            f"save_every {watch.save_every} makes {count} previews: expected at most "
            f"{MOST_PREVIEWS}, choose a larger number"
        )
    numbers = range(watch.save_every, steps + 1, watch.save_every)
    return outputs + [record.preview_path(output, step) for step in numbers]


def load_init(config: Config, *, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The initial image where ``config.initial.init`` names a file, scaled to the result's size.

    Raises:
      InputError: for a file of another aspect ratio, and as ``load_image``.
    """
    if config.initial.init in INITS:
        return None
    image = load_image(config.initial.init)
    height, width, _ = image.shape
    # The rounding of an earlier run's size, or of its content's, may be a pixel off.
    if abs(width * shape[0] - height * shape[1]) > max(0.01 * width * shape[0], *shape[:2]):
        raise InputError(
            f"the initial image {config.initial.init} is {width}x{height} px, the result "
            f"{shape[1]}x{shape[0]} px: expected the same aspect ratio"
        )
    return resize_to(image, shape=shape[:2])


def obtain_weights(path: Path | None, *, model: str | None = None) -> Weights:
    """The weights of ``path``, or found on this machine: full ones first, else the shipped slim.

    Raises:
      InputError: where there are none of the wanted model, or they are no VGG-19.
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
    """The weights of a run, which have all that its settings ask for; says which, if that matters.

    Args:
      run: the command's options.
      configs: the settings.
      balanced: whether content and style are balanced against each other.
      mesh: devices that divide the image, if any.
      resumed: the checkpoint from which the run goes on, if any.

    Raises:
      InputError: where there are none such, or the checkpoint is of others.
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
    """Say where the shipped slim weights are used because no others were found."""
    asked = run.weights or run.model or os.environ.get(WEIGHTS_VARIABLE)
    if not asked and is_shipped_slim(Path(weights.info.path)):
        log(
            "no full VGG-19 was found, so the slim weights that come with nst_jax are "
            "used; for the full network run 'nst-jax weights fetch'"
        )


def network_of(info: WeightsInfo) -> str:
    """What network some weights are, in the presets' words, or a name of their own."""
    return info.preprocessing + "-normalized" * (info.normalized is not None)


def log_network(run: RunOptions, weights: Weights) -> None:
    """Say where a preset's factors were chosen for another network."""
    meant, found = get_preset(run.preset).weights, network_of(weights.info)
    if meant != found:
        log(
            f"the factors of preset {run.preset} are for {meant} weights and these are "
            f"{found}: expect another balance of content and style, or name others by --weights"
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
