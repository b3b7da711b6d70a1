"""Preparation of a run: checked images, targets, solver, initial image.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Inputs are checked once, by
``check_inputs``; everything after it trusts them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nst_jax.color import prepare_colors, restore_colors
from nst_jax.config.config import INITS, Config
from nst_jax.config.layers import check_multiple, check_sides, check_squares, deepest, stride
from nst_jax.errors import InputError
from nst_jax.losses.guides import add_rest_region, check_guidance, lay_over
from nst_jax.losses.objective import check_learned, loss_weights, luminance_only
from nst_jax.models.convolution import prepare_kernels
from nst_jax.optim.solver import make_solver
from nst_jax.system.memory import free_bytes
from nst_jax.transfer.plan import Task
from nst_jax.transfer.planner import (
    choose,
    config_loss,
    fits_surely,
    given_plan,
    grid_of,
    kernel_options,
    make_config_optimizer,
)
from nst_jax.transfer.sharding import (
    check_rows,
    divides_rows,
    image_sharding,
    replicate,
    targets_shardings,
)
from nst_jax.transfer.types import Custom, Execution, ExecutionPlan, Inputs
from nst_jax.types import (
    Array,
    Guidance,
    Loss,
    LossWeights,
    Moments,
    Solver,
    State,
    Targets,
    Variables,
    as_image,
    as_sequence,
    check_image,
)


def check_inputs(
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config,
    guidance: Guidance = Guidance(),
    init: ArrayLike | None = None,
    mesh: Mesh | None = None,
    layers: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Inputs:
    """Check the images and masks of a run before anything is computed.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      styles: one image or a sequence, ``[h, w, 3]`` each.
      config: settings.
      guidance: which style applies where.
      init: initial image, or None.
      mesh: devices of the run, or None. A mesh of ``sharding.rows_mesh`` must divide the image.
      layers: layers of a custom objective, which ``mesh`` must divide instead of the config's.
      names: names of the regions for error messages; by default their numbers.

    Returns:
      The ``Inputs``.

    Raises:
      InputError: for the first input that is wrong, with what was expected.
    """
    image = as_image(content)
    images = [as_image(style) for style in as_sequence(styles)]
    init = None if init is None else as_image(init)
    check_image("content image", image)
    if init is not None:
        check_initial(init, shape=image.shape)
    if config.loss.style_layers and not images:
        raise InputError("no style image: expected at least one")
    check_shape(image.shape[0], image.shape[1], config=config)
    for style in images:
        check_style(style, config=config)
    guidance = check_guidance(image, images, guidance, config=config.loss, names=names)
    if mesh is not None and divides_rows(mesh):
        check_rows(image.shape[0], image.shape[1], mesh=mesh, config=config, layers=layers)
    return Inputs(image, images, guidance, init)


def check_shape(height: int, width: int, *, config: Config) -> None:
    """Check that an image of this size is large enough for the layers of ``config``.

    Raises:
      InputError: for what is wrong, with what was expected.
    """
    names = config.loss
    # Without content layers the content only gives the size of the result.
    what = "content image" if names.content_names else "image"
    check_sides(height, width, names.layers, what=what, padding=names.padding)
    check_squares(height, width, names.laplacians, what=what)
    if names.padding == "circular":
        check_multiple(height, width, names.aligned_layers)


def check_style(style: Any, *, config: Config) -> None:
    """Check one style image.

    Raises:
      InputError: for what is wrong, with what was expected.
    """
    check_image("style image", style)
    if config.loss.style_layers:
        check_sides(
            style.shape[0],
            style.shape[1],
            config.loss.style_names,
            what="style image",
            padding=config.loss.padding,
        )


def check_initial(init: Any, *, shape: tuple[int, ...]) -> None:
    """Check an initial image for a result of the given shape.

    Raises:
      InputError: for what is wrong, with what was expected.
    """
    check_image("initial image", init)
    if init.shape != shape:
        raise InputError(
            f"the initial image has shape {init.shape}: expected the content's {shape}"
        )


def initial_image(content: Array, variables: Variables, *, config: Config, key: Array) -> Array:
    """Make the initial image of the optimisation.

    noise = mean + noise_scale * N(0, 1)  or  mean + noise_scale * U(-1, 1)
    blend = noise_ratio * noise + (1 - noise_ratio) * content

    where mean is the network's mean colour. The blend therefore equals that of the course version,
    which mixes mean-subtracted images.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      variables: the network's variables, for its mean colour.
      config: uses ``init``, ``noise``, ``noise_scale`` and ``noise_ratio``.
      key: PRNG key.

    Returns:
      ``[H, W, 3]``, not clipped.

    Raises:
      InputError: for an unknown ``config.initial.init``.
    """
    if config.initial.init not in INITS:
        raise InputError(
            f"init is {config.initial.init!r}: expected content, noise or blend; pass a file's "
            "image as stylize(..., init=image)"
        )
    if config.initial.init == "content":
        return content
    if config.initial.noise == "normal":
        noise = jax.random.normal(key, content.shape, content.dtype)
    else:
        noise = jax.random.uniform(key, content.shape, content.dtype, -1, 1)
    mean = variables["preprocessing"]["mean"].astype(content.dtype)
    noise = mean[None, None] + config.initial.noise_scale * noise
    ratio = 1.0 if config.initial.init == "noise" else config.initial.noise_ratio
    return ratio * noise + (1 - ratio) * content


compute_targets = jax.jit(
    lambda loss, variables, content, styles, weights, given: loss.targets(
        variables, content, styles, weights=weights, **given
    ),
    static_argnums=0,
)

_prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers", "dtype"))


@partial(jax.jit, static_argnames=("solver", "sharding"))
def start(
    solver: Solver, image: Array, variables: Variables, targets: Targets, *, sharding: Any = None
) -> State:
    """Compute the state before the first step, with the given sharding if any."""
    state = solver.init(image, variables, targets)
    return state if sharding is None else jax.lax.with_sharding_constraint(state, sharding)


@partial(jax.jit, static_argnums=0)
def compute_moments(
    loss: Loss, variables: Variables, styles: Sequence[Array], style_masks: Any
) -> dict[str, Moments]:
    """Compute ``Targets.style`` alone, which serves contents of any size."""
    unused = LossWeights(0.0, 0.0, 0.0, {}, {})
    # Stands in for the content, of which nothing is computed. A style cannot: it may be too small
    # for the content's layers.
    blank = jnp.zeros((64, 64, 3), styles[0].dtype)
    masks = Guidance(style_masks=style_masks)
    return loss.targets(variables, blank, styles, weights=unused, guidance=masks).style


class Problem(NamedTuple):
    """A run before its first step.

    Attributes:
      solver, variables, targets: arguments of ``solver.run``.
      initial: ``(config, key, init) -> image``. Its config may have other numbers than the
        problem's.
      shape: of the image.
      finish: turns the optimised image into the result, by putting back the content's colours and
        the preserved region.
      execution_plan: how the run is computed.
    """

    solver: Solver
    variables: Variables
    targets: Targets
    initial: Callable[..., Array]
    shape: tuple[int, ...]
    finish: Callable[[Array], Array]
    execution_plan: ExecutionPlan = ExecutionPlan()


def check_run(
    variables: Variables,
    *,
    config: Config,
    custom: Custom = Custom(),
    execution: Execution = Execution(),
) -> None:
    """Check settings against the network, the devices and the custom objective.

    Raises:
      InputError: for layers or a pooling without a projection in slim weights, a precision that the
        devices lack, tiles of divided rows, and tiles or remat with a custom objective.
    """
    check_precision(config)
    by_rows, plan = divides_rows(execution.mesh), execution.plan
    if custom.loss is None:
        check_learned(variables, config.loss)
        if by_rows and plan is not None and plan.tile:
            raise InputError("tiles need whole images, not divided rows: use tile off")
        return
    by_tiles = execution.mesh is not None and not by_rows
    planned = plan not in (None, ExecutionPlan())
    if config.execution.evaluation.tile or config.execution.evaluation.remat or planned or by_tiles:
        raise InputError(
            "tile, remat and devices for tiles need the config's objective: leave them out with a "
            "custom one"
        )


def make_problem(
    variables: Variables,
    inputs: Inputs,
    *,
    config: Config,
    custom: Custom = Custom(),
    execution: Execution = Execution(),
    kernels: Variables | None = None,
    moments: dict[str, Moments] | None = None,
) -> Problem:
    """Compute the targets and assemble a run.

    Colours are matched between whole images: masks do not change what ``config.loss.color`` does.

    Args:
      variables: the network's variables, as loaded.
      inputs: from ``problem.check_inputs``.
      config: settings.
      custom: objects that replace the config's.
      execution: its ``plan`` is used if given; else a plan is made from ``config.execution`` and
        ``free`` bytes of memory. The devices of its ``mesh`` divide the rows of the image, see
        ``sharding.rows_mesh``, or its tiles.
      kernels: ``variables`` of another problem with the same config, to share them.
      moments: ``targets.style`` of another problem with the same styles, to share them.

    Raises:
      InputError: if no execution plan fits into memory.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    by_rows = divides_rows(execution.mesh)
    variables = replicate(variables, execution.mesh)
    guidance = add_rest_region(inputs.guidance, config=config.loss)
    if custom.loss is None:
        task = make_task(variables, inputs, config=config, optimizer=custom.optimizer)
        plan = execution.plan or find_plan(task, execution)
        loss = config_loss(config, plan, mesh=None if by_rows else execution.mesh)
    else:
        plan = ExecutionPlan()
        loss = luminance_only(custom.loss) if config.loss.color == "luminance" else custom.loss
    optimizer = custom.optimizer or make_config_optimizer(config, plan)
    solver = make_solver(loss, optimizer, averaging=config.averaging, clip=config.optimizer.clip)

    content, styles = prepare_colors(inputs.content, inputs.styles, mode=config.loss.color)
    if execution.mesh is not None and by_rows:
        # Divide it before its features are computed, so that no device ever has all of them.
        content = jax.device_put(content, image_sharding(execution.mesh))
    weights, custom_loss = loss_weights(config), custom.loss is not None
    if custom_loss:
        given = {} if all(x is None for x in guidance) else {"guidance": guidance}
        targets = compute_targets(loss, variables, content, styles, weights, given)
    else:
        if moments is None:
            masks, compare = guidance.style_masks, bool(config.loss.style_layers)
            moments = compute_moments(loss, variables, styles, masks) if compare else {}
        given = {"guidance": guidance._replace(style_masks=None), "moments": moments}
        targets = compute_targets(loss, variables, content, [], weights, given)
        # The jitted function returned copies; keep the original arrays, which problems may share.
        targets = targets._replace(style=moments)
    if execution.mesh is not None:
        divided = by_rows and not custom_loss
        targets = (
            jax.device_put(targets, targets_shardings(targets, mesh=execution.mesh))
            if divided
            else replicate(targets, execution.mesh)
        )
    # Kernels are prepared after the targets, which are computed once and should be exact: plain
    # convolutions in full precision instead of Winograd's or bfloat16's.
    options = kernel_options(config, by_rows=by_rows, any_layer=custom_loss)
    kernels = kernels or _prepare(variables, **options)
    initial, finish = _initial_and_finish(variables, inputs, content, mode=config.loss.color)
    return Problem(solver, kernels, targets, initial, content.shape, finish, plan)


