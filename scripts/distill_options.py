"""Options of the training of slim weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from nst_jax.errors import InputError
from nst_jax.system.files import check_writable


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train slim weights.

    Attributes:
      folder: Where the run is kept.
      teacher: The full VGG-19, in any form that nst-jax loads.
      output: The file of weights to write; by default FOLDER/vgg19-slim.safetensors.
      images: Folders or files of real images beside those of scikit-image and scikit-learn.
      channels: Channels of the five blocks.
      steps: Steps of training.
      batch: Crops in a step.
      crop: Their side in pixels, a multiple of 16.
      learning_rate: Its peak.
      procedural: How many procedural images are drawn.
      average_share: Share of steps with average pooling.
      policy_every: Steps after which images of optimisations are made anew; 0 for none.
      policy_from: Steps before the first of them.
      policy_runs: Optimisations each time.
      checkpoint_every: Steps between checkpoints.
      precision: Of the student's and the teacher's convolutions.
      seed: Of everything random.
    """

    folder: tyro.conf.Positional[Path]
    teacher: Path
    output: Path | None = None
    images: tuple[Path, ...] = ()
    channels: tuple[int, int, int, int, int] = (16, 64, 96, 192, 192)
    steps: int = 8000
    batch: int = 4
    crop: int = 128
    learning_rate: float = 0.006
    procedural: int = 300
    average_share: float = 0.25
    policy_every: int = 200
    policy_from: int = 1000
    policy_runs: int = 6
    checkpoint_every: int = 500
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


def output_path(options: Options) -> Path:
    """The file of weights to write."""
    return options.output or options.folder / "vgg19-slim.safetensors"


def check_options(options: Options) -> None:
    """Check what can be checked before the start; makes the run's folder.

    Raises:
      InputError: for sizes that do not fit the network or the devices, and folders that cannot be
        written.
    """
    if options.crop < 16 or options.crop % 16:
        raise InputError(f"crop is {options.crop}: expected a multiple of 16")
    devices = jax.device_count()
    if options.batch < 1 or options.batch % devices:
        raise InputError(f"batch is {options.batch}: expected a multiple of {devices} devices")
    if min(options.channels) < 1:
        raise InputError(f"channels are {options.channels}: expected at least 1 in each block")
    for name in ("steps", "procedural", "policy_runs", "checkpoint_every"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}: expected at least 1")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {options.folder} ({error.strerror})") from None
    check_writable(output_path(options), overwrite=True)
