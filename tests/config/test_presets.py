"""Presets: their stored table, that flags override them, and how they are shown."""

import json
from pathlib import Path

import pytest

from nst_jax.cli import main
from nst_jax.cli.parsing import parse
from nst_jax.config import PRESETS, Config, get_preset, presets, to_flat
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError

pytestmark = pytest.mark.sampled

DEFAULT = presets.DEFAULT_PRESET  # before the tests take another one
TABLE = json.loads((Path(__file__).parents[1] / "data" / "presets.json").read_text())


def test_the_table_is_whole():
    assert list(TABLE) == list(PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_numbers(name):
    """Those of the table, to which ``test_preset_parity`` has the tools' own formulas."""
    preset = get_preset(name)
    found = {"size": preset.size, "weights": preset.weights} | to_flat(preset.config)
    assert list(found) == list(TABLE[name]) and json.loads(json.dumps(found)) == TABLE[name]
    settings = {key: value for key, value in TABLE[name].items() if key not in ("size", "weights")}
    assert Config.of(**settings) == preset.config


def test_the_default_of_the_command_line():
    assert DEFAULT == "wasserstein"
    # It is of one scale, for batch and sweep too, and of what the slim weights have learned.
    config = PRESETS[DEFAULT].config
    assert config.pyramid.min_size is None and config.averaging == 0
    assert {*config.loss.layers} <= {*Config().loss.style_names, "relu4_2"}


def test_unknown_name():
    with pytest.raises(InputError, match="'none': expected one of wasserstein, .*course-single"):
        get_preset("none")


LINE = ["stylize", "c.png", "--style", "s.png", "-o", "o.png"]


def options(*flags):
    return parse([*LINE, *flags])


@pytest.mark.parametrize("name", TABLE)
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
    "content_losses": ("features=0.5 laplacian4", (("features", 0.5), ("laplacian4", 1.0))),
    "style_losses": ("gram=0.5 mean-std", (("gram", 0.5), ("mean-std", 1.0))),
    "histogram_layers": ("relu2_1 relu3_1", ("relu2_1", "relu3_1")),
    "covariance_eps": ("0.5", 0.5),
    "gram_normalization": (None, None),
    "tv_form": (None, None),
    "tv_order": ("3", 3.0),
    "tv_reduction": (None, None),
    "mse_factor": ("0.5", 0.5),
    "pixel_range": ("128", 128.0),
    "optimizer": ("lbfgs-linesearch", "lbfgs-linesearch"),
    "learning_rate": ("0.75", 0.75),
    "memory_size": ("7", 7),
    "adam_beta1": ("0.5", 0.5),
    "adam_beta2": ("0.5", 0.5),
    "adam_epsilon": ("0.25", 0.25),
    "clip": (None, None),
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
    "min_size": ("64", 64),
    "scale_factor": ("1.5", 1.5),
    "scale_steps": ("100 50", (100, 50)),
    "averaging": ("0.75", 0.75),
    "precision": ("bfloat16", "bfloat16"),
    "tile": ("384", 384),
    "remat": ("on", "on"),
}
CHOICES = {
    "pooling": ("max", "average"),
    "gram_normalization": ("chw", "hw"),
    "tv_form": ("isotropic", "anisotropic"),
    "tv_reduction": ("sum", "mean"),
    "noise": ("normal", "uniform"),
    "preconditioner": ("none", "spectral"),
}
# What a setting has a meaning with only.
HISTOGRAM = {"style_losses": "histogram", "style_layers": "relu2_1 relu3_1"}
NEEDED: dict = {name: {"min_size": 64} for name in ("scale_steps", "scale_factor")} | {
    "tv_form": {"tv_order": 2},
    "tv_order": {"tv_form": "isotropic"},
    "covariance_eps": {"style_losses": "wasserstein"},
    "histogram_layers": HISTOGRAM,
}
OF_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon", "clip")
OF_LBFGS = ("memory_size",)


def flag(name, value):
    return [f"--{name.replace('_', '-')}", *str(value).split()]


