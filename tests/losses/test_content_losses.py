"""Self-similarity and Laplacians against loops over positions and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from nst_jax.losses import laplacian, self_similarity_loss
from nst_jax.losses.content import GRID, grid_positions, laplacian_sum, sample, similarity
from nst_jax.models import ProjectedFeatures, dense

rng = np.random.default_rng(0)
FEATURES = np.abs(rng.normal(size=(13, 5)))
OTHER = np.abs(rng.normal(size=(13, 5)))


def numpy_similarity(features):
    n = len(features)
    distances = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            lengths = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
            distances[i, j] = 1 - features[i] @ features[j] / lengths
    return distances / distances.sum(0)


def loss_between(features, target):
    return self_similarity_loss(features, similarity(target))


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 50, 64, 100, 1001])
def test_grid_is_regular_and_inside(length):
    found = grid_positions(length)
    steps, count = np.diff(found), min(length, GRID)
    assert len(found) == count and found[0] >= 0 and found[-1] < length
    assert set(steps) <= {length // count, -(-length // count)}
    assert abs(found[0] - (length - 1 - found[-1])) <= 1  # as far from both ends


@pytest.mark.parametrize("lifted", [False, True])
def test_samples_are_features_at_the_crossings(x64, lifted):
    features, mask = rng.normal(size=(6, 9, 4)), rng.uniform(size=(6, 9))
    if lifted:
        features = ProjectedFeatures(features, rng.normal(size=(4, 7)), rng.normal(size=7))
    rows, columns, every = np.array([0, 3, 5]), np.array([1, 8]), np.asarray(dense(features))
    picked = np.stack([every[y, x] for y in rows for x in columns])
    np.testing.assert_allclose(sample(features, rows, columns), picked, rtol=1e-12)
    factors = np.array([[mask[y, x]] for y in rows for x in columns])
    found = sample(features, rows, columns, mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, factors * picked, rtol=1e-12)


@pytest.mark.parametrize("lifted", [False, True])
def test_samples_of_windows_add_up_to_those_of_the_whole(x64, lifted):
    """Each window has its own numbers of rows and columns, and zeros for what it does not own."""
    features = rng.normal(size=(10, 7, 4))
    rows, columns = np.array([0, 4, 5, 9]), np.array([2, 6])
    whole, total = features, 0
    if lifted:
        whole = ProjectedFeatures(features, rng.normal(size=(4, 6)), rng.normal(size=6))
    for first, last, owned in ((0, 7, (0, 5)), (3, 10, (5, 10))):
        part = features[first:last]
        mask = np.zeros(part.shape[:2])
        mask[owned[0] - first : owned[1] - first] = 1
        window = whole._replace(own=part) if isinstance(whole, ProjectedFeatures) else part
        total += sample(window, rows - first, columns, mask=jnp.asarray(mask))
    np.testing.assert_allclose(total, sample(whole, rows, columns), rtol=1e-12)


def test_samples_of_half_precision_features_are_float32():
    found = sample(jnp.ones((3, 3, 2), jnp.bfloat16), np.array([0, 7]), np.array([2]))
    np.testing.assert_array_equal(found, [[1, 1], [0, 0]])
    assert found.dtype == np.float32


def test_self_similarity_is_numpys(x64, variant):
    found = variant(lambda x, y: (similarity(x), loss_between(x, y)), FEATURES, OTHER)
    expected, target = numpy_similarity(FEATURES), numpy_similarity(OTHER)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], np.abs(expected - target).sum() / 13, rtol=1e-10)


def test_self_similarity_sees_directions_only(x64):
    """Not the length of each feature, nor the order of channels, nor an orthogonal basis."""
    loss = loss_between(FEATURES, OTHER)
    assert loss > 0.1
    lengths = np.logspace(-3, 3, 13)[:, None]
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for same in (1e4 * FEATURES, 1e-6 * FEATURES, lengths * FEATURES, FEATURES[:, ::-1]):
        np.testing.assert_allclose(loss_between(same, OTHER), loss, rtol=1e-9)
    np.testing.assert_allclose(loss_between(FEATURES @ basis, OTHER), loss, rtol=1e-9)
    assert abs(loss_between(lengths * FEATURES, FEATURES)) < 1e-9
    # At most 2: of sums of 1 that have nothing in common.
    pair, other = np.eye(2)[[0, 0, 1]], np.eye(2)[[0, 1, 0]]
    assert 0 < loss_between(pair, other) <= 2


def test_self_similarity_of_what_has_no_distances(x64):
    """Of one direction all are 0; what has no direction is as far from all as can be."""
    alike = np.outer(np.linspace(0.1, 4, 7), FEATURES[0])
    assert not np.any(similarity(alike)) and not np.any(similarity(FEATURES[:1]))
    np.testing.assert_allclose(similarity(np.zeros((4, 3))), np.full((4, 4), 0.25))
    dead = FEATURES.copy()
    dead[3] = 0
    np.testing.assert_allclose(similarity(dead)[3] * dead_sums(dead), np.ones(13), rtol=1e-12)


def dead_sums(features):
    """Sums of distances to every position where features of length 0 are at distance 1."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.where(lengths > 0, lengths, 1)
    return (1 - directions @ directions.T).sum(0)


