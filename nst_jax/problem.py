"""What a run needs, put together: pictures in the wanted colours, targets, solver, start.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from nst_jax.choices import Choice, config_loss, kernel_options, make_config_optimizer
from nst_jax.color import prepare_colors, restore_colors
from nst_jax.config import Config
from nst_jax.convolution import prepare_kernels
from nst_jax.errors import InputError
from nst_jax.guides import lay_over
from nst_jax.inputs import as_picture, check_initial, check_pictures, initial_image
from nst_jax.layers import TAPS, deepest, stride
from nst_jax.mask_checks import check_guidance
from nst_jax.memory import free_bytes
from nst_jax.memory_plan import choose, fits_surely, given_choice, grid_of
from nst_jax.objective import as_sequence, check_learned, loss_weights, of_luminance
from nst_jax.parallel import replicate
from nst_jax.plan_words import Task
from nst_jax.rows import check_rows, divides_rows, picture_sharding, targets_shardings
from nst_jax.shares import check_blend
from nst_jax.solver import make_solver
from nst_jax.types import Array, Loss, LossWeights, Moments, Solver, State, Targets, Variables

compute_targets = jax.jit(
    lambda loss, variables, content, styles, weights, controls: loss.targets(
        variables, content, styles, weights=weights, **controls
    ),
    static_argnums=0,
)
_prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers", "dtype"))


@partial(jax.jit, static_argnames=("solver", "sharding"))
def start(
    solver: Solver, image: Array, variables: Variables, targets: Targets, *, sharding: Any = None
) -> State:
    """The state before the first step, compiled; on several devices with the given sharding."""
    state = solver.init(image, variables, targets)
    return state if sharding is None else jax.lax.with_sharding_constraint(state, sharding)


@partial(jax.jit, static_argnums=0)
def compute_moments(
    loss: Loss, variables: Variables, styles: Sequence[Array], style_masks: Any
) -> dict[str, Moments]:
    """``Targets.style`` alone, compiled: it serves contents of any size."""
    unused = LossWeights(0.0, 0.0, 0.0, {}, {})
    # In place of a content, of which nothing is computed: a style may be too small for its layers.
    blank = jnp.zeros((64, 64, 3), styles[0].dtype)
    targets = loss.targets(variables, blank, styles, weights=unused, style_masks=style_masks)
    return targets.style


class Problem(NamedTuple):
    """A run before its first step.

    Attributes:
      solver, variables, targets: as ``solver.run`` takes them.
      initial: ``(config, key, init) -> image``, of a config that differs in numbers only.
      shape: of the picture.
      finish: from the optimised picture to the one to be shown: with the content's colours and
        the parts that are left as they are.
      choice: how it is computed, see ``choices``.
    """

    solver: Solver
    variables: Variables
    targets: Targets
    initial: Callable[..., Array]
    shape: tuple[int, ...]
    finish: Callable[[Array], Array]
    choice: Choice = Choice()


def make_problem(
    variables: Variables,
    content: Any,
    styles: Any,
    *,
    config: Config,
    blend: Any = None,
    content_masks: Any = None,
    style_masks: Sequence[Any] | None = None,
    region_weights: Any = None,
    keep: Any = None,
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    kernels: Variables | None = None,
    moments: dict[str, Moments] | None = None,
    choice: Choice | None = None,
    free: int | None = None,
    mesh: Mesh | None = None,
) -> Problem:
    """Check everything and compute the targets; the arguments are those of ``transfer.stylize``.

    What pictures have in common may be taken over from another problem of the same config:
    ``kernels`` are its ``variables``, ``moments`` the ``targets.style`` of the same styles.
    ``choice`` says how to compute, in place of what the memory's room makes of ``config.tile`` and
    ``config.remat``; ``free`` are its bytes, by default measured now. Devices of a ``mesh`` divide
    the picture by rows, see ``rows.rows_mesh``, or
    else its tiles.

    Colours are matched from whole pictures: masks do not change what ``config.color`` does.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    content = as_picture(content)
    styles = [as_picture(style) for style in as_sequence(styles)]
    check_pictures(content, styles, config=config)
    blend = None if blend is None else check_blend(blend)
    controls = check_guidance(
        content,
        styles,
        config=config.loss,
        content_masks=content_masks,
        style_masks=style_masks,
        region_weights=region_weights,
        keep=keep,
    )
    check_precision(config)
    by_rows = divides_rows(mesh)
    own_loss, options = loss is not None, kernel_options(config, by_rows=by_rows)
    if mesh is not None and by_rows:
        layers = TAPS if own_loss else ()
        check_rows(content.shape[0], content.shape[1], mesh=mesh, config=config, layers=layers)
    variables = replicate(variables, mesh)
    weights = None if region_weights is None else np.asarray(region_weights, float)
    given = {"blend": blend, "region_weights": weights} | controls
    if loss is not None:
        by_tiles = mesh is not None and not by_rows
        chosen_way = choice not in (None, Choice())
        asked = config.execution.evaluation
        if asked.tile or asked.remat or chosen_way or by_tiles:
            raise InputError(
                "tile and remat, or devices for tiles, are for the config's own objective: leave "
                "them out"
            )
        choice = Choice()
        # An objective of one's own may ask for any layer, in any precision.
        options |= {"layers": TAPS, "dtype": None}
        loss = of_luminance(loss) if config.loss.color == "luminance" else loss
    else:
        check_learned(variables, config.loss)
        if choice is None:
            task = Task(variables, content, styles, config, given, optimizer)
            choice = _choose(task, free) if mesh is None else _on_mesh(task, mesh)
        if by_rows and choice.tile:
            raise InputError("tiles are cut out of whole pictures, not of divided rows")
        loss = config_loss(config, choice, mesh=None if by_rows else mesh)
    chosen = optimizer or make_config_optimizer(config, choice)
    solver = make_solver(loss, chosen, averaging=config.averaging, clip=config.optimizer.clip)

    original, keep = content, controls["keep"]
    content, styles = prepare_colors(content, styles, mode=config.loss.color)
    if mesh is not None and by_rows:  # so that its features are divided from the beginning
        content = jax.device_put(content, picture_sharding(mesh))
    if not own_loss:
        style_masks = given.pop("style_masks")
        if moments is None:
            compare = bool(config.loss.style_layers)
            moments = compute_moments(loss, variables, styles, style_masks) if compare else {}
        given, styles = given | {"moments": moments}, []
    # An objective of one's own knows only the controls that it is given.
    given = {name: value for name, value in given.items() if value is not None}
    targets = compute_targets(loss, variables, content, styles, loss_weights(config), given)
    if not own_loss:
        targets = targets._replace(style=moments)  # the same arrays, which problems may share
    if mesh is not None:
        divided = by_rows and not own_loss
        targets = (
            jax.device_put(targets, targets_shardings(targets, mesh=mesh))
            if divided
            else replicate(targets, mesh)
        )
    # Only now: targets are computed once, and more exactly by the plain convolution.
    kernels = kernels or _prepare(variables, **options)

    def initial(config: Config, key: Array | None, init: Any) -> Array:
        key = jax.random.key(0) if key is None else key
        if init is None:
            init = initial_image(original, variables, config=config, key=key)
        init = as_picture(init)
        check_initial(init, shape=original.shape)
        image, _ = prepare_colors(init, [], mode=config.loss.color)
        return image if keep is None else lay_over(image, content, keep)

    def finish(image: Array) -> Array:
        image = restore_colors(image, original, mode=config.loss.color)
        return image if keep is None else lay_over(image, original, keep)

    return Problem(solver, kernels, targets, initial, content.shape, finish, choice)


