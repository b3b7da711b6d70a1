"""Histograms and histogram matching against NumPy, channel by channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_losses as oracle

from nst_jax.losses import histogram as h
from nst_jax.losses.style_term import matchings
from nst_jax.types import Moments, Targets

pytestmark = pytest.mark.sampled

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(24, 30, 3)) + np.array([0, 2, -1])
STYLE = rng.gamma(2, size=(20, 35, 3))
MASK = rng.uniform(size=(24, 30)) * (rng.uniform(size=(24, 30)) < 0.7)


@jax.jit
def of_style(style, mask=None):
    """Quantiles of a style, and their bounds."""
    low, high = h.bounds(h.extremes(style, mask=mask))
    return h.quantiles(h.histogram(style, low, high, mask=mask), low, high), low, high


@jax.jit
def matching_to(style, features, mask=None):
    found, low, high = of_style(style)
    return h.matching(h.histogram(features, low, high, mask=mask), found, low, high)


def numpy_matched(features, style, mask):
    flat, weights = features.reshape(-1, 3), np.ravel(mask)
    channels = [
        oracle.matched(x, weights, oracle.quantiles(y), y.min(), y.max())
        for x, y in zip(flat.T, style.reshape(-1, 3).T, strict=True)
    ]
    return np.stack(channels, axis=-1).reshape(features.shape)


def test_extremes_are_those_of_the_mask_and_of_tiles_their_maximum(x64):
    low, high = h.bounds(h.extremes(FEATURES, mask=MASK))
    np.testing.assert_array_equal(low, FEATURES[MASK > 0].min(0))
    np.testing.assert_array_equal(high, FEATURES[MASK > 0].max(0))
    parts = [h.extremes(FEATURES[part], mask=MASK[part]) for part in np.s_[:7, 7:]]
    np.testing.assert_array_equal(np.maximum(*parts), h.extremes(FEATURES, mask=MASK))
    nothing = h.extremes(FEATURES, mask=0 * MASK)
    assert np.isneginf(nothing).all() and not np.any(h.bounds(nothing))


@pytest.mark.parametrize("mask", [MASK, None, MASK > 0], ids=["soft", "whole", "boolean"])
def test_histogram_is_numpys(x64, variant, mask):
    low, high = np.full(3, -1.5), np.array([2.0, 3.0, 0.5])  # some values are outside
    given = (FEATURES, low, high) if mask is None else (FEATURES, low, high, mask)
    found = variant(lambda x, low, high, *m: h.histogram(x, low, high, mask=(*m, None)[0]), *given)
    for channel in range(3):
        values = np.clip(FEATURES[..., channel], low[channel], high[channel])
        bins = {"bins": h.BINS, "range": (low[channel], high[channel])}
        weights = None if mask is None else np.float64(mask)
        expected, _ = np.histogram(values, weights=weights, **bins)
        np.testing.assert_allclose(found[channel], expected, rtol=1e-12, atol=1e-12)


def test_histograms_add_up_over_tiles_and_masks(x64):
    low, high = h.bounds(h.extremes(FEATURES))
    whole = h.histogram(FEATURES, low, high)
    tiles = [h.histogram(FEATURES[:, part], low, high) for part in np.s_[:11, 11:]]
    np.testing.assert_array_equal(sum(tiles), whole)
    masks = [h.histogram(FEATURES, low, high, mask=part) for part in (MASK, 1 - MASK)]
    np.testing.assert_allclose(sum(masks), whole, atol=1e-12)


def test_quantiles_are_numpys(x64):
    """The extremes exactly, the others up to the width of a bin where values are dense."""
    found = np.asarray(of_style(STYLE)[0])
    for channel, values in enumerate(STYLE.reshape(-1, 3).T):
        np.testing.assert_allclose(found[channel][[0, -1]], [values.min(), values.max()])
        errors = np.abs(found[channel] - np.quantile(values, oracle.LEVELS))[:-60]
        assert errors.max() < 3 * np.ptp(values) / h.BINS


def test_quantiles_of_half_precision_features_are_computed_in_float32():
    style = jnp.asarray(STYLE + 100, jnp.bfloat16)  # whose steps are half a unit
    found, expected = of_style(style)[0], of_style(style.astype(jnp.float32))[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "whole"])
def test_loss_and_gradient_are_numpys(x64, variant, mask):
    """The gradient is 2 m (F - R) / C, also if R is computed from the same features."""

    def both(features, style, mask=None):
        def loss(features):
            target = matching_to(style, features, mask)
            return h.histogram_sum(features, target, mask=mask), h.matched(features, target)

        return jax.value_and_grad(loss, has_aux=True)(features)

    masks = () if mask is None else (mask,)
    (value, found), gradient = variant(both, FEATURES, STYLE, *masks)
    weights = np.ones((24, 30)) if mask is None else mask
    expected = numpy_matched(FEATURES, STYLE, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    differences = weights[..., None] * (FEATURES - expected)
    np.testing.assert_allclose(value, (differences * (FEATURES - expected)).sum() / 3, rtol=1e-9)
    np.testing.assert_allclose(gradient, 2 * differences / 3, rtol=1e-8, atol=1e-9)


def test_matched_features_have_the_styles_quantiles_and_keep_their_order(x64):
    """Features matched to a style, and the style to itself, up to the width of a bin."""
    features = rng.uniform(size=(80, 90, 2))
    style = rng.normal(size=(80, 90, 2)) * np.array([1, 30]) + 5
    features = style.min((0, 1)) + features * np.ptp(style, axis=(0, 1))  # within its range
    found = np.asarray(h.matched(features, matching_to(style, features)))
    levels = np.linspace(0.01, 0.99, 99)
    for channel in range(2):
        ours, theirs = (np.quantile(x[..., channel], levels) for x in (found, style))
        assert np.abs(ours - theirs).max() < 2 * np.ptp(style[..., channel]) / h.BINS
        order = np.argsort(features[..., channel].ravel())
        assert (np.diff(found[..., channel].ravel()[order]) >= -1e-12).all()
    errors = np.abs(h.matched(style, matching_to(style, style)) - style)
    width = np.ptp(style, axis=(0, 1)) / h.BINS
    # At each end, 1/K of the positions are treated as evenly spread.
    assert (np.quantile(errors, 1 - 3 / h.QUANTILES, axis=(0, 1)) < width).all()
    # Features outside the style's range get its extremes.
    outside = np.concatenate([style.min((0, 1)) - [[[3, 3]]], style.max((0, 1)) + [[[2, 2]]]])
    found = h.matched(outside, matching_to(style, outside))
    np.testing.assert_allclose(found[:, 0], [style.min((0, 1)), style.max((0, 1))], rtol=1e-6)


def test_mixed_styles_average_their_quantiles_or_keep_each(x64):
    """R = sum_s b_s R_s for style weights b, or every R_s."""
    styles = [STYLE, STYLE**2 + 3, -STYLE]
    found = jnp.stack([of_style(style)[0] for style in styles])
    weights = jnp.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    targets = Targets(
        content={},
        style={"relu1_1": Moments(quantiles=found)},
        sizes={},
        weights=None,  # type: ignore[arg-type]
        style_weights={"relu1_1": weights},
    )
    low, high = found[:, :, 0].min(0), found[:, :, -1].max(0)
    counts = jnp.stack([h.histogram(FEATURES, low, high, mask=m) for m in (None, MASK)])
    separate = matchings("relu1_1", counts, targets, mixing="sum")
    mixed = matchings("relu1_1", counts, targets, mixing="average")
    assert separate.values.shape[:2] == (2, 3) and mixed.values.shape[:2] == (2, 1)
    for region in range(2):
        for style in range(3):
            expected = h.matching(counts[region], found[style], low, high).values
            np.testing.assert_allclose(separate.values[region, style], expected, rtol=1e-12)
        expected = np.tensordot(weights[region], separate.values[region], 1)
        np.testing.assert_allclose(mixed.values[region, 0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_finite_for_degenerate_features(x64, dtype):
    """Constant, dead, huge, tiny features; masks of no, one, two positions: each against each."""
    plain = np.abs(rng.normal(size=(4, 4, 3)))
    same = np.broadcast_to(plain[:1, :1], plain.shape)
    features = [plain, same, 0 * plain, plain * np.array([0, 1, 0])]
    features += [scale * x for scale in (1e4, 1e-6, 1e-38) for x in (plain, same)]
    masks = np.ones((len(features) + 3, 4, 4))
    masks[-3:] = 0
    masks[-2, 1, 1] = masks[-1, 0, 0] = masks[-1, 2, 3] = 1
    features = jnp.asarray(np.stack(features + [plain] * 3)).astype(dtype)
    masks = jnp.asarray(masks, jnp.float32)

    def losses(features, mask, style, style_mask):
        found, low, high = of_style(style, style_mask)
        counts = h.histogram(features, low, high, mask=mask)
        return h.histogram_sum(features, h.matching(counts, found, low, high), mask=mask)

    pairs = jax.vmap(jax.vmap(jax.value_and_grad(losses), (None, None, 0, 0)), (0, 0, None, None))
    values, gradients = jax.jit(pairs)(features, masks, features, masks)
    assert values.dtype == masks.dtype and gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(np.float64(gradients)).all()
    assert not np.any(values[-3]) and not np.any(np.float64(gradients[-3]))  # of an empty mask
    own = np.diagonal(values) / np.maximum(np.float64(features).max((1, 2, 3)) ** 2, 1e-70)
    assert own.max() < 16 * 0.05  # sums over 16 positions
