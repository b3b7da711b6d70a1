"""Styles as Gaussian distributions of features: losses of means and covariances.

Contract: means are ``[C]``, second moments G = mean of outer products ``[C, C]`` (the Gram matrix
divided by its positions); a covariance is S = G - mu mu^T. All unbatched (use ``jax.vmap``).
Moments, other than covariances, add up over pieces of an image and over styles that are mixed.

In float32 a variance of G - mu mu^T is exact to about 1e-5 of the second moment, no better: what is
below counts for nothing, and roots are taken of what is surely positive.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.types import Array

_matmul = partial(jnp.matmul, precision="highest")

STD_EPS = 1e-5  # under the root of a variance, as in AdaIN (Huang and Belongie 2017)

LITTLE = 16  # units of rounding that are added to covariances

FALLBACK = 1e-4  # of the second moments, where these do not suffice

# Polynomials x h(x^2) = x (a + b x^2 + c x^4) from [l, 1.01] to [l', 1] with the largest l' (Amsel,
# Persson, Musco and Gower 2025, "The Polar Express"), each for l from its START on. What rounding
# takes beyond 1 comes back. The first one's l is no smaller, or some of the largest x were lost.
STARTS = (0.0, 0.0463, 0.1855, 0.6035, 0.9795, 1.0)

STAGES = (
    (4.17158181, -11.914088, 8.62199093),
    (4.03262747, -10.8243892, 7.68729587),
    (3.49802632, -7.25367594, 4.70068101),
    (2.38559739, -2.49590137, 1.10567574),
    (15 / 8, -10 / 8, 3 / 8),
)

_SLACK = 1.12  # the least eigenvalues may lag so far behind: 3e-6 of their part is then missing

STEPS = {"float32": 20, "float64": 45}  # no fewer than any matrices need


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
    mean: Array,
    gram: Array,
    target_mean: Array,
    target_gram: Array,
    *,
    eps: float,
    channels: int | None = None,
) -> Array:
    """The squared 2-Wasserstein distance of two Gaussians, divided by the channels.

    W = (|mu - mu'|^2 + tr S + tr S' - 2 tr (S'^(1/2) S S'^(1/2))^(1/2)) / C

    with eps I added to both covariances (style-transfer-pytorch). The last trace is tr S T of the
    symmetric map T that takes the one Gaussian to the other, T S T = S'; the derivatives of W with
    respect to S and S' are (I - T) / C and (I - T^-1) / C. Both maps come from matrix products
    alone, see ``transport_maps``. Reverse mode only, as often as wanted.

    Args:
      mean, target_mean: ``[c]``.
      gram, target_gram: second moments, ``[c, c]``.
      eps: as above, above 0.
      channels: C, where it is not c: the distance of features is that of ``projection.compact``
        ones.

    Returns:
      Scalar.

    References:
      Givens and Shortt 1984, "A class of Wasserstein metrics for probability distributions".

    >>> zero, one = jnp.zeros(2), jnp.eye(2)
    >>> f"{float(wasserstein_loss(zero, 4 * one, zero, one, eps=1e-4)):.3f}"
    '1.000'
    """
    first, second = _regular(mean, gram, eps), _regular(target_mean, target_gram, eps)
    floors = eps + LITTLE * jnp.stack([_unit(gram), _unit(target_gram)])
    more = FALLBACK * jnp.stack([_size(gram), _size(target_gram)])
    distance = jnp.sum(jnp.square(mean - target_mean)) + _spread(first, second, floors, more)
    return distance / (channels or mean.shape[-1])


def _size(gram: Array) -> Array:
    """A bound of the second moments' eigenvalues, without a derivative."""
    return jax.lax.stop_gradient(jnp.trace(gram))


def _unit(gram: Array) -> Array:
    """The rounding unit of second moments."""
    return jnp.finfo(gram.dtype).eps * _size(gram)


def _regular(mean: Array, gram: Array, eps: float) -> Array:
    """S + eps I, and a little more for the rounding of G, so that it is positive definite."""
    matrix = covariance(mean, gram)
    diagonal = eps + LITTLE * _unit(gram)
    return (matrix + matrix.T) / 2 + diagonal * jnp.eye(gram.shape[-1], dtype=gram.dtype)


@jax.custom_vjp
def _spread(first: Array, second: Array, floors: Array, more: Array) -> Array:
    """tr S + tr S' - 2 tr (S'^(1/2) S S'^(1/2))^(1/2) = tr S (I - T) + tr S' (I - T^-1).

    The right side loses fewer digits where the two are nearly alike.
    """
    return _spread_forward(first, second, floors, more)[0]


def _spread_forward(first: Array, second: Array, floors: Array, more: Array):
    there, back, added = transport_maps(first, second, floors, more)
    first, second = _shifted(first, second, added)
    identity = jnp.eye(first.shape[-1], dtype=first.dtype)
    own, other = identity - there, identity - back
    inner = partial(jnp.vdot, precision="highest")
    return inner(first, own) + inner(second, other), (own, other)


def _spread_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, ...]:
    none = jnp.zeros_like(cotangent, shape=2)
    return *(cotangent * derivative for derivative in residuals), none, none


_spread.defvjp(_spread_forward, _spread_backward)


def _shifted(first: Array, second: Array, added: Array) -> tuple[Array, Array]:
    """Two matrices with numbers added to their diagonals, ``[2]``."""
    identity = jnp.eye(first.shape[-1], dtype=first.dtype)
    return first + added[0] * identity, second + added[1] * identity


