"""Coarse to fine: the sizes of a run's scales, and what is carried from one to the next.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``; a mask is ``[H, W]``; a shape is
(height, width).
"""

from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nst_jax.types import Array


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
      shape: height and width of the picture; the last scale's, as they are.
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

    ``"cubic"`` (Keys, a = -1/2) keeps a picture sharp and may overshoot its values, which are not
    clipped: for pictures that are being optimised. ``"linear"`` stays within the least and the
    greatest value: for contents, styles and masks. Where a side shrinks, the kernel is widened by
    as much; at the borders its weights are normalised. Both as in Pillow.

    Args:
      image: floats ``[H, W, C]`` or ``[H, W]``.
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
    return _resize(image, shape=tuple(shape), method=method)


@partial(jax.jit, static_argnames=("shape", "method"))
def _resize(image: Array, *, shape: tuple[int, int], method: str) -> Array:
    whole = (*shape, *image.shape[2:])
    # In full precision also where the device would multiply in less.
    precision = jax.lax.Precision.HIGHEST
    resized = jax.image.resize(image, whole, method, antialias=True, precision=precision)
    if method == "linear":
        # Weights add up to 1 to rounding only, and a mask of 1 + 1e-7 is none.
        resized = jnp.clip(resized, image.min(), image.max())
    return resized


def rescale_moments(
    opt_state: Any, *, old_shape: tuple[int, int], new_shape: tuple[int, int]
) -> Any:
    """Adam's moments for the same picture of another size.

    r = old pixels / new pixels,  mu <- r resize(mu),  nu <- r^2 resize(nu)

    for the gradient of a mean over pixels is shared by the pixels there are. Sizes of steps,
    mu / sqrt(nu), so stay what they are. In spectral coordinates, where amplitudes depend on the
    frequency per pixel, moments scale a little more than by r, both by as much.

    Args:
      opt_state: a state with ``optax.ScaleByAdamState`` anywhere in it, of a picture of
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
