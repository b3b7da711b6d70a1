"""What the commands do after running out of memory, and after a divergence in a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from nst_jax.checkpoint import store
from nst_jax.cli.checkpoints import ResumePoint, restore_resume_point
from nst_jax.cli.messages import log
from nst_jax.cli.outputs import Job, recovery_message
from nst_jax.cli.planning import as_input_error, is_out_of_memory, make_smaller_plan
from nst_jax.system.memory import in_gib
from nst_jax.transfer.plan import execution_in_words
from nst_jax.transfer.types import ExecutionPlan, MemoryPlan, Position, Result
from nst_jax.weights.canonical import Weights

Option = TypeVar("Option")

Out = TypeVar("Out")


@contextmanager
def memory_errors_to_input_errors(shape: Sequence[int], *, advice: str = "") -> Iterator[None]:
    """Raise an ``InputError`` in place of JAX's out-of-memory error.

    Args:
      shape: height and width of the images, for the message.
      advice: what else would need less memory, for the message.

    Raises:
      InputError: if the block runs out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise as_input_error(error, width=shape[1], height=shape[0], advice=advice) from None


def run_with_fallback(
    attempt: Callable[[Option], Out],
    option: Option,
    *,
    next_option: Callable[[Option], Option | None],
    shape: Sequence[int],
    advice: str = "",
) -> Out:
    """Call ``attempt`` with options that need less and less memory, until one fits.

    Args:
      attempt: called with an option, such as a batch size or an execution plan.
      option: the first option.
      next_option: from an option that ran out of memory to a cheaper one, or None if there is none.
      shape: height and width of the images, for the message.
      advice: what else would need less memory, for the message.

    Returns:
      The result of the first attempt that fits.

    Raises:
      InputError: if no option fits into memory.
    """
    while True:
        try:
            return attempt(option)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            input_error = as_input_error(error, width=shape[1], height=shape[0], advice=advice)
        # Outside the handler, because the exception's traceback keeps the arrays of the failed
        # attempt alive.
        cheaper = next_option(option)
        if cheaper is None:
            raise input_error
        option = cheaper


def should_rerun(result: Result, *, steps: int) -> bool:
    """Whether an image that diverged in a batch may do better alone, where runs can recover.

    It may if it diverged before its last step and has a finite best loss to recover from.

    Args:
      result: of the image.
      steps: number of steps that were requested.
    """
    diverged = result.status == "diverged" and len(result.history.loss) < steps
    return diverged and bool(np.isfinite(result.loss))


def rerun_alone(
    run: Callable[..., Result], *, name: str, stop_signal: Callable[[], int | None]
) -> Result:
    """Compute an image that diverged in a batch again, alone, where it can recover.

    Args:
      run: ``single.run_inputs`` with all arguments but the callback.
      name: of the image, for messages.
      stop_signal: returns the signal that requested a stop, or None.

    Returns:
      The result, on the host.
    """
    log(f"{name}: the loss or its gradient was not finite, running it again alone")
    result = run(callback=lambda _: stop_signal() is None)
    if result.recoveries:
        log(f"{name}: {recovery_message(result.recoveries)}")
    return jax.device_get(result._replace(state=None))


def fallback_resume_point(
    job: Job, weights: Weights, plan: MemoryPlan, *, scale: int, scales: int
) -> ResumePoint:
    """Find the next cheaper execution plan after one ran out of memory, and where to resume.

    If the last scale failed, its plan is replaced. If a coarser scale failed, half as much free
    memory is assumed, because coarser scales are planned from that number. The run resumes from the
    newest checkpoint if its state fits the new plan, and otherwise starts again.

    Args:
      job, weights: the run.
      plan: the memory plan that failed.
      scale: the scale that failed, from 1.
      scales: number of scales.

    Raises:
      InputError: if there is no cheaper execution plan.
    """
    coarse = scale < scales
    if coarse and plan.free is not None:
        # If nothing fits into this much, the scale's own planning raises the error.
        plan = plan._replace(free=plan.free // 2)
        words = f"coarser scales planned for {in_gib(plan.free or 0)} of free memory"
    else:
        plan = make_smaller_plan(job, weights, failed=plan)
        words = execution_in_words(plan.execution_plan)
    resume_point, folder = ResumePoint(plan, None, []), job.watch.checkpoint
    if folder is not None and store.checkpoints(folder):
        saved = restore_resume_point(store.load(folder), shape=job.shape)
        position = saved.position and _adapt(saved.position, plan, scale=scale, last=not coarse)
        if position is not None:
            resume_point = ResumePoint(plan, position, saved.frames)
    position = resume_point.position
    begin = "the beginning" if position is None else f"step {position.step}"
    log(f"out of memory, retrying from {begin}: {words}")
    return resume_point


def _adapt(position: Position, plan: MemoryPlan, *, scale: int, last: bool) -> Position | None:
    """Adapt a saved position to another plan; None if its optimizer state does not fit."""
    position = position._replace(free=plan.free, last_plan=plan.execution_plan)
    if position.scale < scale:  # saved before the scale that failed
        return position
    # A coarser scale chooses its execution plan only when it starts, so a position within it cannot
    # be adapted here.
    if not last or not _same_optimizer_state(position.execution_plan, plan.execution_plan):
        return None
    return position._replace(execution_plan=plan.execution_plan)


def _same_optimizer_state(first: ExecutionPlan, second: ExecutionPlan) -> bool:
    """Whether L-BFGS's state has the same shapes and types under both execution plans."""
    fields = ("memory_size", "memory_dtype")
    return all(getattr(first, name) == getattr(second, name) for name in fields)
