"""Loading, saving, finding and checking weights."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import weight_files as files
from safetensors import safe_open

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
from nst_jax.weights.convert import PREPROCESSING, Layout, convert, recognise, to_tree
from nst_jax.weights.load import is_shipped_slim, shipped_folders


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, request):
    """No weights but those of the test: an empty cache, no variable."""
    if request.node.get_closest_marker("weights"):
        return
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)


@pytest.fixture
def keras_file(tmp_path):
    path = tmp_path / "keras.h5"
    files.write_keras(path, files.flip(files.make_arrays(network="caffe")))
    return path


def slim_weights(channels=(2, 3, 4, 5, 6)):
    tree = to_tree(files.make_arrays(channels=channels), PREPROCESSING["torchvision"])
    return Weights(tree, WeightsInfo(name="slim", preprocessing="torchvision", licence="CC BY 4.0"))


def lifted_weights(poolings=("max", "average")):
    """Slim weights that end with conv2_1, with lifts of two layers."""
    tree = slim_weights().variables
    rng = np.random.default_rng(0)
    layers = {"relu1_2": (2, CHANNELS[0]), "relu2_1": (3, CHANNELS[1])}
    lift = {
        pooling: {
            layer: {
                "kernel": rng.normal(size=sizes).astype(np.float16).astype(np.float32),
                "bias": rng.normal(size=sizes[1]).astype(np.float16).astype(np.float32),
            }
            for layer, sizes in layers.items()
        }
        for pooling in poolings
    }
    params = {
        name: {part: array.astype(np.float16).astype(np.float32) for part, array in layer.items()}
        for name, layer in tree["params"].items()
        if name <= "conv2_1"
    }
    info = WeightsInfo(name="vgg19-slim", preprocessing="caffe", training='{"steps": 3}')
    preprocessing = to_tree({}, PREPROCESSING["caffe"])["preprocessing"]
    return Weights({"params": params, "preprocessing": preprocessing, "lift": lift}, info)


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

    def test_option_is_passed_on(self, tmp_path):
        files.write_safetensors(tmp_path / "x", files.torch_state(files.make_arrays()))
        with pytest.raises(InputError, match="name it: caffe"):
            load_weights(tmp_path / "x")
        assert load_weights(tmp_path / "x", preprocessing="caffe").info.preprocessing == "caffe"

    def test_none_where_none_are_found(self):
        with pytest.raises(InputError, match="no such weights were found"):
            load_weights(find_weights(folders=[]))


class TestSave:
    def test_round_trip_is_exact(self, tmp_path, keras_file):
        weights = load_weights(keras_file)
        path = save_weights(tmp_path / "a.safetensors", weights)
        again = load_weights(path)
        assert_same_tree(again.variables, weights.variables)
        assert again.info.form == "canonical" and again.info.sha256 != weights.info.sha256
        kept = ("name", "preprocessing", "source", "source_sha256", "licence", "attribution")
        for key in kept:
            assert getattr(again.info, key) == getattr(weights.info, key)
        save_weights(tmp_path / "b.safetensors", again)
        assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
        convert_file(keras_file, tmp_path / "c.safetensors")
        assert path.read_bytes() == (tmp_path / "c.safetensors").read_bytes()

    def test_other_channels(self, tmp_path):
        weights = slim_weights()
        found = load_weights(save_weights(tmp_path / "x", weights))
        assert_same_tree(found.variables, weights.variables)
        assert (found.info.name, found.info.preprocessing) == ("slim", "torchvision")

    def test_own_preprocessing(self, tmp_path):
        variables, info = slim_weights()
        own = {
            "mean": np.array([0.1, 0.2, 0.3], np.float32),
            "std": np.array([1 / 3, 0.7, 1], np.float32),
        }
        weights = Weights({**variables, "preprocessing": own}, info)
        assert_same_tree(
            load_weights(save_weights(tmp_path / "x", weights)).variables, weights.variables
        )

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda tree: tree["params"].pop("conv3_4"), "conv3_4/kernel is missing"),
            (lambda tree: tree["params"].update(fc6={"bias": np.ones(3)}), "fc6/bias"),
            (lambda tree: tree["params"]["conv2_1"].update(bias=np.ones(9)), "conv2_1/"),
            (lambda tree: tree["params"]["conv2_1"].update(bias=np.full(3, np.nan)), "NaN"),
            (lambda tree: tree.update(prepared={}), "collections"),
            (lambda tree: tree["preprocessing"].update(std=np.zeros(3)), "positive std"),
        ],
    )
    def test_what_is_no_vgg19(self, tmp_path, change, match):
        weights = slim_weights()
        change(weights.variables)
        with pytest.raises(InputError, match=match):
            save_weights(tmp_path / "x", weights)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("half", [False, True])
    def test_lifts(self, tmp_path, half):
        weights = lifted_weights()
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

    def test_half_rounds_and_refuses_what_it_cannot_hold(self, tmp_path):
        weights = lifted_weights()
        bias = weights.variables["lift"]["max"]["relu1_2"]["bias"]
        bias[:2] = 1 / 3, 65000
        found = load_weights(save_weights(tmp_path / "x", weights, half=True)).variables
        rounded = np.asarray(found["lift"]["max"]["relu1_2"]["bias"])
        np.testing.assert_array_equal(rounded, bias.astype(np.float16).astype(np.float32))
        bias[0] = 1e6
        with pytest.raises(InputError, match="range of f2"):
            save_weights(tmp_path / "y", weights, half=True)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda lift: lift["max"].update(relu9_9=lift["max"].pop("relu1_2")), "no array"),
            (lambda lift: lift.update(median=lift.pop("average")), "no array"),
            (lambda lift: lift["max"]["relu1_2"].pop("bias"), "bias is missing"),
            (lambda lift: lift["max"]["relu1_2"].update(bias=np.ones(1)), "has shape"),
            (lambda lift: lift["max"].update(relu3_1=lift["max"]["relu2_1"]), "conv2_2/kernel is"),
        ],
    )
    def test_what_are_no_lifts(self, tmp_path, change, match):
        weights = lifted_weights()
        change(weights.variables["lift"])
        with pytest.raises(InputError, match=match):
            save_weights(tmp_path / "x", weights)

    def test_targets(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for path, overwrite, match in (
            (tmp_path / "file", False, "exists: choose"),
            (tmp_path, True, "is a directory"),
            (tmp_path / "no" / "x", True, "does not exist"),
            (tmp_path / ("x" * 300), True, "cannot write|too long"),
        ):
            with pytest.raises(InputError, match=match):
                save_weights(path, slim_weights(), overwrite=overwrite)
        assert (tmp_path / "file").read_text() == "mine"
        save_weights(tmp_path / "file", slim_weights(), overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        (tmp_path / "x").write_text("old")
        with files.largest_file(10_000), pytest.raises(InputError, match="File too large"):
            save_weights(tmp_path / "x", slim_weights(), overwrite=True)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


class TestFind:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path):
        """A package without weights, in a folder that is no checkout."""
        (tmp_path / "nst_jax").mkdir()
        self.root = tmp_path / "nst_jax"

    def find(self, **options):
        return find_weights(folders=shipped_folders(self.root), **options)

    def make(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_weights(path, slim_weights())

    def test_order(self, tmp_path, monkeypatch):
        assert self.find() is None
        (tmp_path / "weights").mkdir()
        checkout = self.make(tmp_path / "weights" / "b.safetensors")
        assert self.find() is None  # a folder of that name beside an installed package
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
        assert [place.where for place in places[:5]] == [
            "NST_JAX_WEIGHTS",
            "cache",
            "cache",
            "shipped",
            "shipped",
        ]
        assert {place.where for place in places[5:]} == {"to fetch"}
        assert "the default" in places[5].detail and places[5].path.startswith("https://")

    def test_a_home_that_nobody_knows(self, tmp_path, monkeypatch):
        match = "^~nosuchuser/x begins with an unknown home folder: write the full path$"
        with pytest.raises(InputError, match=match):
            load_weights("~nosuchuser/x")
        with pytest.raises(InputError, match=match):
            verify_weights("~nosuchuser/x")
        monkeypatch.setenv("NST_JAX_WEIGHTS", "~nosuchuser/x")
        with pytest.raises(InputError, match=match):
            self.find()

    def test_named_files_that_do_not_exist(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="x do not exist or are no file"):
            self.find(path=tmp_path / "x")
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(tmp_path))
        with pytest.raises(InputError, match="from NST_JAX_WEIGHTS"):
            self.find()
        assert list_weights(folders=[])[0].detail == "does not exist"

    def test_model(self, tmp_path, monkeypatch):
        folder = tmp_path / "nst_jax" / "data"
        folder.mkdir(parents=True)
        slim = save_weights(folder / "vgg19-slim.safetensors", lifted_weights(), half=True)
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
        with pytest.raises(InputError, match="holds vgg19, but vgg19-slim was asked for"):
            self.find(path=cached, model="vgg19-slim")
        with pytest.raises(ValueError, match="model is 'vgg16'"):
            self.find(model="vgg16")

    def test_full_ones_in_the_checkout_come_before_slim_ones(self, tmp_path):
        (tmp_path / "pyproject.toml").touch()
        full = self.make(tmp_path / "weights" / "vgg19.safetensors")
        (tmp_path / "nst_jax" / "data").mkdir(parents=True)
        for folder in ("weights", "nst_jax/data"):
            save_weights(tmp_path / folder / "vgg19-slim.safetensors", lifted_weights())
        assert self.find() == self.find(model="vgg19") == full

    def test_a_damaged_file_in_the_cache(self, tmp_path):
        folder = tmp_path / "nst_jax" / "data"
        folder.mkdir(parents=True)
        slim = save_weights(folder / "vgg19-slim.safetensors", lifted_weights())
        damaged = tmp_path / "cache" / "vgg19-keras.safetensors"
        damaged.parent.mkdir()
        damaged.write_bytes(b"damaged")
        assert self.find() == damaged  # whoever loads it is told
        assert self.find(model="vgg19-slim") == slim and self.find(model="vgg19") is None

    def test_empty_variable_counts_as_none(self, monkeypatch):
        monkeypatch.setenv("NST_JAX_WEIGHTS", "")
        assert self.find() is None


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

    def test_slim_files_pass(self, tmp_path):
        checks = verify_weights(save_weights(tmp_path / "x", slim_weights()))
        assert all(check.ok for check in checks)
        assert "not known" in checks[-1].detail

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
        variables, info = slim_weights()
        info = dataclasses.replace(info, source_md5="253f8cb515780f3b799900260a226db6")
        checks = verify_weights(save_weights(tmp_path / "x", Weights(variables, info)))
        assert checks[2].detail.startswith("the published file 'keras'")

    def test_wrong_pairing(self, tmp_path):
        arrays = files.make_arrays(network="caffe")
        for wrong, network in ((arrays, "torchvision"), (files.flip(arrays), "caffe")):
            path = tmp_path / network
            files.write_own(path, wrong, network=network)
            assert [check.ok for check in verify_weights(path)] == [True, True, True, False]


def test_heavy_libraries_load_late():
    code = (
        "import sys, nst_jax.weights.verify as v; v.verify_weights('none');"
        "heavy = {'jax', 'scipy', 'h5py', 'filelock', 'pooch', 'requests'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.fixture(scope="module")
def real():
    return convert(Path(os.environ["NST_JAX_WEIGHTS"]))


@pytest.mark.weights
class TestRealWeights:
    @pytest.mark.slow
    def test_fingerprint(self, real):
        kind = real.record.preprocessing.kind
        assert recognise(real.arrays["conv1_1/kernel"]) == Layout(kind, bgr=False)
        assert all(check.ok for check in verify_weights(os.environ["NST_JAX_WEIGHTS"]))

    @pytest.mark.parametrize("form", ["keras", "matconvnet", "pth", "legacy", "safetensors", "own"])
    def test_every_form(self, real, tmp_path, form):
        bgr = files.flip(real.arrays)
        path = tmp_path / "x"
        {
            "keras": lambda: files.write_keras(path, bgr),
            "matconvnet": lambda: files.write_matconvnet(path, real.arrays, transposed=True),
            "pth": lambda: files.write_pth(path, files.torch_state(bgr)),
            "legacy": lambda: files.write_pth(path, files.torch_state(bgr), legacy=True),
            "safetensors": lambda: files.write_safetensors(path, files.torch_state(real.arrays)),
            "own": lambda: files.write_own(
                path, real.arrays, network=real.record.preprocessing.kind
            ),
        }[form]()
        found = convert(path)
        assert found.network == real.network
        for name, array in real.arrays.items():
            assert found.arrays[name].tobytes() == array.tobytes()
        path.unlink()
