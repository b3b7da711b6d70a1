"""Damaged and malicious weights files are refused in one line, with bounded time and memory.

The tests call `convert`, which every command uses. Malicious pickles and zip archives are in
``test_torch_pickle``.
"""

import json
import math
import os
import re
import struct
import time
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import weight_files as files
from helpers.weight_damage import KINDS, damaged
from PIL import Image

from nst_jax.cli import main
from nst_jax.errors import InputError
from nst_jax.weights.convert import convert, expected_shapes

FORMS = ("canonical", "safetensors", "keras-W", "keras-gzip", "mat-new", "mat-compressed")
FORMS += ("pth-zip", "pth-legacy")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of one small sound file of every form."""
    paths = files.write_all(tmp_path_factory.mktemp("sound"))
    return {label: path.read_bytes() for label, path in paths.items()}


@pytest.fixture(autouse=True)
def desk(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def attempt(path, *, seconds=10, **options):
    """Convert a file; returns the message if it is refused, in one line and in time."""
    started, message = time.monotonic(), None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            convert(path, **options)
        except InputError as error:
            message = str(error)
            assert message.isprintable() and len(message) < 2000
    assert not warned and time.monotonic() - started < seconds
    return message


def refuse(path, match=".", **options):
    message = attempt(path, **options)
    assert message and re.search(match, message), message


def peak_memory():
    """The most memory that this process has used since the peak was reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


@pytest.fixture(autouse=True)
def bounded_memory():
    """No test here may take more than 4 GiB."""
    if not Path("/proc/self/clear_refs").exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    yield
    assert peak_memory() - before < 4 * 2**30


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(sound, form, count):
    """Damage is refused, or leaves a sound network."""
    refused = 0
    other = FORMS[(FORMS.index(form) + 2) % len(FORMS)]
    for seed in range(count * len(KINDS)):
        _, data = damaged(sound[form], seed=seed, other=sound[other])
        Path("x").write_bytes(data)
        refused += attempt("x", preprocessing="caffe" if seed % 2 else None) is not None
    assert os.listdir() == ["x"]
    assert refused >= count * len(KINDS) / 3
    for left in (len(sound[form]) // 3, len(sound[form]) - 40):
        Path("x").write_bytes(sound[form][:left])
        refuse("x")


@pytest.mark.parametrize(
    "line",
    [
        "weights verify x",
        "weights convert x out.safetensors",
        "weights normalize x out.safetensors a.png",
        "stylize a.png --style a.png --output out.png --weights x",
    ],
)
def test_commands_refuse_damaged_weights(sound, capsys, line):
    Path("x").write_bytes(sound["keras-W"][:20_000])
    Image.new("RGB", (32, 32), "red").save("a.png")
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("nst-jax: error: ") and error.count("\n") == 1
    assert "x is damaged or not a Keras .h5 file" in error
    assert sorted(os.listdir()) == ["a.png", "x"]


class TestForm:
    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "is empty"),
            (b"\n<!DOCTYPE html>", "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"MATLAB 7.3 MAT-file", "MATLAB 7.3"),
            (b"hello", "unknown format"),
            (b"\x89HDF\r\n\x1a\n", "damaged"),
            (b"MATLAB 5.0 MAT-file", "big-endian or cut"),
            (b"PK\x03\x04", "damaged"),
            (b"\x80\x02", "damaged"),
            (b"\x05\0\0\0\0\0\0\0{", "damaged"),
        ],
    )
    def test_first_bytes(self, content, match):
        Path("x.h5").write_bytes(content)
        refuse("x.h5", match)

    def test_no_file(self):
        os.mkfifo("pipe")
        for path, match in (("x", "No such file"), (".", "folder"), ("pipe", "is not a file")):
            refuse(path, match, seconds=5)

    def test_far_too_large(self, sound):
        """A sparse file, whose checksum would take minutes."""
        Path("x").write_bytes(sound["canonical"])
        os.truncate("x", 2**40)
        refuse("x", "at most 2 GiB .*, got 1024.0 GiB", seconds=5)

    def test_any_file_name(self, sound):
        name = os.fsdecode(b"a\n\x1b[2J\xff.h5")
        Path(name).write_bytes(sound["keras-W"])
        assert convert(name).record.source.isprintable()


BIAS = "block1_conv1/bias:0"


