"""Histograms and matched features against NumPy's, channel by channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nst_jax.losses import histogram as h
from nst_jax.losses.style_term import matchings
from nst_jax.types import Moments, Targets

pytestmark = pytest.mark.sampled

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(24, 30, 3)) + np.array([0, 2, -1])
STYLE = rng.gamma(2, size=(20, 35, 3))
MASK = rng.uniform(size=(24, 30)) * (rng.uniform(size=(24, 30)) < 0.7)


def of_style(style, mask=None):
    """A style's quantiles, and their bounds."""
    low, high = h.bounds(h.extremes(style, mask=mask))
    return h.quantiles(h.histogram(style, low, high, mask=mask), low, high), low, high


def matched_to(style, features, mask=None):
    found, low, high = of_style(style)
    return h.matching(h.histogram(features, low, high, mask=mask), found, low, high)


def numpy_quantiles(style):
    """Of one channel: the inverse of the share of values below each edge of the bins."""
    counts, edges = np.histogram(style, bins=h.BINS)
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    return np.interp(np.linspace(0, 1, h.QUANTILES + 1), below, edges), edges


def numpy_matched(features, style, mask):
    """R of each value of one channel: the style's quantile of the share of values below it."""
    found, edges = numpy_quantiles(style)
    inside = np.clip(features, edges[0], edges[-1])
    counts, _ = np.histogram(inside, bins=edges, weights=mask)
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    goals = np.interp(below, np.linspace(0, 1, h.QUANTILES + 1), found)
    return np.interp(inside, edges, goals)


def numpy_all_matched(features, style, mask):
    each = [numpy_matched(*pair, mask) for pair in zip(features.T, style.T, strict=True)]
    return np.stack(each).T


def test_extremes_are_those_of_counted_positions_and_join_by_maximum(x64, variant):
    low, high = variant(lambda x, m: h.bounds(h.extremes(x, mask=m)), FEATURES, MASK)
    np.testing.assert_array_equal(low, FEATURES[MASK > 0].min(0))
    np.testing.assert_array_equal(high, FEATURES[MASK > 0].max(0))
    parts = [h.extremes(FEATURES[part], mask=MASK[part]) for part in np.s_[:7, 7:8, 8:]]
    joined = jnp.max(jnp.stack(parts), axis=0)
    np.testing.assert_array_equal(joined, h.extremes(FEATURES, mask=MASK))
    nothing = h.extremes(FEATURES, mask=0 * MASK)
    assert np.isneginf(nothing).all() and not np.any(h.bounds(nothing))


@pytest.mark.parametrize("mask", [None, MASK, MASK > 0], ids=["whole", "soft", "booleans"])
def test_histogram_is_numpys(x64, variant, mask):
    low, high = np.full(3, -1.5), np.array([2.0, 3.0, 0.5])  # some are outside
    given = (FEATURES, low, high) if mask is None else (FEATURES, low, high, mask)
    found = variant(lambda x, low, high, *m: h.histogram(x, low, high, mask=(*m, None)[0]), *given)
    for channel in range(3):
        values = np.clip(FEATURES[..., channel], low[channel], high[channel])
        given = {"bins": h.BINS, "range": (low[channel], high[channel])}
        weights = None if mask is None else np.float64(mask)
        expected, _ = np.histogram(values, weights=weights, **given)
        np.testing.assert_allclose(found[channel], expected, rtol=1e-12, atol=1e-12)
    positions = 24 * 30 if mask is None else mask.sum()
    np.testing.assert_allclose(found.sum(1), positions, rtol=1e-12)


def test_histograms_add_up_over_pieces_and_masks(x64):
    low, high = h.bounds(h.extremes(FEATURES))
    whole = h.histogram(FEATURES, low, high)
    pieces = [h.histogram(FEATURES[:, part], low, high) for part in np.s_[:11, 11:12, 12:]]
    np.testing.assert_array_equal(sum(pieces), whole)
    masks = [h.histogram(FEATURES, low, high, mask=part) for part in (MASK, 1 - MASK)]
    np.testing.assert_allclose(sum(masks), whole, atol=1e-12)


def test_quantiles_are_the_styles(x64, variant):
    found = np.asarray(variant(lambda x: of_style(x)[0], STYLE))
    shares = np.linspace(0, 1, h.QUANTILES + 1)
    for channel, values in enumerate(STYLE.reshape(-1, 3).T):
        np.testing.assert_allclose(found[channel], numpy_quantiles(values)[0], rtol=1e-9)
        # The least and greatest value exactly, the others to a bin, where values are dense.
        np.testing.assert_allclose(found[channel][[0, -1]], [values.min(), values.max()])
        errors = np.abs(found[channel] - np.quantile(values, shares))[:-60]
        assert errors.max() < 3 * np.ptp(values) / h.BINS


