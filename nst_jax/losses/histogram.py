"""Histograms of features, and features matched to those of a style (Risser, Wilmot and Barnes 2017,
"Stable and Controllable Neural Texture Synthesis and Style Transfer Using Histogram Losses").

    L = mean (F - R(F))^2

R replaces every value of a channel by the style's value of the same rank; for the gradient it is a
constant, dL/dF = 2 (F - R) / (C h w), so that the gradient is by definition not that of the value.
Ranks come from a histogram of the whole image: counts add up over pieces, and the loss is a sum
once they are known. Hence two passes. Its bins divide the range of the style's values; what is
beyond it counts as its least or greatest value. Within a bin, and within 1/K of the positions,
values are taken to be spread evenly, so that of a style's own image the loss is small, not 0.

Contract: features are ``[h, w, C]``; a style's distribution is its ``quantiles`` ``[C, K + 1]``,
from the least to the greatest value. Quantiles of styles that are mixed are averaged, which is the
barycentre of the distributions in one dimension; then R = sum_s b_s R_s.
"""

import jax
import jax.numpy as jnp

from nst_jax.models.projection import widened
from nst_jax.types import Array, Matching

BINS = 256

QUANTILES = 1024


def extremes(features: Array, *, mask: Array | None = None) -> Array:
    """The greatest values of F and of -F by channel where a mask is above 0, ``[2, C]``.

    Of an empty mask they are minus infinity. Pieces of an image are joined by their maximum. In
    float32 or wider: the edges of bins between them are finer than bfloat16.
    """
    features = widened(features)
    both = jnp.stack([features, -features])
    if mask is not None:
        both = jnp.where(mask[..., None] > 0, both, -jnp.inf)
    return jnp.max(both, axis=(1, 2))


def bounds(extremes: Array) -> tuple[Array, Array]:
    """Least and greatest values ``[C]`` from ``extremes``; 0 where there are none."""
    found = jnp.where(jnp.isfinite(extremes), extremes, 0)
    return -found[1], found[0]


def _places(features: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Bin of each feature, and how far into it, in [0, 1]; outside the bounds in the last bins."""
    spread = (1,) * (features.ndim - 1) + (-1,)
    width = jnp.maximum(high - low, jnp.finfo(features.dtype).tiny).reshape(spread)
    place = jnp.clip((features - low.reshape(spread)) / width, 0, 1) * BINS
    index = jnp.clip(jnp.floor(place), 0, BINS - 1)
    return index.astype(jnp.int32), place - index


def histogram(features: Array, low: Array, high: Array, *, mask: Array | None = None) -> Array:
    """How many positions have which values, by channel; additive over positions.

    Args:
      features: ``[h, w, C]``.
      low, high: bounds of the bins, ``[C]``; what is outside counts in the first or last bin.
      mask: how much a position counts, ``[h, w]``; 1 where it is left out.

    Returns:
      ``[C, BINS]`` in float32 or wider.
    """
    features = widened(features)
    dtype = features.dtype
    index, _ = _places(features, low.astype(dtype), high.astype(dtype))
    channels = features.shape[-1]
    count = jnp.ones(features.shape[:2]) if mask is None else mask
    count = jnp.broadcast_to(count.astype(dtype)[..., None], features.shape)
    return jnp.zeros((channels, BINS), dtype).at[_channels(features), index].add(count)


def _channels(features: Array) -> Array:
    """The number of each feature's channel, ``[1, 1, C]``."""
    return jnp.arange(features.shape[-1]).reshape((1,) * (features.ndim - 1) + (-1,))


def _cumulative(counts: Array) -> Array:
    """Shares of the values below each edge of the bins, ``[C, BINS + 1]``."""
    sums = jnp.pad(jnp.cumsum(counts, axis=-1), ((0, 0), (1, 0)))
    return sums / jnp.maximum(sums[:, -1:], jnp.finfo(counts.dtype).tiny)


def quantiles(counts: Array, low: Array, high: Array) -> Array:
    """Values that shares 0, 1/K, ..., 1 of the positions are below, ``[C, K + 1]``.

    Args:
      counts: from ``histogram``.
      low, high: its bounds.
    """
    shares = jnp.linspace(0, 1, QUANTILES + 1, dtype=counts.dtype)
    steps = jnp.linspace(0, 1, BINS + 1, dtype=low.dtype)
    edges = low[:, None] + (high - low)[:, None] * steps[None]
    return jax.vmap(jnp.interp, in_axes=(None, 0, 0))(shares, _cumulative(counts), edges)


def matching(counts: Array, quantiles: Array, low: Array, high: Array) -> Matching:
    """The function R as values at the edges of the bins, between which it is linear.

    Args:
      counts: of the image, from ``histogram``.
      quantiles: of the style, ``[C, K + 1]``.
      low, high: bounds of the image's histogram.
    """
    place = _cumulative(counts) * QUANTILES
    index = jnp.clip(jnp.floor(place), 0, QUANTILES - 1).astype(jnp.int32)
    before, behind = (jnp.take_along_axis(quantiles, index + i, axis=-1) for i in (0, 1))
    return Matching(before + (place - index) * (behind - before), low, high)


def matched(features: Array, matching: Matching) -> Array:
    """R(F), ``[h, w, C]``: features with the style's distribution of each channel."""
    dtype = matching.values.dtype
    index, rest = _places(features.astype(dtype), matching.low, matching.high)
    channels = _channels(features)
    before, behind = (matching.values[channels, index + i] for i in (0, 1))
    return before + rest * (behind - before)


def histogram_sum(features: Array, matching: Matching, *, mask: Array | None = None) -> Array:
    """Sum over positions of the mean over channels of (F - R(F))^2, with R constant.

    Args:
      features: ``[h, w, C]``.
      matching: R.
      mask: how much a position counts, ``[h, w]``; 1 where it is left out.

    Returns:
      Scalar in float32 or wider.
    """
    wide = features.astype(matching.values.dtype)
    goal = jax.lax.stop_gradient(matched(wide, matching))
    squares = jnp.square(wide - goal)
    squares = squares if mask is None else squares * mask[..., None]
    return jnp.sum(squares) / features.shape[-1]
