"""Planning of devices and memory: meshes, memory plans, batch sizes, and errors if nothing fits."""

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


def make_spread_mesh(spread: str | None, *, config: Config) -> Mesh | None:
    """The mesh of all devices for ``--spread``.

    Args:
      spread: "rows" or "tiles", or None to compute on one device.
      config: the settings.

    Raises:
      InputError: if there is only one device, or settings contradict ``spread``.
    """
    if spread is None:
        return None
    if len(jax.local_devices()) == 1:
        raise InputError(
            f"spread {spread} divides an image among several devices, and there is only one: "
            "leave it out"
        )
    if spread == "rows":
        if isinstance(config.execution.tile, int):
            raise InputError(
                f"tile is {config.execution.tile}, and --spread rows uses no tiles: leave it out, "
                "or choose --spread tiles"
            )
        return rows_mesh()
    no_tiles = ["--tile off"] * (config.execution.tile == "off")
    no_tiles += ["--remat on"] * (config.execution.remat == "on")
    if no_tiles:
        flags = " and ".join(no_tiles)
        raise InputError(
            f"--spread tiles divides tiles among the devices, and with {flags} there are none: "
            f"leave out {flags}, or choose --spread rows"
        )
    return make_mesh()


def make_plan(job: Job, weights: Weights, *, failed: MemoryPlan | None = None) -> MemoryPlan | None:
    """Choose the execution plan of the last scale and estimate its memory.

    Args:
      job, weights: the run.
      failed: a plan that ran out of memory; the new one needs less.

    Returns:
      The plan, or None if the backend does not report the memory of a program.

    Raises:
      InputError: if no execution plan fits into memory.
    """
    task = make_task(weights.variables, job.inputs, config=job.config)
    free = free_bytes(jax.local_devices()[0]) if failed is None else _memory_below(failed)
    plan = choose(task, free=free, failed=failed is not None)
    if plan is not None:
        plan = plan if failed is None else plan._replace(free=failed.free)
        reserve_memory(plan)
    return plan


def make_smaller_plan(job: Job, weights: Weights, *, failed: MemoryPlan) -> MemoryPlan:
    """Choose the next cheaper execution plan after one ran out of memory.

    Raises:
      InputError: if there is none; the message names the image size that would fit.
    """
    plan = make_plan(job, weights, failed=failed)
    assert plan is not None  # the backend reported the memory of the failed plan
    return plan


def _memory_below(plan: MemoryPlan) -> int:
    """Free memory, in bytes, into which this plan no longer fits."""
    return int((sum(plan.needs) - 1) / USABLE)


def warn_if_memory_shrank(plan: MemoryPlan) -> None:
    """Warn if less memory is free than a resumed run needs.

    A resumed run keeps its plan, because another one may change the result.
    """
    free, needed = free_bytes(jax.local_devices()[0]), sum(plan.needs)
    if free is not None and needed > free:
        log(
            f"the run was planned for {in_gib(needed)} of memory and {in_gib(free)} are free now: "
            "it may run out of memory"
        )


def reserve_memory(plan: MemoryPlan) -> None:
    """On CPUs, reserve memory for a plan in the process's allocator, see ``memory.reserve``."""
    if jax.default_backend() != "cpu":
        return
    # Scratch memory counts twice, because it may move to a second place: ``release_moved_block``.
    size = sum(plan.needs) + plan.needs.scratch
    if plan.free is None or size <= USABLE * plan.free:
        reserve(size)
    else:
        keep_freed_memory(large=False)


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX raised this error because memory ran out."""
    return "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error)


def as_input_error(error: Exception, *, width: int, height: int, advice: str = "") -> Exception:
    """Convert an out-of-memory error to an ``InputError``; return other errors unchanged.

    Args:
      error: raised by JAX.
      width, height: of the image, in pixels.
      advice: what else would need less memory, as "choose A, " or "".
    """
    if not is_out_of_memory(error):
        return error
    return InputError(
        f"out of memory at {width}x{height} px: choose a smaller --size, {advice}or for L-BFGS a "
        "smaller --memory-size"
    )


def image_memory(problem: Problem, *, free: int | None = None) -> LoopMemory | None:
    """Estimate the memory of one image's loop, in a process that computes many.

    This compiles the program. On CPUs scratch memory counts twice: the process keeps it when it is
    freed (see ``memory``), and small blocks in between may prevent its reuse. If that does not fit,
    the process returns large blocks to the system from now on, and scratch memory counts once.

    Args:
      problem: of the image.
      free: from ``memory.free_bytes``, or None for no limit.

    Returns:
      The ``LoopMemory``, or None if the backend does not report it.
    """
    # Shapes suffice, and unlike arrays they keep no memory alive.
    shapes: Any = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (problem.variables, problem.targets)
    )
    memory = loop_memory(problem.solver, problem.shape, np.float32, *shapes)
    if memory is None or jax.default_backend() != "cpu":
        return memory
    twice = memory._replace(scratch=2 * memory.scratch)
    # The network is in memory already, so only the rest (``per_image``) has to fit into what is
    # free.
    if free is None or twice.per_image <= USABLE * free:
        return twice
    keep_freed_memory(large=False)
    return memory


def batch_that_fits(memory: LoopMemory, free: int, *, at_most: int) -> int:
    """The largest number of images that fit into memory, with a margin.

    Args:
      memory: of one image, from ``image_memory``; the network is already in memory.
      free: from ``memory.free_bytes``.
      at_most: upper limit of the number.

    Returns:
      The number, 0 if not even one image fits.

    >>> batch_that_fits(LoopMemory(network=50, state=60, targets=20, scratch=20), 1000, at_most=32)
    8
    """
    return min(at_most, int(USABLE * free) // max(memory.per_image, 1))


def batch_too_large_error(memory: LoopMemory, free: int, *, width: int, height: int) -> InputError:
    """The error for an image that does not fit, with the margin of ``batch_that_fits``."""
    needed = memory.per_image / USABLE
    return InputError(
        f"an image of {width}x{height} px needs about {in_gib(needed)}, {in_gib(free)} are free: "
        "choose a smaller --size, or for L-BFGS a smaller --memory-size"
    )


def batch_memory(memory: LoopMemory, images: int, *, networks: int = 1) -> LoopMemory:
    """The memory that several images need when computed at once.

    Args:
      memory: of one image, from ``image_memory``.
      images: number of images.
      networks: number of devices that share this memory, each with a copy of the network.
    """
    return LoopMemory(
        network=networks * memory.network,
        state=images * memory.state,
        targets=images * memory.targets,
        scratch=images * memory.scratch,
    )


def images_in_words(
    problem: Problem, memory: LoopMemory, *, free: int | None, process: int, images: int
) -> str:
    """Describe the memory of several images of one size in one line, as that of a single run.

    Args:
      problem: of one image.
      memory: of all images.
      free: from ``memory.free_bytes``, or None if it is not known.
      process: from ``memory.process_memory`` at the same time.
      images: number of images computed at once.
    """
    plan = MemoryPlan(problem.execution_plan, memory, free)
    return plan_in_words(plan, shape=problem.shape, process=process, images=images)
