"""Where and how runs are computed: devices, the plan of the memory, how many images at once.

And what to say where they do not fit.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nst_jax.cli.messages import log
from nst_jax.cli.outputs import Job
from nst_jax.config.config import Config
from nst_jax.errors import InputError
from nst_jax.system.memory import free_bytes, in_gib, keep_freed_memory, reserve
from nst_jax.transfer.plan import USABLE, loop_memory, plan_in_words
from nst_jax.transfer.planner import choose
from nst_jax.transfer.problem import Problem, make_task
from nst_jax.transfer.sharding import make_mesh, rows_mesh
from nst_jax.transfer.types import LoopMemory, MemoryPlan
from nst_jax.weights.canonical import Weights


def make_mesh_of(spread: str | None, *, config: Config) -> Mesh | None:
    """The mesh of all devices that a way to divide an image wants.

    Raises:
      InputError: where there is one device only; for settings that contradict the way.
    """
    if spread is None:
        return None
    if len(jax.local_devices()) == 1:
        raise InputError(
            f"spread {spread} divides an image among several devices, and there is one only: "
            "leave it out"
        )
    if spread == "rows":
        if isinstance(config.execution.tile, int):
            raise InputError(
                f"tile is {config.execution.tile}, but rows have no tiles: leave it out, or divide "
                "the tiles among the devices (--spread tiles)"
            )
        return rows_mesh()
    without = ["--tile off"] * (config.execution.tile == "off") + ["--remat on"] * (
        config.execution.remat == "on"
    )
    if without:
        flags = " and ".join(without)
        raise InputError(
            f"--spread tiles divides tiles among the devices, and with {flags} there are none: "
            f"leave out {flags}, or take --spread rows"
        )
    return make_mesh()


def make_plan(job: Job, weights: Weights, *, than: MemoryPlan | None = None) -> MemoryPlan | None:
    """What the last scale will need, and how it is to be computed.

    Args:
      job, weights: what to do.
      than: a plan that needs more, for which the memory did not suffice.

    Raises:
      InputError: where it does not fit in any way.
    """
    task = make_task(weights.variables, job.inputs, config=job.config)
    free = free_bytes(jax.local_devices()[0]) if than is None else _less(than)
    plan = choose(task, free=free, failed=than is not None)
    if plan is not None:
        plan = plan if than is None else plan._replace(free=than.free)
        make_room(plan)
    return plan


def make_smaller_plan(job: Job, weights: Weights, *, than: MemoryPlan) -> MemoryPlan:
    """The next way that needs less than one for which the memory did not suffice.

    Raises:
      InputError: where there is none, with the size that would fit.
    """
    plan = make_plan(job, weights, than=than)
    assert plan is not None  # or there would have been none before
    return plan


def _less(plan: MemoryPlan) -> int:
    """Free memory with which ``choose`` takes a way that needs less."""
    return int((sum(plan.needs) - 1) / USABLE)


def log_room(plan: MemoryPlan) -> None:
    """Say where less is free now than an earlier plan needs, which is kept for the same result."""
    free, needed = free_bytes(jax.local_devices()[0]), sum(plan.needs)
    if free is not None and needed > free:
        words = f"the run was planned to take {in_gib(needed)} and {in_gib(free)} are free now"
        log(f"{words}: it may not go on here")


def make_room(plan: MemoryPlan) -> None:
    """Let the process keep room for a plan on CPUs, see ``memory``."""
    if jax.default_backend() != "cpu":
        return
    # Twice the scratch: it may get a second place, see ``keep_to_place``.
    room = sum(plan.needs) + plan.needs.scratch
    if plan.free is None or room <= USABLE * plan.free:
        reserve(room)
    else:
        keep_freed_memory(large=False)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of the computation is one of too little memory."""
    return "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error)


def explained(error: Exception, *, width: int, height: int, advice: str = "") -> Exception:
    """An error of the computation as one of the input, where it is one of too little memory."""
    if not is_out_of_memory(error):
        return error
    return InputError(
        f"out of memory at {width}x{height} px: choose a smaller --size, {advice}or for L-BFGS a "
        "smaller --memory-size"
    )


def image_memory(problem: Problem, *, free: int | None = None) -> LoopMemory | None:
    """What the loop of one image takes, for images one after another in one process.

    The program is compiled for it. On CPUs scratch counts twice: when it is freed it stays with the
    process, see ``memory``, and blocks that have got between may keep it from being used again.
    Where that does not fit, large blocks are given back from now on, and it counts once.

    Args:
      problem: of the image.
      free: from ``memory.free_bytes``; None for no limit.

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
    """The largest number of images that fits, with a margin.

    Args:
      memory: from ``image_memory``; the network is in its place already.
      free: from ``memory.free_bytes``.
      at_most: the largest number wanted.

    Returns:
      The number, 0 where not even one fits.

    >>> batch_that_fits(LoopMemory(network=50, state=60, targets=20, scratch=20), 1000, at_most=32)
    8
    """
    return min(at_most, int(USABLE * free) // max(memory.own, 1))


def refusal(memory: LoopMemory, free: int, *, width: int, height: int) -> InputError:
    """The error for an image that does not fit, with the numbers that ``batch_that_fits`` has."""
    needed = memory.own / USABLE
    return InputError(
        f"an image of {width}x{height} px needs about {in_gib(needed)}, {in_gib(free)} are free: "
        "choose a smaller --size, or for L-BFGS a smaller --memory-size"
    )


def times(memory: LoopMemory, images: int, *, networks: int = 1) -> LoopMemory:
    """What images that are computed at once take of one memory.

    Args:
      memory: of one of them, from ``image_memory``.
      images: how many.
      networks: how many devices are in this memory, each with the network for itself.
    """
    one = memory
    return LoopMemory(
        networks * one.network, images * one.state, images * one.targets, images * one.scratch
    )


def images_in_words(
    problem: Problem, memory: LoopMemory, *, free: int | None, process: int, images: int
) -> str:
    """What images of one size take together, in one line as that of a single run.

    Args:
      problem: of one of them.
      memory: of all of them.
      free: from ``memory.free_bytes``, or None where it is not known.
      process: from ``memory.own_memory`` at the same time.
      images: how many are computed at once.
    """
    plan = MemoryPlan(problem.execution_plan, memory, free)
    return plan_in_words(plan, shape=problem.shape, process=process, images=images)
