"""Checks of the settings, and the layers' short form."""

import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from nst_jax.config import Config, LossConfig
from nst_jax.errors import InputError
from nst_jax.layer_factors import as_layers, parse_layers
from nst_jax.layers import TAPS, check_sides, stride

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE, -1.0, 1e39])
@pytest.mark.parametrize("name", ["content_weight", "style_weight", "tv_weight", "noise_scale"])
def test_weights_are_finite_and_not_negative(name, bad):
    with pytest.raises(InputError, match=re.escape(f"{name} is {bad}: expected a finite number")):
        Config(**{name: bad})
    assert getattr(Config(**{name: 0.0}), name) == 0


@pytest.mark.parametrize("bad", [NAN, INFINITE, 0, -1, 1e39])
@pytest.mark.parametrize("name", ["mse_factor", "pixel_range", "learning_rate"])
def test_sizes_are_positive(name, bad):
    message = re.escape(f"{name} is {bad}: expected a finite number (in float32) above 0")
    with pytest.raises(InputError, match=message):
        Config(**{name: bad})


@pytest.mark.parametrize("bad", [NAN, INFINITE, -0.1, 1.1])
def test_noise_ratio_is_a_share(bad):
    with pytest.raises(InputError, match=f"noise_ratio is {bad}: expected 0 to 1"):
        Config(noise_ratio=bad)
    assert [Config(noise_ratio=share).noise_ratio for share in (0, 1)] == [0, 1]


@pytest.mark.parametrize("bad", [0, -3, 2.5, NAN])
@pytest.mark.parametrize("name", ["steps", "memory_size"])
def test_counts_are_whole_and_positive(name, bad):
    message = re.escape(f"{name} is {bad}: expected a whole number, 1 or more")
    with pytest.raises(InputError, match=message):
        Config(**{name: bad})


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pooling", "max, average"),
        ("gram_normalization", "chw, hw"),
        ("tv_order", "1, 2"),
        ("optimizer", "lbfgs, lbfgs-linesearch, adam"),
        ("noise", "normal, uniform"),
    ],
)
def test_unknown_choices_name_the_known_ones(name, expected):
    with pytest.raises(InputError, match=f"{name} is 'other': expected one of {expected}"):
        Config(**{name: "other"})


@pytest.mark.parametrize(
    "optimizer, name, value",
    [("adam", "memory_size", 5), ("lbfgs-linesearch", "learning_rate", 1.0)],
)
def test_options_of_another_optimiser(optimizer, name, value):
    with pytest.raises(InputError, match=f"{name} has no meaning for {optimizer}"):
        Config(optimizer=optimizer, **{name: value})


def test_at_least_one_layer():
    with pytest.raises(InputError, match="no layers"):
        Config(content_layers=(), style_layers=())
    assert Config(content_layers=()).loss.content_layers == ()


BAD_LAYERS = [
    ("relu6_1", "unknown layer 'relu6_1'.*from conv1_1 to relu5_4"),
    ("relu1_3", "unknown layer 'relu1_3'"),
    ("pool1", "unknown layer 'pool1'"),
    ("relu1_1,relu2_1=2,relu1_1", "relu1_1 is given twice"),
    ("relu1_1=much", "'relu1_1=much' is not a number"),
    ("relu1_1=nan", "factor of layer relu1_1 is nan"),
    ("relu1_1=inf", "factor of layer relu1_1 is inf"),
    ("relu1_1=-0.5", "factor of layer relu1_1 is -0.5"),
]


@pytest.mark.parametrize("text, message", BAD_LAYERS)
def test_bad_layers(text, message):
    with pytest.raises(InputError, match=message):
        parse_layers(text)


def test_forms_of_layers():
    pairs = (("relu1_1", 0.5), ("conv5_4", 1.0))
    assert parse_layers("relu1_1=0.5,conv5_4") == pairs
    assert as_layers({"relu1_1": 0.5, "conv5_4": 1}) == pairs
    assert Config(style_layers=[("relu1_1", 0.5), "conv5_4"]).style_layers == pairs  # type: ignore
    assert parse_layers("") == ()


def test_numbers_do_not_shape_the_program():
    """Only the fields of ``LossConfig`` make for another compiled objective."""
    other: dict = dict(
        content_layers=[("relu4_2", 0.3)],
        style_layers=[(name, 0.2) for name in LossConfig().style_layers],
        content_weight=2.0,
        style_weight=3.0,
        tv_weight=4.0,
        learning_rate=0.5,
        steps=7,
        init="noise",
    )
    assert Config(**other).loss == Config().loss == LossConfig()
    assert hash(Config(**other).loss) == hash(LossConfig())
    shapes: dict = dict(pooling="average", gram_normalization="hw", tv_order=2)
    shapes |= dict(mse_factor=0.25, pixel_range=1.0, style_mixing="sum", guides="inside")
    shapes |= dict(padding="circular")
    shapes |= dict(content_layers=("conv1_1",), style_layers=("conv2_1",))
    assert set(shapes) == {field.name for field in fields(LossConfig)}
    for name, value in shapes.items():
        assert replace(Config(), **{name: value}).loss == replace(LossConfig(), **{name: value})


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().steps = 5  # type: ignore


def test_shortest_side():
    """Each of the four poolings halves, so that a side of 2^k pixels is one feature wide."""
    expected = {name: 2 ** (int(name[4]) - 1) for name in TAPS}
    assert {name: stride(name) for name in TAPS} == expected and len(TAPS) == 32
    check_sides(16, 40, ("relu5_1", "relu1_1"))
    with pytest.raises(InputError, match="style is 40x15 px.*relu5_1 .*at least 16 px"):
        check_sides(15, 40, ("relu5_1", "relu1_1"), what="style")
    check_sides(8, 9, ("conv4_4",))
    with pytest.raises(InputError, match="conv4_4 .*at least 8 px"):
        check_sides(9, 7, ("relu1_1", "conv4_4"))
