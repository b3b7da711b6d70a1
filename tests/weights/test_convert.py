"""Every format and layout gives the same arrays; other networks are refused in one clear line."""

import json
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from helpers import weight_files as files

from nst_jax.config import CHANNELS
from nst_jax.errors import InputError
from nst_jax.weights import convert_file
from nst_jax.weights.canonical import Preprocessing
from nst_jax.weights.convert import (
    FIRST_FILTER,
    PREPROCESSING,
    Layout,
    check_shapes,
    convert,
    expected_shapes,
    recognise,
    to_tree,
)
from nst_jax.weights.readers import read_mat

FORMS = {
    **dict.fromkeys(("keras-W", "keras-kernel", "keras-nested", "keras-model"), "keras"),
    **dict.fromkeys(("mat-old", "mat-filters", "mat-new", "mat-transposed"), "matconvnet"),
    **dict.fromkeys(("pth-zip", "pth-legacy", "pth-gatys", "pth-prefix"), "torch"),
    **dict.fromkeys(("safetensors", "safetensors-rgb"), "safetensors"),
    "keras-gzip": "keras",
    "mat-compressed": "matconvnet",
    "canonical": "canonical",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return files.write_all(tmp_path_factory.mktemp("forms"))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name].view(np.uint32), array.view(np.uint32), name)


