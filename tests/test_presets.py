"""Presets: their numbers, that flags override them, and how they are shown."""

from dataclasses import asdict, fields, replace

import pytest

from nst_jax.cli import main, parse
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.presets import PRESETS, get_preset

FIVE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

# Every number of the published tools, written down apart from nst_jax/presets.py.
NEURAL_STYLE = dict(
    content_layers=(("relu4_2", 1),),
    style_layers=tuple((name, 1) for name in FIVE),
    content_weight=5,
    style_weight=100,
    tv_weight=0.001,
    pooling="max",
    gram_normalization="chw",
    tv_order=1,
    mse_factor=1,
    pixel_range=255,
    optimizer="lbfgs",
    learning_rate=None,
    memory_size=100,
    steps=1000,
    init="content",
    noise="normal",
    noise_scale=0.001 / 255,
    noise_ratio=0.6,
    preconditioner="none",
    convolution="auto",
    style_mixing="average",
    guides="simple",
    padding="zero",
    color="none",
    size=512,
)
FAST = NEURAL_STYLE | dict(preconditioner="spectral", memory_size=50, steps=80)
GATYS = NEURAL_STYLE | dict(
    style_layers=(
        ("relu1_1", 1 / 4096),
        ("relu2_1", 1 / 16384),
        ("relu3_1", 1 / 65536),
        ("relu4_1", 1 / 262144),
        ("relu5_1", 1 / 262144),
    ),
    content_weight=1,
    style_weight=1000,
    tv_weight=0,
    gram_normalization="hw",
    steps=500,
)
COURSE = NEURAL_STYLE | dict(
    style_layers=tuple((name, 0.2) for name in FIVE),
    content_weight=10,
    style_weight=40,
    tv_weight=0,
    pooling="average",
    gram_normalization="hw",
    mse_factor=1 / 4,
    optimizer="adam",
    learning_rate=2,
    memory_size=None,
    steps=200,
    init="blend",
    noise="uniform",
    noise_scale=20 / 255,
    noise_ratio=0.6,
    size=400,
)
EXPECTED = {
    "neural-style": NEURAL_STYLE,
    "fast": FAST,
    "neural-style-lua": NEURAL_STYLE
    | dict(content_weight=1, style_weight=300, tv_weight=0.003, tv_order=2),
    "gatys": GATYS,
    "course": COURSE,
    "course-single": COURSE | dict(style_layers=(("relu3_1", 1),)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers(name):
    preset = get_preset(name)
    assert asdict(preset.config) | {"size": preset.size} == EXPECTED[name]


def test_the_table_is_whole():
    assert list(EXPECTED) == list(PRESETS)


def test_unknown_name():
    with pytest.raises(InputError, match="'none': expected one of neural-style, .*course-single"):
        get_preset("none")


def options(*flags):
    return parse(["stylize", "c.png", "--style", "s.png", "-o", "o.png", *flags])


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("form", ["--preset {}", "--preset={}"])
def test_a_preset_sets_the_defaults(name, form):
    found = options(*form.format(name).split())
    assert found.run.config == PRESETS[name].config and found.size == PRESETS[name].size
    assert found.run.preset == name


def test_the_default_is_neural_style():
    assert options() == options("--preset", "neural-style")


# A value for every setting that differs from all presets, as words and as parsed.
OVERRIDES = {
    "content_layers": ("conv3_2=0.5 relu4_1", (("conv3_2", 0.5), ("relu4_1", 1.0))),
    "style_layers": ("relu1_1=0.5,relu2_1", (("relu1_1", 0.5), ("relu2_1", 1.0))),
    "content_weight": ("0.25", 0.25),
    "style_weight": ("1e4", 1e4),
    "tv_weight": ("0.125", 0.125),
    "pooling": (None, None),
    "gram_normalization": (None, None),
    "tv_order": (None, None),
    "mse_factor": ("0.5", 0.5),
    "pixel_range": ("1", 1.0),
    "optimizer": ("lbfgs-linesearch", "lbfgs-linesearch"),
    "learning_rate": ("0.75", 0.75),
    "memory_size": ("7", 7),
    "steps": ("33", 33),
    "init": ("noise", "noise"),
    "noise": (None, None),
    "noise_scale": ("0.5", 0.5),
    "noise_ratio": ("0.125", 0.125),
    "preconditioner": (None, None),
    "convolution": ("direct", "direct"),
    "style_mixing": ("sum", "sum"),
    "guides": ("inside", "inside"),
    "padding": ("circular", "circular"),
    "color": ("keep-lab", "keep-lab"),
}
CHOICES = {
    "pooling": ("max", "average"),
    "gram_normalization": ("chw", "hw"),
    "tv_order": (1, 2),
    "noise": ("normal", "uniform"),
    "preconditioner": ("none", "spectral"),
}


@pytest.mark.parametrize(
    "preset, field",
    [
        (name, field.name)
        for name, numbers in EXPECTED.items()
        for field in fields(Config)
        if (numbers["optimizer"], field.name) != ("adam", "memory_size")  # it has none
    ],
)
def test_each_flag_overrides_its_value_alone(preset, field):
    config = PRESETS[preset].config
    words, value = OVERRIDES[field]
    if field in CHOICES:
        (value,) = set(CHOICES[field]) - {getattr(config, field)}
        words = str(value)
    flag = "--" + field.replace("_", "-")
    expected = {field: value}
    if field == "optimizer":  # these are the optimiser's own
        expected |= dict(learning_rate=None, memory_size=None)
    found = options("--preset", preset, flag, *words.split()).run.config
    assert found == replace(config, **expected) != config


@pytest.mark.parametrize("preset", EXPECTED)
def test_size_overrides(preset):
    found = options("--preset", preset, "--size", "77")
    assert found.size == 77 and found.run.config == PRESETS[preset].config


@pytest.mark.parametrize(
    "preset, flags, expected",
    [
        ("course", "--optimizer lbfgs", ("lbfgs", None, None)),
        ("course", "--optimizer=lbfgs-linesearch", ("lbfgs-linesearch", None, None)),
        ("course", "--optimizer lbfgs --learning-rate 0.5", ("lbfgs", 0.5, None)),
        ("course", "--optimizer adam", ("adam", 2.0, None)),
        ("gatys", "--optimizer adam", ("adam", None, None)),
        ("gatys", "--optimizer lbfgs-linesearch --memory-size 20", ("lbfgs-linesearch", None, 20)),
        ("gatys", "--optimizer lbfgs", ("lbfgs", None, 100)),
    ],
)
def test_another_optimiser_drops_the_presets_own_numbers(preset, flags, expected):
    config = options("--preset", preset, *flags.split()).run.config
    assert (config.optimizer, config.learning_rate, config.memory_size) == expected


def test_listed(capsys):
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}\n" in shown and preset.source in shown
        assert all(line in shown for line in preset.formula.splitlines())


@pytest.mark.parametrize("name", EXPECTED)
def test_shown_in_full(capsys, name):
    assert main(["presets", name]) == 0
    shown, preset = capsys.readouterr().out, PRESETS[name]
    words = " ".join(shown.split())  # notes are wrapped, formulas indented
    for text in (name, preset.summary, preset.formula, preset.source, preset.notes):
        assert " ".join(text.split()) in words
    for key, value in EXPECTED[name].items():
        if not isinstance(value, int | tuple):
            assert f"\n  {key} = {value}\n" in shown
    assert f"\n  size = {preset.size}\n" in shown


def test_show_an_unknown_one(capsys):
    assert main(["presets", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nst-jax: error: unknown preset 'none'")
    assert len(err.splitlines()) == 1
