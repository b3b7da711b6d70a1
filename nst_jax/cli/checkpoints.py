"""Checkpoints of the commands: checks, schedule, saving and restoring."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.checkpoint import store
from nst_jax.checkpoint.records import (
    common_record,
    frame_arrays,
    malformed_is_input_error,
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

CHECKPOINT_SECONDS = 30.0  # between two checkpoints, without --checkpoint-every


class ResumePoint(NamedTuple):
    """The state from which a run of one image can be resumed.

    Attributes:
      plan: the memory plan, or None on several devices.
      position: the position of the run, or None before its first step.
      frames: frames of the animation so far, uint8 ``[H, W, 3]``.
    """

    plan: MemoryPlan | None
    position: Position | None
    frames: list[np.ndarray]


SaveCheckpoint = Callable[[ResumePoint], bool]


def check_checkpoints(folder: Path | None, every: int | None, *, overwrite: bool) -> None:
    """Check that checkpoints can be written to a folder. Nothing is written or removed.

    Args:
      folder: the folder, or None without checkpoints.
      every: steps between two checkpoints, or None to save by the clock.
      overwrite: whether the checkpoints of another run may be removed.

    Raises:
      InputError: if not.
    """
    if folder is None:
        if every is not None:
            raise InputError("--checkpoint-every requires a folder: add --checkpoint DIR")
        return
    if every is not None and every < 1:
        raise InputError(f"checkpoint_every is {every}: expected 1 or more")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: choose another one for the checkpoints")
    if not os.path.isdir(folder.parent):
        raise InputError(f"the folder {folder.parent} does not exist: create it first")
    check_folder(folder if os.path.isdir(folder) else folder.parent)
    if store.checkpoints(folder) and not overwrite:
        raise InputError(
            f"{folder} contains the checkpoints of a run: resume it with "
            f"'nst-jax resume {folder}', choose another folder, or add --overwrite"
        )


def saved_options(saved: store.Saved, folder: Path) -> Any:
    """Parse the command line stored in a checkpoint.

    Args:
      saved: the checkpoint.
      folder: its present folder. Input images are replaced by their copies in it, if there are
        any; other paths are made absolute.

    Returns:
      The options of the command.

    Raises:
      InputError: if no command writes such a record.
    """
    with malformed_is_input_error(saved):
        options = parse_call(Call(saved.record["arguments"], saved.record["directory"]))
        if not saved.inputs:
            return options
        names = store.copied_names(input_files(options))
        if {*names.values()} != {*saved.inputs}:
            raise ValueError("its input files differ from those of its command line")
        return with_inputs(options, {path: folder / name for path, name in names.items()})


def restore_resume_point(saved: store.Saved, *, shape: tuple[int, int]) -> ResumePoint:
    """Restore a resume point from a checkpoint.

    Args:
      saved: the checkpoint. Its arrays are moved out of it, so that memory holds them only once.
      shape: height and width of the result.

    Raises:
      InputError: if ``checkpoint_saver`` does not write such a record.
    """
    with malformed_is_input_error(saved):
        return ResumePoint(
            restore_plan(saved.record["plan"]),
            restore_position(saved.record["position"], saved.arrays),
            restore_frames(saved.arrays, shape=shape),
        )


def restore_settings(saved: store.Saved) -> dict[str, Any]:
    """Restore what the JSON record of a run says about its options.

    Raises:
      InputError: if ``checkpoint_saver`` does not write such a record.
    """
    with malformed_is_input_error(saved):
        settings = saved.record["settings"]
        if not isinstance(settings, dict):
            raise TypeError("its settings are not an object")
        _check_depth(settings, levels=5)
        return settings


def _check_depth(value: Any, *, levels: int) -> None:
    """Limit the nesting of settings from a file, which recursive code will traverse."""
    if isinstance(value, (list, dict)):
        if not levels:
            raise ValueError("its settings are nested too deeply")
        for one in value.values() if isinstance(value, dict) else value:
            _check_depth(one, levels=levels - 1)


def checkpoint_saver(
    folder: Path,
    *,
    call: Call,
    inputs: list[Path],
    settings: dict[str, Any],
    weights: Weights,
    resumed: store.Saved | None = None,
) -> SaveCheckpoint:
    """Make a function that writes checkpoints of a run.

    Args:
      folder: of the checkpoints.
      call: the command line.
      inputs: the files that the run reads; they are copied to the folder.
      settings: what the run's JSON record says about its options.
      weights: the network's weights.
      resumed: the checkpoint that the run resumes from, if any, in the same folder.

    Returns:
      A function that saves a resume point and returns whether it succeeded; if not, it logs why.

    Raises:
      InputError: if the inputs cannot be copied.
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
        state = {
            "plan": plan_record(resume_point.plan),
            "position": position_record(resume_point.position, arrays),
        }
        try:
            store.save(folder, record | state, arrays, inputs=digests)
            return True
        except OSError as error:
            rest = "with the previous one" if store.checkpoints(folder) else "without one"
            log(f"cannot write a checkpoint to {folder} ({error.strerror}), continuing {rest}")
            return False

    return save


def save_command(folder: Path, *, call: Call, weights: Weights) -> None:
    """Save the command line of a batch, which suffices to resume it.

    A resumed batch finds the missing images by their records.

    Raises:
      InputError: if it cannot be written.
    """
    record = common_record(weights) | {"kind": "batch"} | call._asdict()
    digests = store.begin(folder)
    try:
        store.save(folder, record, {}, inputs=digests)
    except OSError as error:
        raise InputError(
            f"cannot write a checkpoint to {folder} ({error.strerror}): choose another folder"
        ) from None


def checkpoint_schedule(every: int | None) -> Callable[..., bool]:
    """Make a function that saves a checkpoint whenever one is due.

    Args:
      every: steps between two checkpoints. None saves by the clock, at most once in
        ``CHECKPOINT_SECONDS`` and so that saving takes at most a twentieth of the time.

    Returns:
      A function ``(save, *, step, last)`` that calls ``save`` if a checkpoint is due at ``step`` or
      this is the last report. It returns whether a checkpoint was saved.
    """
    saved_at, duration = time.monotonic(), 0.0

    def save_if_due(save: Callable[[], bool], *, step: int, last: bool) -> bool:
        nonlocal saved_at, duration
        now = time.monotonic()
        by_clock = every is None and now > saved_at + max(CHECKPOINT_SECONDS, 20 * duration)
        if last or by_clock or (every is not None and step % every == 0):
            saved = save()
            saved_at = time.monotonic()
            duration = saved_at - now
            return saved
        return False

    return save_if_due
