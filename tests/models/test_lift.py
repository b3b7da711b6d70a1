"""Slim networks: features kept as a product, and everything that is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nst_jax.config import PRESETS, Config
from nst_jax.errors import InputError
from nst_jax.losses import gram_matrix, loss_weights, make_loss
from nst_jax.losses.gram import gram_sum
from nst_jax.models import (
    ProjectedFeatures,
    convolution,
    dense,
    features,
    network_features,
    prepare_kernels,
)
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


def test_dense_is_the_product(x64, product):
    own, kernel, bias = (np.asarray(array, np.float64) for array in product[:3])
    expected = np.einsum("hwc,cd->hwd", own, kernel) + bias
    np.testing.assert_allclose(dense(product), expected, rtol=1e-6)
    assert positions(product) == positions(expected) == 20
    assert dense(expected) is expected


def test_gram_sum_is_that_of_the_dense_features(x64):
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

    ours = jax.grad(value)(product.own, gram_sum)
    plain = jax.grad(value)(product.own, lambda p: gram_sum(dense(p)))
    np.testing.assert_allclose(ours, plain, rtol=1e-11)
    check_grads(lambda own: gram_sum(product._replace(own=own)), (product.own,), order=2)


def test_gram_sum_under_every_transformation(variant, product):
    product = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), product)
    found = variant(lambda *parts: gram_sum(ProjectedFeatures(*parts)), *product[:3])
    np.testing.assert_allclose(found, gram_sum(dense(product)), rtol=1e-5, atol=1e-5)


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("normalization", ["hw", "chw"])
@pytest.mark.slow
def test_objective_is_that_of_the_dense_features(
    x64, slim_variables, content, style, pooling, normalization
):
    config = CONFIG.but(pooling=pooling, gram_normalization=normalization)
    slim = as_float64(slim_variables)
    photos = as_float64((content, style))
    loss = make_loss(config.loss)
    targets = loss.targets(slim, photos[0], photos[1], weights=loss_weights(config))
    image = photos[0] ** 2

    def value(image):
        return loss.head(loss.statistics(slim, image, targets), targets)[0]

    layers = ("relu2_2", "relu1_1", "relu3_1")

    def plain(image):
        of = {
            name: features(slim, photo, layers=layers, pooling=pooling)
            for name, photo in zip(("c", "s", "x"), (*photos, image), strict=True)
        }
        difference = of["x"]["relu2_2"] - of["c"]["relu2_2"]
        total = config.loss.content_weight * jnp.mean(jnp.square(difference))
        for layer, factor in config.loss.style_layers:
            grams = [gram_matrix(of[k][layer], normalization=normalization) for k in ("x", "s")]
            mse = jnp.mean(jnp.square(grams[0] - grams[1]))
            total += config.loss.style_weight * factor * mse
        return total

    assert features(slim, image, layers=("relu3_1",))["relu3_1"].shape[-1] == 256
    np.testing.assert_allclose(value(image), plain(image), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(value)(image), jax.grad(plain)(image), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_gradient_of_the_objective(x64, slim_variables):
    slim, photo = as_float64(slim_variables), jnp.full((8, 9, 3), 0.4)
    photo += 0.1 * jax.random.normal(jax.random.key(1), photo.shape)
    config = CONFIG.but(pooling="average", style_weight=1e-3)
    loss = make_loss(config.loss)
    targets = loss.targets(slim, photo, photo**2, weights=loss_weights(config))
    check_grads(
        lambda x: loss.head(loss.statistics(slim, x, targets), targets)[0],
        (photo + 0.05,),
        order=2,
        modes=("rev",),
    )


def test_prepared_kernels_change_nothing(slim_variables, content, monkeypatch):
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 1)
    plain = network_features(slim_variables, content, layers=("relu3_1",))["relu3_1"]
    for method in ("direct", "winograd"):
        prepared = prepare_kernels(slim_variables, convolution=method)
        assert set(prepared["prepared"]) == set(slim_variables["params"])
        side = {"direct": 3, "winograd": 6}[method]
        assert prepared["prepared"]["conv2_1"]["forward"].shape[0] == side
        found = network_features(prepared, content, layers=("relu3_1",))["relu3_1"]
        np.testing.assert_allclose(dense(found), dense(plain), rtol=1e-4, atol=1e-3)


def test_what_was_not_learned_is_refused(slim_variables, content):
    with pytest.raises(InputError, match="trained for the layers relu1_1, relu2_2.*not relu3_2"):
        features(slim_variables, content, layers=("relu1_1", "relu3_2"))
    only_max: Variables = {**slim_variables, "lift": {"max": slim_variables["lift"]["max"]}}
    with pytest.raises(InputError, match="trained for max pooling, not average.*weights fetch"):
        features(only_max, content, layers=("relu1_1",), pooling="average")
    for pooling in ("average-scaled", "l2"):
        message = f"trained for max and average pooling, not {pooling}; .*weights fetch"
        with pytest.raises(InputError, match=message):
            features(slim_variables, content, layers=("relu1_1",), pooling=pooling)
    with pytest.raises(InputError, match="not relu4_2"):
        stylize(slim_variables, content, content, config=PRESETS["gatys"].config)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_stylize_takes_slim_variables_like_any_other(slim_variables, content, style, optimizer):
    config = CONFIG.but(optimizer=optimizer, steps=8, init="content")
    result = stylize(slim_variables, content, style, config=config)
    assert result.status == "done"
    assert result.loss < 0.8 * result.history.loss[0]
