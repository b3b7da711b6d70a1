"""Losses of means and covariances against NumPy, SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.numpy_losses import moment_losses
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


@jax.jit
def distance(first, second):
    return wasserstein_loss(*first, *second, eps=EPS)


def gaussian(matrix, mean=None):
    """Mean (by default 0) and second moments of a Gaussian with this covariance."""
    mean = np.zeros(len(matrix)) if mean is None else mean
    return mean, matrix + np.outer(mean, mean)


def test_covariance_and_mean_std_loss_are_numpys(x64, variant):
    features = [rng.normal(size=(30, 4)) * scale + 1 for scale in (1, 3)]
    first, second = ((x.mean(0), x.T @ x / 30) for x in features)
    expected = np.cov(features[1].T, bias=True)
    np.testing.assert_allclose(variant(covariance, *second), expected, rtol=1e-12)
    squares = [np.diag(gram) for _, gram in (first, second)]
    found = variant(mean_std_loss, first[0], squares[0], second[0], squares[1])
    np.testing.assert_allclose(found, moment_losses(first, second)["mean-std"], rtol=1e-12)


def test_variances_that_rounding_made_negative_count_as_0(x64):
    np.testing.assert_allclose(standard_deviation(np.ones(1), np.full(1, 1 - 1e-7)), 1e-5**0.5)


@pytest.mark.parametrize("kind", ["regular", "one channel", "few positions", "dead channels"])
def test_wasserstein_loss_is_numpys(x64, kind):
    """Also for singular covariances: fewer positions than channels, and dead channels."""
    pair = [moments(1), moments(1)] if kind == "one channel" else [FIRST, SECOND]
    if kind == "few positions":
        pair = [moments(6, 3), moments(6)]
    if kind == "dead channels":
        pair = [moments(6), moments(6)]
        pair[1][0][:2] = pair[1][1][:2] = pair[1][1][:, :2] = 0
    for first, second in (pair, pair[::-1]):
        expected = moment_losses(first, second, eps=EPS)["wasserstein"]
        np.testing.assert_allclose(distance(first, second), expected, rtol=1e-9)


def test_wasserstein_loss_has_the_properties_of_a_distance(x64):
    assert abs(distance(FIRST, FIRST)) < 1e-13 * np.trace(FIRST[1])
    # For covariances that commute, it is the difference of their roots.
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    values = rng.uniform(0.5, 4, size=(2, 5))
    pair = [gaussian(basis * v @ basis.T) for v in values]
    expected = ((np.sqrt(values[0] + EPS) - np.sqrt(values[1] + EPS)) ** 2).mean()
    np.testing.assert_allclose(distance(*pair), expected, rtol=1e-11)
    # It is the same in a rotated basis.
    rotated = [(basis @ mean, basis @ gram @ basis.T) for mean, gram in (FIRST, SECOND)]
    np.testing.assert_allclose(distance(*rotated), distance(FIRST, SECOND), rtol=1e-11)
    # For equal covariances, it is the difference of the means.
    shift = rng.normal(size=5)
    shifted = gaussian(FIRST[1] - np.outer(FIRST[0], FIRST[0]), FIRST[0] + shift)
    np.testing.assert_allclose(distance(FIRST, shifted), (shift**2).mean(), rtol=1e-11)


def test_gradient_of_the_wasserstein_loss_is_its_closed_form(x64):
    """dW/dS = (I - T) / C with the map T = S'^(1/2) (S'^(1/2) S S'^(1/2))^(-1/2) S'^(1/2)."""
    first, second = (g - np.outer(m, m) + EPS * np.eye(5) for m, g in (FIRST, SECOND))
    root = sqrtm(second).real
    transport = root @ np.linalg.inv(sqrtm(root @ first @ root).real) @ root
    by_mean, by_gram = jax.grad(distance)(FIRST, SECOND)
    of_covariance = (np.eye(5) - transport) / 5
    np.testing.assert_allclose(by_gram, of_covariance, rtol=1e-9, atol=1e-10)
    expected = 2 * (FIRST[0] - SECOND[0]) / 5 - 2 * of_covariance @ FIRST[0]
    np.testing.assert_allclose(by_mean, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_second_derivative_of_the_wasserstein_loss_with_equal_eigenvalues(x64):
    """Formulas with eigenvectors divide 0 by 0 here."""
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    mean, gram = jnp.zeros(8), jnp.asarray(basis * np.repeat([3.0, 0.5], 4) @ basis.T)
    loss = lambda gram: wasserstein_loss(mean, gram, mean, jnp.eye(8), eps=EPS)  # noqa: E731
    check_grads(loss, (gram,), order=2, modes=("rev",), rtol=1e-5, eps=1e-6)


def test_gradients(x64):
    squares = [np.diagonal(gram) for _, gram in (FIRST, SECOND)]
    given = (FIRST[0], squares[0], SECOND[0], squares[1])
    check_grads(jax.jit(mean_std_loss), given, order=2, rtol=1e-5, eps=1e-6)
    check_grads(jax.jit(covariance), FIRST, order=2, rtol=1e-5, eps=1e-6)
    check_grads(distance, (FIRST, SECOND), order=1, modes=("rev",), rtol=1e-5, eps=1e-6)


def degenerate_features():
    """Features ``[cases, 4, 4, 6]`` and masks: constant, zero, dead, huge, tiny; few positions."""
    plain = np.abs(rng.normal(size=(4, 4, 6))) + 0.1
    dead = plain * np.array([0, 0, 1, 1, 0, 1])
    same = np.broadcast_to(plain[:1, :1], plain.shape)
    features = [plain, same, 0 * plain, dead, 1e4 * plain, 1e-6 * plain, 1e4 * same, 1e-6 * same]
    whole, one, two, empty = np.ones((4, 4)), np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    one[1, 2] = two[1, 2] = two[3, 3] = 1
    masks = [whole] * len(features) + [one, two, empty, 0.3 * one]
    return np.stack(features + [plain] * 4), np.stack(masks)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_values_and_gradients_are_finite_for_degenerate_features(x64, dtype):
    """Each case against each, itself included, by each of the losses."""
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
        pairs = lambda f: jax.vmap(jax.vmap(f, (None, None, 0)), (0, 0, None))  # noqa: E731
        given = features, masks, targets
        return pairs(losses)(*given), pairs(jax.jacrev(losses))(*given)

    values, gradients = values_and_gradients(features, masks)
    assert values.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradients.dtype == dtype
    assert np.isfinite(values).all() and np.isfinite(np.float64(gradients)).all()
    # A case against itself is 0 up to the rounding of second moments, or to the fallback.
    own = np.asarray(values)[range(12), range(12), 2]
    sizes = np.float64(features).max((1, 2, 3)) ** 2
    assert (np.abs(own) <= 1e-4 * sizes + 1e-7).all()
