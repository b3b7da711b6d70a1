"""What a run needs, put together: pictures in the wanted colours, targets, solver, start.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nst_jax.color import prepare_colors, restore_colors
from nst_jax.color_matching import grey
from nst_jax.config import Config
from nst_jax.convolution import prepare_kernels
from nst_jax.guides import lay_over
from nst_jax.inputs import as_picture, check_initial, check_pictures, initial_image
from nst_jax.layers import TAPS
from nst_jax.mask_checks import check_guidance
from nst_jax.objective import as_sequence, check_learned, loss_weights, make_loss
from nst_jax.optimizers import make_optimizer
from nst_jax.shares import check_blend
from nst_jax.solver import make_solver
from nst_jax.types import Array, Loss, LossWeights, Solver, State, Targets, Variables

compute_targets = jax.jit(
    lambda loss, variables, content, styles, weights, controls: loss.targets(
        variables, content, styles, weights=weights, **controls
    ),
    static_argnums=0,
)
_prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers"))


@partial(jax.jit, static_argnames=("solver", "sharding"))
def start(
    solver: Solver, image: Array, variables: Variables, targets: Targets, *, sharding: Any = None
) -> State:
    """The state before the first step, compiled; on several devices with the given sharding."""
    state = solver.init(image, variables, targets)
    return state if sharding is None else jax.lax.with_sharding_constraint(state, sharding)


@partial(jax.jit, static_argnums=0)
def style_grams(
    loss: Loss, variables: Variables, styles: Sequence[Array], style_masks: Any
) -> dict[str, Array]:
    """``Targets.style`` alone, compiled: it serves contents of any size."""
    unused = LossWeights(0.0, 0.0, 0.0, {}, {})
    targets = loss.targets(variables, styles[0], styles, weights=unused, style_masks=style_masks)
    return targets.style


@lru_cache(maxsize=64)
def of_luminance(loss: Loss) -> Loss:
    """A loss that sees the luminance of a picture only; of equal losses it is the same object."""

    def statistics(variables: Variables, image: Array, targets: Targets):
        return loss.statistics(variables, grey(image), targets)

    return loss._replace(statistics=statistics)


class Problem(NamedTuple):
    """A run before its first step.

    Attributes:
      solver, variables, targets: as ``solver.run`` takes them.
      initial: ``(config, key, init) -> image``, of a config that differs in numbers only.
      shape: of the picture.
      finish: from the optimised picture to the one to be shown: with the content's colours and
        the parts that are left as they are.
    """

    solver: Solver
    variables: Variables
    targets: Targets
    initial: Callable[..., Array]
    shape: tuple[int, ...]
    finish: Callable[[Array], Array]


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
    grams: dict[str, Array] | None = None,
) -> Problem:
    """Check everything and compute the targets; the arguments are those of ``transfer.stylize``.

    What pictures have in common may be taken over from another problem of the same config:
    ``kernels`` are its ``variables``, ``grams`` the ``targets.style`` of the same styles.

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
    if loss is None:
        check_learned(variables, config.loss)
    # An objective of one's own may ask for any layer.
    layers = TAPS if loss else config.loss.content_layers + config.loss.style_layers
    own_loss, loss = loss is not None, loss or make_loss(config.loss)
    if config.color == "luminance":
        loss = of_luminance(loss)
    solver = make_solver(loss, optimizer or _optimizer(config))
    convolution = config.convolution
    if convolution == "auto":  # accelerators' libraries choose for themselves
        convolution = "winograd" if jax.default_backend() == "cpu" else "direct"

    original, keep = content, controls["keep"]
    content, styles = prepare_colors(content, styles, mode=config.color)
    weights = None if region_weights is None else np.asarray(region_weights, float)
    given = {"blend": blend, "region_weights": weights} | controls
    if not own_loss:
        style_masks = given.pop("style_masks")
        if grams is None:
            compare = bool(config.style_layers)
            grams = style_grams(loss, variables, styles, style_masks) if compare else {}
        given, styles = given | {"grams": grams}, []
    # An objective of one's own knows only the controls that it is given.
    given = {name: value for name, value in given.items() if value is not None}
    targets = compute_targets(loss, variables, content, styles, loss_weights(config), given)
    if not own_loss:
        targets = targets._replace(style=grams)  # the same arrays, which problems may share
    # Only now: targets are computed once, and more exactly by the plain convolution.
    kernels = kernels or _prepare(variables, convolution=convolution, layers=layers)

    def initial(config: Config, key: Array | None, init: Any) -> Array:
        key = jax.random.key(0) if key is None else key
        if init is None:
            init = initial_image(original, variables, config=config, key=key)
        init = as_picture(init)
        check_initial(init, shape=original.shape)
        image, _ = prepare_colors(init, [], mode=config.color)
        return image if keep is None else lay_over(image, content, keep)

    def finish(image: Array) -> Array:
        image = restore_colors(image, original, mode=config.color)
        return image if keep is None else lay_over(image, original, keep)

    return Problem(solver, kernels, targets, initial, content.shape, finish)


def _optimizer(config: Config) -> optax.GradientTransformation:
    return make_optimizer(
        config.optimizer,
        memory_size=config.memory_size,
        pixel_range=config.pixel_range,
        preconditioner=config.preconditioner,
    )
