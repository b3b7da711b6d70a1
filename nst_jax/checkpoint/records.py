"""The contents of a checkpoint: versions, network, devices, and the position of the run.

Contract: records are plain JSON data, arrays are NumPy's. Both come from files that others may have
written, so everything restored is checked to have the types and ranges that a run produces.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.checkpoint import store
from nst_jax.errors import InputError
from nst_jax.system.backend import device, versions
from nst_jax.transfer.plan import check_plan
from nst_jax.transfer.types import (
    RECOVERIES,
    EndedScale,
    ExecutionPlan,
    LoopMemory,
    MemoryPlan,
    Position,
)
from nst_jax.weights.canonical import Weights

# The packages that determine the numbers, and the structure of the optimizer state.
VERSIONS = ("nst_jax", "jax", "jaxlib", "flax", "optax")

LARGEST = 2**63 - 1

# Exceptions that reading a malformed record may raise.
MALFORMED_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@contextmanager
def malformed_is_input_error(saved: store.Saved) -> Iterator[None]:
    """Turn the exceptions of reading a malformed record into InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{saved.path} is from another run: {error}") from None
    except MALFORMED_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(
            f"{saved.path} was not written by this program ({reason}): start a new run"
        ) from None


def common_record(weights: Weights) -> dict[str, Any]:
    """Return the part of the record that the checkpoints of all commands share."""
    info = weights.info
    return {
        "versions": versions(),
        "device": device(),
        "weights": {"name": info.name, "sha256": info.sha256, "path": os.path.abspath(info.path)},
    }


def check_versions(saved: store.Saved) -> None:
    """Check that the versions of ``VERSIONS`` are those that wrote a checkpoint.

    Raises:
      InputError: naming the versions that differ.
    """
    with malformed_is_input_error(saved):
        before, here = saved.record["versions"], versions()
        differences = [
            f"{name} {before.get(name)} (here {here[name]})"
            for name in VERSIONS
            if before.get(name) != here[name]
        ]
    if differences:
        raise InputError(
            f"{saved.path} was saved with {', '.join(differences)}: resume with those versions, or "
            "start a new run"
        )


def device_changes(saved: store.Saved, *, divided: bool = False) -> list[str]:
    """Return warnings if the devices or threads differ from those that wrote a checkpoint.

    Args:
      saved: the checkpoint.
      divided: whether an image is divided among the devices.

    Raises:
      InputError: if the image would be divided among a different number of devices.
    """
    with malformed_is_input_error(saved):
        before, here = saved.record["device"], device()
        words, count = f"{before['count']} x {before['kind']}", before["count"]
        threads = before.get("threads")
        threads = None if threads is None else checked_int(threads)
    now = f"{here['count']} x {here['kind']}"
    if divided and count != here["count"]:
        raise InputError(f"the run started on {words}, got {now}: resume on the same number")
    lines = []
    if words != now:
        lines.append(f"the run started on {words}, got {now}: the result may differ slightly")
    if None not in (threads, here.get("threads")) and threads != here["threads"]:
        lines.append(
            f"the run used {threads} threads before and uses {here['threads']} now: the bits of "
            f"its result will differ; use {threads} threads to keep them"
        )
    return lines


def saved_weights(saved: store.Saved) -> Path | None:
    """Return the weights file of a checkpoint's run, or None if it no longer exists."""
    with malformed_is_input_error(saved):
        path = Path(saved.record["weights"]["path"])
        return path if os.path.isfile(path) else None


def check_weights(saved: store.Saved, weights: Weights) -> None:
    """Check that the weights are those of a checkpoint's run.

    Raises:
      InputError: naming both, if they differ.
    """
    with malformed_is_input_error(saved):
        before, here = saved.record["weights"], weights.info
        same = before["sha256"] == here.sha256
        words = f"{before['name']} ({before['path']}, sha256 {before['sha256'][:12]})"
    if not same:
        raise InputError(
            f"the run began with the weights {words}, got {here.name} ({here.path}, sha256 "
            f"{here.sha256[:12]}): resume with the former, or start a new run"
        )


def save_position(folder: str | Path, position: Position) -> None:
    """Save the position of a run of ``single.stylize`` from Python.

    Call it from a callback with ``progress.position()``. The folder keeps the newest two positions.
    It does not keep the inputs of the run.

    Args:
      folder: the folder, which is created if it does not exist.
      position: from ``Progress.position``.

    Raises:
      OSError: if the position cannot be written; earlier ones stay.
    """
    folder, arrays = Path(folder), {}
    folder.mkdir(exist_ok=True)
    record = {"kind": "position", "versions": versions(), "device": device()}
    record |= {"position": position_record(position, arrays)}
    store.save(folder, record, arrays, inputs={})


