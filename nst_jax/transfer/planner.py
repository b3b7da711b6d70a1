"""What a run will need, and how it is to be computed so that it fits into the memory.

An image is taken whole where that fits; else its activations are computed twice, block by block
(``remat``) or tile by tile; what L-BFGS remembers shrinks with the room. The result is the same to
rounding but for L-BFGS's memory.
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
from nst_jax.losses.objective import loss_weights, make_loss, of_luminance
from nst_jax.losses.tiling import Grid, make_grid
from nst_jax.models.convolution import prepare_kernels
from nst_jax.optim.lbfgs import PAIRS
from nst_jax.optim.optimizers import make_optimizer
from nst_jax.optim.solver import make_solver
from nst_jax.transfer.plan import USABLE, Task, loop_memory, too_large, tree_bytes
from nst_jax.transfer.types import ExecutionPlan, LoopMemory, MemoryPlan
from nst_jax.types import Guidance, Loss, Solver, Targets, Variables

TILES = (2048, 1536, 1024, 768, 512, 384, 256)

# L-BFGS's memory where the wanted one does not fit: pairs, and their type.
MEMORIES = ((20, None), (10, None), (10, "bfloat16"), (5, "bfloat16"))

# A bound from above: below it nothing needs to be asked of the compiler. Measured: 2.4 kB for the
# full network, 0.7 kB a region.
BYTES_PER_PIXEL, BYTES_PER_REGION = 4000, 1000

NEAR = 1.1  # of the limit: what is expected to take so much may take less

SURE = 0.95  # likewise: what is expected to take less than that will hardly take more


def evaluation(config: Config, execution_plan: ExecutionPlan) -> Evaluation:
    """How the objective of a config is computed in a chosen way."""
    return Evaluation(
        tile=execution_plan.tile,
        remat=execution_plan.remat,
        recompute_content=execution_plan.recompute_content,
        precision=config.execution.precision,
    )


def config_loss(config: Config, execution_plan: ExecutionPlan, *, mesh: Mesh | None = None) -> Loss:
    """The objective of a config, computed in a chosen way, by devices of a mesh if any."""
    loss = make_loss(config.loss, evaluation=evaluation(config, execution_plan), mesh=mesh)
    return of_luminance(loss) if config.loss.color == "luminance" else loss


def make_config_optimizer(config: Config, execution_plan: ExecutionPlan = ExecutionPlan()) -> Any:
    """The optimiser of a config with the chosen memory."""
    optimizer, own = config.optimizer, {}
    if isinstance(optimizer, Adam):
        own = {"betas": (optimizer.beta1, optimizer.beta2), "epsilon": optimizer.epsilon}
    else:
        own = {"memory_size": execution_plan.memory_size or optimizer.memory_size}
    return make_optimizer(
        optimizer.name,
        pixel_range=config.loss.pixel_range,
        preconditioner=config.preconditioner,
        memory_dtype=execution_plan.memory_dtype,
        **own,
    )


def kernel_options(
    config: Config, *, by_rows: bool = False, any_layer: bool = False
) -> dict[str, Any]:
    """How a config prepares the network's kernels, see ``convolution.prepare_kernels``.

    Args:
      config: the settings.
      by_rows: whether images are divided by rows among devices, see ``sharding``.
      any_layer: for an objective of one's own, which may ask for any layer, in any precision.
    """
    convolution, narrow = config.execution.convolution, config.execution.precision == "bfloat16"
    if convolution == "auto":  # accelerators' libraries choose for themselves
        plain = narrow or by_rows or jax.default_backend() != "cpu"
        convolution = "direct" if plain else "winograd"
    return {
        "convolution": convolution,
        "layers": TAPS if any_layer else config.loss.layers,
        "dtype": "bfloat16" if narrow and not any_layer else None,
    }


def grid_of(task: Task, execution_plan: ExecutionPlan) -> Grid:
    """The tiles of a chosen way."""
    config = task.config
    layers = config.loss.aligned_layers
    shape = task.content.shape[:2]
    return make_grid(shape, layers=layers, tile=execution_plan.tile, padding=config.loss.padding)


def given_plan(task: Task) -> ExecutionPlan:
    """What the settings themselves say, with the whole image for ``auto`` and for one tile."""
    given = task.config.execution.evaluation
    step = stride(deepest(task.config.loss.aligned_layers))
    # As tiles are made, see ``tiling.make_grid``.
    execution_plan = ExecutionPlan(tile=-(-given.tile // step) * step, remat=given.remat)
    return (
        execution_plan._replace(tile=0)
        if execution_plan.tile and grid_of(task, execution_plan).count == 1
        else execution_plan
    )


def _targets(task: Task, execution_plan: ExecutionPlan) -> Targets:
    """Shapes of a run's targets; they do not depend on tiles."""
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
    """What a run takes if it is computed in one way: its loop is compiled for it."""
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
    """How the needs of a task are found out, each of ``(task, execution_plan)``.

    Attributes:
      loop: the ``LoopMemory``, or None where the backend does not tell.
      state, targets: bytes of the run's state and targets alone, known without compiling.
    """

    loop: Callable[[Task, ExecutionPlan], LoopMemory | None] = measure
    state: Callable[[Task, ExecutionPlan], int] = _state_bytes
    targets: Callable[[Task, ExecutionPlan], int] = _targets_bytes


