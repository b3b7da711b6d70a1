"""Weights scaled to a mean activation of 1, against an independent network in NumPy's float64."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
from safetensors import safe_open

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
from nst_jax.weights.canonical import parse_normalization
from nst_jax.weights.normalize import RELUS, inactive_channels, mean_activations, scale_activations

pytestmark = pytest.mark.sampled

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
    found = [oracle(variables, image, pooling=pooling) for image in images]
    rows = {layer: [taps[layer].reshape(-1, taps[layer].shape[-1]) for taps in found]
            for layer in RELUS}  # fmt: skip
    return {layer: np.concatenate(parts).mean(0) for layer, parts in rows.items()}


@pytest.fixture(scope="module")
def alive(variables):
    """The small network with biases that leave no channel without an activation."""
    params = {
        name: {"kernel": layer["kernel"] / 2, "bias": layer["bias"] + 50}
        for name, layer in variables["params"].items()
    }
    return {**variables, "params": params}


@pytest.fixture(scope="module")
def images():
    """Of different sizes, so that a mean of the images' means would be another."""
    return [smooth_image(36, 50, seed=1), smooth_image(64, 19, seed=2)]


# Twice the average makes activations of some 1000: a small mean among them is less exact than its
# rounding here, and is checked in double precision.
SINGLE = ("max", "average", "l2")


@pytest.mark.optimized
@pytest.mark.parametrize("pooling", SINGLE)
class TestScale:
    @pytest.mark.slow
    def test_means_are_those_of_all_positions(self, alive, images, pooling):
        found = mean_activations(alive, images, pooling=pooling)
        expected = oracle_means(alive, images, pooling=pooling)
        assert list(found) == list(RELUS)
        for layer, mean in expected.items():
            assert mean.min() > 0
            np.testing.assert_allclose(found[layer], mean, rtol=2e-6)

    def test_every_mean_is_one(self, alive, images, pooling):
        means = mean_activations(alive, images, pooling=pooling)
        scaled = scale_activations(alive, means)
        for layer, mean in oracle_means(scaled, images, pooling=pooling).items():
            np.testing.assert_allclose(mean, 1, atol=1e-6, err_msg=layer)

    @pytest.mark.parametrize("measured", SINGLE)
    def test_features_are_the_originals_over_the_means(self, alive, images, pooling, measured):
        means = mean_activations(alive, images, pooling=measured)
        found = features(scale_activations(alive, means), images[0], layers=TAPS, pooling=pooling)
        for tap, expected in oracle(alive, images[0], pooling=pooling).items():
            expected = expected / means[tap.replace("conv", "relu")]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found[tap], expected, atol=2e-6 * scale, err_msg=tap)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.slow
