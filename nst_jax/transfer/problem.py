"""What a run needs: its images, checked, in the wanted colours; targets, solver, start.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. ``check_inputs`` is the one border: what
it returns is trusted by all that follows.
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
from nst_jax.losses.guides import check_guidance, lay_over, with_rest
from nst_jax.losses.objective import check_learned, loss_weights, of_luminance
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
    """Check all that a run is given, once, before anything is computed.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      styles: one image or a sequence, ``[h, w, 3]`` each.
      config: settings.
      guidance: which style holds where.
      init: initial image, if any.
      mesh: devices of the run, if any; one of ``sharding.rows_mesh`` has to divide the image.
      layers: taps of an objective of one's own, which ``mesh`` has to divide in place of the
        config's.
      names: what to call the regions in errors in place of their numbers.

    Returns:
      The ``Inputs``.

    Raises:
      InputError: with what is wrong and what was expected.
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
    """Check the size of a result for the layers of ``config``.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    names = config.loss
    what = "content image" if names.content_names else "image"  # may be a mere canvas
    check_sides(height, width, names.layers, what=what, padding=names.padding)
    check_squares(height, width, names.laplacians, what=what)
    if names.padding == "circular":
        check_multiple(height, width, names.aligned_layers)


def check_style(style: Any, *, config: Config) -> None:
    """Check a style image by itself.

    Raises:
      InputError: with what is wrong and what was expected.
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
    """Check an initial image for a result of a shape.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    check_image("initial image", init)
    if init.shape != shape:
        raise InputError(
            f"the initial image has shape {init.shape}: expected the content's {shape}"
        )


def initial_image(content: Array, variables: Variables, *, config: Config, key: Array) -> Array:
    """The image that the optimisation starts from.

    noise = mean + noise_scale * N(0, 1)  or  mean + noise_scale * U(-1, 1)
    blend = noise_ratio * noise + (1 - noise_ratio) * content

    with the network's mean colour, so that the blend is the course version's, which mixes
    mean-subtracted images.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      variables: the network's variables, for its mean colour.
      config: ``init``, ``noise``, ``noise_scale`` and ``noise_ratio`` are read.
      key: PRNG key.

    Returns:
      ``[H, W, 3]``, not clipped.

    Raises:
      InputError: where ``config.initial.init`` is none of the three.
    """
    if config.initial.init not in INITS:
        raise InputError(
            f"init is {config.initial.init!r}: expected content, noise or blend, or that file's "
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
    masks = Guidance(style_masks=style_masks)
    return loss.targets(variables, blank, styles, weights=unused, guidance=masks).style


class Problem(NamedTuple):
    """A run before its first step.

    Attributes:
      solver, variables, targets: as ``solver.run`` takes them.
      initial: ``(config, key, init) -> image``, of a config that differs in numbers only.
      shape: of the image.
      finish: from the optimised image to the one to be shown: with the content's colours and
        the parts that are left as they are.
      execution_plan: how it is computed.
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
    """Check settings against the network, the devices, and what is one's own.

    Raises:
      InputError: for what slim weights have not learned, what the devices do not know, and ways to
        compute that an objective of one's own or divided rows do not have.
    """
    check_precision(config)
    by_rows, plan = divides_rows(execution.mesh), execution.plan
    if custom.loss is None:
        check_learned(variables, config.loss)
        if by_rows and plan is not None and plan.tile:
            raise InputError("tiles are cut out of whole images, not of divided rows")
        return
    by_tiles = execution.mesh is not None and not by_rows
    planned = plan not in (None, ExecutionPlan())
    if config.execution.evaluation.tile or config.execution.evaluation.remat or planned or by_tiles:
        raise InputError(
            "tile and remat, or devices for tiles, are for the config's own objective: leave "
            "them out"
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
    """Compute the targets, and put together what a run needs.

    Colours are matched from whole images: masks do not change what ``config.loss.color`` does.

    Args:
      variables: the network's, as they were loaded.
      inputs: from ``problem.check_inputs``.
      config: settings.
      custom: objects in place of the config's.
      execution: ``plan`` says how to compute, in place of what the room in the memory makes of
        ``config.execution``; ``free`` are its bytes. Devices of a ``mesh`` divide
        the image by rows, see ``sharding.rows_mesh``, or else its tiles.
      kernels: ``variables`` of another problem of the same config, to share them.
      moments: ``targets.style`` of another problem with the same styles, likewise.

    Raises:
      InputError: where the image does not fit into the memory.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    by_rows = divides_rows(execution.mesh)
    variables = replicate(variables, execution.mesh)
    guidance = with_rest(inputs.guidance, config=config.loss)
    if custom.loss is None:
        task = make_task(variables, inputs, config=config, optimizer=custom.optimizer)
        plan = execution.plan or find_plan(task, execution)
        loss = config_loss(config, plan, mesh=None if by_rows else execution.mesh)
    else:
        plan = ExecutionPlan()
        loss = of_luminance(custom.loss) if config.loss.color == "luminance" else custom.loss
    optimizer = custom.optimizer or make_config_optimizer(config, plan)
    solver = make_solver(loss, optimizer, averaging=config.averaging, clip=config.optimizer.clip)

    content, styles = prepare_colors(inputs.content, inputs.styles, mode=config.loss.color)
    if execution.mesh is not None and by_rows:
        # So that its features are divided from the beginning.
        content = jax.device_put(content, image_sharding(execution.mesh))
    weights, own = loss_weights(config), custom.loss is not None
    if own:
        given = {} if all(x is None for x in guidance) else {"guidance": guidance}
        targets = compute_targets(loss, variables, content, styles, weights, given)
    else:
        if moments is None:
            masks, compare = guidance.style_masks, bool(config.loss.style_layers)
            moments = compute_moments(loss, variables, styles, masks) if compare else {}
        given = {"guidance": guidance._replace(style_masks=None), "moments": moments}
        targets = compute_targets(loss, variables, content, [], weights, given)
        targets = targets._replace(style=moments)  # the same arrays, which problems may share
    if execution.mesh is not None:
        divided = by_rows and not own
        targets = (
            jax.device_put(targets, targets_shardings(targets, mesh=execution.mesh))
            if divided
            else replicate(targets, execution.mesh)
        )
    # Only now: targets are computed once, and more exactly by the plain convolution.
    options = kernel_options(config, by_rows=by_rows, any_layer=own)
    kernels = kernels or _prepare(variables, **options)
    initial, finish = _ends(variables, inputs, content, mode=config.loss.color)
    return Problem(solver, kernels, targets, initial, content.shape, finish, plan)


def _ends(
    variables: Variables, inputs: Inputs, content: Array, *, mode: Any
) -> tuple[Callable[..., Array], Callable[[Array], Array]]:
    """``Problem.initial`` and ``Problem.finish``; ``content`` is in the colours of the run."""
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
    """What a plan of a run is made for."""
    guidance = with_rest(inputs.guidance, config=config.loss)
    return Task(variables, inputs.content, inputs.styles, config, guidance, optimizer)


def find_plan(task: Task, execution: Execution) -> ExecutionPlan:
    """How an image is computed where its plan is not given.

    Raises:
      InputError: where it does not fit into the memory.
    """
    if execution.mesh is not None:
        return _on_mesh(task, execution.mesh)
    return _choose(task, execution.free)


def _choose(task: Task, free: int | None) -> ExecutionPlan:
    """How to compute what the settings leave to the memory's room.

    Args:
      task: of one size.
      free: bytes, by default what the device has now.
    """
    free = free_bytes(jax.local_devices()[0]) if free is None else free
    if free is None or fits_surely(task, free=free):
        return given_plan(task)
    plan = choose(task, free=free)
    return given_plan(task) if plan is None else plan.execution_plan


def _on_mesh(task: Task, mesh: Mesh) -> ExecutionPlan:
    """How to compute on several devices: by rows as it is, or else in tiles that divide well.

    Windows are of one size and each device takes as many, so that a step takes as long as
    ceil(windows / devices) * height * width of a window: the tile, from 128 px on, for which that
    is least, of several the smallest. Smaller ones have more overlap, larger ones leave devices
    without work.
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

    # A small image, as of a coarse scale, is computed whole by each, and any by a single device.
    dividing = [tile for tile in tiles if grids[tile].count > 1 and mesh.size > 1]
    return ExecutionPlan(tile=min(dividing, key=work)) if dividing else ExecutionPlan()


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
