"""Presets in the commands: what is said of weights they were not made for, and what is refused."""

import jax.numpy as jnp
import pytest
from conftest import smooth_image

from nst_jax.cli import main
from nst_jax.cli.checks import check_preset_fits, network_of
from nst_jax.config import PRESETS, Config
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.weights import Weights, WeightsInfo, save_weights
from nst_jax.weights.canonical import Normalization

pytestmark = pytest.mark.sampled

LAYERS = "--style-layers relu1_1 --content-layers relu1_2".split()
SMALL = "--size 16 --steps 1".split()


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch, variables):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "style.png"):
        save_image(name, smooth_image(16, 16, seed=len(name)))
    numbers = {"mean": jnp.array([0.485, 0.456, 0.406]), "std": jnp.array([0.229, 0.224, 0.225])}
    others = {"params": variables["params"], "preprocessing": numbers}
    for kind, tree in (("caffe", variables), ("torchvision", others)):
        info = WeightsInfo(name=kind, preprocessing=kind)
        save_weights(f"{kind}.safetensors", Weights(tree, info))
    return tmp_path


COMMANDS = {
    "stylize": ["stylize", "a.png", "--style", "style.png", "-o", "out.png", *LAYERS],
    "texture": ["texture", "style.png", "-o", "out.png", *LAYERS[:2]],
    "batch": ["batch", "a.png", "--style", "style.png", "-o", "out", *LAYERS],
    "sweep": "sweep a.png --style style.png -o out.png --over seed=1 --init noise".split() + LAYERS,
    "reconstruct": ["reconstruct", "a.png", "--layer", "relu1_1", "-o", "out.png"],
}


def said(capsys, command, *flags):
    assert main([*COMMANDS[command], *SMALL, *flags]) == 0
    return [line for line in capsys.readouterr().err.splitlines() if "weights" in line]


@pytest.mark.parametrize("preset, other", [("pystiche", "caffe"), ("prism", "torchvision")])
@pytest.mark.parametrize("command", COMMANDS)
def test_other_weights_are_told_in_a_line(capsys, command, preset, other):
    meant = PRESETS[preset].weights
    lines = said(capsys, command, "--preset", preset, "--weights", f"{other}.safetensors")
    if command == "reconstruct":  # nothing to balance
        assert not lines
        return
    (line,) = lines
    assert line.startswith(
        f"nst-jax: the factors of preset {preset} are for {meant} weights and these are {other}: "
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_told_of_its_own_weights(capsys, command):
    assert not said(capsys, command, "--preset", "pystiche", "--weights", "torchvision.safetensors")


def test_networks_have_the_presets_names():
    scaled = Normalization(images=2, pooling="max")
    infos = [
        WeightsInfo(name="any", preprocessing=kind, normalized=normalized)
        for kind in ("caffe", "torchvision", "mine")
        for normalized in (None, scaled)
    ]
    assert [network_of(info) for info in infos[:3]] == [
        "caffe",
        PRESETS["gatys-2017"].weights,
        PRESETS["pystiche"].weights,
    ]
    assert network_of(infos[4]) == "mine" and network_of(infos[3]) == "torchvision-normalized"


@pytest.mark.parametrize(
    "preset, flags",
    [
        ("style-transfer-pytorch", "--min-size None --averaging 0"),
        ("gatys-2017", "--min-size None"),
        ("spst", "--min-size None"),
    ],
)
@pytest.mark.parametrize("command", ["batch", "sweep"])
def test_what_is_for_one_image_names_the_flags_that_go_on(capsys, command, preset, flags):
    line = [*COMMANDS[command], *SMALL, "--weights", "caffe.safetensors", "--preset", preset]
    assert main(line) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"nst-jax: error: preset {preset} sets min_size")
    assert f"not for {command}: add {flags}, or choose another preset" in err
    assert main([*line, *flags.split()]) == 0


def test_what_a_person_sets_is_not_the_presets():
    check_preset_fits(Config.of(min_size=64), preset="spst", command="batch")
    with pytest.raises(InputError, match="preset spst sets min_size"):
        check_preset_fits(PRESETS["spst"].config, preset="spst", command="batch")
