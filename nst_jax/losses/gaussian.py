"""Losses that compare features as Gaussian distributions, by their means and covariances.

Contract: means mu are ``[C]`` and second moments G = E F F^T are ``[C, C]``, where E is the mean
over positions (G is the Gram matrix divided by the number of positions). The covariance is
S = G - mu mu^T. All are unbatched (use ``jax.vmap``). Moments, unlike covariances, add up over
tiles of an image and over styles that are mixed.

In float32 the difference G - mu mu^T has an absolute error of about 1e-5 of the second moment.
Variances below that are noise; the code adds a multiple of the rounding error to every diagonal, so
that it only takes roots of positive numbers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.types import Array

_matmul = partial(jnp.matmul, precision="highest")

STD_EPS = 1e-5  # added to variances before the root, as in AdaIN (Huang and Belongie 2017)

ROUNDING = 16  # multiple of the rounding error that is added to the diagonals of covariances

FALLBACK = 1e-4  # part of the trace that is added instead if that leaves negative eigenvalues

# Odd polynomials x h(x^2) = x (a + b x^2 + c x^4), as (a, b, c), that drive eigenvalues x to 1.
# Stage i is the minimax choice for x in [l, 1.01] with l = STAGE_STARTS[i]: it maps them into
# [l', 1] with the largest possible l' (Amsel, Persson, Musco and Gower 2025, "The Polar Express").
# The bound 1.01 brings values back that rounding has pushed above 1. The first stage is made for
# l = 0.01112, since a smaller l would shrink some of the largest x too far; it more than doubles
# everything below. The last stage is the Newton-Schulz polynomial of degree 5 (cubic convergence).
STAGE_STARTS = (0.0, 0.0463, 0.1855, 0.6035, 0.9795, 1.0)

STAGES = (
    (4.17158181, -11.914088, 8.62199093),
    (4.03262747, -10.8243892, 7.68729587),
    (3.49802632, -7.25367594, 4.70068101),
    (2.38559739, -2.49590137, 1.10567574),
    (15 / 8, -10 / 8, 3 / 8),
)

# The iteration tracks a lower bound of the eigenvalues and stops when that is near 1. Raising the
# bound by this factor saves steps; the smallest eigenvalues may then lack 3e-6 of their part.
_SLACK = 1.12

MAX_STEPS = {"float32": 20, "float64": 45}  # enough for any pair of matrices


def covariance(mean: Array, gram: Array) -> Array:
    """Covariance S = G - mu mu^T.

    Args:
      mean: mu, ``[..., C]``.
      gram: G, ``[..., C, C]``.

    Returns:
      ``[..., C, C]``.

    >>> covariance(jnp.ones(1), jnp.full((1, 1), 3.0)).tolist()
    [[2.0]]
    """
    return gram - mean[..., :, None] * mean[..., None, :]


def standard_deviation(mean: Array, squares: Array) -> Array:
    """Standard deviation of each channel, sigma = sqrt(max(E F^2 - mu^2, 0) + 1e-5), ``[C]``.

    >>> round(float(standard_deviation(jnp.array(1.0), jnp.array(5.0))), 4)
    2.0
    """
    return jnp.sqrt(jnp.maximum(squares - jnp.square(mean), 0) + STD_EPS)


def mean_std_loss(mean: Array, squares: Array, target_mean: Array, target_squares: Array) -> Array:
    """Difference of the channels' means and standard deviations.

    L = mean (mu - mu')^2 + mean (sigma - sigma')^2

    Args:
      mean, target_mean: mu and mu', ``[C]``.
      squares, target_squares: means of squared features, ``[C]``.

    Returns:
      Scalar, 0 or more.

    References:
      Huang and Belongie 2017, "Arbitrary Style Transfer in Real-Time with Adaptive Instance
      Normalization", eq. 13 with squared norms; Galerne et al. 2024, "Scaling Painting Style
      Transfer" (SPST).

    >>> zero, one = jnp.zeros(2), jnp.ones(2)
    >>> float(mean_std_loss(one, one, zero, zero))
    1.0
    """
    sigma = standard_deviation(mean, squares)
    target_sigma = standard_deviation(target_mean, target_squares)
    means = jnp.mean(jnp.square(mean - target_mean))
    return means + jnp.mean(jnp.square(sigma - target_sigma))


def wasserstein_loss(
    mean: Array,
    gram: Array,
    target_mean: Array,
    target_gram: Array,
    *,
    eps: float,
    channels: int | None = None,
) -> Array:
    """Squared 2-Wasserstein distance between two Gaussians, divided by the number of channels.

    W = (|mu - mu'|^2 + tr S + tr S' - 2 tr (S'^(1/2) S S'^(1/2))^(1/2)) / C

    Here eps I has been added to both covariances S and S' (as in style-transfer-pytorch). All terms
    but the first form the squared Bures distance of S and S'. The last trace equals tr S T for the
    optimal transport map T, the symmetric matrix with T S T = S'. The derivatives are

    dW/dS = (I - T) / C   and   dW/dS' = (I - T^-1) / C.

    T and T^-1 are computed by matrix products alone, see ``transport_maps``. The function supports
    reverse-mode differentiation of any order, but not forward mode.

    Args:
      mean, target_mean: mu and mu', ``[c]``.
      gram, target_gram: second moments, ``[c, c]``.
      eps: added to the diagonals of both covariances, above 0, in squared units of the features.
      channels: C, if it differs from c because the moments are those of ``projection.compact``
        features.

    Returns:
      Scalar, 0 or more up to rounding.

    References:
      Givens and Shortt 1984, "A class of Wasserstein metrics for probability distributions".

    >>> zero, one = jnp.zeros(2), jnp.eye(2)
    >>> f"{float(wasserstein_loss(zero, 4 * one, zero, one, eps=1e-4)):.3f}"
    '1.000'
    """
    first = _positive_covariance(mean, gram, eps)
    second = _positive_covariance(target_mean, target_gram, eps)
    floors = eps + ROUNDING * jnp.stack([_rounding_error(gram), _rounding_error(target_gram)])
    fallbacks = FALLBACK * jnp.stack([_trace(gram), _trace(target_gram)])
    distance = jnp.sum(jnp.square(mean - target_mean))
    distance = distance + _squared_bures(first, second, floors, fallbacks)
    return distance / (channels or mean.shape[-1])


def _trace(gram: Array) -> Array:
    """The trace, an upper bound of the eigenvalues, as a constant for differentiation."""
    return jax.lax.stop_gradient(jnp.trace(gram))


def _rounding_error(gram: Array) -> Array:
    """Bound of the rounding error of one element of G."""
    return jnp.finfo(gram.dtype).eps * _trace(gram)


def _positive_covariance(mean: Array, gram: Array, eps: float) -> Array:
    """S + eps I, plus a multiple of the rounding error of G that makes it positive definite."""
    matrix = covariance(mean, gram)
    diagonal = eps + ROUNDING * _rounding_error(gram)
    return (matrix + matrix.T) / 2 + diagonal * jnp.eye(gram.shape[-1], dtype=gram.dtype)


@jax.custom_vjp
def _squared_bures(first: Array, second: Array, floors: Array, fallbacks: Array) -> Array:
    """Squared Bures distance tr S + tr S' - 2 tr (S'^(1/2) S S'^(1/2))^(1/2).

    It is computed as tr S (I - T) + tr S' (I - T^-1), which cancels fewer digits if S and S' are
    close. The custom derivative is the closed form I - T, so that the gradient does not pass
    through the iteration.
    """
    return _squared_bures_forward(first, second, floors, fallbacks)[0]


def _squared_bures_forward(first: Array, second: Array, floors: Array, fallbacks: Array):
    transport, inverse, added = transport_maps(first, second, floors, fallbacks)
    first, second = _add_to_diagonals(first, second, added)
    identity = jnp.eye(first.shape[-1], dtype=first.dtype)
    by_first, by_second = identity - transport, identity - inverse
    inner = partial(jnp.vdot, precision="highest")
    return inner(first, by_first) + inner(second, by_second), (by_first, by_second)


def _squared_bures_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, ...]:
    none = jnp.zeros_like(cotangent, shape=2)
    return *(cotangent * derivative for derivative in residuals), none, none


_squared_bures.defvjp(_squared_bures_forward, _squared_bures_backward)


def _add_to_diagonals(first: Array, second: Array, added: Array) -> tuple[Array, Array]:
    """Add the two numbers ``added`` to the diagonals of the two matrices."""
    identity = jnp.eye(first.shape[-1], dtype=first.dtype)
    return first + added[0] * identity, second + added[1] * identity


@jax.custom_vjp
def transport_maps(
    first: Array, second: Array, floors: Array, fallbacks: Array
) -> tuple[Array, Array, Array]:
    """Optimal transport map T between two Gaussians, T S T = S', and its inverse.

    The matrix sign of [[0, S], [S', 0]] is [[0, T^-1], [T, 0]] (Higham 2008, "Functions of
    Matrices", theorem 5.2). It is the limit of the iteration x <- x h(x^2), where x stands for the
    whole matrix and the polynomials h, the ``STAGES``, drive its eigenvalues to 1 or -1. In terms
    of the two blocks, beginning with X = S / s and Y = S' / s,

        P = X Y,  X <- X h(P)^T,  Y <- Y h(P),

    until P = I; then X = T^-1 and Y = T up to scale. One step is four matrix products for an h of
    degree 2. No matrix is squared other than in P, so the condition number is that of the transport
    maps themselves and not its square.

    If rounding has left S or S' with negative eigenvalues, as it does for constant features, so has
    P, and the iteration does not converge to I. It is then repeated with ``fallbacks`` added to the
    diagonal of the first matrix, of the second, and finally of both.

    Args:
      first, second: S and S', symmetric, ``[C, C]``.
      floors: lower bounds of their eigenvalues, up to rounding, ``[2]``.
      fallbacks: numbers to add to their diagonals if they are not positive definite, ``[2]``.

    Returns:
      T ``[C, C]``, T^-1 ``[C, C]``, and the numbers added to the diagonals ``[2]``.
    """
    return _maps_forward(first, second, floors, fallbacks)[0]


def _maps_forward(first: Array, second: Array, floors: Array, fallbacks: Array):
    def attempt(number: Array) -> tuple[Array, Array, Array, Array]:
        # Attempts 0 to 3 add to neither, the first, the second, both.
        added = fallbacks * jnp.stack([number % 2, number // 2]).astype(fallbacks.dtype)
        return *_iterate(*_add_to_diagonals(first, second, added), floors + added), added

    def failed(carry: tuple[Array, tuple[Array, ...]]) -> Array:
        number, (_, _, residual, _) = carry
        return ~(residual < 1) & (number < 4)  # negated, so that NaN counts as failure

    def try_next(carry: tuple[Array, tuple[Array, ...]]) -> tuple[Array, tuple[Array, ...]]:
        return carry[0] + 1, attempt(carry[0])

    unknown = jnp.full((), jnp.inf, first.dtype)
    start = jnp.zeros((), jnp.int32), (first, second, unknown, jnp.zeros_like(fallbacks))
    _, (inverse, transport, _, added) = jax.lax.while_loop(failed, try_next, start)
    return (transport, inverse, added), (first, second, floors, added)


def _maps_backward(residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]):
    """Differentiate the iteration with a fixed number of steps; only second derivatives need it.

    JAX cannot differentiate a ``while_loop`` in reverse mode.
    """
    first, second, floors, added = residuals

    def maps(first: Array, second: Array) -> tuple[Array, Array]:
        pair = _add_to_diagonals(first, second, added)
        inverse, transport, _ = _iterate(*pair, floors + added, fixed=True)
        return transport, inverse

    by_matrices = jax.vjp(maps, first, second)[1](cotangents[:2])
    return *by_matrices, jnp.zeros_like(floors), jnp.zeros_like(added)


transport_maps.defvjp(_maps_forward, _maps_backward)


def _iterate(
    first: Array, second: Array, floors: Array, *, fixed: bool = False
) -> tuple[Array, Array, Array]:
    """T^-1, T and the residual |(I - P)^2| of the iteration in ``transport_maps``.

    Args:
      first, second, floors: see ``transport_maps``.
      fixed: scan over ``MAX_STEPS`` steps, which is differentiable, instead of stopping early.
    """
    dtype = first.dtype
    identity = jnp.eye(first.shape[-1], dtype=dtype)
    # T is homogeneous: that of S / s1 and S' / s2 is T sqrt(s1 / s2). ``ratio`` undoes it below.
    sizes = jnp.stack([jnp.trace(first), jnp.trace(second)])
    ratio = jnp.sqrt(sizes[0] / sizes[1])
    x, y = first / sizes[0], second / sizes[1]
    p = _matmul(x, y)
    # The eigenvalues of the block matrix are plus and minus the roots of those of P, which are at
    # most (tr P^2)^(1/2). Dividing by (tr P^2)^(1/4) puts their magnitudes into [least, 1].
    top = jnp.sqrt(jnp.sqrt(jnp.sum(p * p.T))) * (1 + 1e-3)
    least = _SLACK * jnp.prod(jnp.sqrt(floors / sizes)) / top
    stages, starts = jnp.asarray(STAGES, dtype), jnp.asarray(STAGE_STARTS, dtype)
    # The final step leaves an error of order (1 - low)^5: stop when that is below eps / 4.
    tolerance = float(jnp.finfo(dtype).eps / 32) ** (1 / 5)

    def step(carry: Any) -> Any:
        x, y, p, low = carry
        stage = jnp.sum(low >= starts[:-1]) - 1
        a, b, c = stages[stage]
        h = a * identity + b * p + c * _matmul(p, p)
        x, y = _matmul(x, h.T), _matmul(y, h)
        x, y = (x + x.T) / 2, (y + y.T) / 2  # or the asymmetry from rounding would grow
        p = _matmul(x, y)
        low = jnp.minimum(low * (a + low**2 * (b + low**2 * c)), starts[stage + 1])
        return x, y, p, low

    def unfinished(carry: Any) -> Array:
        return (0 < carry[-1]) & (carry[-1] < 1 - tolerance)

    def step_if_unfinished(carry: Any, _: None) -> tuple[Any, None]:
        return jax.lax.cond(unfinished(carry), step, lambda x: x, carry), None

    carry = x / top, y / top, p / top**2, least
    if fixed:
        carry, _ = jax.lax.scan(step_if_unfinished, carry, length=MAX_STEPS[dtype.name])
    else:
        carry = jax.lax.while_loop(unfinished, step, carry)
    x, y, p, _ = carry
    # Final step: the Taylor series of P^(-1/2) = (I - R)^(-1/2) up to R^4.
    r = identity - p
    squared = _matmul(r, r)
    h = identity + r / 2 + 3 / 8 * squared + _matmul(squared, 5 / 16 * r + 35 / 128 * squared)
    x, y = _matmul(x, h.T), _matmul(y, h)
    return (x + x.T) * (ratio / 2), (y + y.T) / (2 * ratio), jnp.linalg.norm(squared)