def find_choice(
    variables: Variables,
    content: Any,
    styles: Sequence[Any],
    *,
    config: Config,
    optimizer: optax.GradientTransformation | None,
    free: int | None,
    **masks: Any,
) -> Choice:
    """How ``make_problem`` would compute a picture; the arguments are the same.

    Raises:
      InputError: where it does not fit into the memory.
    """
    controls = check_guidance(content, styles, config=config.loss, **masks)
    return _choose(Task(variables, content, styles, config, controls, optimizer), free)


def _choose(task: Task, free: int | None) -> Choice:
    """How to compute what the settings leave to the memory's room.

    Args:
      task: of one size.
      free: bytes, by default what the device has now.
    """
    free = free_bytes(jax.local_devices()[0]) if free is None else free
    if free is None or fits_surely(task, free=free):
        return given_choice(task)
    plan = choose(task, free=free)
    return given_choice(task) if plan is None else plan.choice


def _on_mesh(task: Task, mesh: Mesh) -> Choice:
    """How to compute on several devices: by rows as it is, or else in tiles that divide well.

    Windows are of one size and each device takes as many, so that a step takes as long as
    ceil(windows / devices) * height * width of a window: the tile, from 128 px on, for which that
    is least, of several the smallest. Smaller ones have more overlap, larger ones leave devices
    without work.
    """
    choice = given_choice(task)
    if divides_rows(mesh) or choice.tile:
        return choice
    if task.config.execution.tile == "off" or choice.remat:
        raise InputError(
            "without tiles there is nothing to divide among the devices: leave out tile off and "
            "remat on, or divide the picture by rows"
        )
    layers = task.config.loss.aligned_layers
    tiles = range(128, max(task.content.shape[:2]) + 1, stride(deepest(layers)))
    grids = {tile: grid_of(task, Choice(tile=tile)) for tile in tiles}

    def work(tile: int) -> int:
        grid = grids[tile]
        return -(-grid.count // mesh.size) * grid.size[0] * grid.size[1]

    # A small picture, as of a coarse scale, is computed whole by each, and any by a single device.
    dividing = [tile for tile in tiles if grids[tile].count > 1 and mesh.size > 1]
    return Choice(tile=min(dividing, key=work)) if dividing else Choice()


def check_precision(config: Config) -> None:
    """Check that the devices know the precision.

    Raises:
      InputError: where they do not.
    """
    if config.execution.precision == "tf32" and jax.default_backend() != "gpu":
        raise InputError(
            f"precision tf32 is one of NVIDIA GPUs, and this run is on {jax.default_backend()}: "
            "choose float32 or bfloat16"
        )
