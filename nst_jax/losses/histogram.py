"""Histogram losses: feature values compared with those of the style that have the same ranks.

    L = mean (F - R(F))^2

The map R replaces every value of a channel by the style's value of the same rank (histogram
matching). Differentiation treats R(F) as a constant: dL/dF = 2 (F - R) / (C h w), which is not the
derivative of the value L.

Ranks are read from a histogram of the whole image. Its counts add up over tiles, and once they are
known, the loss is a sum over positions; an image in tiles therefore needs two passes. The bins
divide the range of the style's values, and values outside of it are clipped to it. Values are
assumed to be spread evenly within a bin, and within each K-th part of the positions, so that the
loss of the style image itself is small but not 0.

Contract: features are ``[h, w, C]``. The distribution of a style is given by its ``quantiles``
``[C, K + 1]``, from the minimum to the maximum. Styles are mixed by averaging their quantiles,
which in one dimension is the Wasserstein barycentre; then R = sum_s b_s R_s for style weights b.

Reference:
  Risser, Wilmot and Barnes 2017, "Stable and Controllable Neural Texture Synthesis and Style
  Transfer Using Histogram Losses", arXiv:1701.08893.
"""

import jax
import jax.numpy as jnp

from nst_jax.models.projection import widened
from nst_jax.types import Array, Matching

BINS = 256  # between the minimum and the maximum of the style's values

QUANTILES = 1024  # K


def extremes(features: Array, *, mask: Array | None = None) -> Array:
    """Maxima of F and of -F in each channel where a mask is above 0, ``[2, C]``.

    The extremes of an image are the maximum of those of its tiles. For an empty mask they are minus
    infinity.
    """
    # Widened because bin edges between the extremes are finer than bfloat16.
    features = widened(features)
    both = jnp.stack([features, -features])
    if mask is not None:
        both = jnp.where(mask[..., None] > 0, both, -jnp.inf)
    return jnp.max(both, axis=(1, 2))


def bounds(extremes: Array) -> tuple[Array, Array]:
    """Minimum and maximum of each channel, ``[C]`` each, from ``extremes``; 0 for an empty mask."""
    finite = jnp.where(jnp.isfinite(extremes), extremes, 0)
    return -finite[1], finite[0]


def _locate(features: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Bin index of each feature, and its position within the bin in [0, 1].

    Features outside of the bounds are clipped to them.
    """
    per_channel = (1,) * (features.ndim - 1) + (-1,)
    width = jnp.maximum(high - low, jnp.finfo(features.dtype).tiny).reshape(per_channel)
    position = jnp.clip((features - low.reshape(per_channel)) / width, 0, 1) * BINS
    index = jnp.clip(jnp.floor(position), 0, BINS - 1)
    return index.astype(jnp.int32), position - index


def histogram(features: Array, low: Array, high: Array, *, mask: Array | None = None) -> Array:
    """Histogram of each channel. Histograms of tiles add up.

    Args:
      features: ``[h, w, C]``.
      low, high: first and last bin edge, ``[C]``; values outside count in the first or last bin.
      mask: weight of each position, ``[h, w]``; by default 1.

    Returns:
      ``[C, BINS]`` in float32 or wider.
    """
    features = widened(features)
    dtype = features.dtype
    index, _ = _locate(features, low.astype(dtype), high.astype(dtype))
    channels = features.shape[-1]
    count = jnp.ones(features.shape[:2]) if mask is None else mask
    count = jnp.broadcast_to(count.astype(dtype)[..., None], features.shape)
    # A scatter-add of every position into its channel's bin.
    return jnp.zeros((channels, BINS), dtype).at[_channels(features), index].add(count)


def _channels(features: Array) -> Array:
    """Channel indices, shaped to broadcast with features, ``[1, 1, C]``."""
    return jnp.arange(features.shape[-1]).reshape((1,) * (features.ndim - 1) + (-1,))


def _cumulative(counts: Array) -> Array:
    """Cumulative distribution at the bin edges, from 0 to 1, ``[C, BINS + 1]``."""
    sums = jnp.pad(jnp.cumsum(counts, axis=-1), ((0, 0), (1, 0)))
    return sums / jnp.maximum(sums[:, -1:], jnp.finfo(counts.dtype).tiny)


def quantiles(counts: Array, low: Array, high: Array) -> Array:
    """Quantiles 0, 1/K, ..., 1 of each channel, ``[C, K + 1]``.

    Args:
      counts: from ``histogram``, ``[C, BINS]``.
      low, high: bounds of that histogram, ``[C]``.
    """
    levels = jnp.linspace(0, 1, QUANTILES + 1, dtype=counts.dtype)
    steps = jnp.linspace(0, 1, BINS + 1, dtype=low.dtype)
    edges = low[:, None] + (high - low)[:, None] * steps[None]
    # The inverse of the cumulative distribution: swap the axes of the interpolation.
    return jax.vmap(jnp.interp, in_axes=(None, 0, 0))(levels, _cumulative(counts), edges)


def matching(counts: Array, quantiles: Array, low: Array, high: Array) -> Matching:
    """The map R, given by its values at the bin edges and linear in between.

    It composes the image's cumulative distribution with the style's quantile function.

    Args:
      counts: histogram of the image, ``[C, BINS]``.
      quantiles: quantiles of the style, ``[C, K + 1]``.
      low, high: bounds of the image's histogram, ``[C]``.
    """
    rank = _cumulative(counts) * QUANTILES
    index = jnp.clip(jnp.floor(rank), 0, QUANTILES - 1).astype(jnp.int32)
    below, above = (jnp.take_along_axis(quantiles, index + i, axis=-1) for i in (0, 1))
    return Matching(below + (rank - index) * (above - below), low, high)


def matched(features: Array, matching: Matching) -> Array:
    """Matched features R(F), which have the style's distribution in each channel, ``[h, w, C]``."""
    dtype = matching.values.dtype
    index, fraction = _locate(features.astype(dtype), matching.low, matching.high)
    channels = _channels(features)
    below, above = (matching.values[channels, index + i] for i in (0, 1))
    return below + fraction * (above - below)


def histogram_sum(features: Array, matching: Matching, *, mask: Array | None = None) -> Array:
    """Histogram loss as a sum: (F - R(F))^2 averaged over channels and summed over positions.

    The gradient treats R(F) as a constant.

    Args:
      features: F, ``[h, w, C]``.
      matching: the map R.
      mask: weight of each position, ``[h, w]``; by default 1.

    Returns:
      Scalar in float32 or wider.
    """
    wide = features.astype(matching.values.dtype)
    target = jax.lax.stop_gradient(matched(wide, matching))
    squares = jnp.square(wide - target)
    squares = squares if mask is None else squares * mask[..., None]
    return jnp.sum(squares) / features.shape[-1]
