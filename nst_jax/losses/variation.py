"""Total variation: how much neighbouring pixels differ, in the forms of published tools.

Contract: images are ``[H, W, 3]``, unbatched; the value grows with the pixels' range.
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
    """Sum over pixels of their differences from their neighbours.

    ``"anisotropic"``: sum |dx|^p / p + sum |dy|^p / p over all pairs of horizontal and vertical
    neighbours, the last row and column included. Order 1 is neural-style-pt's; order 2 has the
    gradient that neural-style (Torch7) adds, which leaves the last row and column out. With weight
    w for [0, 255] the same term on [0, 1] has the weight 255 w (order 1) or 255^2 w (order 2).
    The derivative of |d| at 0 is 0.

    ``"isotropic"``: sum (dx^2 + dy^2)^(p/2) over the pixels that have both neighbours (Mahendran
    and Vedaldi 2015); order 2.5 is that of Keras' examples. Where dx = dy = 0 its gradient
    is 0.

    ``"nine-point"``: 2/3 (sum dx^2 + sum dy^2) + corner/6 (sum d1^2 + sum d2^2) with differences
    d1, d2 along both diagonals, the image's border repeated around it (style-transfer-pytorch).
    Of diagonal pairs there are (H + 1) (W + 1), of the others H W.

    Args:
      image: ``[H, W, 3]``.
      form, order: the form and its power p: 1 or 2, any from 1 on, or 2, in the order above.
      padding: ``"circular"`` where opposite borders are neighbours too.
      mask: factors ``[H, W]`` of the pixels, each for its differences to the right and downwards;
        1 where it is left out.
      corner: factor of the diagonal differences, H W / ((H + 1) (W + 1)) for means over each kind;
        1 with circular padding, where there are as many of each.

    Returns:
      Scalar.

    Raises:
      ValueError: for another form, or an order that the form does not have.

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
        across, down = (across, down) if wrap else (across[:-1], down[:, :-1])
        return jnp.sum(_owned(_power(jnp.square(across) + jnp.square(down), order / 2), mask))
    # JAX's derivative of |d| is 1 at 0; PyTorch's, as of a sign, 0.
    power = (lambda d: d * jnp.sign(d)) if order == 1 else lambda d: jnp.square(d) / 2
    return sum(jnp.sum(_owned(power(d), mask)) for d in (across, down))  # type: ignore[return-value]


def _owned(x: Array, mask: Array | None) -> Array:
    return x if mask is None else x * mask[: x.shape[0], : x.shape[1], None]


def _power(squares: Array, exponent: float) -> Array:
    """squares^exponent with gradient 0 at 0, where below 1 it would be infinite."""
    if exponent >= 1:
        return squares**exponent
    positive = squares > 0
    return jnp.where(positive, jnp.where(positive, squares, 1.0) ** exponent, 0.0)


def _nine_point(image: Array, *, wrap: bool, mask: Array | None, corner: Array | float) -> Array:
    if wrap:  # every pixel has all neighbours
        around = jnp.pad(image, ((0, 1), (1, 1), (0, 0)), mode="wrap")
        here = around[:-1, 1:-1]
        right, below, first = around[:-1, 2:], around[1:, 1:-1], around[1:, 2:]
        second = around[1:, :-2]
        straight = jnp.square(right - here) + jnp.square(below - here)
        diagonal = jnp.square(first - here) + jnp.square(second - here)
        return jnp.sum(_owned(2 / 3 * straight + 1 / 6 * diagonal, mask))
    around = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    here, right, below = around[1:-1, 1:-1], around[1:-1, 2:], around[2:, 1:-1]
    straight = jnp.square(right - here) + jnp.square(below - here)
    diagonal = jnp.square(around[1:, 1:] - around[:-1, :-1])
    diagonal += jnp.square(around[1:, :-1] - around[:-1, 1:])
    # A corner belongs to the pixel below it to the right, at the far borders to the last one.
    corners = None if mask is None else jnp.pad(mask, ((0, 1), (0, 1)), mode="edge")
    diagonals = jnp.sum(_owned(diagonal, corners))
    return 2 / 3 * jnp.sum(_owned(straight, mask)) + corner / 6 * diagonals
