"""Weights scaled to a mean activation of 1, against an independent network in NumPy's float64."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image

from nst_jax.cli import main
from nst_jax.config import CONVS, TAPS
from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image
from nst_jax.models import features, prepare_kernels
from nst_jax.weights import (
    Weights,
    WeightsInfo,
    convert_file,
    list_weights,
    load_weights,
    normalize_weights,
    save_weights,
    verify_weights,
)
from nst_jax.weights.canonical import Normalization, parse_normalization
from nst_jax.weights.normalize import RELUS, inactive_channels, mean_activations, scale_activations

POOLINGS = {
    "max": np.max,
    "average": np.mean,
    "average-scaled": lambda x, axis: 2 * np.mean(x, axis),
    "l2": lambda x, axis: 0.78 * np.sqrt(np.sum(x**2, axis)),
}


def oracle(variables, image, *, pooling):
    """Every tap of the network in NumPy, float64."""
    mean, std = (np.asarray(variables["preprocessing"][key], float) for key in ("mean", "std"))
    x = (np.asarray(image, float) - mean) / std
    taps = {}
    for conv in CONVS:
        if conv.endswith("_1") and conv != "conv1_1":
            height, width = x.shape[0] // 2, x.shape[1] // 2
            windows = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
            x = POOLINGS[pooling](windows, axis=(1, 3))
        kernel = np.asarray(variables["params"][conv]["kernel"], float)
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        height, width, _ = x.shape
        taps[conv] = np.asarray(variables["params"][conv]["bias"], float) + sum(
            padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
        )
        x = taps[conv.replace("conv", "relu")] = np.maximum(taps[conv], 0)
    return taps


def oracle_means(variables, images, *, pooling):
    """Mean of every channel over all positions of all images."""
    found = [oracle(variables, image, pooling=pooling) for image in images]
    return {
        layer: np.concatenate([t[layer].reshape(-1, t[layer].shape[-1]) for t in found]).mean(0)
        for layer in RELUS
    }


@pytest.fixture(scope="module")
def alive(variables):
    """The small network with biases that leave no channel inactive."""
    params = {
        name: {"kernel": layer["kernel"] / 2, "bias": layer["bias"] + 50}
        for name, layer in variables["params"].items()
    }
    return {**variables, "params": params}


@pytest.fixture(scope="module")
def images():
    """Images of different sizes, whose mean differs from the mean of the images' means."""
    return [smooth_image(32, 48, seed=1), smooth_image(48, 19, seed=2)]


def check_scaling(variables, images, *, measured, pooling, exact):
    """Compare means, scaled means and scaled features with the oracle."""
    means = mean_activations(variables, images, pooling=measured)
    assert list(means) == list(RELUS)
    for layer, mean in oracle_means(variables, images, pooling=measured).items():
        assert mean.min() > 0
        np.testing.assert_allclose(means[layer], mean, rtol=exact)
    scaled = scale_activations(variables, means)
    for layer, mean in oracle_means(scaled, images, pooling=measured).items():
        np.testing.assert_allclose(mean, 1, atol=exact, err_msg=layer)
    found = features(scaled, images[0], layers=TAPS, pooling=pooling)
    for tap, expected in oracle(variables, images[0], pooling=pooling).items():
        expected = expected / means[tap.replace("conv", "relu")]
        atol = exact * np.abs(expected).max()
        np.testing.assert_allclose(found[tap], expected, atol=atol, err_msg=tap)


@pytest.mark.optimized
def test_single_precision(alive, images):
    check_scaling(alive, images, measured="max", pooling="max", exact=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measured", "pooling"),
    [("max", "l2"), ("average", "average"), ("l2", "max"), ("average-scaled", "average-scaled")],
)
def test_double_precision(x64, alive, images, measured, pooling):
    """A network of means measured with one pooling may be used with another."""
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), alive)
    inputs = [image.astype(float) for image in images]
    check_scaling(double, inputs, measured=measured, pooling=pooling, exact=1e-11)