def refuse(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        convert(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", FORMS)
def test_every_format_gives_the_same_arrays(paths, label):
    converted = convert(paths[label])
    assert_same(converted.arrays, files.make_arrays(network="caffe"))
    assert converted.form == FORMS[label]
    assert converted.network == "caffe"
    assert converted.record.preprocessing == PREPROCESSING["caffe"] or label == "canonical"


def test_tree_has_the_preprocessing_of_its_network():
    tree = to_tree(files.make_arrays(), PREPROCESSING["caffe"])
    image = np.array([0.2, 0.5, 0.9])
    bgr = 255 * image[::-1] - [103.939, 116.779, 123.68]
    mean, std = tree["preprocessing"]["mean"], tree["preprocessing"]["std"]
    np.testing.assert_allclose((image - mean) / std, bgr[::-1], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32
    assert tree["params"]["conv5_4"]["kernel"].shape == (3, 3, 6, 6)


def test_first_filters_are_far_apart():
    variants = {}
    for network, target in FIRST_FILTER.items():
        kernel = np.array(target, np.float32).transpose(1, 2, 0)[..., None]
        for bgr in (False, True):
            for transposed in (False, True):
                stored = kernel[:, :, ::-1] if bgr else kernel
                stored = stored.swapaxes(0, 1) if transposed else stored
                variants[Layout(network, bgr, transposed)] = stored
    for layout, kernel in variants.items():
        assert recognise(kernel) == layout
        assert recognise(kernel + 1.5e-3) == layout
        others = [other for key, other in variants.items() if key != layout]
        assert min(np.abs(kernel - other).max() for other in others) > 0.05
        for axes in ((0,), (1,), (0, 1)):  # a flipped kernel, as Theano's convolution needs it
            assert recognise(np.flip(kernel, axes)) is None


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_other_precisions_become_float32(tmp_path, dtype):
    arrays = files.make_arrays(network="torchvision")
    state = {k: v.astype(dtype) for k, v in files.torch_state(arrays).items()}
    files.write_safetensors(tmp_path / "x", state)
    converted = convert(tmp_path / "x")
    rounded = {k: v.astype(dtype).astype(np.float32) for k, v in arrays.items()}
    assert_same(converted.arrays, rounded)
    assert converted.network == converted.record.preprocessing.kind == "torchvision"
    assert converted.record.licence.startswith("BSD-3-Clause")


class TestUnknownNetworks:
    def test_option_is_needed(self, tmp_path):
        arrays = files.make_arrays()
        files.write_safetensors(tmp_path / "x", files.torch_state(arrays))
        refuse(tmp_path / "x", "network is unknown, .*caffe .*torchvision")
        rgb = convert(tmp_path / "x", preprocessing="torchvision")
        assert_same(rgb.arrays, arrays)
        assert (rgb.network, rgb.record.licence, rgb.record.name) == (None, "unknown", "x")
        assert_same(convert(tmp_path / "x", preprocessing="caffe").arrays, files.flip(arrays))

    def test_keras_files_are_bgr(self, tmp_path):
        arrays = files.make_arrays()
        files.write_keras(tmp_path / "x", arrays)
        converted = convert(tmp_path / "x")
        assert_same(converted.arrays, files.flip(arrays))
        assert converted.record.preprocessing.kind == "caffe"
        assert_same(convert(tmp_path / "x", preprocessing="torchvision").arrays, arrays)

    def test_matconvnet_kernels_are_not_guessed(self, tmp_path):
        arrays = files.make_arrays()
        files.write_matconvnet(tmp_path / "x", arrays)
        refuse(tmp_path / "x", "neither that of imagenet-vgg-verydeep-19 nor its transpose")
        assert_same(convert(tmp_path / "x", preprocessing="caffe").arrays, arrays)


@pytest.mark.parametrize("label", ["keras-W", "canonical"])
def test_contradictory_preprocessing(paths, label):
    refuse(paths[label], "need caffe preprocessing, got tor", preprocessing="torchvision")
    assert convert(paths[label], preprocessing="caffe").network == "caffe"
    refuse(paths[label], "expected one of caffe, torchvision", preprocessing="tf")


class TestOtherNetworks:
    def test_vgg16(self, tmp_path):
        shapes = expected_shapes(files.SMALL)
        fourth = ("conv3_4", "conv4_4", "conv5_4")
        with pytest.raises(InputError, match="got VGG-16"):
            check_shapes({k: v for k, v in shapes.items() if not k.startswith(fourth)})
        indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
        state = {f"features.{i}.weight": np.zeros((4, 4, 3, 3), np.float32) for i in indices}
        files.write_safetensors(tmp_path / "x", state)
        refuse(tmp_path / "x", "got VGG-16")

    @pytest.mark.parametrize(
        ("added", "match"),
        [
            ({"features.1.running_mean": np.zeros(4)}, "without batch normalisation"),
            ({"features.3.weight": np.zeros((4, 3, 11, 11))}, r"got \[0, 2, 3, 5"),
            ({"b.features.0.bias": np.zeros(4)}, "got conv1_1/bias twice"),
        ],
    )
    def test_names(self, tmp_path, added, match):
        state = files.torch_state(files.make_arrays())
        files.write_safetensors(tmp_path / "x", state | added)
        refuse(tmp_path / "x", match)

    def test_unrelated_arrays(self, tmp_path):
        files.write_safetensors(tmp_path / "x", {"encoder.weight": np.zeros((4, 3))})
        refuse(tmp_path / "x", "conv1_1/kernel is missing, and 31 more of 32")

    @pytest.mark.parametrize("wrong", [(3, 3, 5, 8), (), (7,), (5, 5, 5, 5, 5)])
    def test_shapes(self, wrong):
        for name, shape in (("conv3_2/kernel", (3, 3, 5, 5)), ("conv3_1/bias", (5,))):
            match = re.escape(f"expected shape {shape} for {name}, got {wrong}")
            with pytest.raises(InputError, match=match):
                check_shapes({**expected_shapes(files.SMALL), name: wrong})

    def test_numbers_of_channels(self):
        with pytest.raises(InputError, match=r"expected shape \(3, 3, 3, 64\) for conv1_1"):
            check_shapes(expected_shapes(files.SMALL), channels=CHANNELS)


@pytest.mark.parametrize(
    ("dtype", "value"), [("f8", np.nan), ("f8", -np.inf), ("f8", 1e300), ("i4", 1)]
)
def test_values_that_are_not_finite_floats(tmp_path, dtype, value):
    state = files.torch_state(files.make_arrays())
    state["features.5.weight"] = state["features.5.weight"].astype(dtype)
    state["features.5.weight"][0, 0, 0, 0] = value
    files.write_safetensors(tmp_path / "x", state)
    refuse(tmp_path / "x", "in conv2_1/kernel", preprocessing="caffe")


def test_matlab_reader_agrees_with_scipy(tmp_path):
    from scipy.io import loadmat, savemat

    rng = np.random.default_rng(0)
    cell = np.empty((1, 3), object)
    cell[0, :] = ["text", rng.standard_normal((2, 3, 4)), {"b": np.eye(2, dtype=np.float32)}]
    data = {
        "a": {"cell": cell, "empty": np.zeros((0, 0)), "whole": np.array([[1, 2]], np.uint8)},
        "n": 1,
    }
    for compressed in (False, True):
        savemat(str(tmp_path / "x.mat"), data, do_compression=compressed)
        assert read_mat(tmp_path / "x.mat", ("other",)) == {}
        found = read_mat(tmp_path / "x.mat", ("a",))["a"]
        expected = loadmat(str(tmp_path / "x.mat"))["a"][0, 0]
        text, array, inner = found["cell"]
        assert text == "text"
        np.testing.assert_array_equal(array.read(), expected["cell"][0, 1])
        np.testing.assert_array_equal(inner["b"].read(), np.eye(2))
        assert inner["b"].dtype == "float32" and found["empty"].read().size == 0
        np.testing.assert_array_equal(found["whole"].read(), [[1, 2]])


class TestCanonical:
    def rewrite(self, path, change):
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        change(header["__metadata__"])
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda header: header.update(format_version="2"), "format version '1', got '2'"),
            (lambda header: header.update(layers="{}"), "shapes of the arrays differ"),
            (lambda header: header.pop("preprocessing"), "preprocessing is malformed"),
            (lambda header: header.update(preprocessing="[" * 100_000), "damaged"),
            (lambda header: header.update(preprocessing='{"kind": "a"}'), "is malformed"),
            (lambda header: header.pop("format"), "conv1_1/kernel is missing"),
        ],
    )
    def test_header_is_checked(self, tmp_path, change, match):
        files.write_own(tmp_path / "x", files.make_arrays())
        self.rewrite(tmp_path / "x", lambda header: None)
        convert(tmp_path / "x")
        self.rewrite(tmp_path / "x", change)
        refuse(tmp_path / "x", match)

    def test_a_flipped_bit_is_detected(self, tmp_path):
        files.write_own(tmp_path / "x", files.make_arrays())
        data = bytearray((tmp_path / "x").read_bytes())
        data[-1] ^= 1
        (tmp_path / "x").write_bytes(data)
        refuse(tmp_path / "x", "sha256 of the arrays differs")

    @pytest.mark.parametrize(
        ("mean", "std"), [((0, 0), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, np.nan), (1, 1, 1))]
    )
    def test_preprocessing_is_checked(self, mean, std):
        with pytest.raises(InputError, match="three finite means and three positive stds"):
            Preprocessing(kind="own", mean=mean, std=std)


class TestConvertFile:
    def test_equal_sources_give_equal_arrays_and_bytes(self, tmp_path, paths):
        from safetensors.numpy import load_file

        for label in ("keras-W", "pth-legacy"):
            convert_file(paths[label], tmp_path / label)
            assert_same(load_file(tmp_path / label), files.make_arrays(network="caffe"))
        again = convert_file(paths["keras-W"], tmp_path / "again")
        assert again.read_bytes() == (tmp_path / "keras-W").read_bytes()
        record = convert(paths["keras-W"]).record
        assert replace(convert(again).record, preprocessing=record.preprocessing) == record
