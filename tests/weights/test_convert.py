"""Every form and layout becomes the same tree; other and damaged files give one clear line."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import weight_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_jax.config import CHANNELS
from nst_jax.errors import InputError
from nst_jax.weights import convert_file
from nst_jax.weights.canonical import Preprocessing, Record, write_canonical
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
def test_every_form_gives_the_same_arrays(paths, label):
    converted = convert(paths[label])
    assert_same(converted.arrays, files.make_arrays(network="caffe"))
    assert converted.form == FORMS[label]
    assert converted.network == "caffe"
    assert converted.record.preprocessing == PREPROCESSING["caffe"] or label == "canonical"


def test_full_size(tmp_path):
    arrays = files.make_arrays(network="torchvision", channels=CHANNELS)
    files.write_pth(tmp_path / "vgg19.pth", files.torch_state(arrays))
    converted = convert(tmp_path / "vgg19.pth")
    assert_same(converted.arrays, arrays)
    assert converted.network == converted.record.preprocessing.kind == "torchvision"
    assert converted.record.licence.startswith("BSD-3-Clause")


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


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_become_float32(tmp_path, dtype):
    arrays = files.make_arrays(network="torchvision")
    state = {k: v.astype(dtype) for k, v in files.torch_state(arrays).items()}
    files.write_safetensors(tmp_path / "x", state)
    converted = convert(tmp_path / "x")
    assert converted.network == "torchvision"
    assert_same(
        converted.arrays, {k: v.astype(dtype).astype(np.float32) for k, v in arrays.items()}
    )


def test_bfloat16_safetensors(tmp_path):
    import ml_dtypes

    arrays = files.make_arrays(network="caffe")
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in files.torch_state(arrays).items()}
    files.write_safetensors(tmp_path / "x", state)
    rounded = {k: v.astype(ml_dtypes.bfloat16).astype(np.float32) for k, v in arrays.items()}
    assert_same(convert(tmp_path / "x").arrays, rounded)


class TestPreprocessing:
    def test_unknown_network_needs_the_option(self, tmp_path):
        arrays = files.make_arrays()
        files.write_safetensors(tmp_path / "x", files.torch_state(arrays))
        refuse(tmp_path / "x", "name it: caffe .*torchvision")
        rgb = convert(tmp_path / "x", preprocessing="torchvision")
        assert_same(rgb.arrays, arrays)
        assert (rgb.network, rgb.record.licence, rgb.record.name) == (None, "unknown", "x")
        assert_same(convert(tmp_path / "x", preprocessing="caffe").arrays, files.flip(arrays))

    def test_unknown_network_in_keras_form_is_bgr(self, tmp_path):
        arrays = files.make_arrays()
        files.write_keras(tmp_path / "x", arrays)
        converted = convert(tmp_path / "x")
        assert_same(converted.arrays, files.flip(arrays))
        assert converted.record.preprocessing.kind == "caffe"
        assert_same(convert(tmp_path / "x", preprocessing="torchvision").arrays, arrays)

    def test_unknown_matconvnet_kernels_are_not_guessed(self, tmp_path):
        arrays = files.make_arrays()
        files.write_matconvnet(tmp_path / "x", arrays)
        refuse(tmp_path / "x", "neither that of imagenet-vgg-verydeep-19 nor its transpose")
        assert_same(convert(tmp_path / "x", preprocessing="caffe").arrays, arrays)

    @pytest.mark.parametrize("label", ["keras-W", "pth-zip", "canonical"])
    def test_a_contradiction_is_refused(self, paths, label):
        refuse(paths[label], "need caffe preprocessing, but tor", preprocessing="torchvision")
        assert convert(paths[label], preprocessing="caffe").network == "caffe"

    def test_unknown_name(self, paths):
        refuse(paths["keras-W"], "expected one of caffe, torchvision", preprocessing="tf")


class TestOtherNetworks:
    def test_vgg16_in_keras_form(self, tmp_path):
        files.write_keras(tmp_path / "x", files.make_arrays())
        with h5py.File(tmp_path / "x", "a") as file:
            for block in (3, 4, 5):
                del file[f"block{block}_conv4"]
        refuse(tmp_path / "x", "VGG-16")

    def test_vgg16_with_torch_names(self, tmp_path):
        indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
        state = {f"features.{i}.weight": np.zeros((4, 4, 3, 3), np.float32) for i in indices}
        files.write_safetensors(tmp_path / "x", state)
        refuse(tmp_path / "x", "VGG-16")

    def test_batch_normalisation(self, tmp_path):
        state = files.torch_state(files.make_arrays())
        state["features.1.running_mean"] = np.zeros(4, np.float32)
        files.write_safetensors(tmp_path / "x", state)
        refuse(tmp_path / "x", "batch normalisation")

    def test_other_positions(self, tmp_path):
        files.write_safetensors(tmp_path / "x", {"features.3.weight": np.zeros((4, 3, 11, 11))})
        refuse(tmp_path / "x", r"convolutions at \[3\]")

    def test_unrelated_arrays(self, tmp_path):
        files.write_safetensors(tmp_path / "x", {"encoder.weight": np.zeros((4, 3))})
        refuse(tmp_path / "x", "conv1_1/kernel is missing, and 31 more of 32")

    def test_two_networks(self, tmp_path):
        state = files.torch_state(files.make_arrays())
        files.write_safetensors(tmp_path / "x", {**state, "b.features.0.bias": np.zeros(4)})
        refuse(tmp_path / "x", "conv1_1/bias is there twice")

    def test_shape_names_layer_found_and_expected(self, tmp_path):
        arrays = files.make_arrays(network="caffe")
        arrays["conv3_2/kernel"] = np.zeros((3, 3, 5, 8), np.float32)
        for path in files.write_all(tmp_path, arrays=arrays).values():
            refuse(path, r"conv3_2/kernel has shape \(3, 3, 5, 8\), expected \(3, 3, 5, 5\)")

    def test_other_numbers_of_channels_where_they_are_asked_for(self):
        with pytest.raises(InputError, match=r"has shape .*, expected \(3, 3, 3, 64\)"):
            check_shapes(expected_shapes(files.SMALL), channels=CHANNELS)

    @pytest.mark.parametrize("name", ["conv3_1/kernel", "conv3_1/bias"])
    @pytest.mark.parametrize("wrong", [(), (7,), (5, 5, 5, 5, 5)])
    def test_odd_ranks(self, wrong, name):
        with pytest.raises(InputError, match="has shape"):
            check_shapes({**expected_shapes(files.SMALL), name: wrong})


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_values_that_are_not_finite(self, tmp_path, value):
        state = {k: v.astype(np.float64) for k, v in files.torch_state(files.make_arrays()).items()}
        state["features.5.weight"][0, 0, 0, 0] = value
        files.write_safetensors(tmp_path / "x", state)
        refuse(tmp_path / "x", "conv2_1/kernel holds NaN or infinite", preprocessing="caffe")

    def test_integers(self, tmp_path):
        state = files.torch_state(files.make_arrays())
        state["features.0.bias"] = state["features.0.bias"].astype(np.int32)
        files.write_safetensors(tmp_path / "x", state)
        refuse(tmp_path / "x", "conv1_1/bias holds .*, expected floating")


class TestKeras:
    @pytest.mark.parametrize("kind", ["soft", "external"])
    def test_links_are_not_followed(self, tmp_path, kind):
        files.write_keras(tmp_path / "x", files.make_arrays())
        link = h5py.SoftLink("/a") if kind == "soft" else h5py.ExternalLink("/etc/x", "/a")
        with h5py.File(tmp_path / "x", "a") as file:
            del file["block2_conv1"]
            file["block2_conv1"] = link
        refuse(tmp_path / "x", "block2_conv1 is a link")

    @pytest.mark.parametrize("kind", ["external", "virtual"])
    def test_data_elsewhere_is_not_read(self, tmp_path, kind):
        files.write_keras(tmp_path / "x", files.make_arrays())
        with h5py.File(tmp_path / "x", "a") as file:
            del file["block1_conv1/bias:0"]
            if kind == "external":
                (tmp_path / "raw").write_bytes(bytes(16))
                outside = [(str(tmp_path / "raw"), 0, 16)]
                file.create_dataset("block1_conv1/bias:0", (4,), "f4", external=outside)
            else:
                layout = h5py.VirtualLayout((4,), "f4")
                layout[:] = h5py.VirtualSource(tmp_path / "other", "a", (4,))
                file.create_virtual_dataset("block1_conv1/bias:0", layout)
        refuse(tmp_path / "x", "lies in another file")

    def test_a_cycle_of_groups_ends(self, tmp_path):
        files.write_keras(tmp_path / "x", files.make_arrays(network="caffe"))
        with h5py.File(tmp_path / "x", "a") as file:
            file["loop"] = file["/"]
        refuse(tmp_path / "x", "is there twice")


class TestMatConvNet:
    def test_reader_agrees_with_scipy(self, tmp_path):
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

    def test_compressed(self, tmp_path, paths):
        from scipy.io import loadmat, savemat

        data = loadmat(paths["mat-new"], appendmat=False)
        savemat(
            str(tmp_path / "x.mat"),
            {key: data[key] for key in ("layers", "meta")},
            do_compression=True,
        )
        assert_same(convert(tmp_path / "x.mat").arrays, files.make_arrays(network="caffe"))

    def test_wrong_mean(self, tmp_path):
        arrays = files.make_arrays(network="caffe")
        files.write_matconvnet(tmp_path / "x", arrays, mean=[103.939, 116.779, 123.68])
        refuse(tmp_path / "x", "mean colour")

    def test_bomb(self, tmp_path, paths):
        import zlib

        head = paths["mat-new"].read_bytes()[:128]
        body = bytearray(paths["mat-new"].read_bytes()[128:1500])
        body[4:8] = (2**31).to_bytes(4, "little")
        packed = zlib.compress(bytes(body))
        tag = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little")
        (tmp_path / "x").write_bytes(head + tag + packed)
        refuse(tmp_path / "x", "too many for VGG-19")


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
            (lambda header: header.update(format_version="2"), "format version '2', expected '1'"),
            (lambda header: header.update(layers="{}"), "shapes differ"),
            (lambda header: header.update(layers="[1"), "shapes differ"),
            (lambda header: header.pop("preprocessing"), "preprocessing is wrong"),
            (lambda header: header.update(preprocessing="[" * 100_000), "damaged"),
            (lambda header: header.update(preprocessing='{"kind": "a"}'), "preprocessing is wrong"),
            (lambda header: header.update(contents_sha256=""), "sha256 differs"),
            (lambda header: header.pop("format"), "conv1_1/kernel is missing"),
        ],
    )
    def test_header_is_checked(self, tmp_path, change, match):
        files.write_own(tmp_path / "x", files.make_arrays())
        self.rewrite(tmp_path / "x", lambda header: None)
        convert(tmp_path / "x")
        self.rewrite(tmp_path / "x", change)
        refuse(tmp_path / "x", match)

    def test_a_flipped_bit_is_seen(self, tmp_path):
        files.write_own(tmp_path / "x", files.make_arrays())
        data = bytearray((tmp_path / "x").read_bytes())
        data[-1] ^= 1
        (tmp_path / "x").write_bytes(data)
        refuse(tmp_path / "x", "damaged, get it again")

    def test_extra_arrays(self, tmp_path):
        record = Record(name="x", preprocessing=PREPROCESSING["caffe"])
        arrays = {**files.make_arrays(), "conv6_1/bias": np.zeros(3, np.float32)}
        write_canonical(tmp_path / "x", arrays, record)
        refuse(tmp_path / "x", "'conv6_1/bias' is no array of VGG-19")

    @pytest.mark.parametrize(
        ("mean", "std"), [((0, 0), (1, 1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, np.nan), (1, 1, 1))]
    )
    def test_preprocessing_is_checked(self, mean, std):
        with pytest.raises(InputError, match="expected three finite numbers"):
            Preprocessing(kind="own", mean=mean, std=std)


class TestFile:
    def test_missing(self, tmp_path):
        refuse(tmp_path / "x.h5", "No such file")

    def test_folder(self, tmp_path):
        refuse(tmp_path, "is a folder")

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "is empty"),
            (b"\n<!DOCTYPE html>", "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"MATLAB 7.3 MAT-file", "MATLAB 7.3"),
            (b"hello", "no known form"),
            (b"\x89HDF\r\n\x1a\n", "damaged"),
            (b"MATLAB 5.0 MAT-file", "big-endian or cut short"),
            (b"PK\x03\x04", "damaged"),
            (b"\x80\x02", "damaged"),
            (b"\x05\0\0\0\0\0\0\0{", "damaged"),
            (b"\xff\xff\xff\x01\0\0\0\0{", "damaged"),
        ],
    )
    def test_content(self, tmp_path, content, match):
        (tmp_path / "x.h5").write_bytes(content)
        refuse(tmp_path / "x.h5", match)

    @pytest.mark.parametrize("label", FORMS)
    def test_cut_short(self, tmp_path, paths, label):
        data = paths[label].read_bytes()
        for size in (len(data) // 3, len(data) - 40):
            (tmp_path / "x").write_bytes(data[:size])
            refuse(tmp_path / "x", ".")


@pytest.mark.parametrize(
    "label", ["canonical", "keras-W", "mat-new", "pth-zip", "pth-legacy", "safetensors"]
)
def test_damaged_files_give_input_errors_only(tmp_path, paths, label):
    whole = paths[label].read_bytes()
    positions = st.integers(0, len(whole) - 1) | st.integers(0, 3000)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(
        flips=st.lists(st.tuples(positions, st.integers(0, 7)), max_size=4),
        size=st.just(len(whole)) | st.integers(0, len(whole)),
    )
    def check(flips, size):
        data = bytearray(whole)
        for position, bit in flips:
            data[position] ^= 1 << bit
        (tmp_path / "x").write_bytes(data[:size])
        try:
            convert(tmp_path / "x")
        except InputError as error:
            assert "\n" not in str(error)

    check()


class TestConvertFile:
    def test_equal_sources_give_equal_arrays_and_bytes(self, tmp_path, paths):
        for label in ("keras-W", "pth-legacy"):
            convert_file(paths[label], tmp_path / label)
            assert_same(convert(tmp_path / label).arrays, files.make_arrays(network="caffe"))
        again = convert_file(paths["keras-W"], tmp_path / "again")
        assert again.read_bytes() == (tmp_path / "keras-W").read_bytes()
        record = convert(paths["keras-W"]).record
        assert replace(convert(again).record, preprocessing=record.preprocessing) == record

    def test_safetensors_library_reads_it(self, tmp_path, paths):
        from safetensors.numpy import load_file

        convert_file(paths["keras-W"], tmp_path / "x")
        assert_same(load_file(tmp_path / "x"), files.make_arrays(network="caffe"))

    def test_refuses_to_replace(self, tmp_path, paths):
        (tmp_path / "x").write_text("mine")
        with pytest.raises(InputError, match="exists"):
            convert_file(paths["keras-W"], tmp_path / "x")
        convert_file(paths["keras-W"], tmp_path / "x", overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_script(self, tmp_path, paths, monkeypatch, capsys):
        script = Path(__file__).parents[2] / "scripts" / "convert_weights.py"
        output = str(tmp_path / "y.safetensors")
        monkeypatch.setattr("sys.argv", ["script", str(paths["pth-zip"]), output])
        for code, pattern in ((0, ".*y.safetensors\n"), (2, "nst-jax: error: .* exists: .*\n")):
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(script), run_name="__main__")
            assert end.value.code == code
            assert re.fullmatch(pattern, "".join(capsys.readouterr()))
