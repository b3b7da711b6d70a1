"""A run's scales, from coarse to fine: their sizes, the inputs at each, what is carried on.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``; a mask is ``[H, W]``; a shape is
(height, width).
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from nst_jax.color import restore_colors
from nst_jax.config.config import Config
from nst_jax.config.layers import deepest, shortest_side, stride
from nst_jax.errors import InputError
from nst_jax.losses.guides import check_reach, lay_over, with_rest
from nst_jax.transfer.sharding import divides_rows
from nst_jax.transfer.types import Inputs
from nst_jax.types import Array


class Scale(NamedTuple):
    """One scale of a run.

    Attributes:
      shape: height and width of the image.
      steps: how many it takes.
    """

    shape: tuple[int, int]
    steps: int


def make_scales(
    shape: Sequence[int],
    *,
    config: Config,
    mesh: Mesh | None = None,
    layers: tuple[str, ...] = (),
) -> list[Scale]:
    """The scales of a run, coarsest first.

    Args:
      shape: of the image, ``[H, W, ...]``.
      config: ``min_size``, ``scale_factor``, ``scale_steps`` and ``steps`` are read.
      mesh: where it is one of ``sharding.rows_mesh`` it divides the heights of the scales, too.
      layers: taps of an objective of one's own, which ``mesh`` has to divide in place of the
        config's.

    Returns:
      At least one; the last is that of the image.

    Raises:
      InputError: where ``scale_steps`` has numbers for more scales than there are, and where
        ``min_size`` is too small for the layers.
    """
    own = config.loss.aligned_layers
    tap, step = deepest(own), stride(deepest(own))
    height, width = shape[0], shape[1]
    rows = columns = step if config.loss.padding == "circular" else 1
    if mesh is not None and divides_rows(mesh):
        rows = mesh.shape["rows"] * stride(deepest(layers or own))
    shapes = scale_shapes(
        (height, width),
        min_size=config.pyramid.min_size,
        factor=config.pyramid.scale_factor,
        multiple=(rows, columns),
    )
    least = shortest_side(tap, padding=config.loss.padding)
    if min(shapes[0]) < least <= min(height, width):
        raise InputError(
            f"min_size is {config.pyramid.min_size}, with a scale of {shapes[0][1]}x{shapes[0][0]} "
            f"px, but layer {tap} needs a shorter side of at least {least} px: choose a larger "
            "min_size, or shallower layers"
        )
    given = config.pyramid.scale_steps or (config.steps,)
    before = len(shapes) - 1
    if len(config.pyramid.scale_steps) > before:
        numbers = "1 number" if len(given) == 1 else f"{len(given)} numbers"
        come = {0: "no scale comes", 1: "only 1 scale comes"}
        raise InputError(
            f"scale_steps has {numbers}, but {come.get(before, f'only {before} scales come')} "
            f"before the last: {'give fewer' if before else 'leave it out'}, or choose a smaller "
            "min_size (where they are a preset's: min_size=None is one scale)"
        )
    steps = [given[min(index, len(given) - 1)] for index in range(len(shapes) - 1)]
    return [Scale(*pair) for pair in zip(shapes, [*steps, config.steps], strict=True)]


def at_scale(inputs: Inputs, *, shape: tuple[int, int], config: Config) -> Inputs:
    """All images and masks for one scale; the styles shrink as the content does.

    Args:
      inputs: of the last scale.
      shape: height and width of the content there.
      config: its layers say how small a style may become.

    Returns:
      The inputs without an initial image; of the last scale they are as they were.

    Raises:
      InputError: for masks that leave nothing of their regions at this scale.
    """
    content, full = inputs.content, inputs.content.shape[:2]
    if shape == full:
        return inputs
    ratio = max(shape) / max(full)
    layers = config.loss.style_names
    least = shortest_side(deepest(layers), padding=config.loss.padding) if layers else 1

    def shrunk(image: Any) -> Array:
        # A style that is too small for the network was refused before.
        height, width = (max(min(least, side), round(side * ratio)) for side in image.shape[:2])
        return resize(image, shape=(height, width), method="linear")

    def resized(mask: Any) -> Array:
        return resize(mask, shape=shape, method="linear")

    masks, style_masks, preserve = (
        inputs.guidance.content_masks,
        inputs.guidance.style_masks,
        inputs.guidance.preserve,
    )
    guidance = inputs.guidance._replace(
        content_masks=None if masks is None else jnp.stack([resized(mask) for mask in masks]),
        style_masks=None
        if style_masks is None
        else [None if mask is None else shrunk(mask) for mask in style_masks],
        preserve=None if preserve is None else resized(preserve),
    )
    check_reach(with_rest(guidance, config=config.loss), config.loss)
    return Inputs(
        content=resize(content, shape=shape, method="linear"),
        styles=[shrunk(style) for style in inputs.styles],
        guidance=guidance,
    )


def at_full_size(image: Array, inputs: Inputs, *, config: Config) -> Array:
    """The result of a run that ended before its last scale.

    Args:
      image: the optimised image, of any size.
      inputs: of the last scale.
      config: its colour mode is read.

    Returns:
      ``[H, W, 3]`` with the content's colours and the parts that are kept, where these were asked
      for, as sharp as they are.
    """
    content, preserve = inputs.content, inputs.guidance.preserve
    image = resize(image, shape=content.shape[:2])
    image = restore_colors(image, content, mode=config.loss.color)
    return image if preserve is None else lay_over(image, content, preserve)


Neighbours = tuple[np.ndarray, np.ndarray]  # first positions and weights, see ``_taps``


def scale_shapes(
    shape: tuple[int, int],
    *,
    min_size: int | None,
    factor: float,
    multiple: int | tuple[int, int] = 1,
) -> list[tuple[int, int]]:
    """Heights and widths of the scales of a run, coarsest first.

    Scale k before the last has sides / factor^k, rounded to the nearest multiple, for all k for
    which the longer one is at least ``min_size`` before. Scales that rounding makes equal are one,
    and those that it makes larger than a later one are left out.

    Args:
      shape: height and width of the image; the last scale's, as they are.
      min_size: least longer side of a scale; with None there is the last scale only.
      factor: how much larger each scale is than the one before, above 1.
      multiple: what the sides of all but the last scale are a multiple of; of two numbers the
        first is for the height.

    Returns:
      At least one pair of height and width.

    Raises:
      ValueError: where ``factor`` is not above 1.

    >>> scale_shapes((600, 800), min_size=200, factor=2.0)
    [(150, 200), (300, 400), (600, 800)]
    >>> scale_shapes((600, 800), min_size=150, factor=2.0, multiple=16)
    [(144, 192), (304, 400), (600, 800)]
    """
    if not factor > 1:
        raise ValueError(f"factor is {factor}: expected a number above 1")
    shapes = [shape]
    if min_size is None:
        return shapes
    multiples = (multiple, multiple) if isinstance(multiple, int) else multiple
    for power in count(1):
        if max(shape) / factor**power < min_size * (1 - 1e-9):
            break
        height, width = (
            _rounded(side / factor**power, step) for side, step in zip(shape, multiples)
        )
        # The side that is rounded less follows the other, so that the proportions are kept.
        if multiples[0] > multiples[1]:
            width = _rounded(shape[1] * height / shape[0], multiples[1])
        elif multiples[1] > multiples[0]:
            height = _rounded(shape[0] * width / shape[1], multiples[0])
        smaller = height <= shapes[-1][0] and width <= shapes[-1][1]
        if smaller and (height, width) != shapes[-1]:
            shapes.append((height, width))
    return shapes[::-1]


def _rounded(side: float, multiple: int) -> int:
    """The multiple that is nearest, not 0."""
    return multiple * max(1, round(side / multiple))


def resize(image: Array, *, shape: tuple[int, int], method: str = "cubic") -> Array:
    """Resize an image or a mask, without aliasing where it shrinks.

    ``"cubic"`` (Keys, a = -1/2) keeps an image sharp and may overshoot its values, which are not
    clipped: for images that are being optimised. ``"linear"`` stays within the least and the
    greatest value: for contents, styles and masks. Where a side shrinks, the kernel is widened by
    as much; at the borders its weights are normalised. Both as in Pillow.

    Args:
      image: floats ``[H, W, C]`` or ``[H, W]``; other numbers become float32.
      shape: height and width of the result.
      method: ``"cubic"`` or ``"linear"``.

    Returns:
      The image of the same type, ``[*shape, C]`` or ``shape``; ``image`` itself where it has that
      shape already.

    Raises:
      ValueError: for another method.
    """
    if method not in ("cubic", "linear"):
        raise ValueError(f"method is {method!r}: expected 'cubic' or 'linear'")
    if image.shape[:2] == tuple(shape):
        return image
    rows, columns = (
        _taps(old, new, method) for old, new in zip(image.shape[:2], shape, strict=True)
    )
    return _resize(image, rows, columns, method=method)


@partial(jax.jit, static_argnames="method")
def _resize(image: Array, rows: Neighbours, columns: Neighbours, *, method: str) -> Array:
    resized = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    if not jnp.issubdtype(image.dtype, jnp.floating):  # masks of booleans or whole numbers
        image = resized
    for axis, taps in enumerate((rows, columns)):
        resized = _along(resized, axis, taps)
    resized = resized.astype(image.dtype)
    if method == "linear":
        # Weights add up to 1 to rounding only, and a mask of 1 + 1e-7 is none.
        resized = jnp.clip(resized, image.min(), image.max())
    return resized


def _along(x: Array, axis: int, taps: Neighbours) -> Array:
    """Weighted sums along an axis, tap by tap, in the memory of some images.

    ``jax.image.resize`` multiplies by a dense matrix, old by new side: of long images it is many
    times as large as they are.

    Args:
      x: ``[H, W, ...]``.
      axis: 0 or 1.
      taps: see ``_taps``.

    Returns:
      ``x`` with ``new`` positions along the axis.
    """

    first, weights = taps
    others = [i for i in range(x.ndim) if i != axis]

    def add(number: Array, total: Array) -> Array:
        weight = jnp.expand_dims(jnp.asarray(weights, x.dtype)[number], others)
        return total + weight * jnp.take(x, first + number, axis, mode="clip")

    zeros = jnp.zeros((*x.shape[:axis], len(first), *x.shape[axis + 1 :]), x.dtype)
    return jax.lax.fori_loop(0, len(weights), add, zeros)


@lru_cache(maxsize=4)  # images of a run have the same few
def _taps(old: int, new: int, method: str) -> Neighbours:
    """Which neighbouring old positions a new one is made of, and their weights, of sum 1.

    w_ij ~ k((j + 1/2 - (i + 1/2) old / new) / max(1, old / new))

    with the kernel k, of j inside the image.

    Args:
      old, new: sides.
      method: ``"cubic"`` or ``"linear"``.

    Returns:
      The first positions ``[new]`` and the weights of these and the next ones, ``[taps, new]``: 0
      outside of the kernel or of the image.
    """
    kernel, radius = (_cubic, 2) if method == "cubic" else (_triangle, 1)
    width = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.ceil(centres - radius * width).astype(np.int32)
    indices = first + np.arange(int(2 * radius * width) + 1)[:, None]
    inside = (indices >= 0) & (indices < old)
    weights = np.where(inside, kernel(np.abs(indices - centres) / width), 0.0)
    return first, weights / weights.sum(axis=0)


def _triangle(x: np.ndarray) -> np.ndarray:
    """The kernel of linear interpolation, at distances x."""
    return np.maximum(0.0, 1 - x)


def _cubic(x: np.ndarray) -> np.ndarray:
    """That of cubic interpolation (Keys 1981, a = -1/2)."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def rescale_opt_state(
    opt_state: Any, *, old_shape: tuple[int, int], new_shape: tuple[int, int]
) -> Any:
    """Adam's moments for the same image of another size.

    r = old pixels / new pixels,  mu <- r resize(mu),  nu <- r^2 resize(nu)

    for the gradient of a mean over pixels is shared by the pixels there are. Sizes of steps,
    mu / sqrt(nu), so stay what they are. In spectral coordinates, where amplitudes depend on the
    frequency per pixel, moments scale a little more than by r, both by as much.

    Args:
      opt_state: a state with ``optax.ScaleByAdamState`` anywhere in it, of an image of
        ``old_shape``.
      old_shape, new_shape: height and width before and after.

    Returns:
      The state with its moments changed and all else, also counts and learning rate, as it was.

    Raises:
      ValueError: where a moment is not of ``old_shape``.
    """
    ratio = (old_shape[0] * old_shape[1]) / (new_shape[0] * new_shape[1])

    def rescale(moment: Array, factor: float) -> Array:
        if moment.shape[:2] != tuple(old_shape):
            raise ValueError(f"a moment has shape {moment.shape}: expected {old_shape} first")
        return factor * resize(moment, shape=new_shape, method="linear")

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    def carry(node: Any) -> Any:
        if not is_adam(node):
            return node
        return node._replace(
            mu=jax.tree.map(lambda moment: rescale(moment, ratio), node.mu),
            nu=jax.tree.map(lambda moment: rescale(moment, ratio**2), node.nu),
        )

    return jax.tree.map(carry, opt_state, is_leaf=is_adam)
