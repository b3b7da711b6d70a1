"""What a training keeps: checkpoints, its stages, images of optimisations, the weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from distill_images import KEPT
from distill_options import Options, output_path
from distillation import Scales
from safetensors import safe_open
from safetensors.numpy import save_file

from nst_jax.errors import InputError
from nst_jax.system import atomic_write
from nst_jax.weights import Weights, WeightsInfo, save_weights

LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
ATTRIBUTION = (
    "Trained by the nst_jax project to imitate VGG-19 by Karen Simonyan and Andrew Zisserman, "
    "Visual Geometry Group, University of Oxford, "
    "https://www.robots.ox.ac.uk/~vgg/research/very_deep/ (CC BY 4.0)."
)


class Training(NamedTuple):
    """All that changes in a training, and the units of its targets."""

    trained: Any
    opt_state: Any
    scales: Scales


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def save_checkpoint(folder: Path, training: Training, *, step: int) -> None:
    """Save the state after so many steps, in one file that appears whole."""
    leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(training))}
    with atomic_write(_checkpoint(folder)) as temporary:
        save_file(leaves, temporary, {"step": str(step)})


def load_checkpoint(folder: Path, like: Training) -> tuple[Training, int]:
    """The saved state and its step, or ``like`` and 0 where there is none.

    Raises:
      InputError: where it is that of another network.
    """
    path = _checkpoint(folder)
    if not path.exists():
        return like, 0
    with safe_open(path, "np") as file:
        step = int(file.metadata()["step"])
        leaves = [file.get_tensor(name) for name in sorted(file.keys())]
    wanted, structure = jax.tree.flatten(like)
    if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in wanted]:
        raise InputError(f"{path} is of other channels or another teacher: take another folder")
    return jax.tree.unflatten(structure, leaves), step


def _policy_path(folder: Path, number: int) -> Path:
    return folder / f"policy_{number:04d}.npy"


def save_policy(folder: Path, images: list[np.ndarray], *, number: int) -> None:
    """Save the images of optimisations that were made at the n-th time."""
    if images:
        with atomic_write(_policy_path(folder, number)) as temporary:
            np.save(temporary, np.stack(images))


def load_policy(options: Options, *, step: int) -> list[np.ndarray]:
    """The latest of those that were made before a step, and are large enough for the crops."""
    policy: list[np.ndarray] = []
    every = options.policy_every
    for number in range(1, (step - 1) // every + 1 if every and step else 1):
        if (path := _policy_path(options.folder, number)).exists():
            images = list(np.load(path))
            policy += [x for x in images if min(x.shape[:2]) >= options.crop]
    return policy[-KEPT:]


def tell_stage(options: Options, *, start: int, real_images: int) -> list[dict[str, Any]]:
    """All stages of the run so far, this one included, which is added to them."""
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
    """Write the student as a file of weights."""
    training = {
        "script": "scripts/distill.py",
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
