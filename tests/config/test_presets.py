"""Presets: their stored table, how flags override them, and how they are listed."""

import json
from pathlib import Path

import pytest

from nst_jax.cli import main
from nst_jax.cli.parsing import parse
from nst_jax.config import PRESETS, Config, get_preset, presets, to_flat
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError

DEFAULT = presets.DEFAULT_PRESET  # conftest sets another for the tests
TABLE = json.loads((Path(__file__).parents[1] / "data" / "presets.json").read_text())


def test_presets_are_those_of_the_stored_table():
    """No setting of a published preset changes unnoticed; see test_preset_parity for losses."""
    assert list(TABLE) == list(PRESETS)
    for name, stored in TABLE.items():
        preset = get_preset(name)
        found = {"size": preset.size, "weights": preset.weights} | to_flat(preset.config)
        assert list(found) == list(stored) and json.loads(json.dumps(found)) == stored
        settings = {key: stored[key] for key in flat_types()}
        assert Config.of(**settings) == preset.config


def test_the_default_preset_suits_every_command_and_the_slim_weights():
    config = PRESETS[DEFAULT].config
    assert config.pyramid.min_size is None and config.averaging == 0
    assert {*config.loss.layers} <= {*Config().loss.style_names, "relu4_2"}


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="'none': expected one of wasserstein, .*course-single"):
        get_preset("none")


LINE = ["stylize", "c.png", "--style", "s.png", "-o", "o.png"]


def options(*flags):
    return parse([*LINE, *flags])


@pytest.mark.parametrize("name, form", [("course", "--preset {}"), ("spst", "--preset={}")])
def test_a_preset_sets_the_defaults_of_the_flags(name, form):
    found = options(*form.format(name).split())
    assert found.run.config == PRESETS[name].config and found.size == PRESETS[name].size
    assert found.run.preset == name
    assert options(*form.format(name).split(), "--size", "77").size == 77


# A value for every setting, all different from those of the preset course.
VALUES: dict = dict(content_weight=0.25, style_weight=1e4, tv_weight=0.125, mse_factor=0.5)
VALUES |= dict(covariance_eps=0.5, tv_order=3.0, pixel_range=128.0, learning_rate=0.75, tile=384)
VALUES |= dict(adam_beta1=0.5, adam_beta2=0.5, adam_epsilon=0.25, steps=33, averaging=0.75)
VALUES |= dict(min_size=64, scale_factor=1.5, noise_scale=0.5, noise_ratio=0.125, init="noise")
VALUES |= dict(pooling="max", gram_normalization="chw", tv_form="isotropic", tv_reduction="mean")
VALUES |= dict(style_mixing="sum", guides="inside", padding="circular", color="keep-lab")
VALUES |= dict(preconditioner="spectral", noise="normal", convolution="direct", remat="off")
VALUES |= dict(precision="bfloat16", scale_steps=(100, 50), histogram_layers=("relu2_1",))
VALUES |= dict(content_layers=(("conv3_2", 0.5), ("relu4_1", 1.0)))
VALUES |= dict(style_layers=(("relu1_1", 0.5), ("relu2_1", 1.0)))
VALUES |= dict(content_losses=(("features", 0.5), ("laplacian4", 1.0)))
VALUES |= dict(style_losses=(("wasserstein", 0.5), ("histogram", 1.0)))
WORDS = {
    "content_layers": "conv3_2=0.5 relu4_1",
    "style_layers": "relu1_1=0.5,relu2_1",
    "content_losses": "features=0.5 laplacian4",
    "style_losses": "wasserstein=0.5 histogram",
    "histogram_layers": "relu2_1",
    "scale_steps": "100 50",
}


def flag(name):
    return [f"--{name.replace('_', '-')}", *WORDS.get(name, str(VALUES[name])).split()]


def test_every_setting_has_a_flag():
    """The values have the types of the settings, not only equal values."""
    line = [word for name in VALUES for word in flag(name)]
    expected = VALUES | {"clip": True}
    found = options("--preset", "course", "--clip", *line).run.config
    assert found == PRESETS["course"].config.but(**expected)
    flat, before = to_flat(found), to_flat(PRESETS["course"].config)
    assert json.dumps({name: flat[name] for name in expected}) == json.dumps(expected)
    assert {name for name in flat if flat[name] != before[name]} == set(expected)
    assert set(flat_types()) - set(expected) == {"optimizer", "memory_size"}
    assert options("--memory-size", "7").run.config == Config.of(memory_size=7)
    assert options("--preset", "tf-tutorial", "--no-clip").run.config.optimizer.clip is False
    assert options("--tile", "off").run.config.execution.tile == "off"


@pytest.mark.parametrize("preset", ["spst", "style-transfer-pytorch"])
def test_min_size_none_drops_the_scales_of_a_preset(preset):
    config = options("--preset", preset, "--min-size", "None").run.config
    one = dict(min_size=None, scale_factor=2**0.5, scale_steps=())
    assert config == PRESETS[preset].config.but(**one)


@pytest.mark.parametrize(
    "preset, flags, expected",
    [
        ("course", "--optimizer lbfgs", ("lbfgs", None, None)),
        ("course", "--optimizer lbfgs --learning-rate 0.5", ("lbfgs", 0.5, None)),
        ("course", "--optimizer adam", ("adam", 2.0, None)),
        ("gatys", "--optimizer lbfgs", ("lbfgs", None, 100)),
    ],
)
def test_another_optimiser_drops_the_parameters_of_a_preset(preset, flags, expected):
    found = to_flat(options("--preset", preset, *flags.split()).run.config)
    assert tuple(found[name] for name in ("optimizer", "learning_rate", "memory_size")) == expected


def test_the_parser_refuses_values_of_other_types(capsys):
    for words in ("--tile 1.5", "--scale-steps 9 1.5", "--averaging much", "--remat yes"):
        assert main([*LINE, *words.split()]) == 2
        out, err = capsys.readouterr()
        assert out == "" and words.split()[0] in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            "stylize --preset course --help-all",
            (" --clip", "adam, from the preset)", "(2, from the"),
        ),
        ("sweep --help-all --preset=tf-tutorial", (" --no-clip", "adam, from", "(0.02, from")),
        ("batch --help-all", (" --clip", "(from the preset)", "(default: neural-style)")),
    ],
)
def test_help_shows_the_values_of_the_preset(capsys, words, expected):
    assert main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in expected)


def test_presets_are_listed_and_shown_in_full(capsys):
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary}\n" in listed
        assert f"\n  for {preset.weights} weights\n  {preset.source}\n" in listed
        assert all(line in listed for line in preset.formula.splitlines())
    for name in ("course", "spst"):
        assert main(["presets", name]) == 0
        shown, preset = capsys.readouterr().out, PRESETS[name]
        words = " ".join(shown.split())  # notes are wrapped, formulas indented
        for text in (name, preset.summary, preset.formula, preset.source, preset.notes):
            assert " ".join(text.split()) in words
        assert f"\n  size = {preset.size}\n" in shown
        assert f"\n  style_weight = {preset.config.loss.style_weight}\n" in shown


def test_showing_an_unknown_preset_is_refused(capsys):
    assert main(["presets", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nst-jax: error: unknown preset 'none'")
    assert len(err.splitlines()) == 1
