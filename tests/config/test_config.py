"""Settings: what they refuse, flat names, and which of them shape the compiled program."""

import json
import re
from dataclasses import FrozenInstanceError, fields

import pytest

from nst_jax.config import (
    LBFGS,
    Adam,
    Config,
    Evaluation,
    ExecutionConfig,
    Initial,
    LBFGSLineSearch,
    LossConfig,
    Pyramid,
    from_flat,
    to_flat,
)
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError

NAN, INF = float("nan"), float("inf")

COUNT = "expected a whole number, 1 or more, at most 2147483647"
COUNTS = "expected whole numbers, 1 or more, at most 2147483647"
SIDE = "expected auto, off, or a side in pixels, 1 or more, at most 2147483647"
SIZE = "expected a whole number, 1 or more, at most 100000"
WEIGHT = "expected a finite number (in float32), 0 or more"
POSITIVE = "expected a finite number (in float32) above 0"
RANGES = [  # settings, what is expected, invalid values, valid ones
    (
        "content_weight style_weight tv_weight noise_scale",
        WEIGHT,
        [NAN, INF, -1.0, 1e39],
        [0, 1e38],
    ),
    ("mse_factor learning_rate", POSITIVE, [NAN, INF, 0, -1, 1e39], [1e-30]),
    ("pixel_range", "expected 1e-15 to 1e15", [1e-16, 1e16], [1e-15, 1e15]),
    ("noise_ratio", "expected 0 to 1", [NAN, -0.1, 1.1], [0, 1]),
    ("averaging", "expected 0 to 0.9999", [NAN, -0.1, 1.0, True], [0, 0.9999]),
    ("adam_beta1 adam_beta2", "expected 0 to 0.999999", [NAN, -0.1, 1.0], [0, 0.999999]),
    ("steps memory_size", COUNT, [0, 2.5, 64.0, NAN, True, "9", 2**31, 10**400], [1, 2**31 - 1]),
    ("min_size", SIZE, [0, 2.5, 100_001], [1, 100_000]),
    ("tile", SIDE, [0, 2.5, True, "on", "", None, 2**31], [1, 2**31 - 1, "auto", "off"]),
    ("scale_factor", "expected a finite number, 1.05 or more", [NAN, INF, 1.0, True], [1.05, 3]),
    ("scale_steps", COUNTS, [(9, 0), (9, 2.5), (True,), ("9",), (2**31,)], [(), (9, 2**31 - 1)]),
]


@pytest.mark.parametrize("names, message, invalid, valid", RANGES)
def test_numbers_out_of_range_are_refused(names, message, invalid, valid):
    for name in names.split():
        needed = {"min_size": 64} if name.startswith("scale_") else {}
        needed |= {"optimizer": "adam"} if name.startswith("adam_") else {}
        for value in invalid:
            shown = repr(value) if name == "tile" else str(value)
            with pytest.raises(InputError) as caught:
                Config.of(**needed, **{name: value})
            assert str(caught.value) == f"{name} is {shown}: {message}"
        for value in valid:
            assert to_flat(Config.of(**needed, **{name: value}))[name] == value


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pooling", "max, average"),
        ("tv_order", "1, 2"),
        ("optimizer", "lbfgs, lbfgs-linesearch, adam"),
        ("precision", "float32, tf32, bfloat16"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(name, expected):
    for value in ("other", "", None, NAN, 0):
        message = re.escape(f"{name} is {value!r}: expected one of {expected}")
        with pytest.raises(InputError, match=f"^{message}"):
            Config.of(**{name: value})


WITHOUT_EFFECT = [
    (dict(scale_factor=2.0), "scale_factor has no meaning for one scale: set min_size"),
    (dict(scale_steps=(100, 50)), "scale_steps has no meaning for one scale: set min_size"),
    (dict(tile=512, remat="on"), "remat on has no meaning with tiles.*: leave one out"),
    (
        dict(precision="bfloat16", convolution="winograd"),
        "convolution winograd is too coarse in bfloat16: choose direct, or another precision",
    ),
    (dict(content_layers=(), style_layers=()), "no layers"),
    (dict(covariance_eps=0.5), "covariance_eps has no meaning without wasserstein"),
    (
        dict(style_losses=["wasserstein"], covariance_eps=0),
        r"covariance_eps is 0: expected a finite number \(in float32\) above 0",
    ),
    (dict(histogram_layers=["relu2_1"]), "histogram_layers has no meaning without histogram"),
    (
        dict(style_losses=["histogram"], histogram_layers=["relu2_2"]),
        "histogram_layers are relu2_2: expected some of the style layers, relu1_1",
    ),
    (dict(tv_form="nine-point", tv_order=1), "tv_order is 1: expected one of 2 for tv_form nine"),
    (dict(tv_form="isotropic", tv_order=4.5), "tv_order is 4.5: expected 1 to 4 for tv_form iso"),
    (dict(tv_order=10**400), "tv_order is 10+: expected one of 1, 2"),
    (dict(optimizer="adam", memory_size=5), "memory_size has no meaning for adam.*choose lbfgs"),
    (dict(optimizer="lbfgs-linesearch", learning_rate=1.0), "learning_rate has no meaning for"),
    (dict(clip=True), "clip has no meaning for lbfgs: leave it out, or choose adam"),
    (dict(weight=1.0), "unknown setting 'weight': expected one of content_layers, .*, remat$"),
]


@pytest.mark.parametrize("settings, message", WITHOUT_EFFECT)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=f"^{message}") as caught:
        Config.of(**settings)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_that_only_look_contradictory_are_accepted():
    default = Config().pyramid.scale_factor
    assert Config.of(scale_factor=default) == Config()
    for tile, remat in ((512, "auto"), (512, "off"), ("off", "on"), ("auto", "on")):
        assert Config.of(tile=tile, remat=remat).execution.remat == remat
    for precision, convolution in (("bfloat16", "direct"), ("tf32", "winograd")):
        assert Config.of(precision=precision, convolution=convolution) != Config()
    assert Config.of(content_layers=()).loss.content_names == ()


