"""Checks of the settings, and the layers' short form."""

import json
import re
from dataclasses import FrozenInstanceError, fields

import pytest

from nst_jax.config import (
    LBFGS,
    TAPS,
    Adam,
    Config,
    Evaluation,
    ExecutionConfig,
    Initial,
    LBFGSLineSearch,
    LossConfig,
    Pyramid,
    as_layers,
    from_flat,
    stride,
    to_flat,
)
from nst_jax.config.config import flat_types
from nst_jax.config.factors import parse_layers
from nst_jax.config.layers import check_sides
from nst_jax.errors import InputError

NAN, INFINITE = float("nan"), float("inf")


def refused(message, **settings):
    """Check that settings are refused in one line."""
    with pytest.raises(InputError, match=f"^{message}") as caught:
        Config.of(**settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE, -1.0, 1e39])
@pytest.mark.parametrize("name", ["content_weight", "style_weight", "tv_weight", "noise_scale"])
def test_weights_are_finite_and_not_negative(name, bad):
    with pytest.raises(InputError, match=re.escape(f"{name} is {bad}: expected a finite number")):
        Config.of(**{name: bad})
    assert to_flat(Config.of(**{name: 0.0}))[name] == 0


@pytest.mark.parametrize("bad", [NAN, INFINITE, 0, -1, 1e39])
@pytest.mark.parametrize("name", ["mse_factor", "pixel_range", "learning_rate"])
def test_sizes_are_positive(name, bad):
    message = re.escape(f"{name} is {bad}: expected a finite number (in float32) above 0")
    with pytest.raises(InputError, match=message):
        Config.of(**{name: bad})


@pytest.mark.parametrize("bad", [NAN, INFINITE, 0, -1, 1e39])
def test_covariance_eps_is_positive(bad):
    message = re.escape(f"covariance_eps is {bad}: expected a finite number (in float32) above 0")
    with pytest.raises(InputError, match=message):
        Config.of(style_losses=["wasserstein"], covariance_eps=bad)


@pytest.mark.parametrize("bad", [NAN, INFINITE, -0.1, 1.1])
def test_noise_ratio_is_a_share(bad):
    with pytest.raises(InputError, match=f"noise_ratio is {bad}: expected 0 to 1"):
        Config.of(noise_ratio=bad)
    assert [Config.of(noise_ratio=share).initial.noise_ratio for share in (0, 1)] == [0, 1]


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE, 1.0, 1, 0.5, 0, -2.0, True, 1e39])
def test_scale_factor_enlarges(bad):
    message = re.escape(f"scale_factor is {bad}: expected a finite number from 1.05 on")
    refused(message, scale_factor=bad)
    refused(message, scale_factor=bad, min_size=64)
    assert Config.of(scale_factor=1.5, min_size=64).pyramid.scale_factor == 1.5


def test_scale_factor_of_one_scale():
    message = "scale_factor has no meaning for one scale: name its coarsest by min_size"
    refused(message, scale_factor=2.0)
    default = Config().pyramid.scale_factor
    assert Config.of(scale_factor=default) == Config()
    with pytest.raises(InputError, match=message):
        Pyramid(scale_factor=2.0)


@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE, -0.1, 1.0, 1, 99.0, True])
def test_averaging_is_a_decay(bad):
    refused(re.escape(f"averaging is {bad}: expected 0 to 0.9999"), averaging=bad)
    assert [Config(averaging=decay).averaging for decay in (0, 0.999)] == [0, 0.999]


BAD_COUNTS = [0, -3, 2.5, 64.0, NAN, INFINITE, True, "9"]


@pytest.mark.parametrize("bad", BAD_COUNTS)
def test_steps_of_scales_are_counts(bad):
    message = re.escape(f"scale_steps is {(9, bad)}: expected whole numbers, 1 or more")
    refused(message, scale_steps=(9, bad), min_size=64)


def test_steps_of_scales_need_scales():
    refused("scale_steps has no meaning for one scale: .* min_size", scale_steps=(100, 50))
    assert Config.of(scale_steps=(100, 50), min_size=64).pyramid.scale_steps == (100, 50)
    assert Config.of(min_size=64).pyramid.scale_steps == ()


@pytest.mark.parametrize("bad", [*BAD_COUNTS, "on", "", None])
def test_tile_is_a_count_or_a_word(bad):
    refused(re.escape(f"tile is {bad!r}: expected auto, off, or a side in pixels"), tile=bad)
    assert [Config.of(tile=tile).execution.tile for tile in ("auto", "off", 512)] == [
        "auto",
        "off",
        512,
    ]


def test_tiles_compute_twice_anyway():
    refused("remat on has no meaning with tiles.*: leave one out", tile=512, remat="on")
    for tile, remat in ((512, "auto"), (512, "off"), ("off", "on"), ("auto", "on")):
        assert Config.of(tile=tile, remat=remat).execution.remat == remat


