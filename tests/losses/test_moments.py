"""Sums of a layer's features, and losses made of them, against NumPy; of arrays and products."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nst_jax.config import LossConfig
from nst_jax.losses import gram as m
from nst_jax.losses import mixed_losses, moment_loss
from nst_jax.losses.style_term import layer_loss, region_moments, wanted_moments
from nst_jax.models import ProjectedFeatures, dense
from nst_jax.types import LossWeights, Moments, Regions, Targets

pytestmark = pytest.mark.sampled

rng = np.random.default_rng(0)
PLAIN = rng.normal(size=(5, 7, 4)) + 1
LIFTED = ProjectedFeatures(rng.normal(size=(5, 7, 3)), rng.normal(size=(3, 4)), rng.normal(size=4))
MASKS = {
    "whole": None,
    "soft": rng.uniform(size=(5, 7)),
    "booleans": rng.uniform(size=(5, 7)) < 0.5,
}
ALL = frozenset({"gram", "mean", "squares"})
LOSSES = ("gram", "covariance", "mean-std", "wasserstein")

either = pytest.mark.parametrize("features", [PLAIN, LIFTED], ids=["plain", "lifted"])
masked = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def numpy_sums(features, mask):
    """Count, sums of features and of outer products, position by position."""
    flat = np.asarray(dense(features))
    flat = flat.reshape(-1, flat.shape[-1])
    factors = np.ones(len(flat)) if mask is None else np.float64(mask).ravel()
    total, products = 0, 0
    for factor, feature in zip(factors, flat, strict=True):
        total += factor * feature
        products += factor * np.outer(feature, feature)
    return factors.sum(), total, products


@either
@masked
def test_sums_are_numpys(x64, variant, features, mask):
    lifted = isinstance(features, ProjectedFeatures)
    masks = () if mask is None else (mask,)
    parts = features[:3] if lifted else (features,)

    def sums(*given):
        x = ProjectedFeatures(*given[:3]) if lifted else given[0]
        mask = given[-1] if masks else None
        return m.position_sum(x, mask=mask), m.moment_sums(x, wanted=ALL, mask=mask)

    count, found = variant(sums, *parts, *masks)
    expected = numpy_sums(features, mask)
    np.testing.assert_allclose(count, expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.mean, expected[1], rtol=1e-11)
    np.testing.assert_allclose(found.gram, expected[2], rtol=1e-11)
    np.testing.assert_allclose(found.squares, np.diagonal(expected[2]), rtol=1e-11)
    assert found.quantiles is None and found.unmatched is None


@either
def test_sums_are_additive_over_pieces_and_masks(x64, features):
    def cut(part):
        return features._replace(own=features.own[part]) if features is LIFTED else features[part]

    def sums(x, mask=None):
        return m.moment_sums(x, wanted=ALL, mask=mask)

    soft = MASKS["soft"]
    for first, second in (
        (sums(cut(np.s_[:2])), sums(cut(np.s_[2:]))),
        (sums(features, soft), sums(features, 1 - soft)),
    ):
        joined = jax.tree.map(jnp.add, first, second)
        for found, expected in zip(*map(jax.tree.leaves, (joined, sums(features))), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("lifted", [False, True])
def test_sums_of_half_precision_features_are_in_float32(lifted):
    """A soft mask is not rounded, and 4096 positions are counted."""
    own = jnp.ones((64, 64, 2), jnp.bfloat16)
    features = (
        ProjectedFeatures(own, np.float32(np.eye(2)), np.zeros(2, np.float32)) if lifted else own
    )
    for mask, count in ((None, 4096), (np.full((64, 64), 0.3, np.float32), 4096 * 0.3)):
        sums = m.moment_sums(features, wanted=ALL, mask=mask)
        for x in (*jax.tree.leaves(sums), m.position_sum(features, mask=mask)):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, np.full(x.shape, count), rtol=1e-6)


@either
def test_gradients_of_sums_to_second_order(x64, features):
    def sums(x, bias):
        given = features._replace(own=x, bias=bias) if features is LIFTED else x
        return m.moment_sums(given, wanted=ALL, mask=jnp.asarray(MASKS["soft"]))

    x = features.own if features is LIFTED else features
    check_grads(jax.jit(sums), (x, LIFTED.bias), order=2, rtol=1e-5, eps=1e-5)


def test_only_what_is_wanted_is_summed():
    assert m.moment_sums(PLAIN, wanted=frozenset()) == Moments()
    assert m.moment_sums(PLAIN, wanted=frozenset({"mean"}))._replace(mean=None) == Moments()
    for losses, wanted in {
        ("gram",): {"gram"},
        ("mean-std",): {"mean", "squares"},
        ("mean-std", "gram"): {"mean", "gram"},
        ("wasserstein", "histogram"): {"mean", "compact_gram", "compact_mean"},
        ("histogram",): set(),
    }.items():
        assert wanted_moments(LossConfig(style_losses=losses)) == wanted


def of_features(features, mask=None):
    """Means of NumPy's sums, as the losses take them."""
    count, total, products = numpy_sums(features, mask)
    gram, mean = products / count, total / count  # in NumPy's double precision
    if not isinstance(features, ProjectedFeatures):
        return Moments(gram=gram, mean=mean, compact_gram=gram, compact_mean=mean)
    values, basis = np.linalg.eigh(features.kernel @ features.kernel.T)
    _, total, products = numpy_sums(features.own @ (basis * np.sqrt(values) @ basis.T), mask)
    return Moments(gram, mean, compact_gram=products / count, compact_mean=total / count)


