"""Memory plans: how much memory a run needs, and the fastest execution plan that fits.

The whole image is computed at once if it fits, else with gradient checkpointing (``remat``), else
in tiles; the memory of L-BFGS shrinks as far as necessary. Only the last changes the result by more
than rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from nst_jax.config.config import LBFGS, Adam, Config
from nst_jax.config.layers import TAPS, deepest, stride
from nst_jax.config.loss import Evaluation
from nst_jax.losses.objective import loss_weights, luminance_only, make_loss
from nst_jax.losses.tiling import Grid, make_grid
from nst_jax.models.convolution import prepare_kernels
from nst_jax.optim.lbfgs import PAIRS
from nst_jax.optim.optimizers import make_optimizer
from nst_jax.optim.solver import make_solver
from nst_jax.transfer.plan import USABLE, Task, loop_memory, too_large_error, tree_bytes
from nst_jax.transfer.types import ExecutionPlan, LoopMemory, MemoryPlan
from nst_jax.types import Guidance, Loss, Solver, Targets, Variables

TILES = (2048, 1536, 1024, 768, 512, 384, 256)

# Smaller memories of L-BFGS to try: pairs and dtype. A float32 pair takes 24 bytes per pixel (the
# differences s and y, three channels each), a bfloat16 pair 12. Nocedal & Wright, Numerical
# Optimization, 2nd ed., section 7.2, report satisfactory results with 3 to 20 pairs.
MEMORIES = ((20, None), (10, None), (10, "bfloat16"), (5, "bfloat16"))

# Upper bounds of the activations, in float32. Below them the plan needs no compilation. Measured:
# 2.4 kB per pixel with the full network, 0.7 kB per pixel and region.
BYTES_PER_PIXEL, BYTES_PER_REGION = 4000, 1000

# Estimates may be wrong by some per cent, and each compilation takes seconds. So a plan is compiled
# only if its estimate is at most NEAR times the limit, and a size is recommended only if its
# estimate is at most SURE times the limit.
NEAR = 1.1
SURE = 0.95

# First estimate of the scratch memory with gradient checkpointing, relative to that without. The
# saving is small because the first block, whose maps are the largest, has most of the activations.
REMAT_SCRATCH = 0.8


def evaluation(config: Config, execution_plan: ExecutionPlan) -> Evaluation:
    """The evaluation settings of an objective under an execution plan."""
    return Evaluation(
        tile=execution_plan.tile,
        remat=execution_plan.remat,
        recompute_content=execution_plan.recompute_content,
        precision=config.execution.precision,
    )


def config_loss(config: Config, execution_plan: ExecutionPlan, *, mesh: Mesh | None = None) -> Loss:
    """The objective of a config under an execution plan; ``mesh`` divides its tiles, if any."""
    loss = make_loss(config.loss, evaluation=evaluation(config, execution_plan), mesh=mesh)
    return luminance_only(loss) if config.loss.color == "luminance" else loss


def make_config_optimizer(config: Config, execution_plan: ExecutionPlan = ExecutionPlan()) -> Any:
    """The optimiser of a config, with the L-BFGS memory of an execution plan."""
    optimizer, options = config.optimizer, {}
    if isinstance(optimizer, Adam):
        options = {"betas": (optimizer.beta1, optimizer.beta2), "epsilon": optimizer.epsilon}
    else:
        options = {"memory_size": execution_plan.memory_size or optimizer.memory_size}
    return make_optimizer(
        optimizer.name,
        pixel_range=config.loss.pixel_range,
        preconditioner=config.preconditioner,
        memory_dtype=execution_plan.memory_dtype,
        **options,
    )


def kernel_options(
    config: Config, *, by_rows: bool = False, any_layer: bool = False
) -> dict[str, Any]:
    """Options of ``convolution.prepare_kernels`` for a config.

    Args:
      config: the settings.
      by_rows: whether images are divided by rows among devices, see ``sharding``.
      any_layer: for a custom objective, which may use any layer in any precision.
    """
    convolution, narrow = config.execution.convolution, config.execution.precision == "bfloat16"
    if convolution == "auto":
        # On accelerators the vendor's library chooses the algorithm. Winograd is too inexact in
        # bfloat16, and on divided rows XLA would gather whole layers on every device for it.
        plain = narrow or by_rows or jax.default_backend() != "cpu"
        convolution = "direct" if plain else "winograd"
    return {
        "convolution": convolution,
        "layers": TAPS if any_layer else config.loss.layers,
        "dtype": "bfloat16" if narrow and not any_layer else None,
    }


def grid_of(task: Task, execution_plan: ExecutionPlan) -> Grid:
    """The grid of tiles of an execution plan."""
    config = task.config
    layers = config.loss.aligned_layers
    shape = task.content.shape[:2]
    return make_grid(shape, layers=layers, tile=execution_plan.tile, padding=config.loss.padding)


def given_plan(task: Task) -> ExecutionPlan:
    """The plan of the settings alone: the whole image for ``auto``, and if one tile covers it."""
    given = task.config.execution.evaluation
    step = stride(deepest(task.config.loss.aligned_layers))
    # Round up to the stride of the deepest layer, as ``tiling.make_grid`` does.
    execution_plan = ExecutionPlan(tile=-(-given.tile // step) * step, remat=given.remat)
    return (
        execution_plan._replace(tile=0)
        if execution_plan.tile and grid_of(task, execution_plan).count == 1
        else execution_plan
    )


def _targets(task: Task, execution_plan: ExecutionPlan) -> Targets:
    """Shapes of a run's targets, which do not depend on tiles."""
    loss = make_loss(
        task.config.loss, evaluation=evaluation(task.config, execution_plan._replace(tile=0))
    )
    weights = loss_weights(task.config)

    def make(variables: Variables, content: Any, styles: Any, guidance: Guidance) -> Targets:
        return loss.targets(variables, content, styles, weights=weights, guidance=guidance)

    return jax.eval_shape(make, task.variables, task.content, list(task.styles), task.guidance)


