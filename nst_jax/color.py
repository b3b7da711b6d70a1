"""Luminance and colour modes: what is done to colours before and after an optimisation.

Contract: images are sRGB in [0, 1], ``[H, W, 3]``, also a little outside (unclipped results);
unbatched (use ``jax.vmap``); nothing is clipped. Results are float32 or wider.

References:
  Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer", CVPR, section 5.
"""

from collections.abc import Sequence
from functools import partial
from typing import get_args

import jax.numpy as jnp

from nst_jax.color_matching import floats, grey, luminance, match_color, match_luminance
from nst_jax.loss_config import Color
from nst_jax.types import Array

SPACES = ("yiq", "lab")
MODES = get_args(Color)

_matmul = partial(jnp.matmul, precision="highest")


def transfer_luminance(stylized: Array, content: Array, *, space: str = "yiq") -> Array:
    """The luminance of one picture with the colours of another.

    ``"yiq"`` has the Y of ``luminance`` and differences of colours that are zero for grey, and so
    an inverse that adds Y to R, G and B alike, as has YCbCr:

    x = content + Y_stylized - Y_content

    ``"lab"`` has L* = 116 Y' - 16, a* = 500 (X' - Y'), b* = 200 (Y' - Z') of X', Y', Z', the cube
    roots of XYZ relative to white: another L* at the same a* and b* adds to these three alike.

    Args:
      stylized, content: ``[H, W, 3]``.
      space: one of the two.

    Returns:
      ``[H, W, 3]``, outside [0, 1] where the colour does not exist at that luminance.

    Raises:
      ValueError: for another space.

    References:
      Gatys et al. 2017, section 5.1; CIE 1976 L*a*b* with D65.

    >>> transfer_luminance(jnp.ones((1, 1, 3)), jnp.zeros((1, 1, 3))).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    if space not in SPACES:
        raise ValueError(f"space is {space!r}: expected one of {', '.join(SPACES)}")
    stylized, content = floats(stylized, content)
    if space != "lab":
        return content + (luminance(stylized) - luminance(content))[..., None]
    roots, own = _cube_roots(stylized), _cube_roots(content)
    return _from_cube_roots(own + (roots - own)[..., 1:2])


# Linear sRGB to XYZ (IEC 61966-2-1), each row divided by its sum, which is the white point D65.
_XYZ = (
    (0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505),
    (0.2126, 0.7152, 0.0722),
    (0.0193 / 1.0890, 0.1192 / 1.0890, 0.9505 / 1.0890),
)
_KNEE = 6 / 29  # where CIE's cube root goes on as a line, through 4/29 at 0


def _cube_roots(image: Array) -> Array:
    """sRGB to Lab's X', Y', Z', ``[H, W, 3]``.

    Negative values are coded as minus their amounts (as in scRGB): every value has an inverse.
    """
    amount = jnp.abs(image)
    # Each maximum keeps a power, and its derivative, away from numbers that it is not for.
    curve = ((jnp.maximum(amount, 0.04045) + 0.055) / 1.055) ** 2.4
    linear = jnp.sign(image) * jnp.where(amount > 0.04045, curve, amount / 12.92)
    xyz = _matmul(linear, jnp.array(_XYZ, image.dtype).T)
    curve = jnp.cbrt(jnp.maximum(xyz, _KNEE**3))
    return jnp.where(xyz > _KNEE**3, curve, xyz / (3 * _KNEE**2) + 4 / 29)


def _from_cube_roots(roots: Array) -> Array:
    xyz = jnp.where(roots > _KNEE, roots**3, 3 * _KNEE**2 * (roots - 4 / 29))
    linear = _matmul(xyz, jnp.linalg.inv(jnp.array(_XYZ, roots.dtype)).T)
    amount = jnp.abs(linear)
    curve = 1.055 * jnp.maximum(amount, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.sign(linear) * jnp.where(amount > 0.0031308, curve, 12.92 * amount)


def prepare_colors(
    content: Array, styles: Sequence[Array], *, mode: str
) -> tuple[Array, list[Array]]:
    """The pictures to optimise with: the first half of a colour mode.

    ``"match-..."`` gives the styles the content's colours (``match_color``); ``"luminance"`` makes
    all grey, the styles with the content's contrast (``match_luminance``). With ``"none"`` and
    ``"keep-..."`` the pictures come back as they are.

    Args:
      content: ``[H, W, 3]``.
      styles: pictures, ``[H', W', 3]`` each.
      mode: one of ``MODES``.

    Returns:
      Content and styles.

    Raises:
      ValueError: for another mode.
    """
    kind, option = _split(mode)
    if kind == "match":
        return content, [match_color(style, content, method=option) for style in styles]
    if kind == "luminance":
        return grey(content), [match_luminance(style, content) for style in styles]
    return content, list(styles)


def restore_colors(image: Array, content: Array, *, mode: str) -> Array:
    """The result in its colours: the second half of a colour mode.

    ``"keep-..."`` and ``"luminance"`` (in YIQ) give it the content's (``transfer_luminance``);
    otherwise it comes back as it is.

    Args:
      image: what the optimisation with the pictures of ``prepare_colors`` gave, ``[H, W, 3]``.
      content: as given to ``prepare_colors``.
      mode: one of ``MODES``.

    Returns:
      ``[H, W, 3]``.

    Raises:
      ValueError: for another mode.
    """
    kind, option = _split(mode)
    if kind in ("keep", "luminance"):
        return transfer_luminance(image, content, space=option or "yiq")
    return image


def _split(mode: str) -> tuple[str, str]:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
    kind, _, option = mode.partition("-")
    return kind, option
