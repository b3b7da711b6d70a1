"""Total variation, the differences between neighbouring pixels, as published tools define it.

Contract: images are ``[H, W, 3]``, unbatched. The value depends on the range of the pixels.
"""

import jax.numpy as jnp

from nst_jax.types import Array

FORMS = ("anisotropic", "isotropic", "nine-point")


def total_variation(
    image: Array,
    *,
    form: str = "anisotropic",
    order: float = 2,
    padding: str = "zero",
    mask: Array | None = None,
    corner: Array | float = 1.0,
) -> Array:
    """Total variation as a sum over pixels.

    For a pixel, dx and dy are the differences to its neighbours on the right and below, and d1, d2
    those along the two diagonals. Sums run over pixels and channels.

    ``"anisotropic"``: sum |dx|^p / p + sum |dy|^p / p, over all pairs of neighbours. Order 1 is
    that of neural-style-pt. Order 2 has the gradient that neural-style (Torch7) adds, except that
    neural-style leaves out the last row and column. A weight w for pixels in [0, 255] corresponds
    to 255 w (order 1) or 255^2 w (order 2) for pixels in [0, 1].

    ``"isotropic"``: sum (dx^2 + dy^2)^(p/2), over the pixels that have both neighbours (Mahendran
    and Vedaldi 2015). Keras' examples use order 2.5.

    ``"nine-point"``: 2/3 (sum dx^2 + sum dy^2) + corner/6 (sum d1^2 + sum d2^2), after repeating
    the border of the image once (style-transfer-pytorch). There are H W pairs of each straight kind
    and (H + 1) (W + 1) of each diagonal kind.

    At differences of 0, where the first two forms have a kink, the gradient is 0.

    Args:
      image: ``[H, W, 3]``.
      form: ``"anisotropic"``, ``"isotropic"`` or ``"nine-point"``.
      order: the power p: 1 or 2 for anisotropic, any number from 1 on for isotropic, 2 for
        nine-point.
      padding: ``"circular"`` if opposite borders are neighbours too.
      mask: weights of the pixels, ``[H, W]``, by default 1. Each applies to the differences from
        its pixel to the right and downwards.
      corner: weight of the diagonal differences. H W / ((H + 1) (W + 1)) makes all four sums means
        over their pairs (up to one common divisor). Circular padding, which has as many pairs of
        each kind, ignores it.

    Returns:
      Scalar.

    Raises:
      ValueError: for another form, or for an order that the form does not support.

    References:
      Mahendran and Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them".

    >>> float(total_variation(jnp.array([[[0.0], [2.0]]]), order=1))
    2.0
    """
    orders = {"anisotropic": order in (1, 2), "isotropic": order >= 1, "nine-point": order == 2}
    if not orders.get(form, False):
        raise ValueError(f"form is {form!r} with order {order}: expected one of {', '.join(FORMS)}")
    wrap = padding == "circular"
    if form == "nine-point":
        return _nine_point(image, wrap=wrap, mask=mask, corner=corner)
    if wrap:
        across, down = (jnp.roll(image, -1, axis) - image for axis in (1, 0))
    else:
        across, down = image[:, 1:] - image[:, :-1], image[1:] - image[:-1]
    if form == "isotropic":
        # Without wrapping, only pixels with both neighbours have a gradient (dx, dy).
        across, down = (across, down) if wrap else (across[:-1], down[:, :-1])
        return jnp.sum(_weighted(_power(jnp.square(across) + jnp.square(down), order / 2), mask))
    # |d| as d sign(d), whose derivative at 0 is 0 as in PyTorch; that of jnp.abs is 1.
    power = (lambda d: d * jnp.sign(d)) if order == 1 else lambda d: jnp.square(d) / 2
    return sum(jnp.sum(_weighted(power(d), mask)) for d in (across, down))  # type: ignore[return-value]


def _weighted(x: Array, mask: Array | None) -> Array:
    """Multiply by the mask, cropped to the rows and columns of ``x``."""
    return x if mask is None else x * mask[: x.shape[0], : x.shape[1], None]


def _power(squares: Array, exponent: float) -> Array:
    """squares^exponent with gradient 0 at 0, where that of an exponent below 1 is infinite."""
    if exponent >= 1:
        return squares**exponent
    # Twice ``where``: the inner one keeps the infinite derivative out of the unselected branch.
    positive = squares > 0
    return jnp.where(positive, jnp.where(positive, squares, 1.0) ** exponent, 0.0)


def _nine_point(image: Array, *, wrap: bool, mask: Array | None, corner: Array | float) -> Array:
    if wrap:  # every pixel has all eight neighbours; it owns the differences to those below it
        around = jnp.pad(image, ((0, 1), (1, 1), (0, 0)), mode="wrap")
        here = around[:-1, 1:-1]
        right, below, first = around[:-1, 2:], around[1:, 1:-1], around[1:, 2:]
        second = around[1:, :-2]
        straight = jnp.square(right - here) + jnp.square(below - here)
        diagonal = jnp.square(first - here) + jnp.square(second - here)
        return jnp.sum(_weighted(2 / 3 * straight + 1 / 6 * diagonal, mask))
    around = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    here, right, below = around[1:-1, 1:-1], around[1:-1, 2:], around[2:, 1:-1]
    straight = jnp.square(right - here) + jnp.square(below - here)
    diagonal = jnp.square(around[1:, 1:] - around[:-1, :-1])
    diagonal += jnp.square(around[1:, :-1] - around[:-1, 1:])
    # Each corner between four pixels belongs to the pixel on its lower right, and beyond the last
    # row or column to the last pixel.
    corners = None if mask is None else jnp.pad(mask, ((0, 1), (0, 1)), mode="edge")
    diagonals = jnp.sum(_weighted(diagonal, corners))
    return 2 / 3 * jnp.sum(_weighted(straight, mask)) + corner / 6 * diagonals