def test_winograd_is_not_for_bfloat16():
    message = "convolution winograd is too coarse in bfloat16: choose direct, or another precision"
    refused(message, precision="bfloat16", convolution="winograd")
    for precision, convolution in (
        ("bfloat16", "auto"),
        ("bfloat16", "direct"),
        ("tf32", "winograd"),
    ):
        assert (
            Config.of(precision=precision, convolution=convolution).execution.precision == precision
        )


@pytest.mark.parametrize("bad", BAD_COUNTS)
@pytest.mark.parametrize("name", ["steps", "memory_size", "min_size"])
def test_counts_are_whole_and_positive(name, bad):
    refused(re.escape(f"{name} is {bad}: expected a whole number, 1 or more"), **{name: bad})


@pytest.mark.parametrize("name", ["steps", "memory_size", "min_size", "tile", "scale_steps"])
def test_counts_have_a_largest_one(name):
    def given(value):
        return (
            {"min_size": 64, "scale_steps": (9, value)} if name == "scale_steps" else {name: value}
        )

    most = 100_000 if name == "min_size" else 2**31 - 1
    for bad in (most + 1, 10**19, 10**400):
        refused(rf"{name} is .*{bad}.*, at most {most}$", **given(bad))
    Config.of(**given(most))


def test_a_power_of_the_total_variation_that_is_no_float():
    refused("tv_order is 10+: expected one of 1, 2", tv_order=10**400)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pooling", "max, average"),
        ("gram_normalization", "chw, hw"),
        ("tv_order", "1, 2"),
        ("optimizer", "lbfgs, lbfgs-linesearch, adam"),
        ("noise", "normal, uniform"),
        ("precision", "float32, tf32, bfloat16"),
        ("remat", "auto, on, off"),
    ],
)
@pytest.mark.parametrize("bad", ["other", "", None, True, NAN, 0])
def test_unknown_choices_name_the_known_ones(name, expected, bad):
    if (name, bad) == ("tv_order", True):
        return  # is 1 in Python
    refused(re.escape(f"{name} is {bad!r}: expected one of {expected}"), **{name: bad})


@pytest.mark.parametrize(
    "optimizer, name, value",
    [
        ("adam", "memory_size", 5),
        ("lbfgs-linesearch", "learning_rate", 1.0),
        ("lbfgs", "clip", True),
        ("lbfgs-linesearch", "adam_beta1", 0.5),
        ("lbfgs", "adam_epsilon", float("nan")),
    ],
)
def test_options_of_another_optimiser(optimizer, name, value):
    with pytest.raises(InputError, match=f"{name} has no meaning for {optimizer}"):
        Config.of(optimizer=optimizer, **{name: value})


def test_at_least_one_layer():
    with pytest.raises(InputError, match="no layers"):
        Config.of(content_layers=(), style_layers=())
    assert Config.of(content_layers=()).loss.content_names == ()


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
    assert Config.of(style_layers=[("relu1_1", 0.5), "conv5_4"]).loss.style_layers == pairs  # type: ignore
    assert parse_layers("") == ()


NUMBERS: dict = dict(content_layers=[("relu4_2", 0.3)], content_losses={"features": 2.0})
NUMBERS |= dict(style_layers=[(name, 0.2) for name in LossConfig().style_names])
NUMBERS |= dict(style_losses={"gram": 3.0}, content_weight=2.0, style_weight=3.0, tv_weight=4.0)
SHAPES: list[dict] = [
    dict(pooling="average"),
    dict(gram_normalization="hw"),
    dict(tv_form="isotropic"),
    dict(tv_order=2),
    dict(tv_reduction="mean"),
    dict(mse_factor=0.25),
    dict(pixel_range=1.0),
    dict(style_mixing="sum"),
    dict(guides="inside"),
    dict(padding="circular"),
    dict(content_layers=("conv1_1",)),
    dict(style_layers=("conv2_1",)),
    dict(content_losses=("laplacian4",)),
    dict(style_losses=("covariance",)),
    dict(style_losses=("wasserstein",), covariance_eps=0.5),
    dict(style_losses=("histogram",), histogram_layers=("relu1_1",)),
]


def test_numbers_do_not_shape_the_program():
    """Weights and factors, and colours, which are no part of the objective."""
    plain = LossConfig().structure
    for name, value in (NUMBERS | {"color": "keep-yiq"}).items():
        found = LossConfig(**{name: value})
        assert found != LossConfig() and found.structure == plain
        assert hash(found.structure) == hash(plain)


def test_all_else_shapes_the_program():
    plain = LossConfig().structure
    for change in SHAPES:
        found = LossConfig(**change).structure
        assert found != plain and found.structure == found
    tested = {name for change in SHAPES for name in change} | set(NUMBERS) | {"color"}
    assert tested == {field.name for field in fields(LossConfig)}