def test_quantiles_of_half_precision_features_are_those_of_their_values():
    style = jnp.asarray(STYLE + 100, jnp.bfloat16)  # whose own steps are half a unit
    found, expected = of_style(style)[0], of_style(style.astype(jnp.float32))[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_loss_is_that_of_numpys_matched_features(x64, variant, mask):
    """Its value; and its gradient is 2 m (F - R) / C, as R counts as a constant."""

    def both(features, style, mask=None):
        goal = matched_to(style, features, mask)
        value, gradient = jax.value_and_grad(h.histogram_sum)(features, goal, mask=mask)
        return h.matched(features, goal), value, gradient

    masks = () if mask is None else (mask,)
    found, value, gradient = variant(both, FEATURES, STYLE, *masks)
    weights = np.ones((24, 30)) if mask is None else mask
    expected = numpy_all_matched(FEATURES, STYLE, weights.T)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    squares = weights[..., None] * (FEATURES - expected) ** 2
    np.testing.assert_allclose(value, squares.sum() / 3, rtol=1e-9)
    ours = 2 * weights[..., None] * (FEATURES - expected) / 3
    np.testing.assert_allclose(gradient, ours, rtol=1e-8, atol=1e-9)


def test_gradient_knows_nothing_of_the_counts(x64):
    """Also where the matching is made of the same features, as the objective makes it."""

    def value(features):
        return h.histogram_sum(features, matched_to(STYLE, features))

    expected = 2 * (FEATURES - numpy_all_matched(FEATURES, STYLE, np.ones((30, 24)))) / 3
    found = jax.grad(value)(jnp.asarray(FEATURES))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_matched_features_have_the_styles_quantiles_and_keep_their_order(x64):
    features = rng.uniform(size=(80, 90, 2))
    style = rng.normal(size=(100, 90, 2)) * np.array([1, 30]) + 5
    features = style.min((0, 1)) + features * np.ptp(style, axis=(0, 1))  # within its range
    found = np.asarray(h.matched(features, matched_to(style, features)))
    shares = np.linspace(0.01, 0.99, 99)
    for channel in range(2):
        ours, theirs = (np.quantile(x[..., channel], shares) for x in (found, style))
        assert np.abs(ours - theirs).max() < 2 * np.ptp(style[..., channel]) / h.BINS
        order = np.argsort(features[..., channel].ravel())
        assert (np.diff(found[..., channel].ravel()[order]) >= -1e-12).all()


def test_a_style_is_matched_to_itself_nearly(x64):
    """To a bin, but for the last 1/K of the positions at each end, which count as spread evenly."""
    style = rng.normal(size=(100, 90, 2))
    errors = np.abs(h.matched(style, matched_to(style, style)) - style)
    width = np.ptp(style, axis=(0, 1)) / h.BINS
    assert (np.quantile(errors, 1 - 3 / h.QUANTILES, axis=(0, 1)) < width).all()
    assert (errors**2).mean() < 1e-3 * style.var()


def test_values_beyond_the_styles_are_its_least_and_greatest():
    style = np.float32(rng.uniform(size=(9, 8, 1)))
    features = np.float32([[[-3.0], [0.5], [7.0]]])
    found = h.matched(features, matched_to(style, features))[0, :, 0]
    np.testing.assert_allclose(found[jnp.array([0, 2])], [style.min(), style.max()], rtol=1e-6)


def test_mixed_styles_average_their_quantiles_or_keep_each(x64):
    """R = sum_s b_s R_s for regions of shares b; or every R_s."""
    styles = [STYLE, STYLE**2 + 3, -STYLE[:10]]
    found = jnp.stack([of_style(style)[0] for style in styles])
    shares = jnp.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    targets = Targets(
        content={},
        style={"relu1_1": Moments(quantiles=found)},
        sizes={},
        weights=None,  # type: ignore[arg-type]
        shares={"relu1_1": shares},
    )
    low, high = found[:, :, 0].min(0), found[:, :, -1].max(0)
    counts = jnp.stack([h.histogram(FEATURES, low, high, mask=m) for m in (None, MASK)])

    def each(region, style):
        goal = h.matching(counts[region], found[style], low, high)
        return np.asarray(h.matched(FEATURES, goal))

    apart = matchings("relu1_1", counts, targets, mixing="sum")
    mixed = matchings("relu1_1", counts, targets, mixing="average")
    assert apart.values.shape[:2] == (2, 3) and mixed.values.shape[:2] == (2, 1)
    for region in range(2):
        alone = [each(region, style) for style in range(3)]
        for style in range(3):
            goal = jax.tree.map(lambda x, r=region, s=style: x[r, s], apart)
            np.testing.assert_allclose(h.matched(FEATURES, goal), alone[style], rtol=1e-12)
        goal = jax.tree.map(lambda x, r=region: x[r, 0], mixed)
        expected = sum(b * x for b, x in zip(shares[region], alone, strict=True))
        np.testing.assert_allclose(h.matched(FEATURES, goal), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_finite_where_something_is_missing(x64, dtype):
    """Constant, dead, huge, tiny features, one position, two, none: each against each."""
    plain = np.abs(rng.normal(size=(4, 4, 3)))
    same = np.broadcast_to(plain[:1, :1], plain.shape)
    features = [plain, same, 0 * plain, plain * np.array([0, 1, 0])]
    features += [scale * x for scale in (1e4, 1e-6, 1e-38) for x in (plain, same)]
    masks = np.ones((len(features) + 3, 4, 4))
    masks[-3:] = 0
    masks[-2, 1, 1] = masks[-1, 0, 0] = masks[-1, 2, 3] = 1  # none, one, two
    features = jnp.asarray(np.stack(features + [plain] * 3)).astype(dtype)
    masks = jnp.asarray(masks, jnp.float64 if dtype == "float64" else jnp.float32)

    def losses(features, mask, style, style_mask):
        found, low, high = of_style(style, style_mask)
        counts = h.histogram(features, low, high, mask=mask)
        goal = h.matching(counts, found, low, high)
        return h.histogram_sum(features, goal, mask=mask)

    pairs = jax.vmap(jax.vmap(jax.value_and_grad(losses), (None, None, 0, 0)), (0, 0, None, None))
    values, gradients = jax.jit(pairs)(features, masks, features, masks)
    assert values.dtype == masks.dtype and gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(np.float64(gradients)).all()
    assert not np.any(values[-3]) and not np.any(np.float64(gradients[-3]))  # of an empty mask
    own = np.diagonal(values) / np.maximum(np.float64(features).max((1, 2, 3)) ** 2, 1e-70)
    assert own.max() < 16 * 0.05  # sums over 16 positions