@jax.custom_vjp
def transport_maps(
    first: Array, second: Array, floors: Array, more: Array
) -> tuple[Array, Array, Array]:
    """T with T S T = S', its inverse, and what was added to the diagonals.

    The sign of the matrix [[0, S], [S', 0]] is [[0, T^-1], [T, 0]] (Higham 2008, "Functions of
    Matrices", theorem 5.2). It is the limit of x -> x h(x^2) for polynomials h that take [l, 1]
    nearer and nearer to 1, where x stands for the matrix: with X = S / s, Y = S' / s at first,

        P = X Y,  X <- X h(P)^T,  Y <- Y h(P),

    until P = I: four products an iteration for an h of degree 2, the ``STAGES`` below. As no matrix
    is squared but in P, the condition number is that of the maps' own problem.

    Where rounding has left a matrix with negative eigenvalues, as of constant features, P has some
    too and does not come to I. Then more is added to the diagonal of the first, of the second, of
    both.

    Args:
      first, second: S and S', symmetric, ``[C, C]``.
      floors: what their least eigenvalues are at least, up to rounding, ``[2]``.
      more: what to add to their diagonals where they are not positive definite, ``[2]``.

    Returns:
      ``[C, C]``, ``[C, C]`` and ``[2]``.
    """
    return _maps_forward(first, second, floors, more)[0]


def _maps_forward(first: Array, second: Array, floors: Array, more: Array):
    def attempt(number: Array) -> tuple[Array, Array, Array, Array]:
        added = more * jnp.stack([number % 2, number // 2]).astype(more.dtype)
        return *_iterate(*_shifted(first, second, added), floors + added), added

    def failed(carry: tuple[Array, tuple[Array, ...]]) -> Array:
        number, (_, _, distance, _) = carry
        return ~(distance < 1) & (number < 4)

    def again(carry: tuple[Array, tuple[Array, ...]]) -> tuple[Array, tuple[Array, ...]]:
        return carry[0] + 1, attempt(carry[0])

    unknown = jnp.full((), jnp.inf, first.dtype)
    nothing = jnp.zeros((), jnp.int32), (first, second, unknown, jnp.zeros_like(more))
    _, (back, there, _, added) = jax.lax.while_loop(failed, again, nothing)
    return (there, back, added), (first, second, floors, added)


def _maps_backward(residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]):
    """Through the iteration with a fixed number of steps, as a second derivative needs it."""
    first, second, floors, added = residuals

    def maps(first: Array, second: Array) -> tuple[Array, Array]:
        pair = _shifted(first, second, added)
        back, there, _ = _iterate(*pair, floors + added, fixed=True)
        return there, back

    by_matrices = jax.vjp(maps, first, second)[1](cotangents[:2])
    return *by_matrices, jnp.zeros_like(floors), jnp.zeros_like(added)


transport_maps.defvjp(_maps_forward, _maps_backward)


def _iterate(
    first: Array, second: Array, floors: Array, *, fixed: bool = False
) -> tuple[Array, Array, Array]:
    """T^-1, T and |(I - P)^2| of the last P, see ``transport_maps``."""
    dtype = first.dtype
    identity = jnp.eye(first.shape[-1], dtype=dtype)
    sizes = jnp.stack([jnp.trace(first), jnp.trace(second)])
    x, y = first / sizes[0], second / sizes[1]
    p = _matmul(x, y)
    # |x|^4 <= tr P^2, so that all eigenvalues of the scaled matrix are in [l, 1].
    top = jnp.sqrt(jnp.sqrt(jnp.sum(p * p.T))) * (1 + 1e-3)
    least = _SLACK * jnp.prod(jnp.sqrt(floors / sizes)) / top
    ratio = jnp.sqrt(sizes[0] / sizes[1])
    stages, starts = jnp.asarray(STAGES, dtype), jnp.asarray(STARTS, dtype)
    enough = float(jnp.finfo(dtype).eps / 32) ** (1 / 5)  # of which the last step leaves eps / 4

    def take(carry: Any) -> Any:
        x, y, p, low = carry
        stage = jnp.sum(low >= starts[:-1]) - 1
        a, b, c = stages[stage]
        h = a * identity + b * p + c * _matmul(p, p)
        x, y = _matmul(x, h.T), _matmul(y, h)
        x, y = (x + x.T) / 2, (y + y.T) / 2  # or rounding would turn them more and more
        p = _matmul(x, y)
        low = jnp.minimum(low * (a + low**2 * (b + low**2 * c)), starts[stage + 1])
        return x, y, p, low

    def unfinished(carry: Any) -> Array:
        return (0 < carry[-1]) & (carry[-1] < 1 - enough)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        return jax.lax.cond(unfinished(carry), take, lambda x: x, carry), None

    carry = x / top, y / top, p / top**2, least
    if fixed:
        carry, _ = jax.lax.scan(step, carry, length=STEPS[dtype.name])
    else:
        carry = jax.lax.while_loop(unfinished, take, carry)
    x, y, p, _ = carry
    r = identity - p
    squared = _matmul(r, r)
    h = identity + r / 2 + 3 / 8 * squared + _matmul(squared, 5 / 16 * r + 35 / 128 * squared)
    x, y = _matmul(x, h.T), _matmul(y, h)
    return (x + x.T) * (ratio / 2), (y + y.T) / (2 * ratio), jnp.linalg.norm(squared)
