"""Colour processing before and after the optimisation: luminance, colour matching, colour modes.

Contract: images are sRGB, ``[H, W, 3]``, with values in [0, 1] or, for unclipped results, a little
outside. They are unbatched (use ``jax.vmap``). Nothing is clipped. Results are float32 or wider.

References:
  Gatys, Bethge, Hertzmann and Shechtman 2016, "Preserving Color in Neural Artistic Style
  Transfer", arXiv:1606.05897.
  Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer", CVPR, section 5.
"""

from collections.abc import Sequence
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp

from nst_jax.config.loss import Color
from nst_jax.types import Array

SPACES = ("yiq", "lab")

MODES = get_args(Color)

_matmul = partial(jnp.matmul, precision="highest")


def transfer_luminance(stylized: Array, content: Array, *, space: str = "yiq") -> Array:
    """Combine the luminance of one image with the chroma of another.

    ``"yiq"``: in YIQ, chroma is zero for grey, so that changing Y alone adds the same number to R,
    G and B (as in YCbCr):

    x = content + Y_stylized - Y_content

    ``"lab"``: CIE L* = 116 Y' - 16, a* = 500 (X' - Y'), b* = 200 (Y' - Z'), where X', Y' and Z' are
    the cube roots of XYZ relative to the white point. Changing L* alone adds the same number to X',
    Y' and Z'.

    Args:
      stylized: source of the luminance, ``[H, W, 3]``.
      content: source of the chroma, ``[H, W, 3]``.
      space: ``"yiq"`` or ``"lab"``.

    Returns:
      ``[H, W, 3]``; outside [0, 1] if sRGB has no such colour at that luminance.

    Raises:
      ValueError: for another space.

    References:
      Gatys et al. 2017, section 5.1; CIE 1976 L*a*b* with white point D65.

    >>> transfer_luminance(jnp.ones((1, 1, 3)), jnp.zeros((1, 1, 3))).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    if space not in SPACES:
        raise ValueError(f"space is {space!r}: expected one of {', '.join(SPACES)}")
    stylized, content = _as_floats(stylized, content)
    if space != "lab":
        return content + (luminance(stylized) - luminance(content))[..., None]
    stylized_roots, content_roots = _cube_roots(stylized), _cube_roots(content)
    return _from_cube_roots(content_roots + (stylized_roots - content_roots)[..., 1:2])


# Linear sRGB to XYZ (IEC 61966-2-1), each row divided by its sum, which is the white point (D65).
_XYZ = (
    (0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505),
    (0.2126, 0.7152, 0.0722),
    (0.0193 / 1.0890, 0.1192 / 1.0890, 0.9505 / 1.0890),
)

# Below this root (CIE 15: t <= (6/29)^3), CIE continues the cube root by its tangent
# t / (3 (6/29)^2) + 4/29.
_KNEE = 6 / 29


def _cube_roots(image: Array) -> Array:
    """Convert sRGB to the X', Y', Z' of CIE Lab, ``[H, W, 3]``.

    The transfer curve is extended to negative values as an odd function (as in scRGB), so that
    every value has an inverse.
    """
    amount = jnp.abs(image)
    # ``where`` evaluates both branches and their derivatives: the maximum keeps the power in its
    # own range, where neither is infinite.
    curve = ((jnp.maximum(amount, 0.04045) + 0.055) / 1.055) ** 2.4
    linear = jnp.sign(image) * jnp.where(amount > 0.04045, curve, amount / 12.92)
    xyz = _matmul(linear, jnp.array(_XYZ, image.dtype).T)
    curve = jnp.cbrt(jnp.maximum(xyz, _KNEE**3))
    return jnp.where(xyz > _KNEE**3, curve, xyz / (3 * _KNEE**2) + 4 / 29)


def _from_cube_roots(roots: Array) -> Array:
    """The inverse of ``_cube_roots``."""
    xyz = jnp.where(roots > _KNEE, roots**3, 3 * _KNEE**2 * (roots - 4 / 29))
    linear = _matmul(xyz, jnp.linalg.inv(jnp.array(_XYZ, roots.dtype)).T)
    amount = jnp.abs(linear)
    curve = 1.055 * jnp.maximum(amount, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.sign(linear) * jnp.where(amount > 0.0031308, curve, 12.92 * amount)


def prepare_colors(
    content: Array, styles: Sequence[Array], *, mode: str
) -> tuple[Array, list[Array]]:
    """Prepare the colours of the inputs: the first half of a colour mode.

    ``"match-..."`` gives the styles the content's colours (``match_color``). ``"luminance"`` makes
    all images grey and gives the styles the content's contrast (``match_luminance``). ``"none"``
    and ``"keep-..."`` change nothing.

    Args:
      content: ``[H, W, 3]``.
      styles: style images, ``[H', W', 3]`` each.
      mode: one of ``MODES``.

    Returns:
      The content and the list of styles to optimise with.

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
    """Restore the colours of a result: the second half of a colour mode.

    ``"keep-..."`` and ``"luminance"`` (in YIQ) give the result the content's chroma
    (``transfer_luminance``). The other modes change nothing.

    Args:
      image: result of the optimisation with the images from ``prepare_colors``, ``[H, W, 3]``.
      content: the content as it was given to ``prepare_colors``, ``[H, W, 3]``.
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
    """Split a mode such as ``"keep-lab"`` into its kind and its option."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
    kind, _, option = mode.partition("-")
    return kind, option


