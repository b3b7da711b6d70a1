"""How a job goes on after the memory did not suffice, against its plan."""

import sys
from collections.abc import Sequence

from nst_jax import checkpoint
from nst_jax.choices import Choice, choice_in_words
from nst_jax.job_checkpoint import Standing, restore_job
from nst_jax.job_plan import make_smaller_plan
from nst_jax.job_records import Job
from nst_jax.memory import in_gib
from nst_jax.options import WatchOptions
from nst_jax.plan_words import Plan
from nst_jax.position import Position
from nst_jax.scales import Scale
from nst_jax.weights import Weights


def smaller(
    job: Job,
    weights: Weights,
    plan: Plan,
    *,
    watch: WatchOptions,
    scale: int,
    scales: Sequence[Scale],
) -> Standing:
    """The next smaller way: for the last scale the plan's, for others with half the memory.

    It goes on from the newest checkpoint, if any, whose state is one of the smaller way too.

    Args:
      job, weights, watch: what to do.
      plan: how it was computed.
      scale: at which the memory did not suffice, from 1.
      scales: of the run.

    Raises:
      InputError: where there is no smaller way.
    """
    coarse = scale < len(scales)
    if coarse and plan.free is not None:
        # Coarse scales choose by what is free; too little for any way is told by themselves.
        plan = plan._replace(free=plan.free // 2)
        words = f"the scales before the last as if {in_gib(plan.free or 0)} were free"
    else:
        plan = make_smaller_plan(job, weights, than=plan)
        words = choice_in_words(plan.choice)
    standing = Standing(plan, None, [])
    if watch.checkpoint is not None and checkpoint.checkpoints(watch.checkpoint):
        _, _, _, saved = restore_job(checkpoint.load(watch.checkpoint), watch.checkpoint)
        position = saved.position and _moved(saved.position, plan, scale=scale, last=not coarse)
        if position is not None:
            standing = Standing(plan, position, saved.frames)
    begin = "the beginning" if standing.position is None else f"step {standing.position.step}"
    print(f"nst-jax: out of memory, going on from {begin}, {words}", file=sys.stderr)
    return standing


def _moved(position: Position, plan: Plan, *, scale: int, last: bool) -> Position | None:
    """A saved position for another plan, or None where its state is of no use for it."""
    position = position._replace(free=plan.free, last_choice=plan.choice)
    if position.scale < scale:
        return position
    if not last or not _alike(position.choice, plan.choice):
        return None
    return position._replace(choice=plan.choice)


def _alike(first: Choice, second: Choice) -> bool:
    """Whether the state of the one way is one of the other, too."""
    fields = ("memory_size", "memory_dtype")
    return all(getattr(first, name) == getattr(second, name) for name in fields)
