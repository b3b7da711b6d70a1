"""Parts of the objective; test_preset_parity compares its values with published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import loss_weights, make_loss
from nst_jax.types import Guidance

IMAGE = smooth_image(36, 48, seed=5)


def evaluate(config, variables, content, styles, *, blend=None, image=IMAGE):
    loss = make_loss(config.loss)

    @jax.jit
    def value(variables, image, content, styles):
        targets = loss.targets(
            variables, content, styles, weights=loss_weights(config), guidance=Guidance(blend=blend)
        )
        return loss.head(loss.statistics(variables, image, targets), targets)

    return value(variables, image, content, styles)


def test_layer_weights_scale_their_layer(variables, content, style):
    single = {}
    for layer in ("relu1_1", "relu2_1"):
        config = Config.of(style_layers={layer: 1.0})
        single[layer] = evaluate(config, variables, content, [style])[1].style
    both = Config.of(style_layers={"relu1_1": 0.5, "relu2_1": 3.0})
    actual = evaluate(both, variables, content, [style])[1].style
    np.testing.assert_allclose(actual, 0.5 * single["relu1_1"] + 3 * single["relu2_1"], rtol=1e-5)


def test_each_term_is_0_at_its_own_image(variables, content, style):
    """And one style image is a sequence of one; two copies of a style are that style."""
    loss, terms = evaluate(Config(), variables, content, [style])
    at_content = evaluate(Config(), variables, content, [style], image=content)[1]
    assert at_content.content == 0 and at_content.style > 0
    at_style = evaluate(Config(), variables, content, [IMAGE])[1]
    assert at_style.style < 1e-6 * terms.style and at_style.content == terms.content > 0
    np.testing.assert_array_equal(evaluate(Config(), variables, content, style)[0], loss)
    two = evaluate(Config(), variables, content, [style, style], blend=(1.0, 3.0))[0]
    np.testing.assert_allclose(two, loss, rtol=1e-6)


def test_styles_of_different_sizes_are_mixed_with_their_weights(variables, content, style):
    """The target is the weighted mean of the Gram matrices."""
    config, other = Config.of(style_layers=["relu2_1"]), smooth_image(29, 50, seed=6)
    loss = make_loss(config.loss)

    def target(styles, blend):
        found = loss.targets(
            variables,
            jnp.asarray(content),
            styles,
            weights=loss_weights(config),
            guidance=Guidance(blend=blend),
        )
        return np.einsum("rs,sij->ij", found.style_weights["relu2_1"], found.style["relu2_1"].gram)

    images = [jnp.asarray(style), jnp.asarray(other)]
    first, second = (target([image], None) for image in images)
    np.testing.assert_allclose(target(images, (1, 3)), 0.25 * first + 0.75 * second, rtol=1e-5)
    np.testing.assert_allclose(target(images, None), 0.5 * first + 0.5 * second, rtol=1e-5)


def test_missing_styles_and_wrong_style_weights_are_refused(variables, content, style):
    with pytest.raises(InputError, match="no style image"):
        evaluate(Config(), variables, content, [])
    with pytest.raises(InputError, match="3 blend factors for 1 styles"):
        evaluate(Config(), variables, content, [style], blend=(1, 1, 1))


def test_configs_of_equal_structure_share_a_loss():
    first = make_loss(Config.of(style_weight=1.0).loss)
    assert make_loss(Config.of(style_weight=2.0, steps=3).loss) is first
    assert make_loss(Config.of(pooling="average").loss) is not first
