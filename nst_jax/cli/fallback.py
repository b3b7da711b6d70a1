"""How a run goes on where it cannot as it was: after too little memory, or a divergence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from nst_jax.checkpoint import store
from nst_jax.cli.checkpoints import ResumePoint, restore_resume_point
from nst_jax.cli.messages import log
from nst_jax.cli.outputs import Job, recovered_words
from nst_jax.cli.planning import explained, is_out_of_memory, make_smaller_plan
from nst_jax.system.memory import in_gib
from nst_jax.transfer.plan import execution_in_words
from nst_jax.transfer.types import ExecutionPlan, MemoryPlan, Position, Result
from nst_jax.weights.canonical import Weights

Way = TypeVar("Way")

Out = TypeVar("Out")


@contextmanager
def explaining(shape: Sequence[int], *, advice: str = "") -> Iterator[None]:
    """Make errors of the input of those of too little memory for images of a height and width.

    Raises:
      InputError: for such errors; ``advice`` is what else would take less.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=shape[1], height=shape[0], advice=advice) from None


def with_fallback(
    attempt: Callable[[Way], Out],
    way: Way,
    *,
    smaller: Callable[[Way], Way | None],
    shape: Sequence[int],
    advice: str = "",
) -> Out:
    """Compute in a way; where the memory does not suffice, in the next that takes less of it.

    Args:
      attempt: computes in a way.
      way: the first one.
      smaller: the next one after a way, or None where there is none.
      shape: height and width of the images, for the message.
      advice: what else would take less, for the message.

    Raises:
      InputError: where the memory does not suffice in any way.
    """
    while True:
        try:
            return attempt(way)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            refused = explained(error, width=shape[1], height=shape[0], advice=advice)
        # Not above, where the error holds what the attempt has left in the memory.
        less = smaller(way)
        if less is None:
            raise refused
        way = less


def may_gain_alone(result: Result, *, steps: int) -> bool:
    """Whether an image that diverged among others, of so many steps, can go on from its best."""
    diverged = result.status == "diverged" and len(result.history.loss) < steps
    return diverged and bool(np.isfinite(result.loss))


def once_more_alone(
    work: Callable[..., Result], *, name: str, asked: Callable[[], int | None]
) -> Result:
    """Make an image that diverged among others once more: alone it goes back to its best.

    Args:
      work: ``single.run_inputs`` of the image, but for its callback.
      name: of the image, for what is told.
      asked: gives the signal that asked to stop, or None.

    Returns:
      The result, on the host.
    """
    log(f"{name}: the loss or its gradient was not finite, making it once more alone")
    result = work(callback=lambda _: asked() is None)
    if result.recoveries:
        log(f"{name}: {recovered_words(result.recoveries)}")
    return jax.device_get(result._replace(state=None))


def fallback_point(
    job: Job, weights: Weights, plan: MemoryPlan, *, scale: int, scales: int
) -> ResumePoint:
    """A run's next smaller way: for the last scale the plan's, for others with half the memory.

    It goes on from the newest checkpoint, if any, whose state is one of the smaller way too.

    Args:
      job, weights: what to do.
      plan: how it was computed.
      scale: at which the memory did not suffice, from 1.
      scales: how many there are.

    Raises:
      InputError: where there is no smaller way.
    """
    coarse = scale < scales
    if coarse and plan.free is not None:
        # Coarse scales choose by what is free; too little for any way is told by themselves.
        plan = plan._replace(free=plan.free // 2)
        words = f"the scales before the last as if {in_gib(plan.free or 0)} were free"
    else:
        plan = make_smaller_plan(job, weights, than=plan)
        words = execution_in_words(plan.execution_plan)
    resume_point, folder = ResumePoint(plan, None, []), job.watch.checkpoint
    if folder is not None and store.checkpoints(folder):
        saved = restore_resume_point(store.load(folder), shape=job.shape)
        position = saved.position and _moved(saved.position, plan, scale=scale, last=not coarse)
        if position is not None:
            resume_point = ResumePoint(plan, position, saved.frames)
    position = resume_point.position
    begin = "the beginning" if position is None else f"step {position.step}"
    log(f"out of memory, going on from {begin}, {words}")
    return resume_point


def _moved(position: Position, plan: MemoryPlan, *, scale: int, last: bool) -> Position | None:
    """A saved position for another plan, or None where its state is of no use for it."""
    position = position._replace(free=plan.free, last_plan=plan.execution_plan)
    if position.scale < scale:
        return position
    if not last or not _alike(position.execution_plan, plan.execution_plan):
        return None
    return position._replace(execution_plan=plan.execution_plan)


def _alike(first: ExecutionPlan, second: ExecutionPlan) -> bool:
    """Whether the state of the one way is one of the other, too."""
    fields = ("memory_size", "memory_dtype")
    return all(getattr(first, name) == getattr(second, name) for name in fields)
