"""Styles as Gaussian distributions of features: losses of means and covariances.

Contract: means are ``[C]``, second moments G = mean of outer products ``[C, C]`` (the Gram matrix
divided by its positions); a covariance is S = G - mu mu^T. All unbatched (use ``jax.vmap``).
Moments, other than covariances, add up over pieces of a picture and over styles that are mixed.

In float32 a variance of G - mu mu^T is exact to about 1e-5 of the second moment, no better: what is
below counts for nothing, and roots are taken of what is surely positive.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from nst_jax.types import Array

_matmul = partial(jnp.matmul, precision="highest")
STD_EPS = 1e-5  # under the root of a variance, as in AdaIN (Huang and Belongie 2017)


def covariance(mean: Array, gram: Array) -> Array:
    """S = G - mu mu^T.

    >>> covariance(jnp.ones(1), jnp.full((1, 1), 3.0)).tolist()
    [[2.0]]
    """
    return gram - mean[..., :, None] * mean[..., None, :]


def standard_deviation(mean: Array, squares: Array) -> Array:
    """sigma = sqrt(max(E F^2 - mu^2, 0) + 1e-5) of each channel, ``[C]``.

    >>> round(float(standard_deviation(jnp.array(1.0), jnp.array(5.0))), 4)
    2.0
    """
    return jnp.sqrt(jnp.maximum(squares - jnp.square(mean), 0) + STD_EPS)


def mean_std_loss(mean: Array, squares: Array, target_mean: Array, target_squares: Array) -> Array:
    """MSE(mu, mu') + MSE(sigma, sigma') (Huang and Belongie 2017, eq. 13, squared; Galerne 2024).

    Args:
      mean, target_mean: ``[C]``.
      squares, target_squares: means of squares, ``[C]``.

    Returns:
      Scalar.

    >>> zero, one = jnp.zeros(2), jnp.ones(2)
    >>> float(mean_std_loss(one, one, zero, zero))
    1.0
    """
    deviations = [
        standard_deviation(mean, squares),
        standard_deviation(target_mean, target_squares),
    ]
    means = jnp.mean(jnp.square(mean - target_mean))
    return means + jnp.mean(jnp.square(deviations[0] - deviations[1]))


def wasserstein_loss(
    mean: Array, gram: Array, target_mean: Array, target_gram: Array, *, eps: float
) -> Array:
    """The squared 2-Wasserstein distance of two Gaussians, divided by the channels.

    W = (|mu - mu'|^2 + tr S + tr S' - 2 tr (S'^(1/2) S S'^(1/2))^(1/2)) / C

    with eps I added to both covariances (style-transfer-pytorch). The last trace is the sum of the
    singular values of L'^T L for S = L L^T, S' = L' L'^T, which squares no condition number. Its
    gradient with respect to L'^T L is the orthogonal factor U V^T: bounded, also where singular
    values coincide or vanish; so are second ones while they are above 0. Reverse mode only.

    Args:
      mean, target_mean: ``[C]``.
      gram, target_gram: second moments, ``[C, C]``.
      eps: as above, above 0.

    Returns:
      Scalar.

    References:
      Givens and Shortt 1984, "A class of Wasserstein metrics for probability distributions".

    >>> zero, one = jnp.zeros(2), jnp.eye(2)
    >>> f"{float(wasserstein_loss(zero, 4 * one, zero, one, eps=1e-4)):.3f}"
    '1.000'
    """
    spread, wanted = _regular(mean, gram, eps), _regular(target_mean, target_gram, eps)
    together = jnp.trace(spread) + jnp.trace(wanted) - 2 * _root_trace(spread, wanted)
    return jnp.mean(jnp.square(mean - target_mean)) + together / mean.shape[-1]


@jax.custom_vjp
def _root_trace(spread: Array, wanted: Array) -> Array:
    """tr (S'^(1/2) S S'^(1/2))^(1/2) of positive definite matrices."""
    return _root_trace_forward(spread, wanted)[0]


def _root_trace_forward(spread: Array, wanted: Array) -> tuple[Array, Any]:
    roots = jnp.linalg.cholesky(spread), jnp.linalg.cholesky(wanted)
    product = _matmul(roots[1].T, roots[0])
    polar = _polar(product)
    return jnp.vdot(polar, product, precision="highest"), (*roots, polar)


def _root_trace_backward(residuals: Any, cotangent: Array) -> tuple[Array, Array]:
    """L' U V^T L^-1 / 2 for S, and likewise for S'; both are symmetric but for rounding.

    Cheaper than through the factors, whose own derivatives take several solutions more.
    """
    root, wanted_root, polar = residuals

    def half(own: Array, other: Array, polar: Array) -> Array:
        solved = solve_triangular(own, _matmul(other, polar).T, lower=True, trans=1).T
        return cotangent * (solved + solved.T) / 4

    return half(root, wanted_root, polar), half(wanted_root, root, polar.T)


_root_trace.defvjp(_root_trace_forward, _root_trace_backward)


@jax.custom_vjp
def _polar(matrix: Array) -> Array:
    """U V^T of M = U diag(s) V^T, the orthogonal matrix nearest to it."""
    return _polar_forward(matrix)[0]


def _polar_forward(matrix: Array) -> tuple[Array, Any]:
    left, values, right = jnp.linalg.svd(matrix)
    return _matmul(left, right), (left, values, right)


def _polar_backward(residuals: Any, cotangent: Array) -> tuple[Array]:
    """U (K - K^T) / (s_i + s_j) V^T for K = U^T dP V: smooth, also where values coincide.

    Through the singular vectors themselves it would be 0/0 there.
    """
    left, values, right = residuals
    turned = _matmul(_matmul(left.T, cotangent), right.T)
    turn = (turned - turned.T) / (values[:, None] + values[None, :])
    return (_matmul(_matmul(left, turn), right),)


_polar.defvjp(_polar_forward, _polar_backward)


def _regular(mean: Array, gram: Array, eps: float) -> Array:
    """S + eps I, of which Cholesky's factor can be taken.

    A little more is added for rounding, 16 units of the largest that G's eigenvalues may be; where
    that is not enough (of constant features S is rounding alone), 1e-4 of it.
    """
    scale = jax.lax.stop_gradient(jnp.trace(gram))
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    matrix = covariance(mean, gram) + eps * identity
    matrix = (matrix + matrix.T) / 2
    little = 16 * jnp.finfo(gram.dtype).eps * scale
    tried = jnp.linalg.cholesky(jax.lax.stop_gradient(matrix) + little * identity)
    return matrix + jnp.where(jnp.isfinite(tried).all(), little, 1e-4 * scale) * identity