def fits_surely(task: Task, *, free: int) -> bool:
    """Whether the whole image fits so easily that nothing needs to be compiled to know it."""
    if len(task.config.loss.content_layers) > 2 or len(task.config.loss.style_layers) > 6:
        return False  # their features and differences are more than the bound allows for
    height, width, _ = task.content.shape
    masks = task.guidance.content_masks
    regions = 0 if masks is None else len(masks)
    scratch = height * width * (BYTES_PER_PIXEL + regions * BYTES_PER_REGION)
    scratch *= task.content.dtype.itemsize // 4
    fixed = 3 * tree_bytes(task.variables) + _state_bytes(task, given_plan(task))
    if jax.default_backend() == "cpu":
        fixed += 8 * tree_bytes(task.variables["params"])  # kernels transformed by Winograd
    return fixed + scratch < USABLE * free


def choose(
    task: Task,
    *,
    free: int | None,
    failed: bool = False,
    meter: Meter = Meter(),
    tiles: Sequence[int] = TILES,
) -> MemoryPlan | None:
    """Find out how a run fits into the memory.

    In this order: the whole image; the whole with as many pairs of L-BFGS as there are steps,
    which changes nothing, and with 20; each block computed twice; tiles, the largest that fit,
    first with 20 pairs and at the last with 5 in bfloat16; and the content's features computed
    again for each tile. What the settings fix is not changed, but L-BFGS's pairs: theirs is the
    largest number.

    Args:
      task: of one size.
      free: bytes that the device has, see ``memory.free_bytes``; None for no limit.
      failed: whether ``free`` is only what a failure shows, and not to be told.
      meter: how needs are found out; by default the compiler is asked.
      tiles: sides of tiles to try, from the largest.

    Returns:
      The ``MemoryPlan``, or None where the backend does not tell what a program takes.

    Raises:
      InputError: where nothing fits, with the size that would.
    """
    first = given_plan(task)
    wanted = meter.loop(task, first)
    if wanted is None:
        return None
    needed = sum(wanted)
    limit = math.inf if free is None else int(USABLE * free)
    if needed <= limit:
        return MemoryPlan(first, wanted, free)

    off: dict[str, float] = {}  # what was measured of tiles and of remat, over what was expected
    measured: dict[ExecutionPlan, LoopMemory] = {}
    state_bytes = cache(partial(meter.state, task))
    targets_bytes = cache(
        lambda again: meter.targets(task, first._replace(recompute_content=again))
    )

    def expect(execution_plan: ExecutionPlan, shape: Sequence[int]) -> LoopMemory:
        """State and targets are known at once; scratch is that of a window's pixels, about."""
        ratio = math.prod(shape[:2]) / math.prod(task.content.shape[:2])
        scratch = _scratch(task, execution_plan, shape, whole=wanted.scratch) * off.get(
            _kind(execution_plan), 1
        )
        parts = (
            ratio * state_bytes(execution_plan),
            ratio * targets_bytes(execution_plan.recompute_content),
        )
        return LoopMemory(wanted.network, *map(int, (*parts, scratch)))

    alternatives, sparing = list(_alternatives(task, tiles)), math.inf
    ends = _ends(alternatives)
    for execution_plan in alternatives:
        # Scratch hardly depends on the number of pairs, but may on their type.
        way, kind = execution_plan._replace(memory_size=None), _kind(execution_plan)
        expected = expect(execution_plan, task.content.shape)
        if way == first:
            expected = expected._replace(scratch=wanted.scratch)
        elif way in measured:
            expected = measured[way]._replace(state=expected.state)
        elif sum(expected) <= NEAR * limit or execution_plan in ends:
            found = meter.loop(task, execution_plan)
            assert found is not None  # or the first would have been None, too
            off[kind] = found.scratch / max(1, _scratch(task, execution_plan, whole=wanted.scratch))
            measured[way] = expected = found
        if way in (first, *measured) and sum(expected) <= limit:
            return MemoryPlan(execution_plan, expected, free, whole=needed)
        sparing = min(sparing, sum(expected))

    def fits(shape: tuple[int, int]) -> bool:
        task_of = task._replace(content=jax.ShapeDtypeStruct((*shape, 3), "float32"))
        ways = _alternatives(task_of, tiles)
        return any(sum(expect(execution_plan, shape)) <= SURE * limit for execution_plan in ways)

    longer, other = max(task.content.shape[:2]), min(task.content.shape[:2])
    sizes = (int(longer * 0.97**power) for power in range(1, 400))
    scaled = {size: _shape_at(task, size) for size in sizes if size * other >= 64 * longer}
    fitting = next((size for size, shape in scaled.items() if fits(shape)), None)
    told = None if failed else int(limit)
    raise too_large(task, last=alternatives[-1], needed=sparing, limit=told, fitting=fitting)


