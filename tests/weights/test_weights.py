"""Load, save, find, list and verify weights."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import weight_files as files
from safetensors import safe_open

from nst_jax.cli import main
from nst_jax.config import CHANNELS
from nst_jax.errors import InputError
from nst_jax.weights import (
    Weights,
    WeightsInfo,
    convert_file,
    find_weights,
    list_weights,
    load_weights,
    save_weights,
    verify_weights,
)
from nst_jax.weights.convert import PREPROCESSING, to_tree
from nst_jax.weights.load import is_shipped_slim, shipped_folders


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path, request):
    """Provide no weights but those of the test: an empty cache, no variable."""
    if request.node.get_closest_marker("weights"):
        return
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)


@pytest.fixture
def keras_file(tmp_path):
    path = tmp_path / "keras.h5"
    files.write_keras(path, files.flip(files.make_arrays(network="caffe")))
    return path


def small_weights():
    tree = to_tree(files.make_arrays(channels=(2, 3, 4, 5, 6)), PREPROCESSING["torchvision"])
    return Weights(tree, WeightsInfo(name="slim", preprocessing="torchvision", licence="CC BY 4.0"))


def slim_weights():
    """Weights that end with conv2_1, with projections of two layers; float16 holds them exactly."""
    rng = np.random.default_rng(0)

    def half(array):
        return array.astype(np.float16).astype(np.float32)

    layers = {"relu1_2": (2, CHANNELS[0]), "relu2_1": (3, CHANNELS[1])}
    projections = {
        pooling: {
            layer: {"kernel": half(rng.normal(size=size)), "bias": half(rng.normal(size=size[1]))}
            for layer, size in layers.items()
        }
        for pooling in ("max", "average")
    }
    params = {
        name: {part: half(array) for part, array in layer.items()}
        for name, layer in small_weights().variables["params"].items()
        if name <= "conv2_1"
    }
    info = WeightsInfo(name="vgg19-slim", preprocessing="caffe", training='{"steps": 3}')
    preprocessing = to_tree({}, PREPROCESSING["caffe"])["preprocessing"]
    return Weights({"params": params, "preprocessing": preprocessing, "lift": projections}, info)


def assert_same_tree(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


class TestLoad:
    def test_tree_and_info(self, keras_file):
        variables, info = load_weights(str(keras_file))
        arrays = files.make_arrays(network="caffe")
        assert_same_tree(variables, to_tree(arrays, PREPROCESSING["caffe"]))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
        assert info.form == "keras" and info.preprocessing == "caffe"
        assert info.sha256 == info.source_sha256 and len(info.sha256) == 64
        assert info.licence.startswith("CC BY 4.0") and "Zisserman" in info.attribution
        assert json.loads(json.dumps(dataclasses.asdict(info)))["path"] == str(keras_file)

    def test_nothing_found(self):
        with pytest.raises(InputError, match="found no such weights"):
            load_weights(find_weights(folders=[]))


class TestSave:
    def test_round_trip_is_exact(self, tmp_path, keras_file):
        weights = load_weights(keras_file)
        path = save_weights(tmp_path / "a.safetensors", weights)
        again = load_weights(path)
        assert_same_tree(again.variables, weights.variables)
        assert again.info.form == "canonical" and again.info.sha256 != weights.info.sha256
        for key in ("name", "preprocessing", "source", "source_sha256", "licence", "attribution"):
            assert getattr(again.info, key) == getattr(weights.info, key)
        save_weights(tmp_path / "b.safetensors", again)
        assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
        convert_file(keras_file, tmp_path / "c.safetensors")
        assert path.read_bytes() == (tmp_path / "c.safetensors").read_bytes()

    def test_custom_channels_and_preprocessing(self, tmp_path):
        variables, info = small_weights()
        mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([1 / 3, 0.7, 1])
        weights = Weights({**variables, "preprocessing": {"mean": mean, "std": std}}, info)
        found = load_weights(save_weights(tmp_path / "x", weights))
        assert_same_tree(found.variables, weights.variables)
        assert (found.info.name, found.info.preprocessing) == ("slim", "torchvision")

    @pytest.mark.parametrize(
        ("make", "place", "value", "match"),
        [
            (small_weights, "params/conv3_4", None, "conv3_4/kernel is missing"),
            (small_weights, "params/fc6", {"bias": np.ones(3)}, "'fc6/bias' is not an array"),
            (small_weights, "params/conv2_1/bias", np.ones(9), "for conv2_1/bias, got .9,"),
            (small_weights, "params/conv2_1/bias", np.full(3, np.inf), "infinity in conv2_1/bias"),
            (small_weights, "prepared", {}, "collections"),
            (small_weights, "preprocessing/std", np.zeros(3), "positive stds"),
            (slim_weights, "lift/median", {"relu1_2": {"bias": np.ones(1)}}, "is not an array"),
            (slim_weights, "lift/max/relu1_2/bias", None, "relu1_2/bias is missing"),
            (slim_weights, "lift/max/relu1_2/bias", np.ones(1), "relu1_2/bias, got .1,"),
            (slim_weights, "lift/max/relu3_1", {"kernel": np.ones(1)}, "conv2_2/kernel is missing"),
        ],
    )
    def test_what_is_not_a_vgg19(self, tmp_path, make, place, value, match):
        weights = make()
        *path, last = place.split("/")
        tree = functools.reduce(dict.__getitem__, path, weights.variables)
        tree[last] = value
        if value is None:
            del tree[last]
        with pytest.raises(InputError, match=match):
            save_weights(tmp_path / "x", weights)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("half", [False, True])
    def test_slim_weights(self, tmp_path, half):
        weights = slim_weights()
        path = save_weights(tmp_path / "x", weights, half=half)
        found = load_weights(path)
        assert_same_tree(found.variables, weights.variables)
        assert json.loads(found.info.training) == {"steps": 3}
        numbers = sum(leaf.size for leaf in jax.tree.leaves(weights.variables)) - 6
        with safe_open(path, "np") as file:
            names = list(file.keys())
            size = sum(file.get_tensor(name).nbytes for name in names)
        assert size == numbers * (2 if half else 4)
        assert "lift/average/relu2_1/kernel" in names and "conv2_2/kernel" not in names
        again = save_weights(tmp_path / "y", found, half=half)
        assert again.read_bytes() == path.read_bytes()
        convert_file(path, tmp_path / "z")
        assert (tmp_path / "z").read_bytes() == path.read_bytes()
        checks = verify_weights(path)
        assert all(check.ok for check in checks)
        assert "relu1_2, relu2_1" in checks[1].detail and "max and average" in checks[1].detail

    def test_half_rounds_and_refuses_overflow(self, tmp_path):
        weights = slim_weights()
        bias = weights.variables["lift"]["max"]["relu1_2"]["bias"]
        bias[:2] = 1 / 3, 65000
        found = load_weights(save_weights(tmp_path / "x", weights, half=True)).variables
        rounded = np.asarray(found["lift"]["max"]["relu1_2"]["bias"])
        np.testing.assert_array_equal(rounded, bias.astype(np.float16).astype(np.float32))
        bias[0] = 1e6
        with pytest.raises(InputError, match="range of float16"):
            save_weights(tmp_path / "y", weights, half=True)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_existing_files_are_kept_unless_told(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="exists: choose"):
            save_weights(tmp_path / "file", small_weights())
        assert (tmp_path / "file").read_text() == "mine"
        save_weights(tmp_path / "file", small_weights(), overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        (tmp_path / "x").write_text("old")
        with files.largest_file(10_000), pytest.raises(InputError, match="File too large"):
            save_weights(tmp_path / "x", small_weights(), overwrite=True)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


class TestFind:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path):
        """A package without weights, outside a checkout."""
        (tmp_path / "nst_jax").mkdir()
        self.root = tmp_path / "nst_jax"

    def find(self, **options):
        return find_weights(folders=shipped_folders(self.root), **options)

    def make(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_weights(path, small_weights())

    def test_order(self, tmp_path, monkeypatch):
        assert self.find() is None
        (tmp_path / "weights").mkdir()
        checkout = self.make(tmp_path / "weights" / "b.safetensors")
        assert self.find() is None  # the folder of another project beside an installed package
        (tmp_path / "pyproject.toml").touch()
        assert self.find() == checkout
        shipped = self.make(tmp_path / "nst_jax" / "data" / "a.safetensors")
        assert self.find() == shipped
        other = self.make(tmp_path / "cache" / "vgg19-torchvision.safetensors")
        assert self.find() == other
        cached = self.make(tmp_path / "cache" / "vgg19-keras.safetensors")
        assert self.find() == cached
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(other))
        assert self.find() == other
        assert self.find(path=shipped) == shipped

        places = list_weights(folders=shipped_folders(self.root))
        found = [place.where for place in places if place.where != "to fetch"]
        assert found == ["NST_JAX_WEIGHTS", "cache", "cache", "shipped", "shipped"]
        assert "the default" in places[5].detail and places[5].path.startswith("https://")

    def test_named_files_that_do_not_exist(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="x do not exist or are not a file"):
            self.find(path=tmp_path / "x")
        for path, match in ((tmp_path, "from NST_JAX_WEIGHTS"), ("~nosuchuser/x", "nosuchuser")):
            monkeypatch.setenv("NST_JAX_WEIGHTS", str(path))
            with pytest.raises(InputError, match=match):
                self.find()
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(tmp_path))
        assert list_weights(folders=[])[0].detail == "does not exist"
        monkeypatch.setenv("NST_JAX_WEIGHTS", "")
        assert self.find() is None

    def test_model(self, tmp_path, monkeypatch):
        folder = tmp_path / "nst_jax" / "data"
        folder.mkdir(parents=True)
        slim = save_weights(folder / "vgg19-slim.safetensors", slim_weights(), half=True)
        assert self.find() == self.find(model="vgg19-slim") == slim
        assert is_shipped_slim(slim, folders=[folder]) and self.find(model="vgg19") is None
        cached = self.make(tmp_path / "cache" / "vgg19-keras.safetensors")
        assert self.find() == self.find(model="vgg19") == cached
        assert self.find(model="vgg19-slim") == slim
        assert not is_shipped_slim(cached, folders=[folder])
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(cached))
        assert self.find(model="vgg19-slim") == slim
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(slim))
        assert self.find() == slim and self.find(model="vgg19") == cached
        with pytest.raises(InputError, match="expected vgg19-slim weights, got vgg19 in"):
            self.find(path=cached, model="vgg19-slim")
        with pytest.raises(ValueError, match="got 'vgg16'"):
            self.find(model="vgg16")

    def test_full_networks_come_before_slim_ones(self, tmp_path):
        (tmp_path / "pyproject.toml").touch()
        full = self.make(tmp_path / "weights" / "vgg19.safetensors")
        (tmp_path / "nst_jax" / "data").mkdir(parents=True)
        for folder in ("weights", "nst_jax/data"):
            save_weights(tmp_path / folder / "vgg19-slim.safetensors", slim_weights())
        assert self.find() == self.find(model="vgg19") == full

    def test_a_damaged_file_in_the_cache(self, tmp_path):
        folder = tmp_path / "nst_jax" / "data"
        folder.mkdir(parents=True)
        slim = save_weights(folder / "vgg19-slim.safetensors", slim_weights())
        damaged = tmp_path / "cache" / "vgg19-keras.safetensors"
        damaged.parent.mkdir()
        damaged.write_bytes(b"damaged")
        assert self.find() == damaged  # loading it raises the error
        assert self.find(model="vgg19-slim") == slim and self.find(model="vgg19") is None


class TestVerify:
    def test_good_files(self, tmp_path, keras_file):
        own = convert_file(keras_file, tmp_path / "x.safetensors")
        for path, form in ((keras_file, "keras"), (own, "canonical")):
            checks = verify_weights(path)
            assert [check.name for check in checks] == ["form", "arrays", "checksum", "network"]
            assert all(check.ok for check in checks)
            assert checks[0].detail == form
            assert "4 to 6 channels" in checks[1].detail
            assert "conv1_1 is that of caffe" in checks[3].detail

    def test_unknown_networks_pass(self, tmp_path):
        checks = verify_weights(save_weights(tmp_path / "x", small_weights()))
        assert all(check.ok for check in checks)
        assert checks[-1].detail.startswith("unknown")

    def test_bad_files(self, tmp_path, keras_file):
        (tmp_path / "x").write_text("hello")
        assert [check.ok for check in verify_weights(tmp_path / "x")] == [False]
        (tmp_path / "y").write_bytes(keras_file.read_bytes()[:20_000])
        checks = verify_weights(tmp_path / "y")
        assert [check.ok for check in checks] == [True, False]
        assert "damaged" in checks[1].detail

    def test_file_with_the_name_of_a_published_one(self, tmp_path, keras_file):
        name = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
        checks = verify_weights(keras_file.rename(tmp_path / name))
        assert not checks[2].ok and "253f8cb515780f3b799900260a226db6" in checks[2].detail

    def test_published_file(self, tmp_path):
        variables, info = small_weights()
        info = dataclasses.replace(info, source_md5="253f8cb515780f3b799900260a226db6")
        checks = verify_weights(save_weights(tmp_path / "x", Weights(variables, info)))
        assert checks[2].detail.startswith("the published file 'keras'")

    def test_wrong_pairing(self, tmp_path):
        arrays = files.make_arrays(network="caffe")
        for wrong, network in ((arrays, "torchvision"), (files.flip(arrays), "caffe")):
            path = tmp_path / network
            files.write_own(path, wrong, network=network)
            assert [check.ok for check in verify_weights(path)] == [True, True, True, False]
            assert main(["weights", "verify", str(path)]) == 1


def test_heavy_libraries_are_imported_late():
    code = (
        "import sys, nst_jax.weights.verify as v; v.verify_weights('none');"
        "heavy = {'jax', 'scipy', 'h5py', 'filelock', 'pooch', 'requests'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.weights
@pytest.mark.slow
def test_real_weights():
    checks = verify_weights(os.environ["NST_JAX_WEIGHTS"])
    assert all(check.ok for check in checks)
    assert checks[-1].detail.startswith("conv1_1 is that of")
