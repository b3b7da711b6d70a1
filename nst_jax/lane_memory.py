"""How many pictures fit into the memory at once, and what they take together."""

from typing import Any

import jax
import numpy as np

from nst_jax.allocator import in_gib, keep_freed_memory
from nst_jax.errors import InputError
from nst_jax.memory import USABLE, LoopMemory, loop_memory
from nst_jax.plan_words import MemoryPlan, plan_in_words
from nst_jax.problem import Problem


def picture_memory(problem: Problem, *, free: int | None = None) -> LoopMemory | None:
    """What the loop of one picture takes, for pictures one after another in one process.

    The program is compiled for it. On CPUs scratch counts twice: when it is freed it stays with the
    process, see ``allocator``, and blocks that have got between may keep it from being used again.
    Where that does not fit, large blocks are given back from now on, and it counts once.

    Args:
      problem: of the picture.
      free: from ``allocator.free_bytes``; None for no limit.

    Returns:
      The ``LoopMemory``, or None where the backend does not tell.
    """
    # Shapes are enough, and hold nothing.
    given: Any = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (problem.variables, problem.targets)
    )
    memory = loop_memory(problem.solver, problem.shape, np.float32, *given)
    if memory is None or jax.default_backend() != "cpu":
        return memory
    twice = memory._replace(scratch=2 * memory.scratch)
    if free is None or twice.own <= USABLE * free:
        return twice
    keep_freed_memory(large=False)
    return memory


def batch_that_fits(memory: LoopMemory, free: int, *, at_most: int) -> int:
    """The largest number of pictures that fits, with a margin.

    Args:
      memory: from ``picture_memory``; the network is in its place already.
      free: from ``allocator.free_bytes``.
      at_most: the largest number wanted.

    Returns:
      The number, 0 where not even one fits.

    >>> batch_that_fits(LoopMemory(network=50, state=60, targets=20, scratch=20), 1000, at_most=32)
    8
    """
    return min(at_most, int(USABLE * free) // max(memory.own, 1))


def refusal(memory: LoopMemory, free: int, *, width: int, height: int) -> InputError:
    """The error for a picture that does not fit, with the numbers that ``batch_that_fits`` has."""
    needed = memory.own / USABLE
    return InputError(
        f"a picture of {width}x{height} px needs about {in_gib(needed)}, {in_gib(free)} are free: "
        "choose a smaller --size, or for L-BFGS a smaller --memory-size"
    )


def times(memory: LoopMemory, pictures: int, *, networks: int = 1) -> LoopMemory:
    """What pictures that are computed at once take of one memory.

    Args:
      memory: of one of them, from ``picture_memory``.
      pictures: how many.
      networks: how many devices are in this memory, each with the network for itself.
    """
    one = memory
    return LoopMemory(
        networks * one.network, pictures * one.state, pictures * one.targets, pictures * one.scratch
    )


def pictures_in_words(
    problem: Problem, memory: LoopMemory, *, free: int | None, process: int, pictures: int
) -> str:
    """What pictures of one size take together, in one line as that of a single run.

    Args:
      problem: of one of them.
      memory: of all of them.
      free: from ``allocator.free_bytes``, or None where it is not known.
      process: from ``allocator.own_memory`` at the same time.
      pictures: how many are computed at once.
    """
    plan = MemoryPlan(problem.choice, memory, free)
    return plan_in_words(plan, shape=problem.shape, process=process, pictures=pictures)
