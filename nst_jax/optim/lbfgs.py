"""L-BFGS with a fixed step length, as an optax gradient transformation.

This is the algorithm of ``torch.optim.LBFGS``. ``optax.scale_by_lbfgs`` differs: it caps the first
step in another norm, keeps pairs of negative curvature, and walks its whole memory at each step,
even while most of it is empty.

Notation of Nocedal and Wright, "Numerical Optimization", 2nd ed. 2006, algorithms 7.4 (two-loop
recursion) and 7.5 (L-BFGS), and the names in this file:

    x_k, grad f_k                   ``params``, ``grads``
    m                               ``memory_size``
    s_k = x_{k+1} - x_k             ``s``
    y_k = grad f_{k+1} - grad f_k   ``y``
    rho_k = 1 / (y_k^T s_k)         ``rho``
    gamma_k = (s^T y) / (y^T y)     ``gamma``, of the newest pair (eq. 7.20)
    H_k^0 = gamma_k I               initial inverse Hessian
    q, then r                       ``direction``, the vector of both loops
    alpha_i, beta                   ``alphas``, ``beta``
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nst_jax.types import Array

PAIRS = 100  # default memory_size, as in Torch

MEMORY_DTYPES = (None, "bfloat16")  # of the stored pairs

# By default accelerators round float32 factors, which is too coarse for curvatures.
_vdot = partial(jnp.vdot, precision="highest")


class ScaleByTorchLbfgsState(NamedTuple):
    """State of ``scale_by_torch_lbfgs``.

    Attributes:
      count: number of updates, int32.
      pairs: number of pairs ever stored, int32; the newest is at ``(pairs - 1) % memory_size``.
      params, grads: parameters and gradient of the previous update.
      s, y: stored differences, ``[memory_size, *params.shape]``; for bfloat16 their bits, uint16.
      rho: 1 / (s^T y) of each pair, ``[memory_size]``.
      gamma: scale of the initial inverse Hessian, scalar.
    """

    count: Array
    pairs: Array
    params: Array
    grads: Array
    s: Array
    y: Array
    rho: Array
    gamma: Array


def scale_by_torch_lbfgs(
    memory_size: int = PAIRS,
    *,
    pixel_range: float = 1.0,
    first_step: float | None = None,
    gain: float = 1.0,
    memory_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Multiply a gradient by the inverse Hessian of L-BFGS, by default exactly as in Torch.

    The first update is g min(1, 1 / |g|_1), as in ``torch.optim.LBFGS``. A pair is stored only if
    s^T y > 1e-10, so that the inverse Hessian stays positive definite. Until a pair is stored,
    updates are as small as the first. In that case Torch steps by the whole gradient, which
    overflows on images: in float32, rounding may decide the sign of the first s^T y.

    The parameters must be a single array; ``update`` needs them as its third argument.

    Args:
      memory_size: number of pairs; the state holds ``2 * memory_size + 2`` copies of the
        parameters.
      pixel_range: R; the steps are those that Torch takes for parameters multiplied by R. Only the
        first step depends on R. (Scaling the parameters instead would round the tiny first s.)
      first_step: root mean square of the first update, instead of Torch's rule. If it is not tiny,
        the first y is more than a difference of rounding errors.
      gain: factor of gamma; 1 in Torch.
      memory_dtype: ``"bfloat16"`` stores the pairs in half the memory; by default they have the
        type of the parameters.

    Returns:
      A transformation to be chained with ``optax.scale(-learning_rate)``.

    Raises:
      ValueError: for an unknown ``memory_dtype``.

    References:
      Nocedal and Wright 2006, "Numerical Optimization", 2nd ed., section 7.2.
      Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """
    if memory_dtype not in MEMORY_DTYPES:
        raise ValueError(f"memory_dtype is {memory_dtype!r}: expected None or 'bfloat16'")

    pack, unpack = partial(_pack, dtype=memory_dtype), partial(_unpack, dtype=memory_dtype)

    def init(params) -> ScaleByTorchLbfgsState:
        memory = jnp.zeros((memory_size, *params.shape), "uint16" if memory_dtype else params.dtype)
        return ScaleByTorchLbfgsState(
            count=jnp.zeros((), jnp.int32),
            pairs=jnp.zeros((), jnp.int32),
            params=jnp.zeros_like(params),
            grads=jnp.zeros_like(params),
            s=memory,
            y=jnp.zeros_like(memory),
            rho=jnp.zeros(memory_size, params.dtype),
            gamma=jnp.ones((), params.dtype),
        )

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("L-BFGS needs the parameters as the third argument of update")
        grads = updates
        state = _store_pair(state, params, grads, pack=pack, unpack=unpack)
        stored = jnp.minimum(state.pairs, memory_size)

        # Algorithm 7.4, the two-loop recursion: r = H_k grad f_k.
        def newest_to_oldest(i, carry):
            direction, alphas = carry
            # alpha_i = rho_i s_i^T q;  q = q - alpha_i y_i
            slot = (state.pairs - 1 - i) % memory_size
            alpha = state.rho[slot] * _vdot(unpack(state.s[slot], direction), direction)
            return direction - alpha * unpack(state.y[slot], direction), alphas.at[slot].set(alpha)

        def oldest_to_newest(i, direction):
            # beta = rho_i y_i^T r;  r = r + (alpha_i - beta) s_i
            slot = (state.pairs - stored + i) % memory_size
            beta = state.rho[slot] * _vdot(unpack(state.y[slot], direction), direction)
            return direction + (alphas[slot] - beta) * unpack(state.s[slot], direction)

        direction, alphas = jax.lax.fori_loop(
            0, stored, newest_to_oldest, (grads, jnp.zeros_like(state.rho))
        )
        direction = gain * state.gamma * direction  # r = H_k^0 q
        direction = jax.lax.fori_loop(0, stored, oldest_to_newest, direction)
        first = _first_update(grads, pixel_range=pixel_range, size=first_step)
        return jnp.where(state.pairs == 0, first, direction), state

    return optax.GradientTransformation(init, update)


