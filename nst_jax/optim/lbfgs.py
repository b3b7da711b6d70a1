"""L-BFGS with Torch's fixed step, as an optax gradient transformation.

``optax.scale_by_lbfgs`` differs where it matters here: its first step is capped in another norm,
it keeps pairs of negative curvature, and it walks its whole memory at every step, also while most
of it is still empty. Notation of Nocedal and Wright 2006, algorithm 7.4: s, y = differences of
parameters and gradients, rho = 1 / (s . y), gamma = (s . y) / (y . y).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nst_jax.types import Array

PAIRS = 100  # remembered by default, as in Torch

MEMORY_DTYPES = (None, "bfloat16")  # of them

# Accelerators multiply float32 coarsely by default: too coarse for curvature.
_vdot = partial(jnp.vdot, precision="highest")


class ScaleByTorchLbfgsState(NamedTuple):
    """State of ``scale_by_torch_lbfgs``.

    Attributes:
      count: updates made, int32.
      pairs: pairs stored so far, int32; the newest is at ``(pairs - 1) % memory_size``.
      params, grads: of the previous update.
      s, y: remembered differences, ``[memory_size, *params.shape]``; of bfloat16 the bits.
      rho: 1 / (s . y) of each pair.
      gamma: scale of the initial inverse Hessian.
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
    """Scale a gradient by L-BFGS's inverse Hessian, by default step for step as in Torch.

    The first update of ``torch.optim.LBFGS`` is g * min(1, 1 / |g|_1). A pair is remembered only
    where s . y > 1e-10; until one is, updates stay as small as the first. There Torch takes the
    whole gradient for a step, which on images overflows: in float32 the sign of the first s . y
    may be one of rounding.
    Parameters are one array; ``update`` needs them as its third argument.

    Args:
      memory_size: pairs remembered; the state holds ``2 * memory_size + 2`` copies of the
        parameters.
      pixel_range: R, for the steps that Torch takes on parameters R times as large. Only the first
        step depends on it; scaling the parameters themselves would round s, which is tiny then.
      first_step: root mean square of the first update, in place of Torch's. With one that is not
        tiny the first y is no difference of rounding errors.
      gain: factor of gamma; 1 is Torch's.
      memory_dtype: ``"bfloat16"`` for the remembered differences, with half of the memory; by
        default they are of the parameters' type.

    Returns:
      A transformation to be chained with ``optax.scale(-learning_rate)``.

    Raises:
      ValueError: for another type.

    References:
      Liu and Nocedal 1989, "On the limited memory BFGS method"; ``torch.optim.LBFGS``.
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

    def remember(state: ScaleByTorchLbfgsState, params: Array, grads: Array):
        # As they are remembered: so that rho and gamma are those of the rounded pairs.
        s = pack(params - state.params)
        y = pack(grads - state.grads)
        wide_s, wide_y = unpack(s, params), unpack(y, params)
        curvature = _vdot(wide_s, wide_y)
        keep = (state.count > 0) & (curvature > 1e-10)
        slot = state.pairs % memory_size
        # A pair that is not kept writes the slot's old content back: no copy of the memory.
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

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("L-BFGS needs the parameters as the third argument of update")
        grads = updates
        state = remember(state, params, grads)
        stored = jnp.minimum(state.pairs, memory_size)

        def newest_to_oldest(i, carry):
            direction, alphas = carry
            slot = (state.pairs - 1 - i) % memory_size
            alpha = state.rho[slot] * _vdot(unpack(state.s[slot], direction), direction)
            return direction - alpha * unpack(state.y[slot], direction), alphas.at[slot].set(alpha)

        def oldest_to_newest(i, direction):
            slot = (state.pairs - stored + i) % memory_size
            beta = state.rho[slot] * _vdot(unpack(state.y[slot], direction), direction)
            return direction + (alphas[slot] - beta) * unpack(state.s[slot], direction)

        direction, alphas = jax.lax.fori_loop(
            0, stored, newest_to_oldest, (grads, jnp.zeros_like(state.rho))
        )
        direction = jax.lax.fori_loop(0, stored, oldest_to_newest, gain * state.gamma * direction)
        first = _first_update(grads, pixel_range=pixel_range, size=first_step)
        return jnp.where(state.pairs == 0, first, direction), state

    return optax.GradientTransformation(init, update)


# As plain bits: XLA's CPU backend would widen the whole memory to float32 before the loop.
def _pack(x: Array, *, dtype: str | None) -> Array:
    return jax.lax.bitcast_convert_type(x.astype(dtype), "uint16") if dtype else x


def _unpack(x: Array, like: Array, *, dtype: str | None) -> Array:
    return jax.lax.bitcast_convert_type(x, dtype).astype(like.dtype) if dtype else x


def _first_update(grads: Array, *, pixel_range: float, size: float | None) -> Array:
    """Torch's, or a gradient scaled to a root mean square."""
    if size is None:
        norm = jnp.sum(jnp.abs(grads)) / pixel_range
        return grads * (jnp.minimum(1.0, 1 / norm) / pixel_range**2)
    # Scaled by the largest entry: squares of finite gradients may overflow.
    tiny = jnp.finfo(grads.dtype).tiny
    grads = grads / jnp.maximum(jnp.max(jnp.abs(grads)), tiny)
    return grads * (size / jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(grads)), tiny)))
