"""Self-similarity and Laplacians against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_losses as oracle
from jax.test_util import check_grads

from nst_jax.losses import laplacian, self_similarity_loss
from nst_jax.losses.content import GRID, grid_positions, laplacian_sum, sample, similarity
from nst_jax.models import ProjectedFeatures, dense

rng = np.random.default_rng(0)
FEATURES = np.abs(rng.normal(size=(13, 5)))
OTHER = np.abs(rng.normal(size=(13, 5)))


def loss_between(features, target):
    return self_similarity_loss(features, similarity(target))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 1001])
def test_grid_is_regular_centred_and_inside(length):
    found = grid_positions(length)
    steps, count = np.diff(found), min(length, GRID)
    assert len(found) == count and found[0] >= 0 and found[-1] < length
    assert set(steps) <= {length // count, -(-length // count)}
    assert abs(found[0] - (length - 1 - found[-1])) <= 1


@pytest.mark.parametrize("projected", [False, True])
def test_samples_are_features_at_the_crossings(x64, projected):
    """Of a whole, of masked positions, and of windows whose samples add up to those of a whole."""
    features, mask = rng.normal(size=(10, 7, 4)), rng.uniform(size=(10, 7))
    if projected:
        features = ProjectedFeatures(features, rng.normal(size=(4, 6)), rng.normal(size=6))
    rows, columns, every = np.array([0, 4, 5, 9]), np.array([2, 6]), np.asarray(dense(features))
    expected = np.stack([every[y, x] for y in rows for x in columns])
    whole = sample(features, rows, columns)
    np.testing.assert_allclose(whole, expected, rtol=1e-12)
    factors = np.array([[mask[y, x]] for y in rows for x in columns])
    found = sample(features, rows, columns, mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, factors * expected, rtol=1e-12)
    total = 0
    for first, last, owned in ((0, 7, (0, 5)), (3, 10, (5, 10))):
        part = (features.own if projected else features)[first:last]
        mask = np.zeros(part.shape[:2])
        mask[owned[0] - first : owned[1] - first] = 1
        window = features._replace(own=part) if projected else part
        total += sample(window, rows - first, columns, mask=jnp.asarray(mask))
    np.testing.assert_allclose(total, whole, rtol=1e-12)


def test_samples_of_half_precision_features_are_float32():
    found = sample(jnp.ones((3, 3, 2), jnp.bfloat16), np.array([0, 7]), np.array([2]))
    np.testing.assert_array_equal(found, [[1, 1], [0, 0]])
    assert found.dtype == np.float32


def test_self_similarity_is_numpys(x64, variant):
    found = variant(lambda x, y: (similarity(x), loss_between(x, y)), FEATURES, OTHER)
    expected, target = oracle.similarity(FEATURES), oracle.similarity(OTHER)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], np.abs(expected - target).sum() / 13, rtol=1e-10)


def test_self_similarity_depends_on_directions_only(x64):
    """Not on the lengths of features, the order of channels, or an orthogonal basis."""
    loss = loss_between(FEATURES, OTHER)
    assert 0.1 < loss <= 2
    lengths = np.logspace(-3, 3, 13)[:, None]
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for same in (1e4 * FEATURES, lengths * FEATURES, FEATURES[:, ::-1], FEATURES @ basis):
        np.testing.assert_allclose(loss_between(same, OTHER), loss, rtol=1e-9)


def test_self_similarity_of_equal_and_of_zero_features(x64):
    """Distances of one direction are 0; a zero feature has the distance 1 from all."""
    parallel = np.outer(np.linspace(0.1, 4, 7), FEATURES[0])
    assert not np.any(similarity(parallel)) and not np.any(similarity(FEATURES[:1]))
    np.testing.assert_allclose(similarity(np.zeros((4, 3))), np.full((4, 4), 0.25))
    dead = FEATURES.copy()
    dead[3] = 0
    np.testing.assert_allclose(similarity(dead), oracle.similarity(dead), rtol=1e-10, atol=1e-12)


def test_self_similarity_has_gradient_0_at_the_content(x64):
    """There every |x| is at its kink."""
    value, gradient = jax.value_and_grad(loss_between)(FEATURES, FEATURES)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_self_similarity_and_its_gradient_are_finite_for_degenerate_features(x64, dtype):
    dead = FEATURES * (np.arange(13) % 2)[:, None]
    near = FEATURES[:1] + 1e-7 * FEATURES
    cases = [FEATURES, 0 * FEATURES, dead, FEATURES[:1] + 0 * FEATURES, near]
    cases += [1e4 * FEATURES, 1e-25 * FEATURES, FEATURES * [1, 0, 0, 1, 0]]
    cases = jnp.asarray(np.stack(cases), dtype)
    pairs = jax.vmap(jax.vmap(jax.value_and_grad(loss_between), (None, 0)), (0, None))
    values, gradients = jax.jit(pairs)(cases, cases)
    assert values.dtype == gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    assert (np.asarray(values) <= 2.001).all()
    own = np.diagonal(values)
    assert (np.delete(own, 4) < 1e-6).all() and own[4] < 0.05  # rounding shows in nearly equal ones


@pytest.mark.parametrize("padding, mode", [("reflect", "nearest"), ("circular", "wrap")])
@pytest.mark.parametrize("pool, shape", [(4, (22, 31, 3)), (1, (3, 1, 3))])
def test_laplacian_is_scipys(x64, variant, pool, shape, padding, mode):
    """The first shape is not a multiple of the squares."""
    image, other = rng.uniform(size=shape), rng.uniform(size=shape)
    target = oracle.laplacian(other, pool, mode)
    mask = rng.uniform(size=target.shape)
    options = {"pool": pool, "padding": padding}

    def all_of(image, target, mask):
        return (
            laplacian(image, **options),
            laplacian_sum(image, target, **options),
            laplacian_sum(image, target, mask=mask, **options),
        )

    found = variant(all_of, image, target, mask)
    expected = oracle.laplacian(image, pool, mode)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)
    squares = (expected - target) ** 2
    np.testing.assert_allclose(found[1], squares.sum(), rtol=1e-10)
    np.testing.assert_allclose(found[2], (mask * squares).sum(), rtol=1e-10)


@pytest.mark.slow
def test_gradients_to_second_order(x64):
    loss = jax.jit(lambda x: loss_between(x, OTHER))
    check_grads(loss, (FEATURES,), order=2, rtol=1e-5, eps=1e-6)
    image, target = rng.uniform(size=(9, 13, 3)), rng.uniform(size=(2, 3))
    loss = jax.jit(lambda x: laplacian_sum(x, target, pool=4, padding="circular"))
    check_grads(loss, (image,), order=2, rtol=1e-5, eps=1e-5)