def _shape_at(task: Task, size: int) -> tuple[int, int]:
    """Height and width of the task's image at another longer side."""
    height, width = task.content.shape[:2]
    ratio = size / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _kind(execution_plan: ExecutionPlan) -> str:
    """What has a factor of its own between what is expected and what is measured."""
    return "tile" if execution_plan.tile else "remat" if execution_plan.remat else "whole"


def _ends(alternatives: Sequence[ExecutionPlan]) -> set[ExecutionPlan]:
    """The first and the last way of each kind: they are measured, whatever is expected."""

    def kind(execution_plan: ExecutionPlan) -> tuple[str, bool]:
        return _kind(execution_plan), execution_plan.recompute_content

    lasts = {kind(execution_plan): execution_plan for execution_plan in alternatives}
    firsts = {kind(execution_plan): execution_plan for execution_plan in reversed(alternatives)}
    return {*lasts.values(), *firsts.values()}


def _scratch(
    task: Task, execution_plan: ExecutionPlan, shape: Sequence[int] | None = None, *, whole: int
) -> float:
    """Scratch memory that is expected, of an image of the task's shape or another one.

    Args:
      task, execution_plan: what is computed, and how.
      shape: of the image, by default the task's.
      whole: bytes for the task's whole image.
    """
    own = task.content.shape[:2]
    height, width = own if shape is None else shape[:2]
    per_pixel = whole / math.prod(own)
    if not execution_plan.tile:
        return per_pixel * height * width * (0.8 if execution_plan.remat else 1)
    image = jax.ShapeDtypeStruct((height, width, 3), task.content.dtype)
    window = grid_of(task._replace(content=image), execution_plan).size
    # A gradient and its sum over windows; L-BFGS's update has some of its own.
    images = 6 if not isinstance(task.config.optimizer, Adam) else 2
    return per_pixel * math.prod(window) + images * image.size * image.dtype.itemsize


def _alternatives(task: Task, sides: Sequence[int] = TILES) -> Iterator[ExecutionPlan]:
    """Ways to compute a run that need less than the settings' own, the quickest first."""
    config, first = task.config, given_plan(task)
    memories: list[tuple[int | None, str | None]] = [(None, None)]
    if isinstance(config.optimizer, LBFGS) and task.optimizer is None:
        # More pairs than steps are never there.
        pairs = min(config.optimizer.memory_size or PAIRS, config.steps)
        memories = [(pairs, None), *((m, dtype) for m, dtype in MEMORIES if m < pairs)]
    wholes = [first]
    if config.execution.remat == "auto" and not first.tile:
        wholes.append(ExecutionPlan(remat=True))
    longer = max(task.content.shape[:2])
    tiles: Sequence[int] = ()
    if config.execution.tile == "auto" and config.execution.remat != "on":
        tiles = [tile for tile in sides if tile < longer]
    if first.tile:
        wholes, tiles = [], (first.tile,)
    # Of 20 pairs and more the whole image is worth more, of fewer the pairs.
    roomy = [one for one in memories if (one[0] or 20) >= 20] or memories[:1]
    few = [one for one in memories if (one[0] or 20) <= 20]
    for whole in wholes:
        for pairs, dtype in roomy:
            yield whole._replace(memory_size=pairs, memory_dtype=dtype)
    for again in (False, True) if tiles and config.loss.feature_layers else (False,):
        for pairs, dtype in memories if first.tile else few:
            for tile in tiles:
                yield ExecutionPlan(tile, False, again, pairs, dtype)
    if not tiles:
        for pairs, dtype in memories:
            yield wholes[-1]._replace(memory_size=pairs, memory_dtype=dtype)
