"""Presets in the commands: messages about other weights, and settings that are refused."""

import jax.numpy as jnp
import pytest
from helpers.images import smooth_image

from nst_jax.cli import main
from nst_jax.cli.checks import check_preset_fits, log_network, network_of
from nst_jax.cli.options import RunOptions
from nst_jax.config import PRESETS, Config
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.weights import Weights, WeightsInfo, save_weights
from nst_jax.weights.canonical import Normalization


def weights_of(preprocessing, normalized=None):
    info = WeightsInfo(name="any", preprocessing=preprocessing, normalized=normalized)
    return Weights({}, info)


def test_networks_have_the_presets_names():
    scaled = Normalization(images=2, pooling="max")
    assert network_of(weights_of("caffe").info) == PRESETS["neural-style"].weights
    assert network_of(weights_of("caffe", scaled).info) == PRESETS["gatys-2017"].weights
    assert network_of(weights_of("torchvision").info) == PRESETS["pystiche"].weights
    assert network_of(weights_of("torchvision", scaled).info) == "torchvision-normalized"
    assert network_of(weights_of("mine").info) == "mine"


@pytest.mark.parametrize("preset, other", [("pystiche", "caffe"), ("prism", "torchvision")])
def test_weights_of_another_network_are_logged(capsys, preset, other):
    expected = PRESETS[preset].weights
    log_network(RunOptions(preset=preset), weights_of(other))
    assert capsys.readouterr().err.startswith(
        f"nst-jax: preset {preset} is balanced for {expected} weights and these are {other}: "
    )
    if expected in ("caffe", "torchvision"):
        log_network(RunOptions(preset=preset), weights_of(expected))
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "command, lines",
    [
        ("stylize a.png --style a.png -o out.png --content-layers relu1_2", 1),
        ("texture a.png -o out.png", 1),
        ("batch a.png --style a.png -o out --content-layers relu1_2", 1),
        ("sweep a.png --style a.png -o out.png --over tv_weight=1 --content-layers relu1_2", 1),
        ("reconstruct a.png --layer relu1_1 -o out.png", 0),  # nothing to balance
    ],
)
def test_every_command_logs_them(capsys, tmp_path, monkeypatch, variables, command, lines):
    monkeypatch.chdir(tmp_path)
    save_image("a.png", smooth_image(16, 16, seed=1))
    numbers = {"mean": jnp.array([0.485, 0.456, 0.406]), "std": jnp.array([0.229, 0.224, 0.225])}
    tree = {"params": variables["params"], "preprocessing": numbers}
    save_weights("w.safetensors", Weights(tree, WeightsInfo(name="w", preprocessing="torchvision")))
    layers = [] if "reconstruct" in command else ["--style-layers", "relu1_1"]
    sizes = "--size 16 --steps 1 --weights w.safetensors".split()
    assert main([*command.split(), *layers, *sizes]) == 0
    err = capsys.readouterr().err
    assert err.count("is balanced for caffe weights and these are torchvision") == lines


@pytest.mark.parametrize("command", ["batch", "sweep"])
def test_settings_for_one_image_are_refused(command):
    """The message names the flags that switch them off; settings of a person are not refused."""
    for preset, flags in (
        ("style-transfer-pytorch", "--min-size None --averaging 0"),
        ("spst", "--min-size None"),
    ):
        config = PRESETS[preset].config
        message = f"preset {preset} sets min_size.* not for {command}: add {flags}, or choose"
        with pytest.raises(InputError, match=message):
            check_preset_fits(config, preset=preset, command=command)
        check_preset_fits(config.but(min_size=None, averaging=0), preset=preset, command=command)
    check_preset_fits(Config.of(min_size=64), preset="spst", command=command)