def _solver(task: Task, execution_plan: ExecutionPlan) -> Solver:
    loss = config_loss(task.config, execution_plan)
    optimizer = task.optimizer or make_config_optimizer(task.config, execution_plan)
    return make_solver(
        loss, optimizer, averaging=task.config.averaging, clip=task.config.optimizer.clip
    )


def measure(task: Task, execution_plan: ExecutionPlan) -> LoopMemory | None:
    """Compile the loop under an execution plan, and measure its memory."""
    prepare = partial(prepare_kernels, **kernel_options(task.config))
    variables = jax.eval_shape(prepare, task.variables)
    targets = _targets(task, execution_plan)
    shape, dtype = task.content.shape, task.content.dtype
    return loop_memory(_solver(task, execution_plan), shape, dtype, variables, targets)


def _state_bytes(task: Task, execution_plan: ExecutionPlan) -> int:
    image = jax.ShapeDtypeStruct(task.content.shape, task.content.dtype)
    return tree_bytes(jax.eval_shape(_solver(task, execution_plan).init, image, None, None))


def _targets_bytes(task: Task, execution_plan: ExecutionPlan) -> int:
    return tree_bytes(_targets(task, execution_plan))


class Meter(NamedTuple):
    """How memory is measured; each field is a function of ``(task, execution_plan)``.

    Attributes:
      loop: the ``LoopMemory``, or None if the backend has no memory analysis.
      state, targets: bytes of the state and of the targets, found without compiling.
    """

    loop: Callable[[Task, ExecutionPlan], LoopMemory | None] = measure
    state: Callable[[Task, ExecutionPlan], int] = _state_bytes
    targets: Callable[[Task, ExecutionPlan], int] = _targets_bytes


def fits_surely(task: Task, *, free: int) -> bool:
    """Whether the whole image fits by an upper bound, without compiling anything."""
    if len(task.config.loss.content_layers) > 2 or len(task.config.loss.style_layers) > 6:
        return False  # the bound does not cover the features and differences of more layers
    height, width, _ = task.content.shape
    masks = task.guidance.content_masks
    regions = 0 if masks is None else len(masks)
    scratch = height * width * (BYTES_PER_PIXEL + regions * BYTES_PER_REGION)
    scratch *= task.content.dtype.itemsize // 4
    # The bound allows for three copies of the variables.
    fixed = 3 * tree_bytes(task.variables) + _state_bytes(task, given_plan(task))
    if jax.default_backend() == "cpu":
        # Kernels transformed for Winograd's F(4x4, 3x3) take eight times the memory of plain ones:
        # 36 numbers for 9 (Lavin & Gray 2016, section 4), in two copies.
        fixed += 8 * tree_bytes(task.variables["params"])
    return fixed + scratch < USABLE * free


