"""Matching one picture's colours to another's, before style transfer.

Contract: images are sRGB in [0, 1], ``[H, W, 3]``, also a little outside (unclipped results);
unbatched (use ``jax.vmap``); nothing is clipped. Results are float32 or wider.

References:
  Gatys, Bethge, Hertzmann and Shechtman 2016, "Preserving Color in Neural Artistic Style
  Transfer", arXiv:1606.05897.
  Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer", CVPR, section 5.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nst_jax.types import Array

MATCHES = ("cholesky", "pca", "symmetric", "histogram")

# A variance that no picture's colours fall below: a standard deviation of a quarter of 1/255.
EPS = 1e-6

_matmul = partial(jnp.matmul, precision="highest")


def match_color(image: Array, reference: Array, *, method: str = "symmetric") -> Array:
    """Give a picture the colours of another.

    x' = A (x - mu_x) + mu_r   with   A S_x A^T = S_r

    of the colours' means mu and covariances S, each S + EPS I so that grey and constant pictures
    have an inverse. With S = B B^T every such A is B_r W B_x^-1, W orthogonal:

    - ``"cholesky"``: B the Cholesky factor, W = I; A is lower triangular.
    - ``"pca"``: B = S^(1/2), W = I (Hertzmann's).
    - ``"symmetric"``: B = S^(1/2), W = U V^T of the SVD U s V^T of S_r^(1/2) S_x^(1/2). This A,
      S_x^(-1/2) (S_x^(1/2) S_r S_x^(1/2))^(1/2) S_x^(-1/2), is symmetric: of all, it moves the
      colours least.

    ``"histogram"`` is not linear: each channel's values go to the reference's values of their
    ranks. A picture matched to itself stays as it is.

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
    # (A - I)^T of (A - I) B_x = B_r W - B_x: exactly zero for equal pictures, where A itself, with
    # the inverse's entries up to 1000, would be I to four digits only.
    change = jnp.linalg.solve(root.T, (turned - root).T)
    return image + (_matmul(deviations, change) + (mean_to - mean)[None, None])


def floats(*pictures: Array) -> list[Array]:
    """The pictures in one type, float32 or wider."""
    dtype = jnp.promote_types(jnp.result_type(*pictures), jnp.float32)
    return [jnp.asarray(picture, dtype) for picture in pictures]


def _centred(image: Array) -> tuple[Array, Array]:
    """Mean colour ``[3]`` and the deviations from it, those of a constant picture all zero."""
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
    # By rounding, a grey picture's variances may be a little below zero.
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
    """A picture's luminance in each channel, ``[H, W, 3]``."""
    return jnp.broadcast_to(luminance(image)[..., None], image.shape)


def match_luminance(image: Array, reference: Array) -> Array:
    """A grey picture whose luminance has another's mean and standard deviation.

    L' = sigma_r / sigma (L - mu) + mu_r

    The divisor is at least sqrt(EPS), so that a constant picture becomes the constant mu_r.

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