@pytest.mark.parametrize(
    "preset, field",
    [
        (name, field)
        for name in ("neural-style", "course", "style-transfer-pytorch")
        for field in flat_types()
        if field not in (OF_LBFGS if TABLE[name]["optimizer"] == "adam" else OF_ADAM)
    ],
)
def test_each_flag_overrides_its_value_alone(preset, field):
    config = PRESETS[preset].config
    words, value = OVERRIDES[field]
    line = flag(field, words)
    if field in CHOICES:
        value = next(value for value in CHOICES[field] if value != to_flat(config)[field])
        line = flag(field, value)
    if field == "clip":
        value = not config.optimizer.clip
        line = ["--clip" if value else "--no-clip"]
    expected: dict = {field: value}
    for name, needed in NEEDED.get(field, {}).items():
        line += flag(name, needed)
        expected[name] = needed.split() if name in HISTOGRAM else needed
    if field == "optimizer":  # these are the optimiser's own
        expected |= dict(learning_rate=None, memory_size=None, clip=False)
        expected |= dict(adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
    found = options("--preset", preset, *line).run.config
    assert found == config.but(**expected) != config


@pytest.mark.parametrize("preset", TABLE)
def test_one_scale_drops_the_presets_own_numbers(preset):
    config = options("--preset", preset, "--min-size", "None").run.config
    one = dict(min_size=None, scale_factor=2**0.5, scale_steps=())
    assert config == PRESETS[preset].config.but(**one)


@pytest.mark.parametrize(
    "words, value",
    [("--tile 512", 512), ("--tile=512", 512), ("--tile off", "off"), ("--tile auto", "auto")],
)
def test_a_tile_is_a_number_or_a_word(words, value):
    found = options(*words.split()).run.config.execution.tile
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("words", ["100 50", "100"])
def test_steps_of_scales_are_one_or_several_numbers(words):
    found = options("--min-size", "64", "--scale-steps", *words.split(), "--steps", "9").run.config
    assert found.pyramid.scale_steps == tuple(map(int, words.split())) and found.steps == 9
    assert all(type(steps) is int for steps in found.pyramid.scale_steps)


@pytest.mark.parametrize(
    "words",
    [
        "--tile banana",
        "--tile 1.5",
        "--min-size small",
        "--scale-steps 9 1.5",
        "--scale-factor large",
        "--averaging much",
        "--precision float64",
        "--remat yes",
    ],
)
def test_the_parser_refuses_what_is_no_value(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([*LINE, *words.split()])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "") and words.split()[0] in err


@pytest.mark.parametrize(
    "words, message",
    [
        ("--tile 0", "tile is 0: expected auto, off, or a side in pixels"),
        ("--tile -64", "tile is -64: expected auto, off"),
        ("--tile 512 --remat on", "remat on has no meaning with tiles"),
        ("--min-size 0", "min_size is 0: expected a whole number, 1 or more"),
        ("--scale-steps 100 50", "scale_steps has no meaning for one scale"),
        ("--min-size 64 --scale-steps 9 0", "scale_steps is (9, 0): expected whole numbers"),
        ("--scale-factor 2", "scale_factor has no meaning for one scale"),
        ("--scale-factor nan", "scale_factor is nan: expected a finite number from 1.05 on"),
        ("--averaging 1", "averaging is 1.0: expected 0 to 0.9999"),
        ("--precision bfloat16 --convolution winograd", "convolution winograd is too coarse"),
    ],
)
def test_what_the_settings_refuse_is_told_in_a_line(capsys, words, message):
    assert main([*LINE, *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"nst-jax: error: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("preset", TABLE)
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
        ("tf-tutorial", "--optimizer lbfgs", ("lbfgs", None, None)),
    ],
)
def test_another_optimiser_drops_the_presets_own_numbers(preset, flags, expected):
    found = to_flat(options("--preset", preset, *flags.split()).run.config)
    assert tuple(found[name] for name in ("optimizer", "learning_rate", "memory_size")) == expected


@pytest.mark.parametrize("command", ["stylize", "batch", "texture", "reconstruct", "sweep"])
def test_help_has_the_presets_values(capsys, command):
    """Of the preset that is named anywhere, in one column without line breaks."""
    for words, expected in (
        ("--preset course --help", ("--clip", "default: adam)", "Default 1 ", "default: 2.0)")),
        ("--help --preset=tf-tutorial", ("--no-clip", "default: adam)", "default: 0.02)")),
        ("--help", ("--clip", "default: lbfgs)", "default: 100)", "default: None)")),
    ):
        with pytest.raises(SystemExit) as caught:
            main([command, *words.split()])
        shown = " ".join(capsys.readouterr().out.replace("\u2502", "").split())
        assert caught.value.code == 0
        for text in expected:
            assert text in shown


def test_listed(capsys):
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}\n" in shown and preset.source in shown
        assert f"\n  for {preset.weights} weights\n  {preset.source}\n" in shown
        assert all(line in shown for line in preset.formula.splitlines())


@pytest.mark.parametrize("name", TABLE)
def test_shown_in_full(capsys, name):
    assert main(["presets", name]) == 0
    shown, preset = capsys.readouterr().out, PRESETS[name]
    words = " ".join(shown.split())  # notes are wrapped, formulas indented
    for text in (name, preset.summary, preset.formula, preset.source, preset.notes):
        assert " ".join(text.split()) in words
    assert f"for {preset.weights} weights" in words
    for key, value in TABLE[name].items():
        if key != "weights" and not isinstance(value, int | list):
            assert f"\n  {key} = {value}\n" in shown
    assert f"\n  size = {preset.size}\n" in shown


def test_show_an_unknown_one(capsys):
    assert main(["presets", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nst-jax: error: unknown preset 'none'")
    assert len(err.splitlines()) == 1
