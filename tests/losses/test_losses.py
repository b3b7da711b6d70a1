"""The loss terms against plain NumPy, and their gradients against finite differences."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from nst_jax.losses import gram as losses
from nst_jax.models import ProjectedFeatures

generator = np.random.default_rng(0)
FEATURES = generator.normal(size=(5, 7, 3)).astype(np.float32)
OTHER = generator.normal(size=(5, 7, 3)).astype(np.float32)


def numpy_gram(features):
    height, width, channels = features.shape
    gram = np.zeros((channels, channels))
    for y in range(height):
        for x in range(width):
            gram += np.outer(features[y, x], features[y, x])
    return gram


@pytest.mark.parametrize("normalization, divisor", [("hw", 35), ("chw", 105)])
def test_gram_matrix(variant, normalization, divisor):
    def function(features):
        return losses.gram_matrix(features, normalization=normalization)

    actual = variant(function, FEATURES)
    np.testing.assert_allclose(actual, numpy_gram(FEATURES) / divisor, rtol=1e-5, atol=1e-6)


def test_gram_matrix_sums_half_precision_features_in_float32():
    ones = jax.numpy.ones((64, 64, 2), jax.numpy.bfloat16)  # bfloat16 cannot count to 4096
    gram = losses.gram_sum(ones)
    assert gram.dtype == np.float32
    np.testing.assert_array_equal(gram, np.full((2, 2), 4096.0))


def test_gram_sum_of_half_precision_products_is_in_float32():
    """Those of a slim network, whose sums with the bias and number of positions count too."""
    own = jax.numpy.ones((64, 64, 2), jax.numpy.bfloat16)
    lifted = ProjectedFeatures(own, np.ones((2, 3), np.float32), np.ones(3, np.float32))
    mask = np.ones((64, 64), np.float32)
    mask[0, 0] = 0
    for given, count in (({}, 4096), ({"mask": mask}, 4095)):
        gram = losses.gram_sum(lifted, **given)
        assert gram.dtype == np.float32
        np.testing.assert_array_equal(gram, np.full((3, 3), 9.0 * count))


@pytest.mark.parametrize("lifted", [False, True])
def test_a_soft_mask_of_half_precision_features_is_not_rounded(lifted):
    """0.3 is 0.26 % more in bfloat16: of constant features a constant mask changes nothing."""
    own = np.full((16, 16, 2), 255 / 256, jax.numpy.bfloat16)  # the last before 1
    mask = np.full((16, 16), 0.3, np.float32)
    kernel, bias = np.float32([[1, 2, -1], [3, 0, 1]]), np.float32([0.5, 1, 2])

    def gram(own, mask=None):
        return losses.gram_matrix(
            ProjectedFeatures(own, kernel, bias) if lifted else own, mask=mask
        )

    def changed(own, mask=None):
        return jax.jvp(lambda own: gram(own, mask), (own,), (jax.numpy.ones_like(own),))

    for found, expected in zip(changed(own, mask), changed(own), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    gradient = jax.grad(lambda own, mask: gram(own, mask).sum())
    found, expected = gradient(own, mask), gradient(own, None)
    assert found.dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_mask_of_booleans_is_one_of_zeros_and_ones(dtype):
    features, mask = jax.numpy.asarray(FEATURES, dtype), generator.uniform(size=(5, 7)) < 0.5
    for given in (features, ProjectedFeatures(features, OTHER[0].T, OTHER[0, :, 0])):
        found, expected = (losses.gram_sum(given, mask=m) for m in (mask, np.float32(mask)))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    products = str(jax.make_jaxpr(lambda x: losses.gram_sum(x, mask=mask))(features))
    assert ("f32[35,3]" in products) == (dtype == "float32")  # no copy of the features


def test_gram_sum_is_additive_over_pixels():
    parts = losses.gram_sum(FEATURES[:2]) + losses.gram_sum(FEATURES[2:])
    np.testing.assert_allclose(parts, losses.gram_sum(FEATURES), rtol=1e-5, atol=1e-5)


def test_content_loss(variant):
    expected = ((FEATURES - OTHER) ** 2).mean()
    np.testing.assert_allclose(variant(losses.content_loss, FEATURES, OTHER), expected, rtol=1e-6)


def test_style_loss(variant):
    gram, target = numpy_gram(FEATURES) / 35, numpy_gram(OTHER) / 35
    gram, target = gram.astype(np.float32), target.astype(np.float32)
    expected = ((gram - target) ** 2).mean()
    np.testing.assert_allclose(variant(losses.style_loss, gram, target), expected, rtol=1e-5)


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="expected 'hw' or 'chw'"):
        losses.gram_matrix(FEATURES, normalization="c")


@pytest.mark.parametrize(
    "function, arguments",
    [
        (lambda f: losses.gram_matrix(f, normalization="hw").sum(), (FEATURES,)),
        (lambda f: losses.gram_matrix(f, normalization="chw")[0, 1], (FEATURES,)),
        (losses.content_loss, (FEATURES, OTHER)),
        (
            lambda f, g: losses.style_loss(losses.gram_matrix(f), losses.gram_matrix(g)),
            (FEATURES, OTHER),
        ),
    ],
    ids=["gram hw", "gram chw", "content", "style"],
)
def test_gradients_to_second_order(x64, function, arguments):
    arguments = [np.asarray(argument, np.float64) for argument in arguments]
    check_grads(function, arguments, order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