def numpy_loss(loss, x, y, *, normalization="hw"):
    covariances = [of.gram - np.outer(of.mean, of.mean) for of in (x, y)]
    divisor = 16 if normalization == "chw" else 1
    if loss == "gram":
        return np.mean((x.gram - y.gram) ** 2) / divisor
    if loss == "covariance":
        return np.mean((covariances[0] - covariances[1]) ** 2) / divisor
    means = np.mean((x.mean - y.mean) ** 2)
    if loss == "mean-std":
        first, second = (np.sqrt(np.diagonal(matrix) + 1e-5) for matrix in covariances)
        return means + np.mean((first - second) ** 2)
    first, second = (matrix + 1e-4 * np.eye(4) for matrix in covariances)
    # The trace of the root of S S' is that of S'^(1/2) S S'^(1/2).
    roots = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    return means + (np.trace(first + second) - 2 * roots) / 4


FOUND = of_features(PLAIN)
STYLES = [of_features(PLAIN[::-1] ** 2), of_features(PLAIN + 1), of_features(PLAIN, MASKS["soft"])]
LIFTED_STYLES = [
    of_features(LIFTED._replace(own=LIFTED.own[::-1] ** 2)),
    of_features(LIFTED._replace(own=LIFTED.own + 1)),
    of_features(LIFTED, MASKS["soft"]),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("normalization", ["hw", "chw"])
def test_losses_of_moments(x64, loss, normalization):
    config = LossConfig(style_losses=(loss,), gram_normalization=normalization)
    for target in STYLES:
        expected = numpy_loss(loss, FOUND, target, normalization=normalization)
        found = moment_loss(loss, FOUND, target, config=config)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        if loss == "mean-std":  # of squares where nothing asks for outer products
            bare = [of._replace(gram=None, squares=np.diagonal(of.gram)) for of in (FOUND, target)]
            np.testing.assert_allclose(moment_loss(loss, *bare, config=config), expected, rtol=1e-9)
        assert abs(moment_loss(loss, target, target, config=config)) < 1e-12


@pytest.mark.slow
def test_mixed_losses_are_sums_of_losses_or_losses_of_averages(x64):
    found, styles = m.stacked([FOUND, STYLES[0]]), m.stacked(STYLES)
    shares = np.array([[0.2, 0.5, 0.3], [0, 0, 1]])
    for loss in LOSSES:
        config = LossConfig(style_losses=(loss,), gram_normalization="hw")

        def distance(x, y, loss=loss, config=config):
            return moment_loss(loss, x, y, config=config)

        of = {"shares": jnp.asarray(shares)}
        added = mixed_losses(distance, found, styles, mixing="sum", **of)
        averaged = mixed_losses(distance, found, styles, mixing="average", **of)
        for region, (x, row) in enumerate(zip((FOUND, STYLES[0]), shares, strict=True)):
            expected = sum(b * numpy_loss(loss, x, y) for b, y in zip(row, STYLES, strict=True))
            np.testing.assert_allclose(added[region], expected, rtol=1e-9)
            mixture = jax.tree.map(
                lambda *of, row=row: sum(b * y for b, y in zip(row, of, strict=True)), *STYLES
            )
            expected = numpy_loss(loss, x, mixture)
            np.testing.assert_allclose(averaged[region], expected, rtol=1e-9)
        np.testing.assert_allclose(added[1], averaged[1], rtol=1e-9)  # of one style alone
        if loss == "gram":  # a difference that the image has no part in

            def gap(x, distance=distance, of=of):
                pair = [
                    mixed_losses(distance, found._replace(gram=x), styles, mixing=mixing, **of)
                    for mixing in ("sum", "average")
                ]
                return jnp.sum(pair[0] - pair[1])

            value, gradient = jax.value_and_grad(gap)(found.gram)
            assert value > 1e-3 and np.abs(gradient).max() < 1e-12
    with pytest.raises(ValueError, match="mixing is 'product': expected 'average' or 'sum'"):
        mixed_losses(distance, found, styles, mixing="product", **of)


@either
def test_a_layers_loss_is_that_of_its_regions(x64, features):
    """All losses with their factors, each region's against its own mixture of styles."""
    styles = LIFTED_STYLES if features is LIFTED else STYLES
    guides = rng.uniform(size=(2, 5, 7))
    shares = np.array([[0.2, 0.5, 0.3], [0, 0, 1]])
    factors, weights = dict(zip(LOSSES, (0.5, 2.0, 3.0, 0.25), strict=True)), np.array([0.7, 1.5])
    bare = LossWeights(None, None, None, {}, {}, style_losses=factors)
    targets = Targets(
        content={},
        style={"relu1_1": m.stacked(styles)},
        sizes={"relu1_1": jnp.asarray(35.0)},
        weights=bare,
        shares={"relu1_1": jnp.asarray(shares)},
        regions=Regions(
            guides={"relu1_1": jnp.asarray(guides)},
            sizes={"relu1_1": jnp.asarray(guides.sum((1, 2)))},
            weights=jnp.asarray(weights),
        ),
    )
    config = LossConfig(style_losses=LOSSES, gram_normalization="hw", style_mixing="sum")

    def value(x, targets=targets, config=config):
        given = features._replace(own=x) if features is LIFTED else x
        sums = region_moments("relu1_1", given, targets, config=config)
        return layer_loss("relu1_1", sums, targets, config=config)

    own = jnp.asarray(features.own if features is LIFTED else features)
    expected = sum(
        weights[r] * factors[loss] * shares[r, s] * numpy_loss(loss, of, styles[s])
        for r, of in enumerate([of_features(features, guide) for guide in guides])
        for s in range(3)
        for loss in LOSSES
    )
    np.testing.assert_allclose(value(own), expected, rtol=1e-8)
    of_all = jax.jit(value, static_argnames="config")
    given = {"order": 1, "modes": ("rev",), "rtol": 1e-5, "eps": 1e-6}
    check_grads(partial(of_all, targets=targets, config=config), (own,), **given)
    # Without regions, and a factor of 1 where none is named.
    whole = targets._replace(
        regions=None,
        shares={"relu1_1": jnp.array([[0.0, 1.0, 0.0]])},
        weights=bare._replace(style_losses={"gram": 0.5}),
    )
    config = replace(config, style_losses=("gram", "covariance"), style_mixing="average")
    pair = of_features(features), styles[1]
    expected = 0.5 * numpy_loss("gram", *pair) + numpy_loss("covariance", *pair)
    np.testing.assert_allclose(value(own, whole, config), expected, rtol=1e-9, atol=1e-12)