class TestHdf5:
    @pytest.fixture
    def file(self, sound):
        """A sound file, open for changes."""
        Path("x.h5").write_bytes(sound["keras-kernel"])
        with h5py.File("x.h5", "a") as file:
            yield file

    @pytest.fixture
    def other(self, file):
        """The same file without a bias."""
        del file[BIAS]
        return file

    @pytest.mark.parametrize("link", [h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/a")])
    def test_links_are_not_followed(self, other, link):
        for place in (BIAS, "aaa"):
            other[place] = link
            other.flush()
            refuse("x.h5", f"{place} is a link")

    @pytest.mark.parametrize("kind", ["external", "virtual"])
    def test_data_in_other_files_is_not_read(self, other, kind):
        if kind == "external":
            Path("raw").write_bytes(bytes(16))
            other.create_dataset(BIAS, (4,), "f4", external=[("raw", 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("other", "a", (4,))
            other.create_virtual_dataset(BIAS, layout)
        other.flush()
        refuse("x.h5", "is in another file")

    def test_cycles_of_groups_end(self, file):
        file["loop"] = file["/"]
        file.flush()
        refuse("x.h5", "got conv1_1/.* twice")
        for index in range(300):
            file[f"a{index}"] = file["/"]
        for name in [name for name in file if name.startswith("block")]:
            del file[name]
        file.flush()
        refuse("x.h5", "at most 10000 entries")

    def test_chunks_and_filters_that_are_read(self):
        arrays = files.make_arrays(network="caffe")
        for storage in (
            {"chunks": True},
            {"compression": "gzip", "fletcher32": True},
            {"shuffle": True, "fletcher32": True},
        ):
            files.write_keras("x.h5", files.flip(arrays), **storage)
            found = convert("x.h5").arrays
            assert all((found[name] == array).all() for name, array in arrays.items())

    def store(self, file, *numbers, chunk=4, data=None):
        """Store a bias with filters of these numbers, and perhaps one raw chunk."""
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((chunk,))
        for number in numbers:
            values = {1: (9,), 2: (4,), 3: ()}.get(number, (3,))
            properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
        space = h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
        group, kind = file["block1_conv1"].id, h5py.h5t.IEEE_F32LE
        dataset = h5py.h5d.create(group, b"bias:0", kind, space, properties)
        if data is not None:
            dataset.write_direct_chunk((0,), data)
        file.close()

    # HDF5 would look for the last one (a plugin) on the disk.
    @pytest.mark.parametrize("numbers", [(1, 1), (1, 2), (2, 1, 2), (6,), (2, 1, 32015)])
    def test_other_filters(self, other, numbers):
        self.store(other, *numbers)
        refuse("x.h5", "HDF5 filters .*h5repack")

    def test_chunks_far_larger_than_the_array(self, other):
        self.store(other, chunk=2**26)
        refuse("x.h5", "16 bytes, but is stored in 1 chunks of 268435456", seconds=5)

    @pytest.mark.parametrize(("numbers", "length"), [((1,), 17), ((2, 1), 2**28), ((2, 1, 3), 17)])
    def test_chunks_that_inflate_to_more_than_declared(self, other, numbers, length):
        self.store(other, *numbers, data=zlib.compress(bytes(length)))
        refuse("x.h5", "inflates to more|chunks of .* are damaged", seconds=5)

    @pytest.mark.parametrize(
        ("shape", "dtype", "match"),
        [
            ((2**20, 2**20), "f8", r"for conv1_1/bias, got \(1048576, 1048576\)"),
            ((4,), np.dtype(("f4", (2**20,))), "conv1_1/bias"),
            ((4,), "S1000000", "conv1_1/bias"),
            ((4,), "c16", "floating-point numbers in conv1_1/bias"),
        ],
    )
    def test_shapes_and_types(self, other, shape, dtype, match):
        other.create_dataset(BIAS, shape, dtype)
        other.flush()
        refuse("x.h5", match)


def element(kind, data):
    """A data element of a MATLAB file."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind, shape, *parts, name=b"layers"):
    """A MATLAB array of a class, made of data elements."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, np.array(shape, "<i4").tobytes())
    return element(14, head + element(1, name) + b"".join(parts))


class TestMatlab:
    def write(self, variable, *, packed=False, trailing=()):
        """Write a file of one variable, perhaps compressed, with more bytes in the same stream."""
        if packed:
            packer = zlib.compressobj(1)
            parts = [packer.compress(part) for part in (variable, *trailing)]
            data = b"".join([*parts, packer.flush()])
            variable = struct.pack("<II", 15, len(data)) + data
        Path("x.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + variable)

    @pytest.mark.parametrize("packed", [False, True])
    def test_too_many_cells_and_fields(self, packed):
        empty = struct.pack("<II", 14, 0)
        self.write(matrix(1, (1, 110_000), 110_000 * empty), packed=packed)
        refuse("x.mat", "at most 100000 fields and cells")
        parts = element(5, struct.pack("<i", 2)), element(1, b"ab" * 2**16), 2**16 * empty
        self.write(matrix(2, (1, 1), *parts), packed=packed)
        refuse("x.mat", "too many fields")

    def test_other_excesses(self):
        nested = matrix(1, (0, 0))
        for _ in range(400):
            nested = matrix(1, (1, 1), nested)
        for variable, match in (
            (nested, "nested too deep"),
            (matrix(7, (1,) * 200, element(7, bytes(4))), "too many axes"),
            (matrix(4, (1, 2**24), element(16, bytes(2**24)), name=b"meta"), "damaged|missing"),
            ((2**17) * struct.pack("<II", 1, 0), "at most 100000 fields"),
        ):
            self.write(variable)
            refuse("x.mat", match)

    @pytest.mark.parametrize("declared", [8, 2**31])
    def test_compressed_size(self, declared):
        """A stream that holds far more than it declares, and one that declares far too much."""
        body = matrix(7, (1, 2), element(7, bytes(8)))
        size = len(body) - 8 if declared == 8 else declared
        body = body[:4] + struct.pack("<I", size) + body[8:]
        self.write(body, packed=True, trailing=[bytes(2**24)] * 16)
        refuse("x.mat", "damaged|missing" if declared == 8 else "at most 1073741824 bytes")

    @pytest.mark.parametrize(
        "mean", [3 * [np.inf], 3 * [np.nan], 3 * [1e300], [103.939, 116.779, 123.68]]
    )
    def test_mean_colours(self, mean):
        files.write_matconvnet("x.mat", files.make_arrays(network="caffe"), mean=mean)
        refuse("x.mat", "expected the mean colour")

    def test_size_of_the_mean_image(self):
        mean = np.zeros(3 * 2**20 + 3, np.uint8)
        files.write_matconvnet("x.mat", files.make_arrays(network="caffe"), mean=mean)
        refuse("x.mat", "expected a mean image of shape")


class TestSafetensors:
    def write(self, header, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(text) if length is None else length
        Path("x").write_bytes(struct.pack("<Q", length) + text + data)

    @pytest.mark.parametrize("length", [0, 1, 10**6, 8 * 2**20 + 1, 2**31, 2**63])
    def test_false_length_of_the_header(self, length):
        self.write({"a": 1}, bytes(100), length)
        refuse("x")

    def test_excessive_headers(self):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for header, match in (
            ({"__metadata__": {"a": "x" * 9 * 2**20}}, "header of at most 8388608 bytes"),
            (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "damaged"),
            ({f"a{index}": entry for index in range(10_001)}, "at most 10000 arrays, got 10001"),
        ):
            self.write(header)
            refuse("x", match)

    @pytest.mark.parametrize(
        "second",
        [
            {"data_offsets": [8, 24]},  # overlaps
            {"data_offsets": [32, 48]},  # leaves a gap
            {"data_offsets": [16, 40]},  # beyond the end
            {"data_offsets": [32, 16]},
            {"shape": [2**62, 2**62]},
            {"shape": 2000 * [1]},
            {"dtype": "F31"},
        ],
    )
    def test_entries(self, second):
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        names = "features.0.bias", "features.2.bias"
        good = entry | {"data_offsets": [16, 32]}
        self.write(dict(zip(names, (entry, good | second), strict=True)), bytes(32))
        refuse("x")

    def test_far_too_many_channels(self):
        """A sparse file whose arrays are not read."""
        header, end = {}, 0
        for name, shape in expected_shapes((1024,) * 5).items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        self.write({"__metadata__": {"format": "nst_jax.weights"}} | header)
        os.truncate("x", os.path.getsize("x") + end)
        refuse("x", "at most 134217728 numbers", seconds=5)

    @pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "x" * 200_000, "\ud800"])
    def test_texts_in_the_header(self, sound, text):
        data = sound["canonical"]
        end = 8 + int.from_bytes(data[:8], "little")
        kind = json.loads(json.loads(data[8:end])["__metadata__"]["preprocessing"]) | {"kind": text}
        for entry in (
            {"name": text},
            {"source": text},
            {"preprocessing": json.dumps(kind)},
            {"normalized": json.dumps({"images": 1, "pooling": text, "inactive": {}})},
        ):
            header = json.loads(data[8:end])
            header["__metadata__"].update(entry)
            self.write(header, data[end:])
            refuse("x")
