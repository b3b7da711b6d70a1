"""The pyramid of scales, coarse to fine: sizes, inputs at each scale, resizing, warm starts.

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
from nst_jax.losses.guides import add_rest_region, check_reach, lay_over
from nst_jax.transfer.sharding import divides_rows
from nst_jax.transfer.types import Inputs
from nst_jax.types import Array


class Scale(NamedTuple):
    """One scale of a run.

    Attributes:
      shape: height and width of the image.
      steps: number of steps to take.
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
    """Plan the scales of a run, coarsest first.

    Args:
      shape: of the image, ``[H, W, ...]``.
      config: uses ``min_size``, ``scale_factor``, ``scale_steps`` and ``steps``.
      mesh: devices, or None. A mesh of ``sharding.rows_mesh`` also divides the heights of the
        scales.
      layers: layers of a custom objective, which ``mesh`` must divide instead of the config's.

    Returns:
      At least one scale; the last has the size of the image.

    Raises:
      InputError: if ``scale_steps`` has more numbers than there are scales before the last, or if
        ``min_size`` is too small for the layers.
    """
    config_layers = config.loss.aligned_layers
    tap, step = deepest(config_layers), stride(deepest(config_layers))
    height, width = shape[0], shape[1]
    rows = columns = step if config.loss.padding == "circular" else 1
    if mesh is not None and divides_rows(mesh):
        rows = mesh.shape["rows"] * stride(deepest(layers or config_layers))
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
            "min_size (with a preset's scale_steps, min_size=None gives one scale)"
        )
    steps = [given[min(index, len(given) - 1)] for index in range(len(shapes) - 1)]
    return [Scale(*pair) for pair in zip(shapes, [*steps, config.steps], strict=True)]


def at_scale(inputs: Inputs, *, shape: tuple[int, int], config: Config) -> Inputs:
    """Resize all images and masks for one scale; the styles shrink in proportion to the content.

    Args:
      inputs: at full size.
      shape: height and width of the content at the scale.
      config: its layers determine how small a style may become.

    Returns:
      The inputs without an initial image; at the last scale, ``inputs`` itself.

    Raises:
      InputError: for a mask whose region is empty at this scale.
    """
    content, full = inputs.content, inputs.content.shape[:2]
    if shape == full:
        return inputs
    ratio = max(shape) / max(full)
    layers = config.loss.style_names
    least = shortest_side(deepest(layers), padding=config.loss.padding) if layers else 1

    def shrunk(image: Any) -> Array:
        # No smaller than the network needs, and never larger than the style is.
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
    check_reach(add_rest_region(guidance, config=config.loss), config.loss)
    return Inputs(
        content=resize(content, shape=shape, method="linear"),
        styles=[shrunk(style) for style in inputs.styles],
        guidance=guidance,
    )


def at_full_size(image: Array, inputs: Inputs, *, config: Config) -> Array:
    """Enlarge the result of a run that ended before its last scale.

    Args:
      image: the optimised image, of any size.
      inputs: at full size.
      config: uses the colour mode.

    Returns:
      ``[H, W, 3]``. The content's colours and the preserved region, if any, are put back at full
      size, so that they stay sharp.
    """
    content, preserve = inputs.content, inputs.guidance.preserve
    image = resize(image, shape=content.shape[:2])
    image = restore_colors(image, content, mode=config.loss.color)
    return image if preserve is None else lay_over(image, content, preserve)


Neighbours = tuple[np.ndarray, np.ndarray]  # first positions and weights, see ``_neighbours``


