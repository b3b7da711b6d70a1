"""What the checkpoints of all commands have in common: when, of what program, network and step."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax import checkpoint, report
from nst_jax.annotations import check_type
from nst_jax.checkpoint_checks import check_position
from nst_jax.choices import Choice
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.options import RunOptions
from nst_jax.packing import as_tuples, pack, unpack
from nst_jax.position import Position
from nst_jax.scales import EndedScale
from nst_jax.standard_streams import STANDARD
from nst_jax.threads import can_set_threads, set_threads
from nst_jax.weights import Weights

EVERY_SECONDS = 30.0  # between two checkpoints where nobody names a number of steps
# What decides about the numbers, and about the form of an optimiser's state.
VERSIONS = ("nst_jax", "jax", "jaxlib", "flax", "optax")
# What a record of another form meets.
FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def try_to_save(
    folder: Path, record: dict[str, Any], arrays: dict[str, np.ndarray], *, digest: str
) -> bool:
    """Save a checkpoint, or tell that it cannot be written; those before stay then.

    Returns:
      Whether it was written.
    """
    try:
        checkpoint.save(folder, record, arrays, inputs=digest)
        return True
    except OSError as error:
        rest = "with the one before" if checkpoint.checkpoints(folder) else "without one"
        words = f"cannot write a checkpoint to {folder} ({error.strerror}), going on {rest}"
        print(f"nst-jax: {words}", file=sys.stderr)
        return False


def common_record(weights: Weights) -> dict[str, Any]:
    """What a checkpoint of any kind says of the program and the network."""
    info = weights.info
    path = str(absolute(Path(info.path)))
    return {
        "versions": report.versions(),
        "device": report.device(),
        "weights": {"name": info.name, "sha256": info.sha256, "path": path},
    }


def check_versions(saved: checkpoint.Saved) -> None:
    """Check that the program is the one that saved.

    Raises:
      InputError: with what differs.
    """
    with foreign_is_input_error(saved):
        there, here = saved.record["versions"], report.versions()
        other = [
            f"{name} {there.get(name)} (here {here[name]})"
            for name in VERSIONS
            if there.get(name) != here[name]
        ]
    if other:
        raise InputError(
            f"{saved.path} was saved with {', '.join(other)}: go on with those, or begin anew"
        )


def check_devices(saved: checkpoint.Saved, *, divided: bool) -> None:
    """Say where the devices are others than those that a checkpoint is of.

    Args:
      saved: the checkpoint.
      divided: whether they share a picture.

    Raises:
      InputError: where another number of devices would have to share it.
    """
    with foreign_is_input_error(saved):
        there, here = saved.record["device"], report.device()
        before = f"{there['count']} x {there['kind']}"
    now = f"{here['count']} x {here['kind']}"
    if divided and there["count"] != here["count"]:
        raise InputError(f"the run began on {before}, here are {now}: go on with as many")
    if before != now:
        print(
            f"nst-jax: the run began on {before}, here are {now}: the result may differ a little",
            file=sys.stderr,
        )


def with_threads(run: RunOptions, threads: int | None) -> RunOptions:
    """Options of a run that goes on; sets the number of threads that they have.

    Args:
      run: the options that were saved.
      threads: how many are asked for now, or None for as many as were asked for then.

    Raises:
      InputError: as ``threads.set_threads``.
    """
    if threads is None and can_set_threads():
        threads = run.threads
    if threads is not None:
        set_threads(threads=threads)
    return replace(run, threads=threads)


def other_threads(saved: checkpoint.Saved) -> str | None:
    """A line where CPUs compute on another number of threads than a checkpoint names, else None."""
    with foreign_is_input_error(saved):
        there = saved.record.get("device", {}).get("threads")  # none in those of earlier programs
        check_type(there, int | None, name="threads")
    here = report.device().get("threads")
    if there is None or here is None or there == here:
        return None
    return (
        f"the run was on {there} threads before and is on {here} now: the bits of its result will "
        f"differ, {there} threads keep them"
    )


def tell_of_threads(saved: checkpoint.Saved) -> None:
    """Say where CPUs compute on another number of threads than a checkpoint names."""
    if words := other_threads(saved):
        print(f"nst-jax: {words}", file=sys.stderr)


def saved_weights(saved: checkpoint.Saved, path: Path | None) -> Path | None:
    """The file of the network that a checkpoint is of: the one named, else where it was.

    Returns:
      None for the weights that any run would take.
    """
    with foreign_is_input_error(saved):
        before = Path(saved.record["weights"]["path"])
    return path or (before if os.path.isfile(before) else None)


def check_weights(saved: checkpoint.Saved, weights: Weights) -> None:
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
            f"{here.sha256[:12]}): name the former by --weights, or begin anew"
        )


def save_position(folder: str | Path, position: Position) -> None:
    """Save where a run of ``transfer.stylize`` stands; for runs in Python, whose inputs are theirs.

    The folder keeps the newest two. Call it from a callback with ``progress.position()``.

    Args:
      folder: is made where it does not exist.
      position: from ``loop.Progress.position``.

    Raises:
      OSError: where it cannot be written; those before stay.
    """
    folder, arrays = Path(folder), {}
    folder.mkdir(exist_ok=True)
    there = checkpoint.checkpoints(folder)
    digest = checkpoint.inputs_digest(folder) if there else checkpoint.save_inputs(folder, {})
    record = {"kind": "position", "versions": report.versions(), "device": report.device()}
    record |= {"position": position_record(position, arrays)}
    checkpoint.save(folder, record, arrays, inputs=digest)


def load_position(folder: str | Path) -> Position:
    """The newest position in a folder that is whole, for ``transfer.stylize``.

    Warns where CPUs compute on another number of threads than when it was saved.

    Raises:
      InputError: where there is none, or it was saved with other versions.
    """
    saved = checkpoint.load(Path(folder))
    check_versions(saved)
    with foreign_is_input_error(saved):
        position = restore_position(saved.record["position"], saved.arrays)
    if position is None:
        raise InputError(f"{saved.path} was saved before the first step: begin anew")
    if words := other_threads(saved):
        warnings.warn(words, stacklevel=2)
    return position


def restore_config(plain: Mapping[str, Any]) -> Config:
    """Settings from plain data.

    Raises:
      InputError, TypeError, AttributeError: for what are no settings.
    """
    return Config.of(**{name: as_tuples(value) for name, value in plain.items()})


def position_record(position: Position | None, arrays: dict[str, np.ndarray]) -> Any:
    """A position as plain data; its arrays are added to ``arrays``."""
    if position is None:
        return None
    return pack(position._asdict(), arrays, name="position")


def restore_position(plain: Any, arrays: dict[str, np.ndarray]) -> Position | None:
    """The position that ``position_record`` has packed.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: for what it does not make.
    """
    if plain is None:
        return None
    position = Position(**unpack(plain, arrays))
    ended = [
        EndedScale(as_tuples(shape), steps, Choice(*choice))
        for shape, steps, choice in position.ended
    ]
    last = position.last_choice
    position = position._replace(
        ended=tuple(ended),
        choice=Choice(*position.choice),
        last_choice=None if last is None else Choice(*last),
    )
    check_type(position, Position, name="position")
    check_position(position)
    return position


@contextmanager
def foreign_is_input_error(saved: checkpoint.Saved) -> Iterator[None]:
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


def absolute(path: Path) -> Path:
    """A path that holds in any folder; ``-`` is no file."""
    return path if path == STANDARD else Path(os.path.abspath(path))