MATCHES = ("cholesky", "pca", "symmetric", "histogram")

# Added to the variances of all colours, so that covariances of grey and constant images have an
# inverse. Its root, 1e-3, is a standard deviation of a quarter of 1/255.
EPS = 1e-6


def match_color(image: Array, reference: Array, *, method: str = "symmetric") -> Array:
    """Give an image the colour distribution of another.

    The linear methods match the mean and the covariance of the colours:

    x' = A (x - mu_x) + mu_r   with   A S_x A^T = S_r

    Here mu_x, mu_r are the mean colours of the image and the reference, and S_x, S_r their
    covariances plus EPS I, so that those of grey and constant images have an inverse. With any
    factorisation S = B B^T, every such A is B_r W B_x^-1 with an orthogonal W:

    - ``"cholesky"``: B is the Cholesky factor and W = I, so that A is lower triangular.
    - ``"pca"``: B = S^(1/2) and W = I (Hertzmann et al. 2001).
    - ``"symmetric"``: B = S^(1/2) and W = U V^T from the SVD U s V^T of S_r^(1/2) S_x^(1/2). Then
      A = S_x^(-1/2) (S_x^(1/2) S_r S_x^(1/2))^(1/2) S_x^(-1/2), the symmetric solution and the
      optimal transport map between two Gaussians: of all A, it moves the colours least.

    ``"histogram"`` is not linear: in each channel, a value is replaced by the reference's value of
    the same rank.

    An image matched to itself is unchanged (to 2e-6 for ``"symmetric"``).

    Args:
      image: ``[H, W, 3]``.
      reference: ``[H', W', 3]``.
      method: ``"cholesky"``, ``"pca"``, ``"symmetric"`` or ``"histogram"``.

    Returns:
      The image with the reference's colours, ``[H, W, 3]``.

    Raises:
      ValueError: for another method.

    References:
      Gatys et al. 2016 and 2017, section 5.2; Hertzmann et al. 2001, "Image Analogies"; Pitie and
      Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping".

    >>> match_color(jnp.zeros((1, 1, 3)), jnp.ones((2, 1, 3)), method="pca").tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    if method not in MATCHES:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(MATCHES)}")
    image, reference = _as_floats(image, reference)
    if method == "histogram":
        match = jax.vmap(_match_values, in_axes=-1, out_axes=-1)
        return match(image.reshape(-1, 3), reference.reshape(-1, 3)).reshape(image.shape)
    (mean, deviations), (mean_to, deviations_to) = _centred(image), _centred(reference)
    root, root_to = (_root(_covariance(x), method=method) for x in (deviations, deviations_to))
    rotated = root_to  # B_r W
    if method == "symmetric":
        # The closed form of A squares S_r^(1/2) S_x^(1/2) and takes the root again. Its eigenvalues
        # go down to EPS^2, which float32 cannot tell from zero next to 0.1. The SVD avoids that.
        left, _, right = jnp.linalg.svd(_matmul(root_to, root))
        rotated = _matmul(root_to, _matmul(left, right))
    # Solve (A - I) B_x = B_r W - B_x for (A - I)^T. The right side is exactly zero for equal
    # images; A = B_r W B_x^-1, whose inverse has entries up to 1000, would be I to four digits.
    change = jnp.linalg.solve(root.T, (rotated - root).T)
    return image + (_matmul(deviations, change) + (mean_to - mean)[None, None])


def _as_floats(*images: Array) -> list[Array]:
    """Convert images to one common type, float32 or wider."""
    dtype = jnp.promote_types(jnp.result_type(*images), jnp.float32)
    return [jnp.asarray(image, dtype) for image in images]


def _centred(image: Array) -> tuple[Array, Array]:
    """Mean colour ``[3]`` and deviations from it, exactly zero for a constant image."""
    mean = jnp.mean(image, axis=(0, 1))
    # A second pass removes the rounding error that the first sum over a million values leaves.
    mean = mean + jnp.mean(image - mean[None, None], axis=(0, 1))
    return mean, image - mean[None, None]


def _covariance(deviations: Array) -> Array:
    """Covariance of deviations ``[H, W, C]``, ``[C, C]``."""
    # One sum for each row, added afterwards: short sums round less than one of a million products.
    products = _matmul(jnp.swapaxes(deviations, 1, 2), deviations)
    return jnp.mean(products, axis=0) / deviations.shape[1]


def _root(covariance: Array, *, method: str) -> Array:
    """B with B B^T = S + EPS I: lower triangular for ``"cholesky"``, else symmetric."""
    values, vectors = jnp.linalg.eigh(covariance)
    # Rounding may leave the eigenvalues of a grey image slightly below zero.
    deviations = jnp.sqrt(jnp.maximum(values, 0) + EPS)
    half = deviations[:, None] * vectors.T
    if method != "cholesky":
        return _matmul(vectors, half)
    # With half^T half = S + EPS I and half = Q R, R^T is the Cholesky factor up to signs. Unlike a
    # Cholesky decomposition of the sum, this cannot fail for lack of positive definiteness.
    upper = jnp.linalg.qr(half, mode="r")
    return upper.T * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None]


def _match_values(values: Array, reference: Array) -> Array:
    """Replace ``[n]`` values by the quantiles of ``[m]`` reference values at the same ranks."""
    count, count_to = values.shape[0], reference.shape[0]
    ordered, ordered_to = jnp.sort(values), jnp.sort(reference)
    # Twice the rank, counted from 0. Ties get their mean rank, a multiple of 1/2, and stay equal.
    ranks = jnp.searchsorted(ordered, values) + jnp.searchsorted(ordered, values, side="right") - 1
    # The position (rank + 1/2) m / n - 1/2 among the reference values, split into an integer and a
    # fraction, so that it is exact for n = m at any size.
    rest = (ranks % 2) / 2 + (ranks + 1) * ((count_to / count - 1) / 2)
    whole = jnp.floor(rest).astype(ranks.dtype)
    part = (rest - whole).astype(values.dtype)
    low = ranks // 2 + whole
    below, above = (ordered_to[jnp.clip(low + i, 0, count_to - 1)] for i in (0, 1))
    return below + part * (above - below)


def luminance(image: Array) -> Array:
    """Luminance Y of YIQ and YCbCr (ITU-R BT.601).

    Y = 0.299 R + 0.587 G + 0.114 B

    Args:
      image: ``[H, W, 3]``.

    Returns:
      ``[H, W]``.

    >>> luminance(jnp.ones((1, 2, 3))).tolist()
    [[1.0, 1.0]]
    """
    (image,) = _as_floats(image)
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def grey(image: Array) -> Array:
    """Convert to grey: the luminance in all three channels, ``[H, W, 3]``."""
    return jnp.broadcast_to(luminance(image)[..., None], image.shape)


def match_luminance(image: Array, reference: Array) -> Array:
    """Convert to grey with the mean and standard deviation of another image's luminance.

    L' = sigma_r / sigma (L - mu) + mu_r

    The divisor sigma is at least sqrt(EPS), so that a constant image becomes the constant mu_r.

    Args:
      image: ``[H, W, 3]``.
      reference: ``[H', W', 3]``.

    Returns:
      ``[H, W, 3]`` with three equal channels.

    References:
      Gatys et al. 2017, section 5.1.

    >>> match_luminance(jnp.zeros((1, 1, 3)), jnp.ones((2, 1, 3))).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    image, reference = _as_floats(image, reference)
    _, deviations = _centred(luminance(image)[..., None])
    mean, deviations_to = _centred(luminance(reference)[..., None])
    sigma, sigma_to = (jnp.sqrt(_covariance(x)[0, 0]) for x in (deviations, deviations_to))
    grey = deviations * (sigma_to / jnp.maximum(sigma, EPS**0.5)) + mean[None, None]
    return jnp.broadcast_to(grey, image.shape)
