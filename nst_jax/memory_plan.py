"""What a run will need, and how it is to be computed so that it fits into the memory.

A picture is taken whole where that fits; else its activations are computed twice, block by block
(``remat``) or tile by tile; what L-BFGS remembers shrinks with the room. The result is the same to
rounding but for L-BFGS's memory.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax

from nst_jax.choices import (
    Choice,
    choice_in_words,
    config_loss,
    kernel_options,
    make_config_optimizer,
    structure,
)
from nst_jax.config import Config
from nst_jax.convolution import prepare_kernels
from nst_jax.errors import InputError
from nst_jax.layers import deepest, stride
from nst_jax.memory import USABLE, LoopMemory, in_gib, loop_memory, tree_bytes
from nst_jax.objective import loss_weights, make_loss
from nst_jax.solver import make_solver
from nst_jax.tiling import Grid, make_grid
from nst_jax.types import Solver, Targets, Variables

TILES = (2048, 1536, 1024, 768, 512, 384, 256)
# L-BFGS's memory where the wanted one does not fit: pairs, and their type.
MEMORIES = ((20, None), (10, None), (10, "bfloat16"), (5, "bfloat16"))
# A bound from above: below it nothing needs to be asked of the compiler. Measured: 2.4 kB for the
# full network, 0.7 kB a region.
BYTES_PER_PIXEL, BYTES_PER_REGION = 4000, 1000


class Plan(NamedTuple):
    """What a run will need.

    Attributes:
      choice: how it is computed.
      needs: what the compiled loop takes.
      free: bytes that were free for it, or None where that is not known.
      whole: bytes of the whole picture's run as the settings have it, where it does not fit.
    """

    choice: Choice
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
      controls: further keywords of ``Loss.targets``, or their shapes.
    """

    variables: Variables
    content: Any
    styles: Sequence[Any]
    config: Config
    controls: dict[str, Any]


def as_shape(picture: Any) -> jax.ShapeDtypeStruct:
    """The shape of a picture as runs have it, in float32."""
    return jax.ShapeDtypeStruct(picture.shape, "float32")


def grid_of(task: Task, choice: Choice) -> Grid:
    """The tiles of a chosen way."""
    config = task.config
    layers = config.loss.content_layers + config.loss.style_layers
    shape = task.content.shape[:2]
    return make_grid(shape, layers=layers, tile=choice.tile, padding=config.padding)