def test_in_double_precision(x64, alive, images, pooling):
    double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), alive)
    inputs = [image.astype(float) for image in images]
    means = mean_activations(double, inputs, pooling=pooling)
    scaled = scale_activations(double, means)
    assert scaled["params"]["conv5_4"]["kernel"].dtype == jnp.float64
    for mean in oracle_means(scaled, inputs, pooling=pooling).values():
        np.testing.assert_allclose(mean, 1, atol=1e-12)
    found = features(scaled, inputs[0], layers=TAPS, pooling=pooling)
    for tap, expected in oracle(double, inputs[0], pooling=pooling).items():
        expected = expected / means[tap.replace("conv", "relu")]
        np.testing.assert_allclose(found[tap], expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.optimized
class TestInactive:
    @pytest.fixture
    def partly(self, alive):
        """One channel that is never active, and one that hardly is."""
        params = {name: dict(layer) for name, layer in alive["params"].items()}
        params["conv2_1"]["bias"] = params["conv2_1"]["bias"].at[3].set(-1e4)
        layer = params["conv3_2"]
        layer["kernel"] = layer["kernel"].at[..., 0].mul(0)
        layer["bias"] = layer["bias"].at[0].set(1e-6)
        return {**alive, "params": params}

    def test_they_are_left_and_told(self, partly, images):
        means = mean_activations(partly, images)
        assert means["relu2_1"][3] == 0 and means["relu3_2"][0] > 0
        found = inactive_channels(means)
        assert {layer: channels.tolist() for layer, channels in found.items()} == {
            "relu2_1": [3],
            "relu3_2": [0],
        }
        scaled = scale_activations(partly, means)
        assert scaled["params"]["conv2_1"]["bias"][3] == -1e4
        assert scaled["params"]["conv3_2"]["bias"][0] == partly["params"]["conv3_2"]["bias"][0]
        for layer, mean in oracle_means(scaled, images, pooling="max").items():
            active = np.delete(mean, found.get(layer, []))
            np.testing.assert_allclose(active, 1, atol=1e-6, err_msg=layer)

    def test_a_layer_without_any(self, alive, images):
        means = {layer: np.ones(12) for layer in RELUS} | {"relu5_4": np.zeros(12)}
        assert inactive_channels(means)["relu5_4"].size == 12
        means = mean_activations(alive, images) | {"relu5_4": np.zeros(12)}
        last = scale_activations(alive, means)["params"]["conv5_4"]
        assert np.array_equal(last["bias"], alive["params"]["conv5_4"]["bias"])


class TestWeights:
    @pytest.fixture
    def weights(self, alive):
        info = WeightsInfo(name="small", preprocessing="caffe", attribution="By someone.", path="p")
        return Weights(alive, info)

    def test_record(self, weights, images, tmp_path):
        prepared = weights._replace(variables=prepare_kernels(weights.variables))
        normal = normalize_weights(prepared, iter(images), pooling="average")
        assert set(normal.variables) == {"params", "preprocessing"}
        found = load_weights(save_weights(tmp_path / "x", normal)).info
        assert found.name == "small-normalized" and found.preprocessing == "caffe"
        assert found.attribution == "By someone. Channels scaled to a mean of 1."
        assert dataclasses.asdict(found.normalized) == {
            "images": 2,
            "pooling": "average",
            "inactive": {},
        }
        assert json.loads(json.dumps(dataclasses.asdict(found)))["normalized"]["images"] == 2
        convert_file(tmp_path / "x", tmp_path / "y")
        assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()

    def test_others_do_not_say_so(self, weights, tmp_path):
        path = save_weights(tmp_path / "x", weights)
        with safe_open(path, "np") as file:
            assert "normalized" not in file.metadata()
        assert load_weights(path).info.normalized is None

    @pytest.mark.parametrize(
        ("entry", "match"),
        [
            ("nothing", "header's entry"),
            ("[1]", "header's entry"),
            ('{"pooling": "max", "inactive": {}}', "images"),
            ('{"images": 2, "pooling": "max", "inactive": 3}', "header's entry"),
            ('{"images": 0, "pooling": "max", "inactive": {}}', "over 0 images"),
        ],
    )
    def test_malformed_entries(self, entry, match):
        with pytest.raises(InputError, match=match):
            parse_normalization({"normalized": entry})

    def test_what_is_refused(self, weights, slim_variables, images):
        normal = normalize_weights(weights, images)
        for given, shown, match in (
            (normal, images, "small-normalized are normalised already .*2 images with max"),
            (weights._replace(variables=slim_variables), images, "slim weights"),
            (weights, [], "there is no image"),
            (weights, [images[0], np.ones((40, 15, 3), np.float32)], "image 2 is 15x40 px"),
            (weights, [np.ones((40, 40, 3), np.uint8)], "image 1 has numbers of type uint8"),
            (weights, [np.ones((40, 40), np.float32)], r"image 1 has shape \(40, 40\)"),
        ):
            with pytest.raises(InputError, match=match):
                normalize_weights(given, shown)

    def test_activations_that_overflow(self, weights, images):
        params = dict(weights.variables["params"])
        params["conv1_1"] = {**params["conv1_1"], "bias": jnp.full(4, 3e38)}
        huge = weights._replace(variables={**weights.variables, "params": params})
        with pytest.raises(InputError, match="relu1_1 are not finite"):
            normalize_weights(huge, images)


class TestCommand:
    @pytest.fixture(autouse=True)
    def desk(self, tmp_path, monkeypatch, images, tiny_weights_file):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
        (tmp_path / "folder").mkdir()
        save_image("folder/a.png", images[0])
        save_image("b.png", images[1])
        (tmp_path / "tiny.safetensors").write_bytes(tiny_weights_file.read_bytes())
        return tmp_path

    def test_round_trip(self, capsys, monkeypatch):
        line = ["weights", "normalize", "tiny.safetensors", "n.safetensors", "folder", "b.png"]
        assert main([*line, "--size", "60", "--pooling", "average"]) == 0
        said = capsys.readouterr()
        assert said.out == "n.safetensors\n"
        original = load_weights("tiny.safetensors")
        shown = [load_image(path, size=60) for path in ("folder/a.png", "b.png")]
        expected = normalize_weights(original, shown, pooling="average")
        found = load_weights("n.safetensors")
        for one, two in zip(
            jax.tree.leaves(found.variables), jax.tree.leaves(expected.variables), strict=True
        ):
            assert np.array_equal(one, two)
        assert found.info.normalized == expected.info.normalized
        # The random network has channels that are never active.
        inactive = expected.info.normalized.inactive
        assert sum(inactive.values()) > 0 and said.err.count("\n") == 1
        assert all(f"{count} of {layer}" in said.err for layer, count in inactive.items())
        means = oracle_means(found.variables, shown, pooling="average")
        for layer, mean in means.items():
            ones = np.isclose(mean, 1, atol=1e-5)
            assert (~ones).sum() == inactive.get(layer, 0)

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
            (["normal.safetensors", "x.safetensors", "b.png"], "normalised already"),
            (["slim.safetensors", "x.safetensors", "b.png"], "slim weights"),
            (["tiny.safetensors", "x.safetensors"], "there is no sample image"),
            (["tiny.safetensors", "x.safetensors", "empty"], "holds no sample image"),
            (["tiny.safetensors", "x.safetensors", "b.png", "no.png"], "no.png does not exist"),
            (["tiny.safetensors", "x.safetensors", "tiny.safetensors"], "is not an image"),
            (["tiny.safetensors", "x.safetensors", "b.png", "cut.png"], "cannot read .*cut.png"),
            (["tiny.safetensors", "x.safetensors", "b.png", "--size", "50"], "b.png is 15x50 px"),
            (["tiny.safetensors", "x.safetensors", "b.png", "--size", "0"], "size is 0"),
            (["tiny.safetensors", "x.pth", "b.png"], "expected .safetensors"),
            (["tiny.safetensors", "tiny.safetensors", "b.png"], "exists: .* --overwrite"),
            (["tiny.safetensors", "no/x.safetensors", "b.png"], "does not exist: create it"),
            (["b.png", "x.safetensors", "b.png"], "b.png is of no known form"),
            (
                ["tiny.safetensors", "x.safetensors", "b.png", "--max-megapixels", "0.001"],
                "megapixels: expected at most 0.001",
            ),
        ],
    )
    def test_bad_input_writes_nothing(self, desk, capsys, slim_file, alive, words, match):
        (desk / "empty").mkdir()
        (desk / "slim.safetensors").write_bytes(slim_file.read_bytes())
        (desk / "cut.png").write_bytes((desk / "b.png").read_bytes()[:1500])
        info = WeightsInfo(name="small", preprocessing="caffe")
        normal = normalize_weights(Weights(alive, info), [smooth_image(16, 16, seed=0)])
        save_weights("normal.safetensors", normal)
        before = {path: path.stat().st_mtime_ns for path in desk.rglob("*")}
        assert main(["weights", "normalize", *words]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert re.search(match, said.err), said.err
        assert {path: path.stat().st_mtime_ns for path in desk.rglob("*")} == before

    def test_overwrite(self):
        line = ["weights", "normalize", "tiny.safetensors", "tiny.safetensors", "b.png"]
        assert main([*line, "--overwrite"]) == 0
        assert load_weights("tiny.safetensors").info.normalized


@pytest.mark.weights
@pytest.mark.slow
def test_real_weights(vgg19_weights, images_folder):
    names = ("content/tubingen.jpg", "style/starry_night.jpg")
    shown = [load_image(images_folder / name, size=128) for name in names]
    normal = normalize_weights(vgg19_weights, shown)
    inactive = inactive_channels(mean_activations(vgg19_weights.variables, shown))
    assert normal.info.normalized.inactive == {name: c.size for name, c in inactive.items()}
    taps = [features(normal.variables, image, layers=RELUS) for image in shown]
    for layer in RELUS:
        rows = np.concatenate([np.asarray(t[layer], float).reshape(-1, t[layer].shape[-1])
                               for t in taps])  # fmt: skip
        active = np.delete(rows.mean(0), inactive.get(layer, []))
        np.testing.assert_allclose(active, 1, atol=1e-3, err_msg=layer)
