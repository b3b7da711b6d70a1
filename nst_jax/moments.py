"""Sums over the positions of a layer from which its statistics follow.

Contract: features are ``[h, w, C]`` or a product, see ``lift``; a mask is ``[h, w]``, a constant.
Every sum is additive over positions and over masks, and taken in float32 or wider.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.lift import Features, Lifted, compact, map_shape, widened
from nst_jax.losses import gram_sum
from nst_jax.types import Array, Moments

_matmul = partial(jnp.matmul, precision="highest")


def position_sum(features: Features, *, mask: Array | None = None) -> Array:
    """How many positions count, scalar in float32 or wider."""
    dtype = widened(features.own if isinstance(features, Lifted) else features).dtype
    height, width = map_shape(features)
    return jnp.asarray(height * width, dtype) if mask is None else jnp.sum(mask, dtype=dtype)


def feature_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the features, sum_k m_k F_k, ``[C]``.

    Of a product S K + 1 b^T it is K^T (sum m s) + (sum m) b.
    """
    own = widened(features.own if isinstance(features, Lifted) else features)
    total = jnp.sum(own if mask is None else own * mask[..., None], axis=(0, 1))
    if not isinstance(features, Lifted):
        return total
    bias = features.bias.astype(total.dtype)
    count = position_sum(features, mask=mask)
    return _matmul(features.kernel.astype(total.dtype).T, total) + count * bias


def square_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the squares of the features, the diagonal of ``gram_sum``, ``[C]``.

    Of a product it is taken from the outer products of its own features.
    """
    if not isinstance(features, Lifted):
        squares = jnp.square(widened(features))
        return jnp.sum(squares if mask is None else squares * mask[..., None], axis=(0, 1))
    gram = gram_sum(features.own, mask=mask)
    kernel, bias = (x.astype(gram.dtype) for x in (features.kernel, features.bias))
    crossed = _matmul(kernel.T, feature_sum(features.own, mask=mask)) * bias
    count = position_sum(features, mask=mask)
    return jnp.sum(kernel * _matmul(gram, kernel), axis=0) + 2 * crossed + count * jnp.square(bias)


def moment_sums(
    features: Features, *, wanted: frozenset[str], mask: Array | None = None
) -> Moments:
    """The sums that are wanted, fields of ``Moments``, without leading axes."""
    # Only where it is asked for: an unprepared kernel's root is a decomposition.
    small = compact(features) if "compact_gram" in wanted else features
    return Moments(
        gram=gram_sum(features, mask=mask) if "gram" in wanted else None,
        mean=feature_sum(features, mask=mask) if "mean" in wanted else None,
        squares=square_sum(features, mask=mask) if "squares" in wanted else None,
        compact_gram=gram_sum(small, mask=mask) if "compact_gram" in wanted else None,
        compact_mean=feature_sum(small, mask=mask) if "compact_mean" in wanted else None,
    )


def divided(sums: Moments, count: Any) -> Moments:
    """Means from sums over ``count`` positions."""
    return jax.tree.map(lambda x: x / count, sums)


def stacked(moments: Sequence[Any]) -> Any:
    """Trees of equal structure as one with a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *moments)
