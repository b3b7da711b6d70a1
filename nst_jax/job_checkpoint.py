"""A job of the command line to and from its checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax import checkpoint
from nst_jax.annotations import check_type
from nst_jax.checkpoint_checks import check_plan
from nst_jax.checkpoint_folder import begin_folder
from nst_jax.checkpoint_records import (
    absolute,
    common_record,
    foreign_is_input_error,
    position_record,
    restore_config,
    restore_position,
    try_to_save,
)
from nst_jax.choices import Choice
from nst_jax.config import to_flat
from nst_jax.job_records import Job
from nst_jax.memory import LoopMemory
from nst_jax.options import PictureOptions, RunOptions, WatchOptions
from nst_jax.packing import pack, unpack
from nst_jax.plan_words import Plan
from nst_jax.position import Position
from nst_jax.weights import Weights

Masks = np.ndarray | list[np.ndarray | None] | None
CONTROLS = {
    "blend": list[float] | dict[str, list[list[float]]] | None,
    "content_masks": Masks,
    "style_masks": Masks,
    "region_weights": list[float] | None,
    "keep": np.ndarray | None,
}
Save = Callable[[Plan | None, Position | None, Sequence[np.ndarray]], bool]


class Standing(NamedTuple):
    """Where a job of the command line goes on.

    Attributes:
      plan: how it is computed, or None on several devices.
      position: where it stood, or None before its first step.
      frames: of its animation.
    """

    plan: Plan | None
    position: Position | None
    frames: list[np.ndarray]


def job_saver(
    job: Job, *, run: RunOptions, watch: WatchOptions, weights: Weights, resumed: bool
) -> Save:
    """A function that saves where a job stands, see ``try_to_save``.

    Args:
      job, run, watch: what to save of the command; ``watch`` names the folder.
      weights: the network.
      resumed: whether the folder holds the job's inputs already.

    Raises:
      InputError: where the inputs cannot be written.
    """
    folder = watch.checkpoint
    assert folder is not None
    inputs: dict[str, np.ndarray] = {}
    plain = {"output": absolute(job.output), "picture": asdict(job.picture)}
    whole = job._asdict() | plain | {"mesh": None, "config": None}
    record = common_record(weights) | {
        "kind": "picture",
        "job": pack(whole, inputs, name="job"),
        "config": to_flat(job.config),
        "run": pack(_values(run), inputs, name="run"),
        "watch": pack(_values(watch), inputs, name="watch"),
    }
    digest = checkpoint.inputs_digest(folder) if resumed else begin_folder(folder, inputs)

    def save(plan: Plan | None, position: Position | None, frames: Sequence[np.ndarray]) -> bool:
        arrays: dict[str, np.ndarray] = {}
        own = {
            "plan": None if plan is None else [plan.choice, plan.needs, plan.free, plan.whole],
            "position": position_record(position, arrays),
            "frames": pack(list(frames), arrays, name="frames"),
        }
        return try_to_save(folder, record | own, arrays, digest=digest)

    return save


def restore_job(
    saved: checkpoint.Saved, folder: Path
) -> tuple[Job, RunOptions, WatchOptions, Standing]:
    """What ``job_saver`` has saved.

    Args:
      saved: a checkpoint of its.
      folder: where it is now.

    Raises:
      InputError: for a record that it does not write.
    """
    with foreign_is_input_error(saved):
        record = saved.record
        config = restore_config(record["config"])
        values = unpack(record["job"], saved.inputs)
        picture = PictureOptions(**values["picture"])
        job = Job(**values | {"config": config, "picture": picture})
        run = RunOptions(**unpack(record["run"], {}) | {"config": config, "overwrite": True})
        watch = WatchOptions(**unpack(record["watch"], {}) | {"checkpoint": folder})
        plan = record["plan"]
        if plan is not None:
            plan = Plan(Choice(*plan[0]), LoopMemory(*plan[1]), *plan[2:])
        position = restore_position(record["position"], saved.arrays)
        standing = Standing(plan, position, unpack(record["frames"], saved.arrays))
        for value in (job, run, watch, standing):
            check_type(value, type(value), name=type(value).__name__)
        if plan is not None:
            check_plan(plan)
        for name, control in job.controls.items():
            check_type(control, CONTROLS[name], name=name)
        _check_pictures(job, standing.frames)
        return job, run, watch, standing


def _check_pictures(job: Job, frames: list[np.ndarray]) -> None:
    """Check what no type tells of arrays.

    Raises:
      ValueError: for arrays that are no pictures, or do not fit the content.
    """
    alphas = [] if job.alpha is None else [job.alpha]
    inits = [] if job.init is None else [job.init]
    for array in [job.content, *job.styles, *inits, *alphas]:
        if array.dtype != np.float32 or array.ndim != 3 - (array is job.alpha):
            raise ValueError(f"a picture is {array.dtype}{list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError("a picture is not finite")
    for array in [*frames, *alphas]:
        if array.shape[:2] != job.content.shape[:2]:
            raise ValueError("pictures of one run have several sizes")
    if any(frame.dtype != np.uint8 or frame.shape[2:] != (3,) for frame in frames):
        raise ValueError("a frame is no picture")


def _values(options: Any) -> dict[str, Any]:
    """A dataclass's fields but its settings, with absolute paths."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {
        name: absolute(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if name != "config"
    }