def test_gradient_is_0_where_the_image_is_the_content(x64):
    """At the kink of every |x| at once."""
    value, gradient = jax.value_and_grad(loss_between)(FEATURES, FEATURES)
    assert value == 0 and not np.any(gradient)
    part = FEATURES * np.where(np.arange(13) < 9, 1, 2)[:, None]  # nothing but lengths
    assert np.abs(jax.grad(loss_between)(part, FEATURES)).max() < 1e3


@pytest.mark.slow
def test_gradients_of_self_similarity_to_second_order(x64):
    check_grads(
        jax.jit(lambda x: loss_between(x, OTHER)), (FEATURES,), order=2, rtol=1e-5, eps=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_self_similarity_is_finite_where_something_is_missing(x64, dtype):
    dead = FEATURES * (np.arange(13) % 2)[:, None]
    near = FEATURES[:1] + 1e-7 * FEATURES
    cases = [FEATURES, 0 * FEATURES, dead, FEATURES[:1] + 0 * FEATURES, near]
    cases += [1e4 * FEATURES, 1e-6 * FEATURES, 1e-25 * FEATURES, FEATURES * [1, 0, 0, 1, 0]]
    cases = jnp.asarray(np.stack(cases), dtype)
    pairs = jax.vmap(jax.vmap(jax.value_and_grad(loss_between), (None, 0)), (0, None))
    values, gradients = jax.jit(pairs)(cases, cases)
    assert values.dtype == gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    assert (np.asarray(values) <= 2.001).all()
    own = np.diagonal(values)
    assert (np.delete(own, 4) < 1e-6).all() and own[4] < 0.05  # nearly alike, rounding shows


def numpy_laplacian(image, pool, mode):
    """SciPy's Laplacian of each colour of the averaged image, summed."""
    height, width = image.shape[0] // pool, image.shape[1] // pool
    small = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            square = image[y * pool : (y + 1) * pool, x * pool : (x + 1) * pool]
            small[y, x] = square.mean((0, 1))
    return sum(ndimage.laplace(small[..., colour], mode=mode) for colour in range(3))


@pytest.mark.parametrize("padding, mode", [("reflect", "nearest"), ("circular", "wrap")])
@pytest.mark.parametrize("pool, shape", [(4, (22, 31, 3)), (16, (16, 50, 3)), (1, (3, 1, 3))])
def test_laplacian_is_scipys(x64, variant, pool, shape, padding, mode):
    """Also of sides that are no multiples of the squares', and of a single square."""
    image, other = rng.uniform(size=shape), rng.uniform(size=shape)
    target = numpy_laplacian(other, pool, mode)
    mask = rng.uniform(size=target.shape)
    given = {"pool": pool, "padding": padding}

    def all_of(image, target, mask):
        return (
            laplacian(image, **given),
            laplacian_sum(image, target, **given),
            laplacian_sum(image, target, mask=mask, **given),
        )

    found = variant(all_of, image, target, mask)
    expected = numpy_laplacian(image, pool, mode)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)
    squares = (expected - target) ** 2
    np.testing.assert_allclose(found[1], squares.sum(), rtol=1e-10)
    np.testing.assert_allclose(found[2], (mask * squares).sum(), rtol=1e-10)


@pytest.mark.slow
def test_gradients_of_laplacians_to_second_order(x64):
    image, target = rng.uniform(size=(9, 13, 3)), rng.uniform(size=(2, 3))
    for padding in ("zero", "circular"):
        value = jax.jit(lambda x, p=padding: laplacian_sum(x, target, pool=4, padding=p))
        check_grads(value, (image,), order=2, rtol=1e-5, eps=1e-5)
    flat = np.full((9, 13, 3), 0.3)
    np.testing.assert_allclose(laplacian(flat, pool=4), 0, atol=1e-15)
