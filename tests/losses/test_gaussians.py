"""Losses of means and covariances against NumPy, SciPy's root of matrices and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.linalg import sqrtm

from nst_jax.losses import covariance, mean_std_loss, wasserstein_loss
from nst_jax.losses.gaussian import standard_deviation
from nst_jax.losses.gram import divided, moment_sums, position_sum

rng = np.random.default_rng(0)
EPS = 1e-4


def moments(channels=5, positions=40):
    """Mean and second moments of correlated features, float64."""
    features = rng.normal(size=(positions, channels)) @ rng.normal(size=(channels, channels))
    features += rng.normal(size=channels)
    return features.mean(0), features.T @ features / positions


FIRST, SECOND = moments(), moments()


def numpy_covariance(mean, gram):
    return gram - np.outer(mean, mean)


def numpy_wasserstein(mean, gram, target_mean, target_gram, eps=EPS):
    """The textbook's formula."""
    identity = np.eye(len(mean))
    first, second = numpy_covariance(mean, gram), numpy_covariance(target_mean, target_gram)
    first, second = first + eps * identity, second + eps * identity
    root = sqrtm(second).real
    cross = sqrtm(root @ first @ root).real
    distance = ((mean - target_mean) ** 2).sum() + np.trace(first + second - 2 * cross)
    return distance / len(mean)


def of(first, second):
    return wasserstein_loss(*first, *second, eps=EPS)


def gaussian(matrix, mean=None):
    """Moments of a covariance matrix and a mean, 0 where it is left out."""
    mean = np.zeros(len(matrix)) if mean is None else mean
    return mean, matrix + np.outer(mean, mean)


def test_covariance_is_numpys(x64, variant):
    features = rng.normal(size=(30, 4)) + 3
    found = variant(covariance, features.mean(0), features.T @ features / 30)
    np.testing.assert_allclose(found, np.cov(features.T, bias=True), rtol=1e-12)


def test_mean_std_loss(x64, variant):
    features = [rng.normal(size=(30, 4)) * scale + 1 for scale in (1, 3)]
    given = [part for x in features for part in (x.mean(0), (x**2).mean(0))]
    means, deviations = ([of(x) for x in features] for of in (np_mean, np_deviation))
    expected = ((means[0] - means[1]) ** 2).mean() + ((deviations[0] - deviations[1]) ** 2).mean()
    np.testing.assert_allclose(variant(mean_std_loss, *given), expected, rtol=1e-12)


def np_mean(features):
    return features.mean(0)


def np_deviation(features):
    return np.sqrt(features.var(0) + 1e-5)


def test_a_negative_variance_counts_as_0(x64):
    """As rounding gives it."""
    np.testing.assert_allclose(standard_deviation(np.ones(1), np.full(1, 1 - 1e-7)), 1e-5**0.5)


def test_wasserstein_loss_is_the_textbooks(x64, variant):
    for first, second in ((FIRST, SECOND), (SECOND, FIRST), (moments(1), moments(1))):
        found = variant(lambda *given: wasserstein_loss(*given, eps=EPS), *first, *second)
        np.testing.assert_allclose(found, numpy_wasserstein(*first, *second), rtol=1e-10)


def test_wasserstein_loss_of_singular_covariances_is_the_textbooks(x64):
    """Of fewer positions than channels, and of channels that are dead."""
    few, dead = moments(6, 3), moments(6)
    for part in dead:
        part[..., :2] = 0
    dead[1][:2] = 0
    for first, second in ((few, dead), (dead, few), (few, moments(6, 3)), (dead, moments(6))):
        np.testing.assert_allclose(of(first, second), numpy_wasserstein(*first, *second), rtol=1e-9)


def test_wasserstein_loss_has_the_distances_properties(x64):
    size = np.trace(FIRST[1])
    assert abs(of(FIRST, FIRST)) < 1e-13 * size  # of the same Gaussian
    np.testing.assert_allclose(of(FIRST, SECOND), of(SECOND, FIRST), rtol=1e-12)
    # Covariances that commute: the difference of their roots.
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    values = rng.uniform(0.5, 4, size=(2, 5))
    pair = [gaussian(basis * v @ basis.T) for v in values]
    expected = ((np.sqrt(values[0] + EPS) - np.sqrt(values[1] + EPS)) ** 2).mean()
    np.testing.assert_allclose(of(*pair), expected, rtol=1e-11)
    # The same in other coordinates.
    turned = [(basis @ mean, basis @ gram @ basis.T) for mean, gram in (FIRST, SECOND)]
    np.testing.assert_allclose(of(*turned), of(FIRST, SECOND), rtol=1e-11)
    # A mere shift.
    shift = rng.normal(size=5)
    shifted = gaussian(numpy_covariance(*FIRST), FIRST[0] + shift)
    np.testing.assert_allclose(of(FIRST, shifted), (shift**2).mean(), rtol=1e-11)


def test_gradient_of_the_wasserstein_loss_is_its_closed_form(x64):
    """dW/dS = (I - T) / C with the map T = S'^(1/2) (S'^(1/2) S S'^(1/2))^(-1/2) S'^(1/2)."""
    first, second = (numpy_covariance(*given) + EPS * np.eye(5) for given in (FIRST, SECOND))
    root = sqrtm(second).real
    transport = root @ np.linalg.inv(sqrtm(root @ first @ root).real) @ root
    by_mean, by_gram = jax.grad(lambda *given: of(given, SECOND), argnums=(0, 1))(*FIRST)
    of_covariance = (np.eye(5) - transport) / 5
    np.testing.assert_allclose(by_gram, of_covariance, rtol=1e-9, atol=1e-10)
    expected = 2 * (FIRST[0] - SECOND[0]) / 5 - 2 * of_covariance @ FIRST[0]
    np.testing.assert_allclose(by_mean, expected, rtol=1e-9, atol=1e-10)


