"""What a checkpoint says: of what program, network and devices it is, and where the run stands.

Contract: records are what JSON holds, arrays are NumPy's. Both come from files that others may have
made, so that all that is restored has the types and ranges that a run gives it.
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

# What decides about the numbers, and about the form of an optimiser's state.
VERSIONS = ("nst_jax", "jax", "jaxlib", "flax", "optax")

LARGEST = 2**63 - 1

# What a record of another form meets.
FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def foreign_is_input_error(saved: store.Saved) -> Iterator[None]:
    """Make errors of the input of those that a record of another form meets."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{saved.path} is of another run: {error}") from None
    except FOREIGN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(
            f"{saved.path} was not written by this program ({reason}): begin anew"
        ) from None


def common_record(weights: Weights) -> dict[str, Any]:
    """What the checkpoints of all commands say of the program and the network."""
    info = weights.info
    return {
        "versions": versions(),
        "device": device(),
        "weights": {"name": info.name, "sha256": info.sha256, "path": os.path.abspath(info.path)},
    }


def check_versions(saved: store.Saved) -> None:
    """Check that the program is the one that saved.

    Raises:
      InputError: with what differs.
    """
    with foreign_is_input_error(saved):
        there, here = saved.record["versions"], versions()
        other = [
            f"{name} {there.get(name)} (here {here[name]})"
            for name in VERSIONS
            if there.get(name) != here[name]
        ]
    if other:
        raise InputError(
            f"{saved.path} was saved with {', '.join(other)}: go on with those, or begin anew"
        )


def other_devices(saved: store.Saved, *, divided: bool = False) -> list[str]:
    """Lines that tell where the devices are others than those that a checkpoint is of.

    Args:
      saved: the checkpoint.
      divided: whether they share an image.

    Raises:
      InputError: where another number of devices would have to share it.
    """
    with foreign_is_input_error(saved):
        there, here = saved.record["device"], device()
        before, count = f"{there['count']} x {there['kind']}", there["count"]
        threads = there.get("threads")
        threads = None if threads is None else whole(threads)
    now = f"{here['count']} x {here['kind']}"
    if divided and count != here["count"]:
        raise InputError(f"the run began on {before}, here are {now}: go on with as many")
    lines = []
    if before != now:
        lines.append(f"the run began on {before}, here are {now}: the result may differ a little")
    if None not in (threads, here.get("threads")) and threads != here["threads"]:
        lines.append(
            f"the run was on {threads} threads before and is on {here['threads']} now: the bits of "
            f"its result will differ, {threads} threads keep them"
        )
    return lines


def saved_weights(saved: store.Saved) -> Path | None:
    """The file of the network that a checkpoint is of, or None where it is not there any more."""
    with foreign_is_input_error(saved):
        path = Path(saved.record["weights"]["path"])
        return path if os.path.isfile(path) else None


def check_weights(saved: store.Saved, weights: Weights) -> None:
    """Check that a network is the one that a checkpoint is of.

    Raises:
      InputError: with what differs.
    """
    with foreign_is_input_error(saved):
        there, here = saved.record["weights"], weights.info
        same = there["sha256"] == here.sha256
        words = f"{there['name']} ({there['path']}, sha256 {there['sha256'][:12]})"
    if not same:
        raise InputError(
            f"the run began with the weights {words}, these are {here.name} ({here.path}, sha256 "
            f"{here.sha256[:12]}): give the former as weights, or begin anew"
        )


def save_position(folder: str | Path, position: Position) -> None:
    """Save where a run of ``single.stylize`` stands; for runs in Python, whose inputs are theirs.

    The folder keeps the newest two. Call it from a callback with ``progress.position()``.

    Args:
      folder: is made where it does not exist.
      position: from ``Progress.position``.

    Raises:
      OSError: where it cannot be written; those before stay.
    """
    folder, arrays = Path(folder), {}
    folder.mkdir(exist_ok=True)
    record = {"kind": "position", "versions": versions(), "device": device()}
    record |= {"position": position_record(position, arrays)}
    store.save(folder, record, arrays, inputs={})