def load_position(folder: str | Path) -> Position:
    """Load the newest undamaged position in a folder, for ``single.stylize``.

    Warns if the devices or the number of CPU threads differ from when it was saved.

    Args:
      folder: as for ``save_position``.

    Returns:
      The position.

    Raises:
      InputError: if there is none, or it was saved with different versions.
    """
    saved = store.load(Path(folder))
    check_versions(saved)
    with malformed_is_input_error(saved):
        position = restore_position(saved.record["position"], saved.arrays)
    if position is None:
        raise InputError(f"{saved.path} was saved before the first step: start a new run")
    for words in device_changes(saved):
        warnings.warn(words, stacklevel=2)
    return position


def position_record(position: Position | None, arrays: dict[str, np.ndarray]) -> Any:
    """Convert a position to plain data, and add its arrays to ``arrays``."""
    if position is None:
        return None
    for kind in ("state", "history"):
        arrays |= {f"{kind}/{name}": array for name, array in getattr(position, kind).items()}
    return position._replace(state={}, history={})._asdict()


def restore_position(plain: Any, arrays: dict[str, np.ndarray]) -> Position | None:
    """Convert the data of ``position_record`` back, and remove its arrays from ``arrays``.

    Raises:
      MALFORMED_ERRORS: if the data are not a valid position.
    """
    if plain is None:
        return None
    ended = [
        EndedScale(
            (checked_int(height), checked_int(width)),
            checked_int(steps, least=1),
            _execution_plan(execution_plan),
        )
        for (height, width), steps, execution_plan in plain["ended"]
    ]
    last, free = plain["last_plan"], plain["free"]
    position = Position(
        step=checked_int(plain["step"], least=1),
        scale=checked_int(plain["scale"], least=1),
        ended=tuple(ended),
        execution_plan=_execution_plan(plain["execution_plan"]),
        recoveries=checked_int(plain["recoveries"], most=RECOVERIES),
        timing={name: _seconds(plain["timing"][name]) for name in ("compile_s", "steps_s")},
        state=_take_arrays(arrays, "state/"),
        history=_take_arrays(arrays, "history/"),
        last_plan=None if last is None else _execution_plan(last),
        free=None if free is None else checked_int(free),
    )
    rows = {len(values) for values in position.history.values()}
    counts = [np.max(value) for name, value in position.state.items() if name.startswith("count")]
    # The history has a row for each step of all scales; the optimizer counts those of this scale.
    scale_steps = position.step - sum(scale.steps for scale in ended)
    if rows != {position.step} or not counts or max(counts) != scale_steps:
        raise ValueError("its numbers of steps contradict each other")
    return position


def plan_record(plan: MemoryPlan | None) -> Any:
    """Convert a memory plan to plain data."""
    return None if plan is None else [plan.execution_plan, plan.needs, plan.free, plan.whole]


def restore_plan(plain: Any) -> MemoryPlan | None:
    """Convert the data of ``plan_record`` back; raises as ``restore_position``."""
    if plain is None:
        return None
    execution_plan, needs, free, untiled = plain
    return MemoryPlan(
        _execution_plan(execution_plan),
        LoopMemory(*map(checked_int, needs)),
        None if free is None else checked_int(free),
        None if untiled is None else checked_int(untiled),
    )


def frame_arrays(frames: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return an animation's frames as named arrays."""
    return {f"frames/{number:06}": frame for number, frame in enumerate(frames)}


def restore_frames(arrays: dict[str, np.ndarray], *, shape: tuple[int, int]) -> list[np.ndarray]:
    """Remove the frames of ``frame_arrays`` from ``arrays``; raises as ``restore_position``."""
    frames = [frame for _, frame in sorted(_take_arrays(arrays, "frames/").items())]
    if any(frame.dtype != np.uint8 or frame.shape != (*shape, 3) for frame in frames):
        raise ValueError(f"expected frames of {shape} pixels in uint8")
    return frames


def checked_int(value: Any, *, least: int = 0, most: int = LARGEST) -> int:
    """Check that a value from JSON is an integer from ``least`` to ``most``, and return it.

    >>> checked_int(3)
    3
    >>> checked_int(True)
    Traceback (most recent call last):
    TypeError: expected an integer, got True
    """
    if type(value) is not int:  # isinstance would accept bool
        raise TypeError(f"expected an integer, got {value!r:.40}")
    if not least <= value <= most:
        # Python refuses to print integers of over 4300 digits.
        raise ValueError(f"expected an integer from {least} to {most}, got another")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {value!r:.40}")
    return float(value)


def _execution_plan(plain: Any) -> ExecutionPlan:
    tile, remat, recompute, size, dtype = plain
    if type(remat) is not bool or type(recompute) is not bool:
        raise TypeError("expected true or false in an execution plan")
    execution_plan = ExecutionPlan(
        checked_int(tile), remat, recompute, None if size is None else checked_int(size), dtype
    )
    check_plan(execution_plan)
    return execution_plan


def _take_arrays(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
