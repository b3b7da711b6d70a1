"""Options of a training run, and the files in its folder: checkpoint, stages, images, weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from distillation import Scales
from safetensors import safe_open
from safetensors.numpy import save_file

from nst_jax.errors import InputError
from nst_jax.system import atomic_write
from nst_jax.system.files import check_writable
from nst_jax.weights import Weights, WeightsInfo, save_weights

KEPT = 400  # most images of optimisations
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
ATTRIBUTION = (
    "Trained by the nst_jax project to imitate VGG-19 by Karen Simonyan and Andrew Zisserman, "
    "Visual Geometry Group, University of Oxford, "
    "https://www.robots.ox.ac.uk/~vgg/research/very_deep/ (CC BY 4.0)."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train slim weights.

    Attributes:
      folder: Folder of the run.
      teacher: Weights of the full VGG-19, in any format that nst-jax loads.
      output: Weights file to write; by default FOLDER/vgg19-slim.safetensors.
      images: Folders or files of real images, added to those of scikit-image and scikit-learn.
      channels: Channels of the five blocks.
      steps: Steps of training.
      batch: Crops in a step.
      crop: Side of a crop in pixels, a multiple of 16.
      learning_rate: Peak of the learning rate.
      procedural: Number of procedural images.
      average_share: Fraction of steps with average pooling.
      policy_every: Steps between new images of optimisations; 0 for none.
      policy_from: First step with images of optimisations.
      policy_runs: Optimisations each time.
      checkpoint_every: Steps between checkpoints.
      precision: Precision of all convolutions.
      seed: Seed of everything random.
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
    """The weights file to write."""
    return options.output or options.folder / "vgg19-slim.safetensors"


def check_options(options: Options) -> None:
    """Check the options before the start, and make the folder of the run.

    Raises:
      InputError: for sizes that do not fit the network or the devices, and for a folder that
        cannot be written.
    """
    if options.crop < 16 or options.crop % 16:
        raise InputError(f"expected a crop that is a multiple of 16, got {options.crop}")
    devices = jax.device_count()
    if options.batch < 1 or options.batch % devices:
        raise InputError(f"expected a batch divisible by {devices} devices, got {options.batch}")
    if min(options.channels) < 1:
        raise InputError(f"expected at least 1 channel in each block, got {options.channels}")
    for name in ("steps", "procedural", "policy_runs", "checkpoint_every"):
        if getattr(options, name) < 1:
            raise InputError(f"expected {name} of at least 1, got {getattr(options, name)}")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {options.folder} ({error.strerror})") from None
    check_writable(output_path(options), overwrite=True)


class Training(NamedTuple):
    """The state of a training run, and the scales of its targets."""

    trained: Any
    opt_state: Any
    scales: Scales


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def save_checkpoint(folder: Path, training: Training, *, step: int) -> None:
    """Save the state after a step, atomically, in one file."""
    leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(training))}
    with atomic_write(_checkpoint(folder)) as temporary:
        save_file(leaves, temporary, {"step": str(step)})


def load_checkpoint(folder: Path, like: Training) -> tuple[Training, int]:
    """Load the saved state and its step; ``like`` and 0 if there is none.

    Raises:
      InputError: if it belongs to another network.
    """
    path = _checkpoint(folder)
    if not path.exists():
        return like, 0
    with safe_open(path, "np") as file:
        step = int(file.metadata()["step"])
        leaves = [file.get_tensor(name) for name in sorted(file.keys())]
    wanted, structure = jax.tree.flatten(like)
    if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in wanted]:
        raise InputError(f"{path} has other channels or another teacher: choose another folder")
    return jax.tree.unflatten(structure, leaves), step


def _policy_path(folder: Path, number: int) -> Path:
    return folder / f"policy_{number:04d}.npy"


def save_policy(folder: Path, images: list[np.ndarray], *, number: int) -> None:
    """Save the ``number``-th set of images of optimisations."""
    if images:
        with atomic_write(_policy_path(folder, number)) as temporary:
            np.save(temporary, np.stack(images))


def load_policy(options: Options, *, step: int) -> list[np.ndarray]:
    """Load the newest images made before a step that are large enough for the crops."""
    policy: list[np.ndarray] = []
    every = options.policy_every
    for number in range(1, (step - 1) // every + 1 if every and step else 1):
        if (path := _policy_path(options.folder, number)).exists():
            images = list(np.load(path))
            policy += [x for x in images if min(x.shape[:2]) >= options.crop]
    return policy[-KEPT:]


def add_stage(options: Options, *, start: int, real_images: int) -> list[dict[str, Any]]:
    """Add this stage to the file of stages, and return all stages of the run."""
    path = options.folder / "stages.json"
    stages = json.loads(path.read_text()) if path.exists() else []
    places = ("folder", "teacher", "output", "images")
    stage = {key: value for key, value in asdict(options).items() if key not in places}
    stage |= {"from_step": start, "real_images": real_images}
    if start < options.steps:
        stages = [other for other in stages if other["from_step"] < start] + [stage]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(stages))
    return stages


def export(
    options: Options, teacher: Weights, student: Any, *, step: int, stages: list[dict[str, Any]]
) -> None:
    """Write the student as a weights file."""
    training = {
        "script": "scripts/distill/distill.py",
        "steps": step,
        "stages": stages,
        "teacher": teacher.info.name,
        "teacher_sha256": teacher.info.sha256,
    }
    info = WeightsInfo(
        name="vgg19-slim",
        preprocessing=teacher.info.preprocessing,
        source=f"distilled from {teacher.info.name}",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        training=json.dumps(training),
    )
    save_weights(output_path(options), Weights(student, info), overwrite=True, half=True)