def choose(
    task: Task,
    *,
    free: int | None,
    failed: bool = False,
    meter: Meter = Meter(),
    tiles: Sequence[int] = TILES,
) -> MemoryPlan | None:
    """Find the fastest execution plan that fits into memory.

    Plans are tried in this order: the whole image; the whole image with as many L-BFGS pairs as
    there are steps, which changes nothing, then with 20; the same with gradient checkpointing; the
    largest tiles that fit, with 20 pairs down to 5 in bfloat16; and tiles that recompute the
    content's features. Settings that fix the tile or ``remat`` are respected. The number of pairs
    in the settings is an upper bound.

    Args:
      task: the run, at one size.
      free: bytes that the device has free, see ``memory.free_bytes``; None for no limit.
      failed: whether ``free`` was inferred from a failed allocation; the error then omits it.
      meter: how memory is measured; by default by the compiler.
      tiles: sides of tiles to try, in descending order.

    Returns:
      The ``MemoryPlan``, or None if the backend has no memory analysis.

    Raises:
      InputError: if no execution plan fits; the message names a size that would.
    """
    # The plan of the settings is compiled in any case: the run uses the same program if it fits.
    first = given_plan(task)
    wanted = meter.loop(task, first)
    if wanted is None:
        return None
    needed = sum(wanted)
    limit = math.inf if free is None else int(USABLE * free)
    if needed <= limit:
        return MemoryPlan(first, wanted, free)

    # Every measurement is a compilation, so memory is estimated first: state and targets exactly,
    # scratch memory in proportion to the pixels of a window. Each measurement corrects the later
    # estimates of the same kind of plan (whole, remat or tile) by the ratio of measured to
    # estimated scratch memory.
    corrections: dict[str, float] = {}
    measured: dict[ExecutionPlan, LoopMemory] = {}
    state_bytes = cache(partial(meter.state, task))
    targets_bytes = cache(
        lambda again: meter.targets(task, first._replace(recompute_content=again))
    )

    def estimate(execution_plan: ExecutionPlan, shape: Sequence[int]) -> LoopMemory:
        ratio = math.prod(shape[:2]) / math.prod(task.content.shape[:2])
        scratch = _estimate_scratch(task, execution_plan, shape, whole=wanted.scratch)
        scratch *= corrections.get(_kind(execution_plan), 1)
        parts = (
            ratio * state_bytes(execution_plan),
            ratio * targets_bytes(execution_plan.recompute_content),
        )
        return LoopMemory(wanted.network, *map(int, (*parts, scratch)))

    plans, least = list(_cheaper_plans(task, tiles)), math.inf
    always = _first_and_last_of_kind(plans)
    for execution_plan in plans:
        # Scratch memory hardly depends on the number of pairs, so plans that differ in nothing else
        # share a measurement. It may depend on their dtype: some backends convert them.
        pairless, kind = execution_plan._replace(memory_size=None), _kind(execution_plan)
        needs = estimate(execution_plan, task.content.shape)
        if pairless == first:
            needs = needs._replace(scratch=wanted.scratch)
        elif pairless in measured:
            needs = measured[pairless]._replace(state=needs.state)
        elif sum(needs) <= NEAR * limit or execution_plan in always:
            found = meter.loop(task, execution_plan)
            assert found is not None  # otherwise ``wanted`` would be None as well
            estimated = _estimate_scratch(task, execution_plan, whole=wanted.scratch)
            corrections[kind] = found.scratch / max(1, estimated)
            measured[pairless] = needs = found
        if pairless in (first, *measured) and sum(needs) <= limit:
            return MemoryPlan(execution_plan, needs, free, whole=needed)
        least = min(least, sum(needs))

    def fits(shape: tuple[int, int]) -> bool:
        smaller = task._replace(content=jax.ShapeDtypeStruct((*shape, 3), "float32"))
        return any(
            sum(estimate(execution_plan, shape)) <= SURE * limit
            for execution_plan in _cheaper_plans(smaller, tiles)
        )

    # Nothing fits: find the largest size that would, in steps of 3 %, with sides of at least 64 px.
    longer, other = max(task.content.shape[:2]), min(task.content.shape[:2])
    sizes = (int(longer * 0.97**power) for power in range(1, 400))
    scaled = {size: _shape_at(task, size) for size in sizes if size * other >= 64 * longer}
    fitting = next((size for size, shape in scaled.items() if fits(shape)), None)
    known = None if failed else int(limit)
    raise too_large_error(task, last=plans[-1], needed=least, limit=known, fitting=fitting)


