"""The host's loop around the compiled one: chunks of steps, reports, stops."""

import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.memory import bytes_in_use
from nst_jax.transfer.types import Callback, Progress
from nst_jax.types import Info, State

CHUNK_SECONDS = 1.5  # between chunks the host reports and may stop

CHUNK_SIZE = 64

# How long to wait for scratch memory to be freed: at most, and where nobody tells.
RELEASE_SECONDS, BLIND_SECONDS = 1.0, 0.01

RELEASE_SLACK = 2**26  # bytes that other things may have taken meanwhile


def as_callback(callback: Callable[[Progress], bool | None] | Callback | None) -> Callback | None:
    """A function as a ``Callback``.

    Raises:
      InputError: for numbers of steps below 1.
    """
    if callback is None:
        return None
    given = callback if isinstance(callback, Callback) else Callback(callback)
    if any(number < 1 for number in given.multiples):
        raise InputError(f"a callback is called every {given.every} steps: expected 1 or more")
    return given


class Run(NamedTuple):
    """What ``iterate`` returns.

    Attributes:
      state: the last state.
      history: ``Info`` of arrays with one entry a step.
      status: ``"done"``, ``"stopped"`` or ``"diverged"``.
      timing: seconds: ``compile_s``, ``steps_s``.
      recoveries: how often ``recover`` helped.
      stopped: whether the callback's last answer was to stop, also where no step was left.
    """

    state: Any
    history: Info
    status: str
    timing: dict[str, float]
    recoveries: int = 0
    stopped: bool = False


def iterate(
    take: Callable[..., tuple[State, Info]],
    state: State,
    *,
    steps: int,
    started: float | None = None,
    callback: Callback | None = None,
    before: int = 0,
    history: Callable[[Info], Info] | None = None,
    recover: Callable[..., State | None] | None = None,
    recoveries: int = 0,
) -> Run:
    """Take steps, and report between chunks of about a second and a half.

    Args:
      take: ``(state, *, num_steps, chunk_size) -> (state, Info)``, as ``solver.run`` with all else
        bound; the state is used up.
      state: of one image, or of several with a leading axis or as fields of lists; the run has
        then diverged when all of them have. Steps that it has done count.
      steps: how many it shall have done at the end.
      started: ``time.perf_counter()`` when the work began that counts as compilation.
      callback: what sees the run.
      before: steps of earlier scales, which count for the multiples.
      history: from a record of the structure of ``take``'s to that of the steps done before.
      recover: ``(state, *, times)``, from a frozen state and the number of the time, from 1, to one
        that goes on, or None.
      recoveries: how often that was so before.

    Returns:
      A ``Run``.
    """
    started = time.perf_counter() if started is None else started
    # A run of no steps compiles the loop, so that its time is known apart.
    before_chunk = bytes_in_use()
    state, info = take(state, num_steps=0, chunk_size=CHUNK_SIZE)
    jax.block_until_ready(state)
    _let_go(before_chunk)
    compile_s = time.perf_counter() - started

    multiples, stopped = callback.multiples if callback else (), False
    count, frozen = jax.device_get((state.count, state.frozen))
    chunks: list[Info] = [] if history is None else [history(info)]
    done, chunk, steps_s = int(np.max(count)), 1, 0.0
    status = "diverged" if np.all(frozen) else "done"
    while done < steps and status == "done":
        chunk = min(chunk, steps - done, *(n - (before + done) % n for n in multiples))
        before_chunk, chunk_started = bytes_in_use(), time.perf_counter()
        state, info = take(state, num_steps=chunk, chunk_size=CHUNK_SIZE)
        count, frozen, info = jax.device_get((state.count, state.frozen, info))
        elapsed = time.perf_counter() - chunk_started
        steps_s += elapsed
        taken = int(np.max(count)) - done
        chunks.append(jax.tree.map(operator.itemgetter(slice(taken)), info))
        done += taken
        if np.all(frozen):
            # Without a step left nothing would show that it is finite again.
            again = recover(state, times=recoveries + 1) if recover and done < steps else None
            if again is None:
                status = "diverged"
            else:
                state, recoveries = again, recoveries + 1
        _let_go(before_chunk)
        if callback is not None:
            last = jax.tree.map(operator.itemgetter(-1), chunks[-1])
            progress = Progress(
                *(done, steps, last, state.image, elapsed / taken, compile_s),
                recoveries=recoveries,
                state=state,
                history=tuple(chunks),
                steps_s=steps_s,
            )
            stopped = callback.call(progress) is False
            if stopped and status == "done" and done < steps:
                status = "stopped"
        chunk = max(1, min(CHUNK_SIZE, round(CHUNK_SECONDS * chunk / elapsed)))

    return Run(
        state=state,
        history=jax.tree.map(lambda *xs: np.concatenate(xs), *chunks),
        status=status,
        timing={"compile_s": compile_s, "steps_s": steps_s},
        recoveries=recoveries,
        stopped=stopped,
    )


def add_timing(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The seconds of two pieces of a run together."""
    return {name: seconds + second.get(name, 0.0) for name, seconds in first.items()}


def _let_go(in_use: int | None) -> None:
    """Wait for a chunk's scratch memory to be freed.

    On CPUs that is some time after its results are there, on a busy machine a long one, and a next
    chunk that begins before takes as much again.

    Args:
      in_use: ``memory.bytes_in_use()`` before the chunk; all that it leaves is in the place of what
        was there.
    """
    if jax.default_backend() != "cpu":
        return
    if in_use is None:
        time.sleep(BLIND_SECONDS)
        return
    end = time.perf_counter() + RELEASE_SECONDS
    while (bytes_in_use() or 0) > in_use + RELEASE_SLACK and time.perf_counter() < end:
        time.sleep(BLIND_SECONDS / 10)