def _initial_and_finish(
    variables: Variables, inputs: Inputs, content: Array, *, mode: Any
) -> tuple[Callable[..., Array], Callable[[Array], Array]]:
    """Make ``Problem.initial`` and ``Problem.finish``; ``content`` is in the colours of the run."""
    original, preserve = inputs.content, inputs.guidance.preserve

    def initial(config: Config, key: Array | None, init: Any) -> Array:
        key = jax.random.key(0) if key is None else key
        if init is None:
            init = initial_image(original, variables, config=config, key=key)
        image, _ = prepare_colors(jnp.asarray(init), [], mode=mode)
        return image if preserve is None else lay_over(image, content, preserve)

    def finish(image: Array) -> Array:
        image = restore_colors(image, original, mode=mode)
        return image if preserve is None else lay_over(image, original, preserve)

    return initial, finish


def make_task(
    variables: Variables, inputs: Inputs, *, config: Config, optimizer: Any = None
) -> Task:
    """Make the ``Task`` of a run, for planning its memory."""
    guidance = add_rest_region(inputs.guidance, config=config.loss)
    return Task(variables, inputs.content, inputs.styles, config, guidance, optimizer)


def find_plan(task: Task, execution: Execution) -> ExecutionPlan:
    """Find an execution plan for the given memory or devices.

    Raises:
      InputError: if none fits into memory.
    """
    if execution.mesh is not None:
        return _plan_for_devices(task, execution.mesh)
    return _plan_for_memory(task, execution.free)


