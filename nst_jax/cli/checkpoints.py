"""The checkpoints of the commands: where to, when, and how a run begins again from one."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.checkpoint import store
from nst_jax.checkpoint.records import (
    common_record,
    foreign_is_input_error,
    frame_arrays,
    plan_record,
    position_record,
    restore_frames,
    restore_plan,
    restore_position,
)
from nst_jax.cli import record as report
from nst_jax.cli.messages import log
from nst_jax.cli.parsing import Call, absolute, input_files, parse_call, with_inputs
from nst_jax.errors import InputError
from nst_jax.system.files import check_folder
from nst_jax.transfer.types import MemoryPlan, Position
from nst_jax.weights.canonical import Weights

EVERY_SECONDS = 30.0  # between two checkpoints where nobody names a number of steps


class ResumePoint(NamedTuple):
    """Where a run of one image stands.

    Attributes:
      plan: how it is computed, or None on several devices.
      position: where it stood, or None before its first step.
      frames: of its animation.
    """

    plan: MemoryPlan | None
    position: Position | None
    frames: list[np.ndarray]


SaveJob = Callable[[ResumePoint], bool]


def check_checkpoints(folder: Path | None, every: int | None, *, overwrite: bool) -> None:
    """Check, before any work, that checkpoints can be written to a folder; nothing is removed.

    Args:
      folder: where to, or None for none.
      every: at how many steps, if anyone says.
      overwrite: whether those of another run may be removed.

    Raises:
      InputError: where they cannot.
    """
    if folder is None:
        if every is not None:
            raise InputError("--checkpoint-every needs a folder: give --checkpoint DIR, too")
        return
    if every is not None and every < 1:
        raise InputError(f"checkpoint_every is {every}: expected 1 or more")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder: choose another one for the checkpoints")
    if not os.path.isdir(folder.parent):
        raise InputError(f"the folder {folder.parent} does not exist: create it first")
    check_folder(folder if os.path.isdir(folder) else folder.parent)
    if store.checkpoints(folder) and not overwrite:
        raise InputError(
            f"{folder} holds the checkpoints of a run: go on with it by 'nst-jax resume {folder}', "
            "choose another folder, or give --overwrite"
        )


def saved_options(saved: store.Saved, folder: Path) -> Any:
    """The options of the command that a checkpoint is of, parsed again from its words.

    Args:
      saved: the checkpoint.
      folder: where it is now. Images are read from the copies in it, if any; other paths are
        absolute.

    Raises:
      InputError: for a record that no command writes.
    """
    with foreign_is_input_error(saved):
        options = parse_call(Call(saved.record["arguments"], saved.record["directory"]))
        if not saved.inputs:
            return options
        names = store.copied_names(input_files(options))
        if {*names.values()} != {*saved.inputs}:
            raise ValueError("its input files are others than those of its command line")
        return with_inputs(options, {path: folder / name for path, name in names.items()})


def restore_resume_point(saved: store.Saved, *, shape: tuple[int, int]) -> ResumePoint:
    """Where a run stood that makes an image of this height and width; its arrays are taken out.

    Raises:
      InputError: for a record that ``image_saver`` does not write.
    """
    with foreign_is_input_error(saved):
        return ResumePoint(
            restore_plan(saved.record["plan"]),
            restore_position(saved.record["position"], saved.arrays),
            restore_frames(saved.arrays, shape=shape),
        )


def restore_settings(saved: store.Saved) -> dict[str, Any]:
    """What the record of a run says of the options that it began with.

    Raises:
      InputError: for a record that ``image_saver`` does not write.
    """
    with foreign_is_input_error(saved):
        settings = saved.record["settings"]
        if not isinstance(settings, dict):
            raise TypeError("its settings are none")
        _check_depth(settings, levels=5)
        return settings


def _check_depth(value: Any, *, levels: int) -> None:
    """Check that plain data are no deeper than those of a record, whatever wrote them."""
    if isinstance(value, (list, dict)):
        if not levels:
            raise ValueError("its settings are nested too deep")
        for one in value.values() if isinstance(value, dict) else value:
            _check_depth(one, levels=levels - 1)


def image_saver(
    folder: Path,
    *,
    call: Call,
    inputs: list[Path],
    settings: dict[str, Any],
    weights: Weights,
    resumed: store.Saved | None = None,
) -> SaveJob:
    """A function that saves where a run stands, or tells that it cannot; whether it did.

    Args:
      folder: of the checkpoints.
      call: of the command.
      inputs: the files that it reads, of which copies are kept.
      settings: what the run's record says of its options.
      weights: the network.
      resumed: the checkpoint from which the run goes on, if any, in the same folder.

    Raises:
      InputError: where the copies cannot be written.
    """
    record = common_record(weights) | {"kind": "image", "settings": report.as_json(settings)}
    if resumed is None:
        record |= call._asdict()
        digests = store.begin(folder, [absolute(path, call) for path in inputs])
    else:
        record |= {name: resumed.record[name] for name in Call._fields}
        digests = resumed.inputs

    def save(resume_point: ResumePoint) -> bool:
        arrays = frame_arrays(resume_point.frames)
        own = {
            "plan": plan_record(resume_point.plan),
            "position": position_record(resume_point.position, arrays),
        }
        try:
            store.save(folder, record | own, arrays, inputs=digests)
            return True
        except OSError as error:
            rest = "with the one before" if store.checkpoints(folder) else "without one"
            log(f"cannot write a checkpoint to {folder} ({error.strerror}), going on {rest}")
            return False

    return save


def save_call(folder: Path, *, call: Call, weights: Weights) -> None:
    """Save how a batch was called, which tells from what is there what is missing.

    Raises:
      InputError: where it cannot be written.
    """
    record = common_record(weights) | {"kind": "batch"} | call._asdict()
    digests = store.begin(folder)
    try:
        store.save(folder, record, {}, inputs=digests)
    except OSError as error:
        raise InputError(
            f"cannot write a checkpoint to {folder} ({error.strerror}): choose another folder"
        ) from None


def saving_times(every: int | None) -> Callable[..., bool]:
    """A function ``(save, *, step, last)`` that calls ``save`` when it is time, and at the last.

    It returns whether it saved, and that succeeded.

    Args:
      every: at every so many steps; None by the clock, so that saving takes a twentieth of the time
        at most.
    """
    ended, took = time.monotonic(), 0.0

    def keep(save: Callable[[], bool], *, step: int, last: bool) -> bool:
        nonlocal ended, took
        now = time.monotonic()
        by_clock = every is None and now > ended + max(EVERY_SECONDS, 20 * took)
        if last or by_clock or (every is not None and step % every == 0):
            saved = save()
            ended = time.monotonic()
            took = ended - now
            return saved
        return False

    return keep