def test_plain_names_have_the_factor_1():
    plain: dict = dict(content_layers=["relu2_1"], style_layers=("relu1_1", ("relu3_1", 0.5)))
    found = LossConfig(**plain, style_losses=["gram"])
    assert found.content_layers == (("relu2_1", 1.0),) and found.content_names == ("relu2_1",)
    assert found.style_layers == (("relu1_1", 1.0), ("relu3_1", 0.5))
    assert found.layers == ("relu2_1", "relu1_1", "relu3_1") and found.style_losses == (
        ("gram", 1),
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(tile="off", remat="off"), Evaluation()),
        (dict(tile="auto", remat="auto"), Evaluation()),
        (dict(tile="auto", remat="on"), Evaluation(remat=True)),
        (dict(tile="off", remat="on"), Evaluation(remat=True)),
        (dict(tile=64, remat="auto"), Evaluation(tile=64)),
        (dict(tile=64, remat="off", precision="tf32"), Evaluation(tile=64, precision="tf32")),
    ],
)
def test_words_of_tiles_in_the_program(settings, expected):
    """What is left to the memory's room is the whole image, computed once, without a plan."""
    assert Config.of(**settings).execution.evaluation == expected


NESTED = Config(
    loss=LossConfig(style_weight=7.0, style_layers={"relu1_1": 0.5}, color="keep-lab"),
    optimizer=Adam(learning_rate=2.0, beta2=0.99, clip=True),
    preconditioner="spectral",
    steps=9,
    pyramid=Pyramid(min_size=64, scale_factor=2.0, scale_steps=(4, 3)),
    averaging=0.5,
    initial=Initial(init="noise", noise_scale=0.1),
    execution=ExecutionConfig(tile=32, precision="bfloat16"),
)
FLAT: dict = dict(style_weight=7.0, style_layers=(("relu1_1", 0.5),), color="keep-lab")
FLAT |= dict(optimizer="adam", learning_rate=2.0, adam_beta2=0.99, clip=True, steps=9)
FLAT |= dict(preconditioner="spectral", min_size=64, scale_factor=2.0, scale_steps=(4, 3))
FLAT |= dict(averaging=0.5, init="noise", noise_scale=0.1, tile=32, precision="bfloat16")


def test_flat_names_and_nested_ones():
    """Of every setting, with the types that the flags have."""
    assert from_flat(FLAT) == Config.of(**FLAT) == Config().but(**FLAT) == NESTED
    flat = to_flat(NESTED)
    assert flat == to_flat(Config()) | FLAT and list(flat) == list(flat_types())
    assert from_flat(flat) == from_flat(flat, base=NESTED) == NESTED
    assert from_flat(to_flat(Config()), base=NESTED) == Config()
    assert all(flat[name] != value for name, value in to_flat(Config()).items() if name in FLAT)


@pytest.mark.parametrize(
    "optimizer", [LBFGS(memory_size=4), LBFGSLineSearch(), Adam(), Adam(beta1=0)]
)
def test_settings_as_json_has_them(optimizer):
    config = Config(optimizer=optimizer, pyramid=Pyramid(min_size=9, scale_steps=(5,)))
    config = config.but(style_losses=["histogram"], histogram_layers=["relu2_1"])
    assert from_flat(json.loads(json.dumps(to_flat(config)))) == config
    assert all(type(value) is not list for value in to_flat(config).values())


def test_another_optimiser_has_its_own_numbers():
    assert NESTED.but(optimizer="lbfgs").optimizer == LBFGS()
    assert NESTED.but(optimizer="lbfgs", learning_rate=0.5).optimizer == LBFGS(learning_rate=0.5)
    assert NESTED.but(optimizer="adam", clip=False).optimizer == Adam(learning_rate=2.0, beta2=0.99)
    assert Config.of(memory_size=5).but(optimizer="lbfgs-linesearch").optimizer == LBFGSLineSearch()


def test_one_scale_has_no_steps_of_others():
    assert NESTED.but(min_size=None).pyramid == Pyramid()
    assert NESTED.but(min_size=32).pyramid == Pyramid(
        min_size=32, scale_factor=2.0, scale_steps=(4, 3)
    )


def test_an_unknown_setting():
    refused("unknown setting 'weight': expected one of content_layers, .*, remat$", weight=1.0)


def test_settings_with_the_former_second_name_of_yiq_are_read():
    with pytest.warns(UserWarning, match="keep-ycbcr is the same as keep-yiq"):
        assert from_flat({"color": "keep-ycbcr"}) == Config.of(color="keep-yiq")
    with pytest.raises(InputError, match="'keep-ycbcr': expected one of none, keep-yiq"):
        LossConfig(color="keep-ycbcr")  # type: ignore


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
    check_sides(16, 40, ("conv4_4",), padding="reflect")
    message = "style is 40x15 px, but with reflect padding layer conv4_4 .*at least 16 px.* padding"
    with pytest.raises(InputError, match=message):
        check_sides(15, 40, ("relu1_1", "conv4_4"), what="style", padding="reflect")
    with pytest.raises(InputError, match="conv4_4 .*at least 8 px"):
        check_sides(9, 7, ("relu1_1", "conv4_4"))


@pytest.mark.parametrize("value", [1e-16, 1e16])
def test_the_range_of_pixels_has_a_square_in_float32(value):
    refused("pixel_range is 1e[+-]?16: expected 1e-15 to 1e15", pixel_range=value)
    assert Config.of(pixel_range=1e15).loss.pixel_range == 1e15
