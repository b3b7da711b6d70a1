"""A memory plan, what it is made for, and both in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nst_jax.allocator import in_gib
from nst_jax.choices import ExecutionPlan, choice_in_words
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.memory import USABLE, LoopMemory
from nst_jax.types import Guidance, Variables


class MemoryPlan(NamedTuple):
    """What a run will need.

    Attributes:
      choice: how it is computed.
      needs: what the compiled loop takes.
      free: bytes that were free for it, or None where that is not known.
      whole: bytes of the whole picture's run as the settings have it, where it does not fit.
    """

    choice: ExecutionPlan
    needs: LoopMemory
    free: int | None
    whole: int | None = None


class Task(NamedTuple):
    """What a plan is made for.

    Attributes:
      variables: the network's, arrays or shapes.
      content: the content picture, or its shape.
      styles: likewise.
      config: the settings.
      guidance: which style holds where, arrays or shapes.
      optimizer: in place of the config's, if any.
    """

    variables: Variables
    content: Any
    styles: Sequence[Any]
    config: Config
    guidance: Guidance = Guidance()
    optimizer: Any = None


def too_large(
    task: Task, *, last: ExecutionPlan, needed: float, limit: int | None, fitting: int | None
) -> InputError:
    """The error for a picture that does not fit in any way.

    Args:
      task: of the picture.
      last: the most sparing way to compute it.
      needed: bytes that the least way takes.
      limit: bytes that may be taken of what is free; None where they are not known.
      fitting: longer side of a picture that would fit, or None.
    """
    height, width = task.content.shape[:2]
    config = task.config
    ways = {
        "adam": config.optimizer.name != "adam",
        "precision bfloat16": config.execution.precision != "bfloat16",
        "tile auto": config.execution.tile != "auto",
        "remat auto": config.execution.remat == "on",
    }
    others = [name for name, new in ways.items() if new]
    advice = f"a longer side of about {fitting} px would fit"
    if fitting is None:
        advice = "choose a smaller size, or a device with more memory"
    return InputError(
        f"a picture of {width}x{height} px needs about {in_gib(needed / USABLE, digits=3)}"
        + (f" even in tiles of {last.tile} px" if last.tile else "")
        + (", more" if limit is None else f", {in_gib(limit / USABLE, digits=3)} are free")
        + (" than could be had" if limit is None else "")
        + f": {advice}"
        + (f"; {' and '.join(others)} would need less" if others else "")
    )


def plan_in_words(
    plan: MemoryPlan, *, shape: Sequence[int], process: int = 0, pictures: int = 1
) -> str:
    """A plan in one line.

    Args:
      plan: from ``choose``.
      shape: of the picture, ``[H, W, 3]``.
      process: bytes that the process has already, where these are of the same memory.
      pictures: how many the plan is for.
    """
    needs, choice = plan.needs, plan.choice
    parts = {
        "program": process,
        "network": needs.network,
        "targets": needs.targets,
        "picture and optimiser": needs.state,
        "activations": needs.scratch,
    }
    listed = ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items() if size)
    where = "" if plan.free is None else f" of {in_gib(plan.free + process)}"
    together = f", {pictures} pictures at once" if pictures > 1 else ""
    return (
        f"{shape[1]}x{shape[0]} px{together}: "
        f"about {in_gib(sum(needs) + process)} ({listed}){where}; "
        f"{choice_in_words(choice)}"
        + (f", as the usual way would need {in_gib(plan.whole + process)}" if plan.whole else "")
    )