def _shape_at(task: Task, size: int) -> tuple[int, int]:
    """Height and width of the task's image, scaled to a longer side of ``size``."""
    height, width = task.content.shape[:2]
    ratio = size / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _kind(execution_plan: ExecutionPlan) -> str:
    """The kind of plan that shares a correction between estimated and measured scratch memory."""
    return "tile" if execution_plan.tile else "remat" if execution_plan.remat else "whole"


def _first_and_last_of_kind(plans: Sequence[ExecutionPlan]) -> set[ExecutionPlan]:
    """The first and the last plan of each kind.

    They are always measured: the first calibrates the estimates of its kind, and no run is refused
    before the cheapest plan of each kind has been compiled.
    """

    def kind(execution_plan: ExecutionPlan) -> tuple[str, bool]:
        return _kind(execution_plan), execution_plan.recompute_content

    lasts = {kind(execution_plan): execution_plan for execution_plan in plans}
    firsts = {kind(execution_plan): execution_plan for execution_plan in reversed(plans)}
    return {*lasts.values(), *firsts.values()}


def _estimate_scratch(
    task: Task, execution_plan: ExecutionPlan, shape: Sequence[int] | None = None, *, whole: int
) -> float:
    """Estimate the scratch memory of a run.

    Args:
      task, execution_plan: what is computed, and how.
      shape: of the image; by default the task's.
      whole: measured scratch memory in bytes of the task's image under the plan of its settings.
    """
    task_shape = task.content.shape[:2]
    height, width = task_shape if shape is None else shape[:2]
    per_pixel = whole / math.prod(task_shape)
    if not execution_plan.tile:
        return per_pixel * height * width * (REMAT_SCRATCH if execution_plan.remat else 1)
    image = jax.ShapeDtypeStruct((height, width, 3), task.content.dtype)
    window = grid_of(task._replace(content=image), execution_plan).size
    # Activations exist for one window at a time. Arrays of the whole image come on top: the
    # gradient and its sum over windows, and for L-BFGS about four more in its update.
    images = 6 if not isinstance(task.config.optimizer, Adam) else 2
    return per_pixel * math.prod(window) + images * image.size * image.dtype.itemsize


def _cheaper_plans(task: Task, sides: Sequence[int] = TILES) -> Iterator[ExecutionPlan]:
    """Execution plans that need less memory than that of the settings, the fastest first."""
    config, first = task.config, given_plan(task)
    memories: list[tuple[int | None, str | None]] = [(None, None)]
    if isinstance(config.optimizer, LBFGS) and task.optimizer is None:
        # A run never has more pairs than steps.
        pairs = min(config.optimizer.memory_size or PAIRS, config.steps)
        memories = [(pairs, None), *((m, dtype) for m, dtype in MEMORIES if m < pairs)]
    wholes = [first]
    # Gradient checkpointing comes before tiles: it costs one more forward pass (Chen et al. 2016,
    # "Training Deep Nets with Sublinear Memory Cost"), and tiles compute their overlaps on top.
    if config.execution.remat == "auto" and not first.tile:
        wholes.append(ExecutionPlan(remat=True))
    longer = max(task.content.shape[:2])
    tiles: Sequence[int] = ()
    if config.execution.tile == "auto" and config.execution.remat != "on":
        tiles = [tile for tile in sides if tile < longer]
    if first.tile:
        wholes, tiles = [], (first.tile,)
    # Above 20 pairs, the whole image is worth more than the pairs: they are given up first. Below
    # 20, the pairs are worth more: the image is divided into tiles first.
    many = [memory for memory in memories if (memory[0] or 20) >= 20] or memories[:1]
    few = [memory for memory in memories if (memory[0] or 20) <= 20]
    for whole in wholes:
        for pairs, dtype in many:
            yield whole._replace(memory_size=pairs, memory_dtype=dtype)
    for again in (False, True) if tiles and config.loss.feature_layers else (False,):
        for pairs, dtype in memories if first.tile else few:
            for tile in tiles:
                yield ExecutionPlan(tile, False, again, pairs, dtype)
    if not tiles:
        for pairs, dtype in memories:
            yield wholes[-1]._replace(memory_size=pairs, memory_dtype=dtype)
