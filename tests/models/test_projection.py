"""Slim networks: features kept as a product, and what is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nst_jax.config import PRESETS, Config
from nst_jax.errors import InputError
from nst_jax.losses import gram_matrix, loss_weights, make_loss
from nst_jax.losses.gram import gram_sum
from nst_jax.models import ProjectedFeatures, dense, features
from nst_jax.models.projection import positions
from nst_jax.transfer import stylize
from nst_jax.types import Variables

CONFIG = Config.of(
    content_layers=(("relu2_2", 1.0),),
    style_layers=(("relu1_1", 1.0), ("relu3_1", 0.5)),
    tv_weight=0.0,
)


@pytest.fixture
def product():
    rng = np.random.default_rng(3)
    shapes = (5, 4, 3), (3, 7), (7,)
    return ProjectedFeatures(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes))


def test_dense_multiplies_out(x64, product):
    own, kernel, bias = (np.asarray(array, np.float64) for array in product[:3])
    expected = np.einsum("hwc,cd->hwd", own, kernel) + bias
    np.testing.assert_allclose(dense(product), expected, rtol=1e-6)
    assert positions(product) == positions(expected) == 20
    assert dense(expected) is expected


def test_gram_sum_is_that_of_the_dense_features(x64):
    """Value and gradient."""
    rng = np.random.default_rng(4)
    own, kernel, bias = (rng.normal(size=shape) for shape in ((6, 5, 4), (4, 9), (9,)))
    flat = own.reshape(-1, 4) @ kernel + bias
    product = ProjectedFeatures(jnp.asarray(own), jnp.asarray(kernel), jnp.asarray(bias))
    np.testing.assert_allclose(gram_sum(product), flat.T @ flat, rtol=1e-12)
    np.testing.assert_allclose(
        gram_matrix(product, normalization="chw"), flat.T @ flat / (30 * 9), rtol=1e-12
    )

    def value(own, gram):
        return jnp.sum(jnp.square(gram(product._replace(own=own))))

    projected = jax.grad(value)(product.own, gram_sum)
    plain = jax.grad(value)(product.own, lambda p: gram_sum(dense(p)))
    np.testing.assert_allclose(projected, plain, rtol=1e-11)
    check_grads(lambda own: gram_sum(product._replace(own=own)), (product.own,), order=1)


@pytest.mark.slow
def test_objective_and_gradient_are_those_of_the_dense_features(
    x64, slim_variables, content, style
):
    config = CONFIG.but(pooling="average", gram_normalization="hw")
    slim, photo, painting = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), (slim_variables, content, style)
    )
    loss = make_loss(config.loss)
    targets = loss.targets(slim, photo, painting, weights=loss_weights(config))

    def value(image, slim, photo, painting, targets):
        return loss.head(loss.statistics(slim, image, targets), targets)[0]

    def plain(image, slim, photo, painting, targets):
        layers = ("relu2_2", "relu1_1", "relu3_1")
        x, c, s = (
            features(slim, given, layers=layers, pooling="average")
            for given in (image, photo, painting)
        )
        total = config.loss.content_weight * jnp.mean(jnp.square(x["relu2_2"] - c["relu2_2"]))
        for layer, weight in config.loss.style_layers:
            grams = [gram_matrix(taps[layer], normalization="hw") for taps in (x, s)]
            mse = jnp.mean(jnp.square(grams[0] - grams[1]))
            total += config.loss.style_weight * weight * mse
        return total

    given = photo**2, slim, photo, painting, targets
    found, gradient = jax.jit(jax.value_and_grad(value))(*given)
    expected, wanted = jax.jit(jax.value_and_grad(plain))(*given)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_layers_and_poolings_without_training_are_refused(slim_variables, content):
    with pytest.raises(InputError, match="trained for the layers relu1_1, relu2_2.*not relu3_2"):
        features(slim_variables, content, layers=("relu1_1", "relu3_2"))
    only_max: Variables = {**slim_variables, "lift": {"max": slim_variables["lift"]["max"]}}
    with pytest.raises(InputError, match="trained for max pooling, not average.*weights fetch"):
        features(only_max, content, layers=("relu1_1",), pooling="average")
    with pytest.raises(InputError, match="trained for max and average pooling, not l2; .*fetch"):
        features(slim_variables, content, layers=("relu1_1",), pooling="l2")
    with pytest.raises(InputError, match="not relu4_2"):
        stylize(slim_variables, content, content, config=PRESETS["gatys"].config)