TRACED: dict = dict(content_layers=[("relu4_2", 0.3)], content_losses={"features": 2.0})
TRACED |= dict(style_layers=[(name, 0.2) for name in LossConfig().style_names])
TRACED |= dict(style_losses={"gram": 3.0}, content_weight=2.0, style_weight=3.0, tv_weight=4.0)
TRACED |= dict(color="keep-yiq")
STATIC: dict = dict(pooling="average", gram_normalization="hw", tv_form="isotropic", tv_order=2)
STATIC |= dict(tv_reduction="mean", mse_factor=0.25, pixel_range=1.0, style_mixing="sum")
STATIC |= dict(guides="inside", padding="circular", content_layers=("conv1_1",))
STATIC |= dict(style_layers=("conv2_1",), content_losses=("laplacian4",))
STATIC |= dict(style_losses=("covariance",), covariance_eps=0.5, histogram_layers=("relu1_1",))
NEEDED = {"covariance_eps": "wasserstein", "histogram_layers": "histogram"}


def test_only_weights_and_colours_leave_the_compiled_program_unchanged():
    plain = LossConfig().structure
    for name, value in TRACED.items():
        found = LossConfig(**{name: value})
        assert found != LossConfig() and found.structure == plain
        assert hash(found.structure) == hash(plain)
    for name, value in STATIC.items():
        needed: dict = {"style_losses": (NEEDED[name],)} if name in NEEDED else {}
        found = LossConfig(**needed, **{name: value}).structure
        assert found != LossConfig(**needed).structure and found.structure == found
    assert {*STATIC, *TRACED} == {field.name for field in fields(LossConfig)}


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(tile="auto", remat="auto"), Evaluation()),
        (dict(tile="off", remat="on"), Evaluation(remat=True)),
        (dict(tile=64, remat="auto", precision="tf32"), Evaluation(tile=64, precision="tf32")),
    ],
)
def test_auto_means_the_whole_image_unless_the_planner_decides(settings, expected):
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


def test_flat_names_are_equivalent_to_nested_settings():
    assert from_flat(FLAT) == Config.of(**FLAT) == Config().but(**FLAT) == NESTED
    flat = to_flat(NESTED)
    assert flat == to_flat(Config()) | FLAT and list(flat) == list(flat_types())
    assert from_flat(flat) == from_flat(flat, base=NESTED) == NESTED
    assert from_flat(to_flat(Config()), base=NESTED) == Config()


@pytest.mark.parametrize(
    "optimizer", [LBFGS(memory_size=4), LBFGSLineSearch(), Adam(), Adam(beta1=0)]
)
def test_settings_survive_json(optimizer):
    config = Config(optimizer=optimizer, pyramid=Pyramid(min_size=9, scale_steps=(5,)))
    config = config.but(style_losses=["histogram"], histogram_layers=["relu2_1"])
    assert from_flat(json.loads(json.dumps(to_flat(config)))) == config
    assert all(type(value) is not list for value in to_flat(config).values())


def test_another_optimiser_starts_from_its_own_defaults():
    assert NESTED.but(optimizer="lbfgs").optimizer == LBFGS()
    assert NESTED.but(optimizer="lbfgs", learning_rate=0.5).optimizer == LBFGS(learning_rate=0.5)
    assert NESTED.but(optimizer="adam", clip=False).optimizer == Adam(learning_rate=2.0, beta2=0.99)
    assert Config.of(memory_size=5).but(optimizer="lbfgs-linesearch").optimizer == LBFGSLineSearch()


def test_a_single_scale_resets_the_other_settings_of_scales():
    assert NESTED.but(min_size=None).pyramid == Pyramid()
    assert NESTED.but(min_size=32).pyramid == Pyramid(
        min_size=32, scale_factor=2.0, scale_steps=(4, 3)
    )


def test_records_with_the_old_name_of_keep_yiq_are_read():
    with pytest.warns(UserWarning, match="keep-ycbcr is the same as keep-yiq"):
        assert from_flat({"color": "keep-ycbcr"}) == Config.of(color="keep-yiq")
    with pytest.raises(InputError, match="'keep-ycbcr': expected one of none, keep-yiq"):
        LossConfig(color="keep-ycbcr")  # type: ignore


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().steps = 5  # type: ignore
