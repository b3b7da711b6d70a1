"""Where and how a run of the command line is computed, and what to say where it does not fit."""

import jax
from jax.sharding import Mesh

from nst_jax.allocator import free_bytes, in_gib, keep_freed_memory, reserve
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.job_records import Job
from nst_jax.memory import USABLE
from nst_jax.memory_plan import choose
from nst_jax.messages import tell
from nst_jax.parallel import make_mesh
from nst_jax.plan_words import MemoryPlan
from nst_jax.problem import make_task
from nst_jax.rows import rows_mesh
from nst_jax.weights import Weights


def make_mesh_of(spread: str | None, *, config: Config) -> Mesh | None:
    """The mesh of all devices that a way to divide a picture wants.

    Raises:
      InputError: where there is one device only; for settings that contradict the way.
    """
    if spread is None:
        return None
    if len(jax.local_devices()) == 1:
        raise InputError(
            f"spread {spread} divides a picture among several devices, and there is one only: "
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


def tell_of_room(plan: MemoryPlan) -> None:
    """Say where less is free now than an earlier plan needs, which is kept for the same result."""
    free, needed = free_bytes(jax.local_devices()[0]), sum(plan.needs)
    if free is not None and needed > free:
        words = f"the run was planned to take {in_gib(needed)} and {in_gib(free)} are free now"
        tell(f"{words}: it may not go on here")


def make_room(plan: MemoryPlan) -> None:
    """Let the process keep room for a plan on CPUs, see ``allocator``."""
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
