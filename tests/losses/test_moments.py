"""Gram matrices and moments of a layer, and the losses made of them, against NumPy.

Features are arrays, or the products of slim networks.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.numpy_losses import moment_losses, square_root
from jax.test_util import check_grads

from nst_jax.config import LossConfig
from nst_jax.losses import content_loss, gram_matrix, mixed_losses, moment_loss
from nst_jax.losses import gram as m
from nst_jax.losses.style_term import layer_loss, region_moments, wanted_moments
from nst_jax.models import ProjectedFeatures, dense
from nst_jax.types import LossWeights, Moments, Regions, Targets

pytestmark = pytest.mark.sampled

rng = np.random.default_rng(0)
PLAIN = rng.normal(size=(5, 7, 4)) + 1
PRODUCT = ProjectedFeatures(rng.normal(size=(5, 7, 3)), rng.normal(size=(3, 4)), rng.normal(size=4))
MASKS = {
    "soft": rng.uniform(size=(5, 7)),
    "whole": None,
    "boolean": rng.uniform(size=(5, 7)) < 0.5,
}
ALL = frozenset({"gram", "mean", "squares"})
LOSSES = ("gram", "covariance", "mean-std", "wasserstein")

either = pytest.mark.parametrize("features", [PLAIN, PRODUCT], ids=["plain", "product"])


def numpy_sums(features, mask):
    """Number of positions, sums of features and of outer products, position by position."""
    flat = np.asarray(dense(features))
    flat = flat.reshape(-1, flat.shape[-1])
    factors = np.ones(len(flat)) if mask is None else np.float64(mask).ravel()
    total, products = 0, 0
    for factor, feature in zip(factors, flat, strict=True):
        total += factor * feature
        products += factor * np.outer(feature, feature)
    return factors.sum(), total, products


@either
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_sums_are_numpys(x64, variant, features, mask):
    product = isinstance(features, ProjectedFeatures)
    masks = () if mask is None else (mask,)
    parts = features[:3] if product else (features,)

    def sums(*given):
        x = ProjectedFeatures(*given[:3]) if product else given[0]
        mask = given[-1] if masks else None
        return m.position_sum(x, mask=mask), m.moment_sums(x, wanted=ALL, mask=mask)

    count, found = variant(sums, *parts, *masks)
    expected = numpy_sums(features, mask)
    np.testing.assert_allclose(count, expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.mean, expected[1], rtol=1e-11)
    np.testing.assert_allclose(found.gram, expected[2], rtol=1e-11)
    np.testing.assert_allclose(found.squares, np.diagonal(expected[2]), rtol=1e-11)


@either
def test_sums_are_additive_over_tiles_and_masks(x64, features):
    def part(rows):
        return features._replace(own=features.own[rows]) if features is PRODUCT else features[rows]

    @jax.jit
    def sums(x, mask=None):
        return m.moment_sums(x, wanted=ALL, mask=mask)

    soft = MASKS["soft"]
    for first, second in (
        (sums(part(np.s_[:2])), sums(part(np.s_[2:]))),
        (sums(features, soft), sums(features, 1 - soft)),
    ):
        joined = jax.tree.map(jnp.add, first, second)
        for found, expected in zip(*map(jax.tree.leaves, (joined, sums(features))), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("product", [False, True])
def test_sums_of_half_precision_features_are_float32(product):
    """bfloat16 can count neither to 4096 nor in steps of 0.3, which is 0.26 % more in it."""
    own = jnp.ones((64, 64, 2), jnp.bfloat16)
    features = (
        ProjectedFeatures(own, np.float32(np.eye(2)), np.zeros(2, np.float32)) if product else own
    )
    for mask, count in ((None, 4096), (np.full((64, 64), 0.3, np.float32), 4096 * 0.3)):
        sums = m.moment_sums(features, wanted=ALL, mask=mask)
        for x in (*jax.tree.leaves(sums), m.position_sum(features, mask=mask)):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, np.full(x.shape, count), rtol=1e-6)

    # A constant mask changes neither the Gram matrix nor its derivatives.
    def gram(own, mask):
        given = features._replace(own=own) if product else own
        return gram_matrix(given, mask=mask).sum()

    found, expected = (jax.value_and_grad(gram)(own, of) for of in (mask, None))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert found[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_boolean_mask_needs_no_copy_of_half_precision_features():
    for dtype in ("bfloat16", "float32"):
        features = jnp.asarray(PLAIN, dtype)
        program = jax.make_jaxpr(lambda x: m.gram_sum(x, mask=MASKS["boolean"]))(features)
        assert ("f32[35,4]" in str(program)) == (dtype == "float32")


@either
def test_gradients_of_sums_to_second_order(x64, features):
    def sums(x, bias):
        given = features._replace(own=x, bias=bias) if features is PRODUCT else x
        return m.moment_sums(given, wanted=ALL, mask=jnp.asarray(MASKS["soft"]))

    x = features.own if features is PRODUCT else features
    check_grads(jax.jit(sums), (x, PRODUCT.bias), order=2, rtol=1e-5, eps=1e-5)


def test_only_the_moments_that_the_losses_need_are_summed():
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


@pytest.mark.parametrize("normalization, divisor", [("hw", 35), ("chw", 4 * 35)])
def test_gram_matrix_and_gatys_losses(x64, variant, normalization, divisor):
    other = PLAIN[::-1] ** 2

    def all_of(features, target):
        grams = [gram_matrix(x, normalization=normalization) for x in (features, target)]
        return *grams, m.style_loss(*grams), content_loss(features, target)

    found = variant(all_of, PLAIN, other)
    grams = [numpy_sums(x, None)[2] / divisor for x in (PLAIN, other)]
    np.testing.assert_allclose(found[0], grams[0], rtol=1e-11)
    np.testing.assert_allclose(found[2], ((grams[0] - grams[1]) ** 2).mean(), rtol=1e-11)
    np.testing.assert_allclose(found[3], ((PLAIN - other) ** 2).mean(), rtol=1e-11)
    losses = jax.jit(lambda *given: all_of(*given)[2:])
    check_grads(losses, (PLAIN, other), order=2, atol=1e-5, rtol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected 'hw' or 'chw'"):
        gram_matrix(PLAIN, normalization="c")
    with pytest.raises(ValueError, match="loss is 'mean': expected gram, covariance"):
        moment_loss("mean", Moments(), Moments(), config=LossConfig())
    with pytest.raises(ValueError, match="mixing is 'product': expected 'average' or 'sum'"):
        mixed_losses(m.style_loss, None, None, style_weights=None, mixing="product")  # type: ignore


def means_of(features, mask=None):
    """Moments in NumPy as means."""
    count, total, products = numpy_sums(features, mask)
    gram, mean = products / count, total / count
    if not isinstance(features, ProjectedFeatures):
        return Moments(gram=gram, mean=mean, compact_gram=gram, compact_mean=mean)
    root = square_root(features.kernel @ features.kernel.T)
    _, total, products = numpy_sums(features.own @ root, mask)
    return Moments(gram, mean, compact_gram=products / count, compact_mean=total / count)


def numpy_loss(loss, x, y):
    return moment_losses((x.mean, x.gram), (y.mean, y.gram))[loss]


FOUND = means_of(PLAIN)
STYLES = [means_of(PLAIN[::-1] ** 2), means_of(PLAIN + 1), means_of(PLAIN, MASKS["soft"])]
PRODUCT_STYLES = [
    means_of(PRODUCT._replace(own=PRODUCT.own[::-1] ** 2)),
    means_of(PRODUCT._replace(own=PRODUCT.own + 1)),
    means_of(PRODUCT, MASKS["soft"]),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_moments_are_numpys(x64, loss):
    target = STYLES[0]
    for normalization, divisor in (("hw", 1), ("chw", 16)):
        config = LossConfig(style_losses=(loss,), gram_normalization=normalization)
        divisor = divisor if loss in ("gram", "covariance") else 1
        expected = numpy_loss(loss, FOUND, target) / divisor
        value = moment_loss(loss, FOUND, target, config=config)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
    if loss == "mean-std":  # from squares if no other loss needs the outer products
        bare = [of._replace(gram=None, squares=np.diagonal(of.gram)) for of in (FOUND, target)]
        np.testing.assert_allclose(moment_loss(loss, *bare, config=config), expected, rtol=1e-9)
    assert abs(moment_loss(loss, target, target, config=config)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_losses_are_sums_of_losses_or_losses_of_averages(x64, loss):
    found, styles = m.stacked([FOUND, STYLES[0]]), m.stacked(STYLES)
    weights = np.array([[0.2, 0.5, 0.3], [0, 0, 1]])
    distance = partial(moment_loss, loss, config=LossConfig(gram_normalization="hw"))
    of = {"style_weights": jnp.asarray(weights)}
    added = mixed_losses(distance, found, styles, mixing="sum", **of)
    averaged = mixed_losses(distance, found, styles, mixing="average", **of)
    for region, (x, row) in enumerate(zip((FOUND, STYLES[0]), weights, strict=True)):
        expected = sum(b * numpy_loss(loss, x, y) for b, y in zip(row, STYLES, strict=True))
        np.testing.assert_allclose(added[region], expected, rtol=1e-9)
        mixture = jax.tree.map(
            lambda *of, row=row: sum(b * y for b, y in zip(row, of, strict=True)), *STYLES
        )
        np.testing.assert_allclose(averaged[region], numpy_loss(loss, x, mixture), rtol=1e-9)


@either
def test_a_layers_loss_is_that_of_its_regions(x64, features):
    """All losses with their weights, each region's against its own mixture of styles."""
    styles = PRODUCT_STYLES if features is PRODUCT else STYLES
    guides = rng.uniform(size=(2, 5, 7))
    blend = np.array([[0.2, 0.5, 0.3], [0, 0, 1]])
    factors, weights = dict(zip(LOSSES, (0.5, 2.0, 3.0, 0.25), strict=True)), np.array([0.7, 1.5])
    bare = LossWeights(None, None, None, {}, {}, style_losses=factors)
    targets = Targets(
        content={},
        style={"relu1_1": m.stacked(styles)},
        sizes={"relu1_1": jnp.asarray(35.0)},
        weights=bare,
        style_weights={"relu1_1": jnp.asarray(blend)},
        regions=Regions(
            guides={"relu1_1": jnp.asarray(guides)},
            sizes={"relu1_1": jnp.asarray(guides.sum((1, 2)))},
            weights=jnp.asarray(weights),
        ),
    )
    config = LossConfig(style_losses=LOSSES, gram_normalization="hw", style_mixing="sum")

    @partial(jax.jit, static_argnames="config")
    def value(x, targets, config):
        given = features._replace(own=x) if features is PRODUCT else x
        sums = region_moments("relu1_1", given, targets, config=config)
        return layer_loss("relu1_1", sums, targets, config=config)

    own = jnp.asarray(features.own if features is PRODUCT else features)
    expected = sum(
        weights[r] * factors[loss] * blend[r, s] * numpy_loss(loss, of, styles[s])
        for r, of in enumerate([means_of(features, guide) for guide in guides])
        for s in range(3)
        for loss in LOSSES
    )
    np.testing.assert_allclose(value(own, targets, config), expected, rtol=1e-8)
    of_features = partial(value, targets=targets, config=config)
    check_grads(of_features, (own,), order=1, modes=("rev",), rtol=1e-5, eps=1e-6)
    # Without regions, and with the default weight of 1.
    whole = targets._replace(
        regions=None,
        style_weights={"relu1_1": jnp.array([[0.0, 1.0, 0.0]])},
        weights=bare._replace(style_losses={"gram": 0.5}),
    )
    config = replace(config, style_losses=("gram", "covariance"), style_mixing="average")
    pair = means_of(features), styles[1]
    expected = 0.5 * numpy_loss("gram", *pair) + numpy_loss("covariance", *pair)
    np.testing.assert_allclose(value(own, whole, config), expected, rtol=1e-9, atol=1e-12)
