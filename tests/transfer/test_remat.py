"""Gradient checkpointing (``remat``): the same numbers in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import guided

from nst_jax.config import Config, Evaluation
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import init_variables, network_features

pytestmark = pytest.mark.sampled

LOW = Config.of(content_layers=["relu2_2", "conv3_1"], style_layers=["relu1_1", "relu2_2"])
STYLES = [smooth_image(30, 33, seed=2), smooth_image(26, 39, seed=3)]


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def evaluate(evaluation, config, variables, image, content, styles, given):
    """``((loss, terms), gradient)``, with everything as an argument, as in a run."""
    loss = make_loss(config.loss, evaluation=evaluation)
    targets = loss.targets(
        variables, content, styles, weights=loss_weights(config), **guided(given)
    )
    return jax.value_and_grad(
        lambda image: loss.head(loss.statistics(variables, image, targets), targets),
        has_aux=True,
    )(image)


def masks_of(height, width, count):
    masks = [smooth_image(height, width, seed=30 + i)[..., 0] for i in range(count)]
    return np.clip(1.6 * np.stack(masks) - 0.3, 0, 1)


GUIDED = {
    "content_masks": masks_of(28, 36, 2),
    "style_masks": [masks_of(30, 33, 1)[0], None],
    "preserve": masks_of(28, 36, 3)[2],
}


def same(found, expected):
    """To 1e-14 of each leaf's greatest value."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == np.float64 and x.shape == y.shape
        assert np.abs(x - y).max() <= 1e-14 * np.abs(y).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, network, again, given",
    [
        (LOW.but(pooling="l2", padding="reflect"), "full", False, {}),
        (LOW.but(pooling="average", padding="circular", guides="all"), "full", True, GUIDED),
        (LOW.but(content_layers=["relu3_1"]), "slim", False, GUIDED),
    ],
    ids=["reflect, l2", "every control, content recomputed", "slim"],
)
def test_remat_equals_plain(x64, variables, slim_variables, config, network, again, given):
    variables = {"full": variables, "slim": slim_variables}[network]
    sides = (28, 36) if given else (29, 34)
    photos = [smooth_image(*sides, seed=i) for i in (5, 6)]
    arguments = as_float64((variables, *photos, STYLES, given))
    found = []
    for remat in (True, False):
        evaluation = Evaluation(remat=remat, recompute_content=again)
        function = partial(evaluate, evaluation, config)
        found.append(jax.jit(function)(*arguments))
        text = str(jax.make_jaxpr(function)(*arguments))
        assert ("= cond[" in text) == remat
    same(*found)


def test_under_vmap(x64, variables):
    """A block is still recomputed, because its condition depends on the network alone."""
    contents, images = (
        np.stack([smooth_image(29, 34, seed=seed + i) for i in range(2)]) for seed in (50, 60)
    )
    variables, *photos, styles = as_float64((variables, images, contents, STYLES))
    function = partial(evaluate, Evaluation(remat=True), LOW)
    batched = jax.vmap(function, in_axes=(None, 0, 0, None, None))
    arguments = variables, *photos, styles, {}
    assert "= cond[" in str(jax.make_jaxpr(batched)(*arguments))
    single = jax.jit(partial(evaluate, Evaluation(), LOW))
    singles = [single(variables, *pair, styles, {}) for pair in zip(*photos, strict=True)]
    same(jax.jit(batched)(*arguments), jax.tree.map(lambda *x: jnp.stack(x), *singles))


def test_reduced_features(variables, content):
    """With ``reduce`` and without, in any order of layers."""
    layers = ("relu2_2", "conv1_1", "relu2_1")
    taps = network_features(variables, content, layers=layers)
    for remat in (False, True):
        of_image = partial(network_features, variables, content, layers=layers, remat=remat)
        sums = of_image(reduce=lambda name, tap: {"sum": jnp.sum(tap)})
        assert tuple(sums) == tuple(taps) == layers
        for name, tap in taps.items():
            np.testing.assert_allclose(sums[name]["sum"], jnp.sum(tap), rtol=1e-5)
            np.testing.assert_allclose(of_image()[name], tap, rtol=1e-6)


def test_a_network_of_nans_gives_nan(variables):
    """Although NaN takes the other branch of the conditional."""
    damaged = jax.tree.map(jnp.asarray, variables)
    conv = damaged["params"]["conv1_1"]
    damaged["params"]["conv1_1"] = conv | {"bias": jnp.full_like(conv["bias"], jnp.nan)}
    content = smooth_image(29, 34, seed=5)
    evaluated = jax.jit(partial(evaluate, Evaluation(remat=True), LOW))
    (value, _), gradient = evaluated(damaged, content**2, content, STYLES, {})
    assert np.isnan(value) and gradient.shape == content.shape


@pytest.mark.optimized
def test_it_takes_less_memory():
    """For a network of VGG-19's width, by 28 % on CPUs."""
    config = Config()
    variables = jax.eval_shape(init_variables, jax.random.key(0))
    image = jax.ShapeDtypeStruct((512, 512, 3), np.float32)

    def temporary_bytes(remat):
        loss = make_loss(config.loss, evaluation=Evaluation(remat=remat))
        targets = jax.eval_shape(
            partial(loss.targets, weights=loss_weights(config)), variables, image, [image]
        )

        def value(image, variables, targets):
            return loss.head(loss.statistics(variables, image, targets), targets)[0]

        compiled = jax.jit(jax.value_and_grad(value)).lower(image, variables, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < 0.8 * temporary_bytes(False)