def load_position(folder: str | Path) -> Position:
    """The newest position in a folder that is whole, for ``single.stylize``.

    Warns where the devices, or the number of CPU threads, are others than when it was saved.

    Raises:
      InputError: where there is none, or it was saved with other versions.
    """
    saved = store.load(Path(folder))
    check_versions(saved)
    with foreign_is_input_error(saved):
        position = restore_position(saved.record["position"], saved.arrays)
    if position is None:
        raise InputError(f"{saved.path} was saved before the first step: begin anew")
    for words in other_devices(saved):
        warnings.warn(words, stacklevel=2)
    return position


def position_record(position: Position | None, arrays: dict[str, np.ndarray]) -> Any:
    """A position as plain data; its arrays are added to ``arrays``."""
    if position is None:
        return None
    for kind in ("state", "history"):
        arrays |= {f"{kind}/{name}": array for name, array in getattr(position, kind).items()}
    return position._replace(state={}, history={})._asdict()


def restore_position(plain: Any, arrays: dict[str, np.ndarray]) -> Position | None:
    """The position that ``position_record`` made a record of; its arrays are taken out.

    Raises:
      ArithmeticError, AttributeError, LookupError, TypeError, ValueError: for what is no position.
    """
    if plain is None:
        return None
    ended = [
        EndedScale(
            (whole(height), whole(width)), whole(steps, least=1), _execution_plan(execution_plan)
        )
        for (height, width), steps, execution_plan in plain["ended"]
    ]
    last, free = plain["last_plan"], plain["free"]
    position = Position(
        step=whole(plain["step"], least=1),
        scale=whole(plain["scale"], least=1),
        ended=tuple(ended),
        execution_plan=_execution_plan(plain["execution_plan"]),
        recoveries=whole(plain["recoveries"], most=RECOVERIES),
        timing={name: _seconds(plain["timing"][name]) for name in ("compile_s", "steps_s")},
        state=_taken(arrays, "state/"),
        history=_taken(arrays, "history/"),
        last_plan=None if last is None else _execution_plan(last),
        free=None if free is None else whole(free),
    )
    rows = {len(values) for values in position.history.values()}
    counts = [np.max(value) for name, value in position.state.items() if name.startswith("count")]
    taken = position.step - sum(scale.steps for scale in ended)
    if rows != {position.step} or not counts or max(counts) != taken:
        raise ValueError("its numbers of steps contradict each other")
    return position


def plan_record(plan: MemoryPlan | None) -> Any:
    """A memory plan as plain data."""
    return None if plan is None else [plan.execution_plan, plan.needs, plan.free, plan.whole]


def restore_plan(plain: Any) -> MemoryPlan | None:
    """The plan that ``plan_record`` made a record of; raises as ``restore_position``."""
    if plain is None:
        return None
    execution_plan, needs, free, entire = plain
    return MemoryPlan(
        _execution_plan(execution_plan),
        LoopMemory(*map(whole, needs)),
        None if free is None else whole(free),
        None if entire is None else whole(entire),
    )


def frame_arrays(frames: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """An animation's frames by names."""
    return {f"frames/{number:06}": frame for number, frame in enumerate(frames)}


def restore_frames(arrays: dict[str, np.ndarray], *, shape: tuple[int, int]) -> list[np.ndarray]:
    """The frames of ``frame_arrays``, taken out; raises as ``restore_position``."""
    frames = [frame for _, frame in sorted(_taken(arrays, "frames/").items())]
    if any(frame.dtype != np.uint8 or frame.shape != (*shape, 3) for frame in frames):
        raise ValueError("a frame is no image of the run's size")
    return frames


def whole(value: Any, *, least: int = 0, most: int = LARGEST) -> int:
    """A whole number of JSON, checked.

    >>> whole(3)
    3
    >>> whole(True)
    Traceback (most recent call last):
    TypeError: True is no whole number
    """
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is no whole number")
    if not least <= value <= most:
        raise ValueError(f"a number is out of its range of {least} to {most}")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _execution_plan(plain: Any) -> ExecutionPlan:
    tile, remat, recompute, size, dtype = plain
    if type(remat) is not bool or type(recompute) is not bool:
        raise TypeError("a way to compute is none")
    execution_plan = ExecutionPlan(
        whole(tile), remat, recompute, None if size is None else whole(size), dtype
    )
    check_plan(execution_plan)
    return execution_plan


def _taken(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