def scale_shapes(
    shape: tuple[int, int],
    *,
    min_size: int | None,
    factor: float,
    multiple: int | tuple[int, int] = 1,
) -> list[tuple[int, int]]:
    """Heights and widths of the scales of a run, coarsest first.

    The k-th scale before the last has the sides of the image / factor^k, rounded to the nearest
    multiple, for every k with a longer side of at least ``min_size`` before rounding. Scales that
    rounding makes equal are merged; a scale that it makes larger than the next is dropped.

    Args:
      shape: height and width of the image, and of the last scale.
      min_size: least longer side of a scale in pixels; None for the last scale only.
      factor: ratio of the sides of neighbouring scales, above 1.
      multiple: the sides of all scales but the last are multiples of it; a pair is for height and
        width.

    Returns:
      At least one pair of height and width.

    Raises:
      ValueError: if ``factor`` is not above 1.

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
        # The tolerance keeps a scale of exactly min_size despite the rounding of factor**power.
        if max(shape) / factor**power < min_size * (1 - 1e-9):
            break
        height, width = (
            _rounded(side / factor**power, step) for side, step in zip(shape, multiples)
        )
        # To keep the proportions, the side with the finer multiple follows the rounded other one.
        if multiples[0] > multiples[1]:
            width = _rounded(shape[1] * height / shape[0], multiples[1])
        elif multiples[1] > multiples[0]:
            height = _rounded(shape[0] * width / shape[1], multiples[0])
        # ``shapes`` is built from fine to coarse, so its last entry is the next finer scale.
        smaller = height <= shapes[-1][0] and width <= shapes[-1][1]
        if smaller and (height, width) != shapes[-1]:
            shapes.append((height, width))
    return shapes[::-1]


def _rounded(side: float, multiple: int) -> int:
    """Round to the nearest positive multiple."""
    return multiple * max(1, round(side / multiple))


def resize(image: Array, *, shape: tuple[int, int], method: str = "cubic") -> Array:
    """Resize an image or a mask without aliasing, as Pillow does.

    ``"cubic"`` (Keys 1981, a = -1/2) is for images that are being optimised: it keeps them sharp
    and may overshoot their range, as it is not clipped. ``"linear"`` is for contents, styles and
    masks: it stays within their range. If a side shrinks, the kernel is widened by the same factor;
    at the borders its weights are normalised.

    Args:
      image: floats ``[H, W, C]`` or ``[H, W]``; other numbers become float32.
      shape: height and width of the result.
      method: ``"cubic"`` or ``"linear"``.

    Returns:
      An image of the same dtype, ``[*shape, C]`` or ``shape``; ``image`` itself if it has that
      shape already.

    Raises:
      ValueError: for an unknown method.
    """
    if method not in ("cubic", "linear"):
        raise ValueError(f"method is {method!r}: expected 'cubic' or 'linear'")
    if image.shape[:2] == tuple(shape):
        return image
    rows, columns = (
        _neighbours(old, new, method) for old, new in zip(image.shape[:2], shape, strict=True)
    )
    return _resize(image, rows, columns, method=method)


@partial(jax.jit, static_argnames="method")
def _resize(image: Array, rows: Neighbours, columns: Neighbours, *, method: str) -> Array:
    resized = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    if not jnp.issubdtype(image.dtype, jnp.floating):  # boolean and integer masks become float32
        image = resized
    for axis, neighbours in enumerate((rows, columns)):
        resized = _along(resized, axis, neighbours)
    resized = resized.astype(image.dtype)
    if method == "linear":
        # The weights add up to 1 only up to rounding, and a mask must not exceed 1 by 1e-7.
        resized = jnp.clip(resized, image.min(), image.max())
    return resized


def _along(x: Array, axis: int, neighbours: Neighbours) -> Array:
    """Resize along one axis: sum the weighted neighbours of each new position, one after another.

    This takes the memory of a few images. ``jax.image.resize`` multiplies by a dense matrix of old
    by new side, which for long images is many times larger than the image.

    Args:
      x: ``[H, W, ...]``.
      axis: 0 or 1.
      neighbours: see ``_neighbours``.

    Returns:
      ``x`` with ``new`` positions along the axis.
    """
    first, weights = neighbours
    others = [i for i in range(x.ndim) if i != axis]

    def add(number: Array, total: Array) -> Array:
        weight = jnp.expand_dims(jnp.asarray(weights, x.dtype)[number], others)
        return total + weight * jnp.take(x, first + number, axis, mode="clip")

    # "clip" keeps indices inside the image; neighbours outside have weight 0.
    zeros = jnp.zeros((*x.shape[:axis], len(first), *x.shape[axis + 1 :]), x.dtype)
    return jax.lax.fori_loop(0, len(weights), add, zeros)


@lru_cache(maxsize=4)  # a run resizes many images between the same few sizes
def _neighbours(old: int, new: int, method: str) -> Neighbours:
    """The old positions that contribute to each new one, and their weights.

    w_ij ~ k((j + 1/2 - (i + 1/2) old / new) / max(1, old / new)),  sum_j w_ij = 1

    is the weight of old position j in new position i, with kernel k, for j inside the image.

    Args:
      old, new: sides in pixels.
      method: ``"cubic"`` or ``"linear"``.

    Returns:
      The first contributing position ``[new]`` and the weights of it and its successors,
      ``[count, new]``, which are 0 outside the kernel or the image.
    """
    kernel, radius = (_cubic, 2) if method == "cubic" else (_triangle, 1)
    width = max(1.0, old / new)
    # Pixel centres are at half-integers, so the centre of new pixel i is at old index
    # (i + 1/2) old / new - 1/2.
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.ceil(centres - radius * width).astype(np.int32)
    indices = first + np.arange(int(2 * radius * width) + 1)[:, None]
    inside = (indices >= 0) & (indices < old)
    weights = np.where(inside, kernel(np.abs(indices - centres) / width), 0.0)
    return first, weights / weights.sum(axis=0)


def _triangle(x: np.ndarray) -> np.ndarray:
    """The kernel of linear interpolation at distances x >= 0."""
    return np.maximum(0.0, 1 - x)


def _cubic(x: np.ndarray) -> np.ndarray:
    """The kernel of cubic convolution at distances x >= 0 (Keys 1981, a = -1/2)."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def rescale_opt_state(
    opt_state: Any, *, old_shape: tuple[int, int], new_shape: tuple[int, int]
) -> Any:
    """Rescale Adam's state for the same image at another size (warm start).

    mu <- r resize(mu),  nu <- r^2 resize(nu),  r = old pixels / new pixels

    where mu and nu are the running means of the gradient g and of g^2 (Kingma and Ba 2015,
    algorithm 1). The loss is a mean over pixels, so the gradient at each pixel is inversely
    proportional to their number. The steps mu / sqrt(nu) keep their size.

    Args:
      opt_state: a state with ``optax.ScaleByAdamState`` anywhere in it, for an image of
        ``old_shape``.
      old_shape, new_shape: height and width before and after.

    Returns:
      The state with mu and nu rescaled. Step counts and learning rate are unchanged.

    Raises:
      ValueError: if mu or nu does not have ``old_shape``.
    """
    # In spectral coordinates amplitudes depend on the frequency per pixel, so that mu and sqrt(nu)
    # scale by a little more than r. Both do so by the same factor, which cancels in the step. The
    # linear kernel has no negative lobes: a cubic one could make nu negative.
    ratio = (old_shape[0] * old_shape[1]) / (new_shape[0] * new_shape[1])

    def rescale(mean: Array, factor: float) -> Array:
        if mean.shape[:2] != tuple(old_shape):
            raise ValueError(f"mu or nu has shape {mean.shape}: expected {old_shape} first")
        return factor * resize(mean, shape=new_shape, method="linear")

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    def carry(node: Any) -> Any:
        if not is_adam(node):
            return node
        return node._replace(
            mu=jax.tree.map(lambda mean: rescale(mean, ratio), node.mu),
            nu=jax.tree.map(lambda mean: rescale(mean, ratio**2), node.nu),
        )

    return jax.tree.map(carry, opt_state, is_leaf=is_adam)
