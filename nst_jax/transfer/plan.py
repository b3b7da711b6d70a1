"""Memory of a compiled loop, and the words for execution plans and memory plans."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from nst_jax.config.checks import LARGEST_COUNT
from nst_jax.config.config import Config
from nst_jax.errors import InputError
from nst_jax.optim.lbfgs import MEMORY_DTYPES
from nst_jax.optim.solver import run
from nst_jax.system.memory import in_gib
from nst_jax.transfer.loop import CHUNK_SIZE
from nst_jax.transfer.types import ExecutionPlan, LoopMemory, MemoryPlan
from nst_jax.types import Guidance, Solver, Targets, Variables


def check_plan(plan: ExecutionPlan) -> None:
    """Check an execution plan that was read from a file.

    Raises:
      ValueError: if a field is out of range.
    """
    if not 0 <= plan.tile <= LARGEST_COUNT:
        raise ValueError(f"tile is {plan.tile}: expected 0 to {LARGEST_COUNT}")
    if plan.memory_size is not None and not 1 <= plan.memory_size <= LARGEST_COUNT:
        raise ValueError(f"memory_size is {plan.memory_size}: expected 1 to {LARGEST_COUNT}")
    if plan.memory_dtype not in MEMORY_DTYPES:
        known = ", ".join(map(str, MEMORY_DTYPES))
        raise ValueError(f"memory_dtype is {plan.memory_dtype!r}: expected one of {known}")


def execution_in_words(plan: ExecutionPlan) -> str:
    """Describe an execution plan.

    >>> execution_in_words(ExecutionPlan(tile=512, memory_size=10, memory_dtype="bfloat16"))
    'tiles of 512 px, L-BFGS remembers 10 pairs in bfloat16'
    """
    words = ["the whole image", "activations recomputed"] if plan.remat else []
    words = words or [f"tiles of {plan.tile} px" if plan.tile else "the whole image"]
    if plan.recompute_content:
        words.append("content features recomputed")
    if plan.memory_size is not None:
        kind = f" in {plan.memory_dtype}" if plan.memory_dtype else ""
        words.append(f"L-BFGS remembers {plan.memory_size} pairs{kind}")
    return ", ".join(words)


# Fraction of the free memory that a plan may use. The rest is for what the plan does not count
# (preprocessing, host copies) and for fragmentation: the allocator needs contiguous blocks.
USABLE = 0.85


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a tree.

    >>> tree_bytes({"a": jax.ShapeDtypeStruct((2, 3), "float32")})
    24
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loop_memory(
    solver: Solver, image_shape: Sequence[int], dtype: Any, variables: Variables, targets: Targets
) -> LoopMemory | None:
    """Measure the memory of the compiled loop of one image, without allocating it.

    The loop is compiled. A run in the same process reuses the compiled program if it passes its
    arguments as ``single.stylize`` does.

    Args:
      solver, variables, targets: as for ``solver.run``; arrays or their shapes.
      image_shape, dtype: of the image.

    Returns:
      The ``LoopMemory``, or None if the backend has no memory analysis.
    """
    image = jax.ShapeDtypeStruct(tuple(image_shape), dtype)
    state = jax.eval_shape(solver.init, image, variables, targets)
    # The same keywords and Python ints as in the first call of ``loop.iterate``: jit's cache is
    # keyed by them, and any other form would compile a second program.
    lowered = run.lower(
        solver, state, variables=variables, targets=targets, num_steps=0, chunk_size=CHUNK_SIZE
    )
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        return None
    # The state is donated, so the new state takes the place of the old one (the aliased bytes).
    # The rest of the output is the recorded diagnostics.
    recorded = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return LoopMemory(
        network=tree_bytes(variables),
        state=tree_bytes(state),
        targets=tree_bytes(targets),
        scratch=analysis.temp_size_in_bytes + recorded,
    )


class Task(NamedTuple):
    """The run to make a memory plan for, at one scale.

    Attributes:
      variables: the network's variables, arrays or shapes.
      content: the content image, or its shape.
      styles: the style images, or their shapes.
      config: the settings.
      guidance: which style applies where, arrays or shapes.
      optimizer: replaces the config's, or None.
    """

    variables: Variables
    content: Any
    styles: Sequence[Any]
    config: Config
    guidance: Guidance = Guidance()
    optimizer: Any = None


def too_large_error(
    task: Task, *, last: ExecutionPlan, needed: float, limit: int | None, fitting: int | None
) -> InputError:
    """The error if no execution plan fits into memory.

    Args:
      task: the run that was planned.
      last: the plan that was tried last.
      needed: bytes of the cheapest plan.
      limit: usable bytes of the free memory, or None if unknown.
      fitting: longer side of an image that would fit, or None if there is none.
    """
    height, width = task.content.shape[:2]
    config = task.config
    cheaper = {
        "adam": config.optimizer.name != "adam",
        "precision bfloat16": config.execution.precision != "bfloat16",
        "tile auto": config.execution.tile != "auto",
        "remat auto": config.execution.remat == "on",
    }
    others = [name for name, applies in cheaper.items() if applies]
    advice = f"a longer side of about {fitting} px would fit"
    if fitting is None:
        advice = "choose a smaller size, or a device with more memory"
    return InputError(
        f"an image of {width}x{height} px needs about {in_gib(needed / USABLE, digits=3)}"
        + (f" even in tiles of {last.tile} px" if last.tile else "")
        + (", more" if limit is None else f", {in_gib(limit / USABLE, digits=3)} are free")
        + (" than could be allocated" if limit is None else "")
        + f": {advice}"
        + (f"; {' and '.join(others)} would need less" if others else "")
    )


def plan_in_words(
    plan: MemoryPlan, *, shape: Sequence[int], process: int = 0, images: int = 1
) -> str:
    """Describe a memory plan in one line.

    Args:
      plan: from ``planner.choose``.
      shape: of the image, ``[H, W, 3]``.
      process: bytes that the process already uses, if they are in the same memory.
      images: number of images computed at once.
    """
    needs = plan.needs
    parts = {
        "program": process,
        "network": needs.network,
        "targets": needs.targets,
        "image and optimiser": needs.state,
        "activations": needs.scratch,
    }
    listed = ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items() if size)
    where = "" if plan.free is None else f" of {in_gib(plan.free + process)}"
    together = f", {images} images at once" if images > 1 else ""
    return (
        f"{shape[1]}x{shape[0]} px{together}: "
        f"about {in_gib(sum(needs) + process)} ({listed}){where}; "
        f"{execution_in_words(plan.execution_plan)}"
        + (
            f", because the default plan would need {in_gib(plan.whole + process)}"
            if plan.whole
            else ""
        )
    )