class TestInactive:
    @pytest.fixture
    def partly(self, alive):
        """One channel that is never active, and one that hardly ever is."""
        params = {name: dict(layer) for name, layer in alive["params"].items()}
        params["conv2_1"]["bias"] = params["conv2_1"]["bias"].at[3].set(-1e4)
        layer = params["conv3_2"]
        layer["kernel"] = layer["kernel"].at[..., 0].mul(0)
        layer["bias"] = layer["bias"].at[0].set(1e-6)
        return {**alive, "params": params}

    @pytest.mark.slow
    def test_inactive_channels_are_not_scaled(self, partly, images):
        means = mean_activations(partly, images)
        assert means["relu2_1"][3] == 0 and means["relu3_2"][0] > 0
        found = inactive_channels(means)
        assert found == {"relu2_1": [3], "relu3_2": [0]}
        scaled = scale_activations(partly, means)
        assert scaled["params"]["conv2_1"]["bias"][3] == -1e4
        assert scaled["params"]["conv3_2"]["bias"][0] == partly["params"]["conv3_2"]["bias"][0]
        for layer, mean in oracle_means(scaled, images, pooling="max").items():
            active = np.delete(mean, found.get(layer, []))
            np.testing.assert_allclose(active, 1, atol=1e-6, err_msg=layer)

    def test_a_layer_without_active_channels(self, alive, images):
        means = mean_activations(alive, images) | {"relu5_4": np.zeros(12)}
        assert inactive_channels(means)["relu5_4"].size == 12
        last = scale_activations(alive, means)["params"]["conv5_4"]
        assert np.array_equal(last["bias"], alive["params"]["conv5_4"]["bias"])


class TestWeights:
    @pytest.fixture
    def weights(self, alive):
        info = WeightsInfo(name="small", preprocessing="caffe", attribution="By someone.", path="p")
        return Weights(alive, info)

    def test_record(self, weights, images, tmp_path):
        prepared = weights._replace(variables=prepare_kernels(weights.variables))
        normal = normalize_weights(prepared, iter(images))
        assert set(normal.variables) == {"params", "preprocessing"}
        found = load_weights(save_weights(tmp_path / "x", normal)).info
        assert found.name == "small-normalized" and found.preprocessing == "caffe"
        assert found.attribution == "By someone. Channels scaled to a mean of 1."
        record = json.loads(json.dumps(dataclasses.asdict(found)))["normalized"]
        assert record == {"images": 2, "pooling": "max", "inactive": {}}
        convert_file(tmp_path / "x", tmp_path / "y")
        assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
        assert load_weights(save_weights(tmp_path / "z", weights)).info.normalized is None

    @pytest.mark.parametrize("key", ["images", "pictures"])
    def test_header_of_this_and_of_earlier_versions(self, key):
        entry = {key: 2, "pooling": "max", "inactive": {"relu5_4": 3}}
        found = parse_normalization({"normalized": json.dumps(entry)})
        assert found == Normalization(images=2, pooling="max", inactive={"relu5_4": 3})

    @pytest.mark.parametrize(
        ("entry", "match"),
        [
            ("nothing", "malformed"),
            ("[1]", "malformed"),
            ('{"pooling": "max", "inactive": {}}', "malformed"),
            ('{"images": 2, "pooling": "max", "inactive": 3}', "malformed"),
            ('{"images": 1e999, "pooling": "max", "inactive": {}}', "malformed"),
            ('{"images": NaN, "pooling": "max", "inactive": {}}', "malformed"),
            ("9" * 5000, "malformed"),
            ('{"images": 0, "pooling": "max", "inactive": {}}', "1 or more images, got 0"),
        ],
    )
    def test_malformed_entries(self, entry, match):
        with pytest.raises(InputError, match=match):
            parse_normalization({"normalized": entry})

    def test_refusals(self, weights, slim_variables):
        normal = Normalization(images=2, pooling="max")
        normal = weights._replace(info=dataclasses.replace(weights.info, normalized=normal))
        params = dict(weights.variables["params"])
        params["conv1_1"] = {**params["conv1_1"], "bias": jnp.full(4, 3e38)}
        huge = weights._replace(variables={**weights.variables, "params": params})
        image = np.ones((16, 16, 3), np.float32)
        for given, shown, match in (
            (normal, [image], "p are normalised already .*2 images with max"),
            (weights._replace(variables=slim_variables), [image], "got slim weights"),
            (huge, [image], "infinity in relu1_1"),
            (weights, [], "at least one image .*, got none"),
            (weights, [np.ones((40, 15, 3), np.float32)], "got 15x40 px for image 1"),
            (weights, [np.ones((40, 40, 3), np.uint8)], "image 1 .*uint8"),
            (weights, [np.ones((40, 40), np.float32)], r"image 1 .*\(40, 40\)"),
        ):
            with pytest.raises(InputError, match=match):
                normalize_weights(given, shown)