def _plan_for_memory(task: Task, free: int | None) -> ExecutionPlan:
    """Find an execution plan for one device.

    Args:
      task: the run, at one size.
      free: bytes of free memory; by default measured now.
    """
    # If the whole image surely fits, or free memory is unknown, nothing is compiled for planning.
    free = free_bytes(jax.local_devices()[0]) if free is None else free
    if free is None or fits_surely(task, free=free):
        return given_plan(task)
    plan = choose(task, free=free)
    return given_plan(task) if plan is None else plan.execution_plan


def _plan_for_devices(task: Task, mesh: Mesh) -> ExecutionPlan:
    """Find an execution plan for several devices.

    An image divided by rows keeps the plan of its settings. Otherwise the tile is chosen to
    minimise the time of a step on the busiest device. All windows have one size, so this time is
    proportional to

      ceil(windows / devices) * window height * window width.

    Smaller tiles overlap more; larger ones leave devices idle. Tiles from 128 px on are tried, and
    the smallest of several best ones is taken.
    """
    execution_plan = given_plan(task)
    if divides_rows(mesh) or execution_plan.tile:
        return execution_plan
    if task.config.execution.tile == "off" or execution_plan.remat:
        raise InputError(
            "without tiles there is nothing to divide among the devices: leave out tile off and "
            "remat on, or divide the image by rows"
        )
    layers = task.config.loss.aligned_layers
    tiles = range(128, max(task.content.shape[:2]) + 1, stride(deepest(layers)))
    grids = {tile: grid_of(task, ExecutionPlan(tile=tile)) for tile in tiles}

    def work(tile: int) -> int:
        grid = grids[tile]
        return -(-grid.count // mesh.size) * grid.size[0] * grid.size[1]

    # A single device computes the whole image. So does every device with an image of one tile, for
    # example at a coarse scale.
    dividing = [tile for tile in tiles if grids[tile].count > 1 and mesh.size > 1]
    return ExecutionPlan(tile=min(dividing, key=work)) if dividing else ExecutionPlan()


def check_precision(config: Config) -> None:
    """Check that the devices support the precision.

    Raises:
      InputError: for tf32 on other devices than GPUs.
    """
    if config.execution.precision == "tf32" and jax.default_backend() != "gpu":
        raise InputError(
            f"precision tf32 needs an NVIDIA GPU, but this run is on {jax.default_backend()}: "
            "choose float32 or bfloat16"
        )