def _store_pair(
    state: ScaleByTorchLbfgsState,
    params: Array,
    grads: Array,
    *,
    pack: Callable[[Array], Array],
    unpack: Callable[[Array, Array], Array],
) -> ScaleByTorchLbfgsState:
    """Store the differences since the previous update, in place of the oldest pair."""
    # Algorithm 7.5, last part. Compute rho and gamma from the pair as it is stored, after
    # rounding: with those of the exact pair, H might not be positive definite.
    s = pack(params - state.params)
    y = pack(grads - state.grads)
    wide_s, wide_y = unpack(s, params), unpack(y, params)
    curvature = _vdot(wide_s, wide_y)  # s^T y
    keep = (state.count > 0) & (curvature > 1e-10)
    slot = state.pairs % len(state.rho)
    # Select within the slot, not between two memories: XLA then updates the memory in place.
    return state._replace(
        count=state.count + 1,
        pairs=state.pairs + keep,
        params=params,
        grads=grads,
        s=state.s.at[slot].set(jnp.where(keep, s, state.s[slot])),
        y=state.y.at[slot].set(jnp.where(keep, y, state.y[slot])),
        rho=state.rho.at[slot].set(jnp.where(keep, 1 / curvature, state.rho[slot])),
        gamma=jnp.where(keep, curvature / _vdot(wide_y, wide_y), state.gamma),
    )


# Store bfloat16 as plain bits: XLA's CPU backend would convert the whole memory to float32 before
# the loop.
def _pack(x: Array, *, dtype: str | None) -> Array:
    return jax.lax.bitcast_convert_type(x.astype(dtype), "uint16") if dtype else x


def _unpack(x: Array, like: Array, *, dtype: str | None) -> Array:
    return jax.lax.bitcast_convert_type(x, dtype).astype(like.dtype) if dtype else x


def _first_update(grads: Array, *, pixel_range: float, size: float | None) -> Array:
    """The first update: Torch's, or the gradient scaled to a root mean square of ``size``."""
    if size is None:
        # For z = R x, the gradient is g / R and the update g / R min(1, 1 / |g / R|_1); in x it is
        # smaller by another R.
        norm = jnp.sum(jnp.abs(grads)) / pixel_range
        return grads * (jnp.minimum(1.0, 1 / norm) / pixel_range**2)
    # Divide by the largest entry first, since squares of finite gradients may overflow.
    tiny = jnp.finfo(grads.dtype).tiny
    grads = grads / jnp.maximum(jnp.max(jnp.abs(grads)), tiny)
    return grads * (size / jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(grads)), tiny)))
