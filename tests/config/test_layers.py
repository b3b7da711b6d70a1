"""Layers: their geometry, the sizes of images that they need, weighting schemes, parsing."""

from fractions import Fraction

import pytest

from nst_jax.config import TAPS, Config, as_layers, stride
from nst_jax.config.factors import STYLE_LAYERS, parse_layers, parse_losses, weigh_layers
from nst_jax.config.layers import check_multiple, check_sides
from nst_jax.errors import InputError

FIVE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def pairs(names, weights):
    return tuple((name, float(weight)) for name, weight in zip(names, weights, strict=True))


@pytest.mark.parametrize(
    "scheme, names, weights",
    [
        ("equal", FIVE, (1, 1, 1, 1, 1)),
        ("1/C2", FIVE, [Fraction(1, n) for n in (4096, 16384, 65536, 262144, 262144)]),
        ("geometric", FIVE, [Fraction(n, 341) for n in (256, 64, 16, 4, 1)]),
        ("course", FIVE, [Fraction(1, 5)] * 5),
        ("1/C2", ("conv1_2", "relu3_4", "conv5_1"), (1 / 4096, 1 / 65536, 1 / 262144)),
        ("geometric", ("relu2_1", "relu1_1"), (0.8, 0.2)),  # in the given order
    ],
)
def test_schemes_have_the_published_weights(scheme, names, weights):
    expected = pairs(names, weights)
    assert weigh_layers(names, scheme=scheme) == expected
    assert parse_layers(",".join((scheme, *names))) == expected
    if names == FIVE:
        assert parse_layers(scheme) == expected
    assert weigh_layers((), scheme=scheme) == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("geometric,relu1_1=2", "'relu1_1=2' contradicts the scheme geometric: leave one of them"),
        ("linear,relu1_1", "unknown layer 'linear'"),
        ("relu1_1,course", "unknown layer 'course'"),
        ("relu1_3", "unknown layer 'relu1_3'.*from conv1_1 to relu5_4"),
        ("pool1", "unknown layer 'pool1'"),
        ("relu1_1,relu2_1=2,relu1_1", "relu1_1 is given twice"),
        ("relu1_1=much", "'relu1_1=much' is not a number: expected NAME or NAME=WEIGHT"),
        ("relu1_1=-1", "weight of layer relu1_1 is -1.0"),
        ("relu1_1=nan", "weight of layer relu1_1 is nan"),
    ],
)
def test_invalid_layers_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_layers(text)


def test_invalid_schemes_and_losses_are_refused():
    with pytest.raises(InputError, match="unknown scheme 'linear': expected one of equal, 1/C2"):
        weigh_layers(FIVE, scheme="linear")
    with pytest.raises(InputError, match="loss weight 'gram=x' is not a number"):
        parse_losses("gram=x")
    for losses, message in (
        ((), "no losses: expected at least one of gram"),
        (("garm",), "unknown loss 'garm': expected one of gram, covariance"),
        (("gram", "gram"), "loss gram is given twice"),
        ({"gram": -1}, "the weight of loss gram is -1.0"),
    ):
        with pytest.raises(InputError, match=message):
            Config.of(style_losses=losses)


def test_layers_are_names_pairs_mappings_or_text():
    expected = (("relu1_1", 0.5), ("conv5_4", 1.0))
    assert as_layers({"relu1_1": 0.5, "conv5_4": 1}) == expected
    assert as_layers([("relu1_1", 0.5), "conv5_4"]) == expected
    assert parse_layers(" relu1_1=5e-1, conv5_4 ,") == expected
    found = Config.of(content_layers=expected, style_layers=["relu2_1", "relu1_1"]).loss
    assert found.content_layers == expected and found.content_names == ("relu1_1", "conv5_4")
    assert found.layers == ("relu1_1", "conv5_4", "relu2_1")
    assert parse_layers("") == () and parse_layers("equal") == STYLE_LAYERS


def test_images_must_be_as_large_as_the_deepest_layer_needs():
    """Each of the four poolings halves the image; a mirror needs one more feature."""
    assert {name: stride(name) for name in TAPS} == {n: 2 ** (int(n[4]) - 1) for n in TAPS}
    check_sides(16, 40, ("relu5_1", "relu1_1"))
    with pytest.raises(InputError, match="style is 40x15 px.*relu5_1 .*at least 16 px"):
        check_sides(15, 40, ("relu5_1", "relu1_1"), what="style")
    check_sides(16, 40, ("conv4_4",), padding="reflect")
    message = "image is 40x15 px, but with reflect padding layer conv4_4 .*at least 16 px.* padding"
    with pytest.raises(InputError, match=message):
        check_sides(15, 40, ("relu1_1", "conv4_4"), padding="reflect")


def test_circular_padding_needs_multiples_of_the_stride():
    check_multiple(16, 32, ("relu5_1",))
    message = "image is 50x30 px, .*relu3_1 needs multiples of 4 px: choose a longer side of 40 px"
    with pytest.raises(InputError, match=message):
        check_multiple(30, 50, ("relu1_1", "relu3_1"))