def newton_schulz(matrix, steps=12):
    """The root of a matrix as style-transfer-pytorch takes it."""
    norm = np.linalg.norm(matrix)
    root, inverse, three = matrix / norm, np.eye(len(matrix)), 3 * np.eye(len(matrix))
    for _ in range(steps):
        half = (three - inverse @ root) / 2
        root, inverse = root @ half, half @ inverse
    return root * norm**0.5


def test_second_derivatives_where_singular_values_coincide(x64):
    """Of one value eight times, and of two in blocks: 0/0 through the singular vectors."""
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for values in (np.full(8, 2.0), np.repeat([3.0, 0.5], 4)):
        mean, gram = jnp.zeros(8), jnp.asarray(basis * values @ basis.T)
        loss = lambda gram: wasserstein_loss(mean, gram, mean, jnp.eye(8), eps=EPS)  # noqa: E731, B023
        check_grads(loss, (gram,), order=2, modes=("rev",), rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize(
    "decades, bound", [(1, 1e-10), (3, 2e-3), (6, 3e-3)], ids=["1:10", "1:1e3", "1:1e6"]
)
def test_twelve_iterations_of_newton_and_schulz_come_near(x64, decades, bound):
    """How far the peer's value is from ours, of the sum of both traces, by condition number.

    Its roots of small eigenvalues are too small, those of S' and those of the product.
    """
    pair = []
    for _ in range(2):
        basis = np.linalg.qr(rng.normal(size=(24, 24)))[0]
        pair.append(gaussian(100 * basis * np.logspace(0, -decades, 24) @ basis.T))
    first, second = (matrix + EPS * np.eye(24) for _, matrix in pair)
    root = newton_schulz(second)
    cross = newton_schulz(root @ first @ root)
    theirs = np.trace(first + second - 2 * cross) / 24
    difference = (theirs - float(of(*pair))) / (np.trace(first + second) / 24)
    assert -1e-10 < difference < bound
    assert decades == 1 or difference > bound / 5


def test_gradients(x64):
    squares = [np.diagonal(gram) for _, gram in (FIRST, SECOND)]
    given = (FIRST[0], squares[0], SECOND[0], squares[1])
    check_grads(jax.jit(mean_std_loss), given, order=2, rtol=1e-5, eps=1e-6)
    check_grads(jax.jit(covariance), FIRST, order=2, rtol=1e-5, eps=1e-6)
    loss = jax.jit(lambda *given: wasserstein_loss(*given, eps=EPS))
    check_grads(loss, (*FIRST, *SECOND), order=1, modes=("rev",), rtol=1e-5, eps=1e-6)


def degenerate_features():
    """Images' features ``[cases, 4, 4, 6]`` and masks of them, in which something is missing."""
    plain = np.abs(rng.normal(size=(4, 4, 6))) + 0.1
    dead = plain * np.array([0, 0, 1, 1, 0, 1])
    same = np.broadcast_to(plain[:1, :1], plain.shape)
    features = [plain, same, 0 * plain, dead, 1e4 * plain, 1e-6 * plain, 1e4 * same, 1e-6 * same]
    whole, one, two, empty = np.ones((4, 4)), np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    one[1, 2] = two[1, 2] = two[3, 3] = 1
    masks = [whole] * len(features) + [one, two, empty, 0.3 * one]
    return np.stack(features + [plain] * 4), np.stack(masks)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_values_and_gradients_are_finite_where_something_is_missing(x64, dtype):
    """Of every case against every other, itself included, by each of the losses."""
    features, masks = (jnp.asarray(x) for x in degenerate_features())
    features = features.astype(dtype)
    masks = masks if dtype == "float64" else masks.astype(jnp.float32)

    def summed(features, mask):
        sums = moment_sums(features, wanted=frozenset({"gram", "mean", "squares"}), mask=mask)
        return divided(sums, jnp.maximum(position_sum(features, mask=mask), 1e-30))

    def losses(features, mask, target):
        x = summed(features, mask)
        return jnp.stack(
            [
                jnp.mean(jnp.square(covariance(x.mean, x.gram))),
                mean_std_loss(x.mean, x.squares, target.mean, target.squares),
                wasserstein_loss(x.mean, x.gram, target.mean, target.gram, eps=EPS),
            ]
        )

    @jax.jit
    def values_and_gradients(features, masks):
        targets = jax.vmap(summed)(features, masks)
        each = jax.vmap(jax.vmap(losses, in_axes=(None, None, 0)), in_axes=(0, 0, None))
        of_each = jax.vmap(
            jax.vmap(jax.jacrev(losses), in_axes=(None, None, 0)), in_axes=(0, 0, None)
        )
        return each(features, masks, targets), of_each(features, masks, targets)

    values, gradients = values_and_gradients(features, masks)
    assert values.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(np.float64(gradients)).all()
    # Of itself, to rounding of its second moments, or of what is added for it.
    own, size = (
        np.asarray(values)[range(12), range(12), 2],
        np.float64(features).max((1, 2, 3)) ** 2,
    )
    assert (np.abs(own) <= 1e-4 * size + 1e-7).all()
