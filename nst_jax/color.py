"""What is done to colours before and after an optimisation: luminance, matching, colour modes.

Contract: images are sRGB in [0, 1], ``[H, W, 3]``, also a little outside (unclipped results);
unbatched (use ``jax.vmap``); nothing is clipped. Results are float32 or wider.

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
    """The luminance of one image with the colours of another.

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
    """The images to optimise with: the first half of a colour mode.

    ``"match-..."`` gives the styles the content's colours (``match_color``); ``"luminance"`` makes
    all grey, the styles with the content's contrast (``match_luminance``). With ``"none"`` and
    ``"keep-..."`` the images come back as they are.

    Args:
      content: ``[H, W, 3]``.
      styles: images, ``[H', W', 3]`` each.
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
      image: what the optimisation with the images of ``prepare_colors`` gave, ``[H, W, 3]``.
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


MATCHES = ("cholesky", "pca", "symmetric", "histogram")

# A variance that no image's colours fall below: a standard deviation of a quarter of 1/255.
EPS = 1e-6


def match_color(image: Array, reference: Array, *, method: str = "symmetric") -> Array:
    """Give an image the colours of another.

    x' = A (x - mu_x) + mu_r   with   A S_x A^T = S_r

    of the colours' means mu and covariances S, each S + EPS I so that grey and constant images
    have an inverse. With S = B B^T every such A is B_r W B_x^-1, W orthogonal:

    - ``"cholesky"``: B the Cholesky factor, W = I; A is lower triangular.
    - ``"pca"``: B = S^(1/2), W = I (Hertzmann's).
    - ``"symmetric"``: B = S^(1/2), W = U V^T of the SVD U s V^T of S_r^(1/2) S_x^(1/2). This A,
      S_x^(-1/2) (S_x^(1/2) S_r S_x^(1/2))^(1/2) S_x^(-1/2), is symmetric: of all, it moves the
      colours least.

    ``"histogram"`` is not linear: each channel's values go to the reference's values of their
    ranks. An image matched to itself stays as it is.

    Args:
      image: ``[H, W, 3]``.
      reference: ``[H', W', 3]``.
      method: one of the four.

    Returns:
      ``[H, W, 3]``.

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
    image, reference = floats(image, reference)
    if method == "histogram":
        match = jax.vmap(_match_values, in_axes=-1, out_axes=-1)
        return match(image.reshape(-1, 3), reference.reshape(-1, 3)).reshape(image.shape)
    (mean, deviations), (mean_to, deviations_to) = _centred(image), _centred(reference)
    root, root_to = (_root(_covariance(x), method=method) for x in (deviations, deviations_to))
    turned = root_to
    if method == "symmetric":
        # The formula takes the root of the square of this product: values from EPS^2 on, which
        # float32 cannot tell from zero next to those of 0.1.
        left, _, right = jnp.linalg.svd(_matmul(root_to, root))
        turned = _matmul(root_to, _matmul(left, right))
    # (A - I)^T of (A - I) B_x = B_r W - B_x: exactly zero for equal images, where A itself, with
    # the inverse's entries up to 1000, would be I to four digits only.
    change = jnp.linalg.solve(root.T, (turned - root).T)
    return image + (_matmul(deviations, change) + (mean_to - mean)[None, None])


def floats(*images: Array) -> list[Array]:
    """The images in one type, float32 or wider."""
    dtype = jnp.promote_types(jnp.result_type(*images), jnp.float32)
    return [jnp.asarray(image, dtype) for image in images]


def _centred(image: Array) -> tuple[Array, Array]:
    """Mean colour ``[3]`` and the deviations from it, those of a constant image all zero."""
    mean = jnp.mean(image, axis=(0, 1))
    # The first mean of a million equal values is off by their sum's rounding, the second is not.
    mean = mean + jnp.mean(image - mean[None, None], axis=(0, 1))
    return mean, image - mean[None, None]


def _covariance(deviations: Array) -> Array:
    # Row by row: short sums, added afterwards, round less than one of a million products.
    products = _matmul(jnp.swapaxes(deviations, 1, 2), deviations)
    return jnp.mean(products, axis=0) / deviations.shape[1]


def _root(covariance: Array, *, method: str) -> Array:
    """B with B B^T = S + EPS I: triangular for ``"cholesky"``, else symmetric."""
    values, vectors = jnp.linalg.eigh(covariance)
    # By rounding, a grey image's variances may be a little below zero.
    deviations = jnp.sqrt(jnp.maximum(values, 0) + EPS)
    half = deviations[:, None] * vectors.T
    if method != "cholesky":
        return _matmul(vectors, half)
    # half^T half = R^T R: the Cholesky factor of a matrix that cannot lose its definiteness.
    upper = jnp.linalg.qr(half, mode="r")
    return upper.T * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None]


def _match_values(values: Array, reference: Array) -> Array:
    """Each of ``[n]`` values at the quantile of ``[m]`` reference values that its rank says."""
    count, count_to = values.shape[0], reference.shape[0]
    ordered, ordered_to = jnp.sort(values), jnp.sort(reference)
    # Twice the mean rank from 0, n - 1 at the middle; equal values have one rank and stay equal.
    ranks = jnp.searchsorted(ordered, values) + jnp.searchsorted(ordered, values, side="right") - 1
    # (rank + 1/2) m / n - 1/2 as a whole number and a rest, so that n = m is exact at any size.
    rest = (ranks % 2) / 2 + (ranks + 1) * ((count_to / count - 1) / 2)
    whole = jnp.floor(rest).astype(ranks.dtype)
    part = (rest - whole).astype(values.dtype)
    low = ranks // 2 + whole
    below, above = (ordered_to[jnp.clip(low + i, 0, count_to - 1)] for i in (0, 1))
    return below + part * (above - below)


def luminance(image: Array) -> Array:
    """Brightness as YIQ and YCbCr have it.

    Y = 0.299 R + 0.587 G + 0.114 B

    Args:
      image: ``[H, W, 3]``.

    Returns:
      ``[H, W]``.

    >>> luminance(jnp.ones((1, 2, 3))).tolist()
    [[1.0, 1.0]]
    """
    (image,) = floats(image)
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def grey(image: Array) -> Array:
    """An image's luminance in each channel, ``[H, W, 3]``."""
    return jnp.broadcast_to(luminance(image)[..., None], image.shape)


def match_luminance(image: Array, reference: Array) -> Array:
    """A grey image whose luminance has another's mean and standard deviation.

    L' = sigma_r / sigma (L - mu) + mu_r

    The divisor is at least sqrt(EPS), so that a constant image becomes the constant mu_r.

    Args:
      image: ``[H, W, 3]``.
      reference: ``[H', W', 3]``.

    Returns:
      ``[H, W, 3]`` of three equal channels.

    References:
      Gatys et al. 2017, section 5.1.

    >>> match_luminance(jnp.zeros((1, 1, 3)), jnp.ones((2, 1, 3))).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    image, reference = floats(image, reference)
    _, deviations = _centred(luminance(image)[..., None])
    mean, deviations_to = _centred(luminance(reference)[..., None])
    sigma, sigma_to = (jnp.sqrt(_covariance(x)[0, 0]) for x in (deviations, deviations_to))
    grey = deviations * (sigma_to / jnp.maximum(sigma, EPS**0.5)) + mean[None, None]
    return jnp.broadcast_to(grey, image.shape)