def given_choice(task: Task) -> Choice:
    """What the settings themselves say, with the whole picture for ``auto`` and for one tile."""
    config = task.config
    step = stride(deepest(config.loss.content_layers + config.loss.style_layers))
    # As tiles are made, see ``tiling.make_grid``.
    choice = Choice(tile=-(-config.loss.tile // step) * step, remat=config.loss.remat)
    return choice._replace(tile=0) if choice.tile and grid_of(task, choice).count == 1 else choice


def _targets(task: Task, choice: Choice) -> Targets:
    """Shapes of a run's targets; they do not depend on tiles."""
    loss = make_loss(structure(task.config, choice._replace(tile=0)))
    weights = loss_weights(task.config)

    def make(variables: Variables, content: Any, styles: Any, controls: Any) -> Targets:
        return loss.targets(variables, content, styles, weights=weights, **controls)

    return jax.eval_shape(make, task.variables, task.content, list(task.styles), task.controls)


def _solver(task: Task, choice: Choice) -> Solver:
    loss = config_loss(task.config, choice)
    return make_solver(
        loss, make_config_optimizer(task.config, choice), averaging=task.config.averaging
    )


def measure(task: Task, choice: Choice) -> LoopMemory | None:
    """What a run takes if it is computed in one way: its loop is compiled for it."""
    prepare = partial(prepare_kernels, **kernel_options(task.config))
    variables = jax.eval_shape(prepare, task.variables)
    targets = _targets(task, choice)
    shape, dtype = task.content.shape, task.content.dtype
    return loop_memory(_solver(task, choice), shape, dtype, variables, targets)


def _state_bytes(task: Task, choice: Choice) -> int:
    image = jax.ShapeDtypeStruct(task.content.shape, task.content.dtype)
    return tree_bytes(jax.eval_shape(_solver(task, choice).init, image, None, None))


def fits_surely(task: Task, *, free: int) -> bool:
    """Whether the whole picture fits so easily that nothing needs to be compiled to know it."""
    height, width, _ = task.content.shape
    masks = task.controls.get("content_masks")
    regions = 0 if masks is None else len(masks)
    scratch = height * width * (BYTES_PER_PIXEL + regions * BYTES_PER_REGION)
    scratch *= task.content.dtype.itemsize // 4
    fixed = 3 * tree_bytes(task.variables) + _state_bytes(task, given_choice(task))
    if jax.default_backend() == "cpu":
        fixed += 8 * tree_bytes(task.variables["params"])  # kernels transformed by Winograd
    return fixed + scratch < USABLE * free


def choose(task: Task, *, free: int | None) -> Plan | None:
    """Find out how a run fits into the memory.

    In this order: the whole picture; the whole with as many pairs of L-BFGS as there are steps,
    which changes nothing, and with 20; each block computed twice; tiles, the largest that fit,
    first with 20 pairs and at the last with 5 in bfloat16; and the content's features computed
    again for each tile. What the settings fix is not changed, but L-BFGS's pairs: theirs is the
    largest number.

    Args:
      task: of one size.
      free: bytes that the device has, see ``memory.free_bytes``; None for no limit.

    Returns:
      The ``Plan``, or None where the backend does not tell what a program takes.

    Raises:
      InputError: where nothing fits, with the size that would.
    """
    first = given_choice(task)
    wanted = measure(task, first)
    if wanted is None:
        return None
    needed = sum(wanted)
    limit = math.inf if free is None else int(USABLE * free)
    if needed <= limit:
        return Plan(first, wanted, free)

    # State is known at once, and scratch is about that of a window's pixels and some pictures.
    state_bytes = cache(partial(_state_bytes, task))
    targets_bytes = cache(
        lambda again: tree_bytes(_targets(task, first._replace(recompute_content=again)))
    )
    # A gradient and its sum over windows; L-BFGS's update has some of its own.
    pictures = 6 if task.config.optimizer.startswith("lbfgs") else 2
    beside = pictures * task.content.size * task.content.dtype.itemsize
    measured: dict[Choice, LoopMemory] = {}
    off, sparing = 1.0, math.inf
    last = list(_alternatives(task))[-1]  # measured before anything is refused
    for choice in _alternatives(task):
        # Scratch hardly depends on the number of pairs, but may on their type.
        way = choice._replace(memory_size=None)
        share = _window_share(task, choice)
        scratch = int(share * wanted.scratch) + beside * bool(choice.tile)
        expected = LoopMemory(
            wanted.network,
            state_bytes(choice),
            targets_bytes(choice.recompute_content),
            int(off * scratch),
        )
        if way == first:
            expected = expected._replace(scratch=wanted.scratch)
        elif way in measured:
            expected = measured[way]._replace(state=expected.state)
        elif sum(expected) <= limit or choice == last:
            found = measure(task, choice)
            assert found is not None  # or the first would have been None, too
            off = found.scratch / scratch
            measured[way] = expected = found
        if way in (first, *measured) and sum(expected) <= limit:
            return Plan(choice, expected, free, whole=needed)
        sparing = min(sparing, sum(expected))
    raise _refusal(task, wanted, sparing, limit=int(limit))


def _window_share(task: Task, choice: Choice) -> float:
    """A window's part of the picture; the whole, with activations computed twice, as on CPUs."""
    if not choice.tile:
        return 0.8 if choice.remat else 1.0
    height, width, _ = task.content.shape
    grid = grid_of(task, choice)
    return grid.size[0] * grid.size[1] / (height * width)


def _alternatives(task: Task) -> Iterator[Choice]:
    """Ways to compute a run that need less than the settings' own, the quickest first."""
    config, first = task.config, given_choice(task)
    memories: list[tuple[int | None, str | None]] = [(None, None)]
    if config.optimizer == "lbfgs":
        # More pairs than steps are never there.
        pairs = min(config.memory_size or 100, config.steps)
        memories = [(pairs, None), *((m, dtype) for m, dtype in MEMORIES if m < pairs)]
    wholes = [first]
    if config.remat == "auto" and not first.tile:
        wholes.append(Choice(remat=True))
    longer = max(task.content.shape[:2])
    tiles: Sequence[int] = ()
    if config.tile == "auto" and config.remat != "on":
        tiles = [tile for tile in TILES if tile < longer]
    if first.tile:
        wholes, tiles = [], (first.tile,)
    # Of 20 pairs and more the whole picture is worth more, of fewer the pairs.
    roomy = [one for one in memories if (one[0] or 20) >= 20] or memories[:1]
    few = [one for one in memories if (one[0] or 20) <= 20]
    for whole in wholes:
        for pairs, dtype in roomy:
            yield whole._replace(memory_size=pairs, memory_dtype=dtype)
    for again in (False, True) if tiles and config.content_layers else (False,):
        for pairs, dtype in memories if first.tile else few:
            for tile in tiles:
                yield Choice(tile, False, again, pairs, dtype)
    if not tiles:
        for pairs, dtype in memories:
            yield wholes[-1]._replace(memory_size=pairs, memory_dtype=dtype)


def _refusal(task: Task, wanted: LoopMemory, sparing: float, *, limit: int) -> InputError:
    """The error for a picture that does not fit in any way, with the size that would."""
    height, width, _ = task.content.shape
    config, last = task.config, list(_alternatives(task))[-1]
    # What grows with the picture: without tiles all but the network.
    growing = sparing - wanted.network
    if last.tile:
        growing = _state_bytes(task, last) + tree_bytes(_targets(task, last))
        growing += 2 * task.content.size * task.content.dtype.itemsize
    room = (limit - (sparing - growing)) / growing
    size = int(0.97 * max(height, width) * math.sqrt(max(0.0, room)))
    ways = {
        "adam": config.optimizer != "adam",
        "precision bfloat16": config.precision != "bfloat16",
        "tile auto": not last.tile,
    }
    others = [name for name, new in ways.items() if new]
    advice = f"a longer side of about {size} px would fit"
    if size < 64:
        advice = "choose a smaller size, or a device with more memory"
    return InputError(
        f"a picture of {width}x{height} px needs about {in_gib(sparing / USABLE)}"
        + (" even in small tiles" if last.tile else "")
        + f", {in_gib(limit / USABLE)} are free: {advice}"
        + (f"; {' and '.join(others)} would need less" if others else "")
    )


def in_words(plan: Plan, *, shape: Sequence[int], process: int = 0, pictures: int = 1) -> str:
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
