"""How many pictures of a batch are computed at once."""

from collections.abc import Sequence
from typing import Any

from nst_jax.batch_records import BatchJob
from nst_jax.lane_memory import batch_that_fits, pictures_in_words, refusal, times
from nst_jax.memory import LoopMemory
from nst_jax.messages import tell
from nst_jax.problem import Problem

AT_MOST = 64  # pictures at once on an accelerator, unless more are asked for


def choose_width(
    job: BatchJob,
    memory: LoopMemory | None,
    *,
    shape: Sequence[int],
    devices: Sequence[Any],
    free: int | None,
) -> int:
    """How many pictures to compute at once, each of which takes so much memory.

    Raises:
      InputError: where the memory does not suffice for one.
    """
    # CPU devices share one memory, and more than one picture for each gains nothing.
    cpu = devices[0].platform == "cpu"
    holders, most = (1, len(devices)) if cpu else (len(devices), AT_MOST * len(devices))
    wanted = most if job.batch_size == "auto" else job.batch_size
    wanted = min(wanted, most) if cpu else wanted
    if free is None or memory is None:
        return wanted
    fitting = holders * batch_that_fits(memory, free, at_most=-(-wanted // holders))
    if not fitting:
        raise refusal(memory, free, width=shape[1], height=shape[0])
    return min(wanted, fitting)


def tell_of_width(
    problem: Problem,
    memory: LoopMemory,
    *,
    width: int,
    devices: Sequence[Any],
    free: int | None,
    process: int,
) -> None:
    """Say what so many pictures of one size take together; of several memories, in the fullest."""
    cpu = devices[0].platform == "cpu"
    pictures = width if cpu else -(-width // len(devices))
    together = times(memory, pictures, networks=width if cpu else 1)
    words = pictures_in_words(problem, together, free=free, process=process, pictures=pictures)
    tell(words)


def even_width(most: int, *, count: int) -> int:
    """The least width that takes as few batches as the largest one allowed: less is filled up.

    >>> even_width(64, count=65), even_width(64, count=3)
    (33, 3)
    """
    return -(-count // -(-count // most))


def half_width(width: int, *, devices: Sequence[Any]) -> int:
    """Half as many pictures in each memory, or 0 where there was one: CPU devices share theirs."""
    holders = 1 if devices[0].platform == "cpu" else len(devices)
    return holders * (-(-width // holders) // 2)
