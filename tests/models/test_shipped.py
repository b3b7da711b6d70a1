"""The slim weights of the package: file, model card, wheel, and quality."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers.images import smooth_image
from safetensors import safe_open

from nst_jax.config import PRESETS, TAPS
from nst_jax.images import load_image
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import ProjectedFeatures, network_features
from nst_jax.transfer import stylize
from nst_jax.weights import load_weights, verify_weights
from nst_jax.weights.convert import expected_shapes

pytestmark = pytest.mark.sampled

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "weights" / "vgg19-slim.safetensors"
CARD = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
CHANNELS = (16, 64, 96, 192, 192)
LAYERS = tuple(tap for tap in TAPS if tap.startswith("relu") and tap <= "relu5_1")


@pytest.fixture(scope="module")
def shipped():
    return load_weights(FILE)


@pytest.fixture(scope="module")
def training(shipped):
    return json.loads(shipped.info.training)


def test_file_is_small_complete_and_in_half_precision(shipped):
    assert FILE.stat().st_size <= 8_000_000
    pairs = [(pooling, layer) for pooling in ("max", "average") for layer in LAYERS]
    with safe_open(FILE, "np") as file:
        found = {name: file.get_slice(name) for name in file.keys()}
        assert {name: tuple(piece.get_shape()) for name, piece in found.items()} == (
            expected_shapes(CHANNELS, lifts=pairs)
        )
        assert {piece.get_dtype() for piece in found.values()} == {"F16"}
    assert all(check.ok for check in verify_weights(FILE))
    assert shipped.info.name == "vgg19-slim"
    assert "CC BY 4.0" in shipped.info.licence and "Zisserman" in shipped.info.attribution


def test_model_card_agrees_with_the_file(shipped, training):
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in CARD
    assert f"{FILE.stat().st_size:,} bytes" in CARD
    assert "-".join(map(str, CHANNELS)) in CARD
    assert "CC BY 4.0" in CARD and "Simonyan" in CARD
    assert f"{training['steps']:,} steps" in CARD
    assert f"{training['stages'][-1]['real_pictures']} real" in CARD  # the key in this file
    for pair in training["figures"]["pairs"]:
        content, style = pair["pair"].split("__")
        row = re.search(rf"\| {content}, {style} \|.*\| ([\d.-]+) \|\n", CARD)
        assert row and float(row[1]) == pytest.approx(pair["r"], abs=0.0051), pair
    for key in ("median", "worst"):
        assert f"{key} **{training['figures'][key]:.2f}**" in CARD
    assert training["stages"][0]["from_step"] == 0
    assert all(tuple(stage["channels"]) == CHANNELS for stage in training["stages"])
    assert len(training["teacher_sha256"]) == 64
    assert len(training["figures"]["pairs"]) == 8
    ratios = sorted(pair["r"] for pair in training["figures"]["pairs"])
    assert ratios[-1] == training["figures"]["worst"]
    assert (ratios[3] + ratios[4]) / 2 == pytest.approx(training["figures"]["median"])


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_every_layer_is_projected_to_the_channels_of_vgg19(shipped, pooling):
    image = jnp.asarray(smooth_image(37, 50, seed=3))
    taps = network_features(shipped.variables, image, layers=LAYERS, pooling=pooling)
    wide = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}  # VGG-19's channels by block
    for layer, tap in taps.items():
        assert isinstance(tap, ProjectedFeatures) and tap.kernel.shape[1] == wide[int(layer[4])]
        assert tap.own.shape[-1] == CHANNELS[int(layer[4]) - 1]
        assert bool(jnp.isfinite(tap.own).all())


@pytest.mark.parametrize("preset", ["wasserstein", "course"])
@pytest.mark.slow
def test_presets_run_with_slim_weights(shipped, preset):
    config = PRESETS[preset].config.but(steps=6)
    content, style = smooth_image(32, 48, seed=1), smooth_image(48, 32, seed=2)
    result = stylize(shipped.variables, content, style, config=config)
    assert result.status == "done" and result.loss < result.history.loss[0]


@pytest.mark.slow
@pytest.mark.weights
def test_image_is_good_under_the_full_network(shipped, vgg19_weights, images_folder):
    """At least half the decrease of the full network; ``slim_quality.py`` measures all pairs."""
    config = PRESETS["neural-style"].config.but(steps=20)
    content = load_image(images_folder / "content" / "tubingen.jpg", size=96)
    style = load_image(images_folder / "style" / "starry_night.jpg", size=96)
    full, slim = vgg19_weights.variables, shipped.variables
    loss = make_loss(config.loss)
    images = jnp.asarray(content), jnp.asarray(style)
    targets = loss.targets(full, *images, weights=loss_weights(config))

    def value(image):
        return float(loss.head(loss.statistics(full, jnp.asarray(image), targets), targets)[0])

    best = stylize(full, content, style, config=config).loss
    reached = value(stylize(slim, content, style, config=config).image)
    assert (reached - best) / (value(content) - best) < 0.5


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")
def test_wheel_contains_the_file(tmp_path):
    built = subprocess.run(
        [sys.executable, *"-m pip wheel --quiet --no-deps --wheel-dir".split(), tmp_path, ROOT],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("no package index to take the build tool from")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("nst_jax/data/vgg19-slim.safetensors") == FILE.read_bytes()
        assert any(name.endswith("licenses/weights/README.md") for name in archive.namelist())
