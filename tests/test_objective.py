"""The objective against the published formulas, written out in NumPy on the network's features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_picture

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.objective import loss_weights, make_loss
from nst_jax.presets import PRESETS
from nst_jax.vgg import features

IMAGE = smooth_picture(36, 48, seed=5)


def evaluate(config, variables, content, styles, *, blend=None, image=IMAGE):
    loss = make_loss(config.loss)

    @jax.jit
    def value(variables, image, content, styles):
        targets = loss.targets(
            variables, content, styles, weights=loss_weights(config), blend=blend
        )
        return loss.head(loss.statistics(variables, image, targets), targets)

    return value(variables, image, content, styles)


def feature_maps(variables, image, config):
    """Features as arrays of positions by channels, float64."""
    structure = config.loss
    layers = structure.content_layers + structure.style_layers
    taps = features(variables, image, layers=layers, pooling=structure.pooling)
    return {name: np.float64(tap).reshape(-1, tap.shape[-1]) for name, tap in taps.items()}


def differences(image):
    z = 255 * np.float64(image)
    return np.diff(z, axis=0), np.diff(z, axis=1)


# Each formula takes the feature maps of picture, content and style as positions by channels.


def neural_style(x, c, s, image):
    content = 5 * ((x["relu4_2"] - c["relu4_2"]) ** 2).mean()
    style = sum(
        100 * ((x[n].T @ x[n] / x[n].size - s[n].T @ s[n] / s[n].size) ** 2).mean() for n in s
    )
    dy, dx = differences(image)
    return content, style, 1e-3 * (np.abs(dy).sum() + np.abs(dx).sum())


def neural_style_lua(x, c, s, image):
    content, style, _ = neural_style(x, c, s, image)
    dy, dx = differences(image)
    return content / 5, 3 * style, 3e-3 * ((dy**2).sum() + (dx**2).sum()) / 2


def gatys(x, c, s, image):
    content = ((x["relu4_2"] - c["relu4_2"]) ** 2).mean()
    real_channels = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu4_1": 512, "relu5_1": 512}
    style = sum(
        1000
        / real_channels[n] ** 2
        * ((x[n].T @ x[n] / len(x[n]) - s[n].T @ s[n] / len(s[n])) ** 2).mean()
        for n in s
    )
    return content, style, 0.0


def course(x, c, s, image, proportions=0.2):
    n_hw, n_c = c["relu4_2"].shape
    content = 10 * ((c["relu4_2"] - x["relu4_2"]) ** 2).sum() / (4 * n_hw * n_c)
    style = 0.0
    for n in s:
        n_hw, n_c = x[n].shape
        # The course has pictures of one size; a style of another counts as if tiled to it.
        difference = s[n].T @ s[n] * (n_hw / len(s[n])) - x[n].T @ x[n]
        style += proportions * (difference**2).sum() / (4 * n_c**2 * n_hw**2)
    return content, 40 * style, 0.0


def course_single(x, c, s, image):
    return course(x, c, s, image, proportions=1.0)


FORMULAS = {
    "neural-style": neural_style,
    "fast": neural_style,
    "neural-style-lua": neural_style_lua,
    "gatys": gatys,
    "course": course,
    "course-single": course_single,
}


def test_every_preset_has_its_formula():
    assert set(FORMULAS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_value_of_its_formula(variables, content, style, name):
    config = PRESETS[name].config
    maps = [feature_maps(variables, picture, config) for picture in (IMAGE, content, style)]
    style_maps = {layer: maps[2][layer] for layer, _ in config.style_layers}
    expected = FORMULAS[name](maps[0], maps[1], style_maps, IMAGE)
    value, terms = evaluate(config, variables, content, [style])
    np.testing.assert_allclose(terms, expected, rtol=2e-5)
    np.testing.assert_allclose(value, sum(expected), rtol=2e-5)
    assert min(expected[:2]) > 0


def test_layer_factors_scale_their_layer(variables, content, style):
    single = {}
    for layer in ("relu1_1", "relu2_1"):
        config = Config(style_layers={layer: 1.0})
        single[layer] = evaluate(config, variables, content, [style])[1].style
    both = Config(style_layers={"relu1_1": 0.5, "relu2_1": 3.0})
    actual = evaluate(both, variables, content, [style])[1].style
    np.testing.assert_allclose(actual, 0.5 * single["relu1_1"] + 3 * single["relu2_1"], rtol=1e-5)


def test_content_is_free_at_the_content_picture(variables, content, style):
    terms = evaluate(Config(), variables, content, [style], image=content)[1]
    assert terms.content == 0 and terms.style > 0


def test_style_is_free_at_the_style_picture(variables, content, style):
    terms = evaluate(Config(), variables, content, [IMAGE])[1]
    other = evaluate(Config(), variables, content, [style])[1]
    assert terms.style < 1e-6 * other.style and terms.content == other.content > 0


def test_one_style_array_is_a_sequence_of_one(variables, content, style):
    config = Config()
    array = evaluate(config, variables, content, style)
    np.testing.assert_array_equal(array[0], evaluate(config, variables, content, [style])[0])


def test_two_copies_of_a_style_are_that_style(variables, content, style):
    config = Config()
    one = evaluate(config, variables, content, [style])[0]
    two = evaluate(config, variables, content, [style, style], blend=(1.0, 3.0))[0]
    np.testing.assert_allclose(two, one, rtol=1e-6)


def test_styles_of_different_sizes_are_blended_by_their_shares(variables, content, style):
    """The target is the blended Gram matrix, in the proportions of the factors."""
    config, other = Config(style_layers=["relu2_1"]), smooth_picture(29, 50, seed=6)
    loss = make_loss(config.loss)

    def target(styles, blend):
        found = loss.targets(
            variables, jnp.asarray(content), styles, weights=loss_weights(config), blend=blend
        )
        return np.einsum("rs,sij->ij", found.shares["relu2_1"], found.style["relu2_1"].gram)

    pictures = [jnp.asarray(style), jnp.asarray(other)]
    first, second = (target([picture], None) for picture in pictures)
    np.testing.assert_allclose(target(pictures, (1, 3)), 0.25 * first + 0.75 * second, rtol=1e-5)
    np.testing.assert_allclose(target(pictures, None), 0.5 * first + 0.5 * second, rtol=1e-5)


def test_no_style_and_wrong_blend_are_refused(variables, content, style):
    with pytest.raises(InputError, match="no style picture"):
        evaluate(Config(), variables, content, [])
    with pytest.raises(InputError, match="3 blend factors for 1 styles"):
        evaluate(Config(), variables, content, [style], blend=(1, 1, 1))


def test_equal_structures_share_a_loss():
    first = make_loss(Config(style_weight=1.0).loss)
    assert make_loss(Config(style_weight=2.0, steps=3).loss) is first
    assert make_loss(Config(pooling="average").loss) is not first