class TestCommand:
    @pytest.fixture(autouse=True)
    def desk(self, tmp_path, monkeypatch, images, tiny_weights_file):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        save_image("folder/a.png", images[0])
        save_image("b.png", images[1])
        (tmp_path / "tiny.safetensors").write_bytes(tiny_weights_file.read_bytes())
        return tmp_path

    def test_round_trip(self, capsys, monkeypatch):
        shutil.copy("tiny.safetensors", "n.safetensors")
        line = ["weights", "normalize", "tiny.safetensors", "n.safetensors", "folder", "b.png"]
        assert main([*line, "--size", "60", "--pooling", "average", "--overwrite"]) == 0
        said = capsys.readouterr()
        assert said.out == "n.safetensors\n"
        original = load_weights("tiny.safetensors")
        shown = [load_image(path, size=60) for path in ("folder/a.png", "b.png")]
        expected = normalize_weights(original, shown, pooling="average")
        found = load_weights("n.safetensors")
        assert jax.tree.all(jax.tree.map(np.array_equal, found.variables, expected.variables))
        assert found.info.normalized == expected.info.normalized
        # The random network has channels that are never active.
        inactive = expected.info.normalized.inactive
        assert sum(inactive.values()) > 0 and said.err.count("\n") == 1
        assert all(f"{count} of {layer}" in said.err for layer, count in inactive.items())

        checks = verify_weights("n.safetensors")
        assert all(check.ok for check in checks)
        assert "mean activations 1 over 2 images with average pooling" in checks[1].detail
        monkeypatch.setenv("NST_JAX_WEIGHTS", "n.safetensors")
        assert list_weights()[0].detail == "0 MB, normalised"
        monkeypatch.setenv("NST_JAX_WEIGHTS", "tiny.safetensors")
        assert list_weights()[0].detail == "0 MB"

    @pytest.mark.parametrize(
        ("words", "match"),
        [
            (["tiny.safetensors", "x.safetensors"], "no sample image"),
            (["tiny.safetensors", "x.safetensors", "b.png", "cut.png"], "cut.png"),
            (["tiny.safetensors", "x.safetensors", "b.png", "--size", "39"], "px for b.png"),
            (["tiny.safetensors", "x.pth", "b.png"], "expected .safetensors"),
            (["tiny.safetensors", "tiny.safetensors", "b.png"], "exists: .* --overwrite"),
        ],
    )
    def test_refusals_write_nothing(self, desk, capsys, words, match):
        (desk / "cut.png").write_bytes((desk / "b.png").read_bytes()[:1500])
        before = {path: path.stat().st_mtime_ns for path in desk.rglob("*")}
        assert main(["weights", "normalize", *words]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert re.search(match, said.err), said.err
        assert {path: path.stat().st_mtime_ns for path in desk.rglob("*")} == before
