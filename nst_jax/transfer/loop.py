"""The host loop around the compiled loop: chunks of steps, callbacks, stopping, recovery."""

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

CHUNK_SECONDS = 1.5  # target duration of a chunk, after which the callback may stop the run

CHUNK_SIZE = 64  # most steps of a chunk: the length of the recorded diagnostics, which is static

# Waiting for scratch memory to be freed: the longest wait, and the wait if its use is unknown.
RELEASE_SECONDS, BLIND_SECONDS = 1.0, 0.01

RELEASE_SLACK = 2**26  # bytes that other threads may have allocated in the meantime


def as_callback(callback: Callable[[Progress], bool | None] | Callback | None) -> Callback | None:
    """Turn a function into a ``Callback``.

    Raises:
      InputError: for a number of steps below 1.
    """
    if callback is None:
        return None
    checked = callback if isinstance(callback, Callback) else Callback(callback)
    if any(number < 1 for number in checked.multiples):
        raise InputError(f"a callback is called every {checked.every} steps: expected 1 or more")
    return checked


class Run(NamedTuple):
    """What ``iterate`` returns.

    Attributes:
      state: the last state.
      history: ``Info`` of arrays with one entry per step.
      status: ``"done"``, ``"stopped"`` or ``"diverged"``.
      timing: seconds, under ``compile_s`` and ``steps_s``.
      recoveries: number of recoveries so far, earlier ones included.
      stopped: whether the last callback asked to stop, even if no step was left.
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
    """Take steps in chunks of about 1.5 seconds, with a callback after each.

    Args:
      take: ``(state, *, num_steps, chunk_size) -> (state, Info)``: ``solver.run`` with all other
        arguments bound. It may reuse the buffers of the state.
      state: of one image, or of a batch, with a leading axis or with lists as fields. A batch has
        diverged when all of its elements have. Its step count is continued.
      steps: the step count to reach.
      started: ``time.perf_counter()`` at the start of the work that counts as compilation.
      callback: called after each chunk, or None.
      before: steps of earlier scales, which count towards the callback's multiples.
      history: maps an ``Info`` to the ``Info`` of the steps already done, which has the same
        structure.
      recover: ``(state, *, times)`` returns a state to continue from after a divergence, or None;
        ``times`` is the number of the recovery, from 1.
      recoveries: number of earlier recoveries.

    Returns:
      A ``Run``.
    """
    started = time.perf_counter() if started is None else started
    # A call with zero steps compiles the loop, so that compilation is timed separately.
    in_use = bytes_in_use()
    state, info = take(state, num_steps=0, chunk_size=CHUNK_SIZE)
    jax.block_until_ready(state)
    _wait_for_release(in_use)
    compile_s = time.perf_counter() - started

    multiples, stopped = callback.multiples if callback else (), False
    count, frozen = jax.device_get((state.count, state.frozen))
    chunks: list[Info] = [] if history is None else [history(info)]
    # In a batch, programs that have diverged stop counting: the largest count is that of the run.
    # The first chunk is a single step, to measure the speed.
    done, chunk, steps_s = int(np.max(count)), 1, 0.0
    status = "diverged" if np.all(frozen) else "done"
    while done < steps and status == "done":
        # End the chunk at the next multiple of each of the callback's intervals.
        chunk = min(chunk, steps - done, *(n - (before + done) % n for n in multiples))
        in_use, chunk_started = bytes_in_use(), time.perf_counter()
        state, info = take(state, num_steps=chunk, chunk_size=CHUNK_SIZE)
        count, frozen, info = jax.device_get((state.count, state.frozen, info))
        elapsed = time.perf_counter() - chunk_started
        steps_s += elapsed
        # Fewer than ``chunk`` if the loop ended early; the rest of the diagnostics is not filled.
        taken = int(np.max(count)) - done
        chunks.append(jax.tree.map(operator.itemgetter(slice(taken)), info))
        done += taken
        if np.all(frozen):
            # After the last step a recovered state would never be evaluated, so do not recover.
            recovered = recover(state, times=recoveries + 1) if recover and done < steps else None
            if recovered is None:
                status = "diverged"
            else:
                state, recoveries = recovered, recoveries + 1
        _wait_for_release(in_use)
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
        # As many steps as take CHUNK_SECONDS at the speed of this chunk.
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
    """Add up the seconds of two parts of a run."""
    return {name: seconds + second.get(name, 0.0) for name, seconds in first.items()}


def _wait_for_release(in_use: int | None) -> None:
    """Wait until a chunk's scratch memory is freed.

    On CPUs it is freed some time after the results are ready, on a busy machine a long time. A
    chunk that starts earlier allocates the same amount once more.

    Args:
      in_use: ``memory.bytes_in_use()`` before the chunk. A chunk's results replace its arguments,
        so the same number of bytes is in use once its scratch memory is freed.
    """
    if jax.default_backend() != "cpu":
        return
    if in_use is None:
        time.sleep(BLIND_SECONDS)
        return
    end = time.perf_counter() + RELEASE_SECONDS
    while (bytes_in_use() or 0) > in_use + RELEASE_SLACK and time.perf_counter() < end:
        time.sleep(BLIND_SECONDS / 10)
