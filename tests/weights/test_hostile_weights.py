"""Files of weights that are damaged or were made to do harm: one line, exit code 2, no trace.

Every file goes through the command line in this process, by turns to ``weights verify`` and
``weights convert``; ``stylize`` loads weights by the same function and sees a few. Each case has a
limit of time, and no form may take much memory.
"""

import faulthandler
import io
import json
import math
import os
import pickle
import re
import signal
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import weight_files as files
from helpers.weight_damage import KINDS, damaged
from helpers.weight_files import p_call, p_dict, p_global, p_int, p_storage, p_tensor, p_text

from nst_jax.cli import main
from nst_jax.errors import InputError
from nst_jax.weights.convert import convert, expected_shapes
from nst_jax.weights.torch import open_torch

FORMS = {
    "canonical": "mat-new",
    "safetensors": "keras-W",
    "keras-W": "mat-new",
    "keras-gzip": "pth-zip",
    "mat-new": "keras-W",
    "mat-compressed": "canonical",
    "pth-zip": "pth-legacy",
    "pth-legacy": "pth-zip",
}
SECONDS = 30
GIB = 2**30


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of one small sound file of every form."""
    from scipy.io import loadmat, savemat

    paths = files.write_all(tmp_path_factory.mktemp("sound"))
    paths["keras-gzip"] = paths["keras-W"].with_name("keras-gzip.bin")
    arrays = files.flip(files.make_arrays(network="caffe"))
    files.write_keras(paths["keras-gzip"], arrays, compression="gzip", shuffle=True)
    data = loadmat(paths["mat-new"], appendmat=False)
    paths["mat-compressed"] = paths["mat-new"].with_name("mat-compressed.bin")
    with paths["mat-compressed"].open("wb") as file:
        savemat(file, {key: data[key] for key in ("layers", "meta")}, do_compression=True)
    return {label: path.read_bytes() for label, path in paths.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")


class TooLong(BaseException):
    """Not an `Exception`, which readers would take for damage."""


@pytest.fixture
def run(capfd):
    """Run a command on a file; gives exit code and standard error, checked against each other."""

    def ring(*_):
        raise TooLong

    def run(*words, seconds=SECONDS):
        before = sorted(os.listdir())
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        # A library in C would not notice the signal.
        faulthandler.dump_traceback_later(2 * seconds, exit=True)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                code = main([str(word) for word in words])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        error = capfd.readouterr().err
        assert not warned, warned[0].message
        assert code in (0, 1, 2)
        if code == 2:
            assert error.startswith("nst-jax: error: ") and error.count("\n") == 1
            assert error[:-1].isprintable() and len(error) < 2000
            assert sorted(os.listdir()) == before
        else:
            assert error == ""
        return code, error

    return run


@pytest.fixture
def refuse(run):
    """Check that a file is refused by both commands, with a message."""

    def refuse(path, match="", **options):

        for words in (["verify", path], ["convert", path, "out.safetensors"]):
            code, error = run("weights", *words, **options)
            assert code == 2 and re.search(match, error), error

    return refuse


def peak_memory():
    """The most memory that this process has had since `forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise AssertionError


@pytest.fixture(autouse=True)
def bounded_memory():
    """No test here may take more than 4 GiB over what there was."""
    if not Path("/proc/self/clear_refs").exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_memory()
    yield
    assert peak_memory() - before < 4 * GIB


def judge(run, whole, other, seed):
    """Put one damaged file before a command; gives the exit code."""
    _, data = damaged(whole, seed=seed, other=other)
    Path("x").write_bytes(data)
    writes = bool(seed % 2)
    to_file = ["convert", "x", "y.safetensors", "--preprocessing", "caffe"]
    code, _ = run("weights", *(to_file if writes else ["verify", "x"]))
    # Damage that leaves a sound network is taken: most forms have no checksum of their own.
    assert code in ((0, 2) if writes else (0, 1, 2))
    assert Path("y.safetensors").exists() == (writes and code == 0)
    Path("y.safetensors").unlink(missing_ok=True)
    assert os.listdir() == ["x"]
    return code


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(run, sound, form):
    codes = [judge(run, sound[form], sound[FORMS[form]], seed) for seed in range(2 * len(KINDS))]
    assert codes.count(2) >= 5


@pytest.mark.campaign
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_files(run, sound, form):
    seeds = range(100, 100 + 50 * len(KINDS))
    codes = [judge(run, sound[form], sound[FORMS[form]], seed) for seed in seeds]
    assert codes.count(2) >= len(seeds) / 3
    print(form, {code: codes.count(code) for code in set(codes)})


@pytest.mark.parametrize("form", FORMS)
def test_sound_files_are_taken(run, sound, form):
    Path("x").write_bytes(sound[form])
    assert run("weights", "verify", "x") == (0, "")
    assert run("weights", "convert", "x", "y.safetensors") == (0, "")


@pytest.mark.parametrize("form", FORMS)
def test_stylize_and_normalize_refuse_them_too(run, sound, form):
    from PIL import Image

    Path("x").write_bytes(sound[form][: len(sound[form]) // 2])
    Image.new("RGB", (32, 32), "red").save("a.png")
    code, error = run(
        "stylize", "a.png", "--style", "a.png", "--output", "out.png", "--weights", "x"
    )
    assert code == 2 and " x" in error
    code, error = run("weights", "normalize", "x", "out.safetensors", "a.png")
    assert code == 2 and " x" in error


class Evil:
    """Reduces to a call, as a malicious pickle does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def in_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


def in_legacy(path, pickled):
    head = (p_int(files.MAGIC), p_int(1001), p_dict({"little_endian": b"\x88"}))
    Path(path).write_bytes(b"".join(map(files.p_whole, head)) + pickled)


@pytest.mark.parametrize("write", [in_zip, in_legacy])
class TestPickles:
    def test_call_of_the_system(self, refuse, tmp_path, write):
        trace = tmp_path / "executed"
        evil = Evil(os.system, f"touch {trace}")
        write("x.pth", pickle.dumps({"features.0.weight": evil}, 2))
        refuse("x.pth", r"asks for \w+\.system, .*it was not executed")
        assert not trace.exists()
        pickle.loads(pickle.dumps(evil, 2))  # the test can fail: this is what it does
        assert trace.exists()

    @pytest.mark.parametrize(
        "name",
        [
            (b"builtins", b"getattr"),
            (b"os", b"system.__call__"),
            (b"torch", b"serialization.load"),
            (b"torch.storage", b"_load_from_bytes"),  # which loads a pickle within the pickle
            (b"torch._utils", b"_rebuild_tensor_v2.__globals__"),
            (b"collections", b"OrderedDict.__init__.__globals__"),
        ],
    )
    def test_ways_round(self, refuse, tmp_path, write, name):
        trace = tmp_path / "executed"
        inner = pickle.dumps(Evil(os.system, f"touch {trace}"), 2)
        stacked = b"".join(b"\x8c" + bytes([len(part)]) + part for part in name) + b"\x93"
        blob = b"B" + struct.pack("<I", len(inner)) + inner
        for function in (p_global(*(part.decode() for part in name)), stacked):
            for argument in (b"", p_text(f"touch {trace}"), blob):
                write("x.pth", files.p_whole(p_dict({"a": p_call(function, argument)})))
                refuse("x.pth", "asks for|instruction BINBYTES")
        assert not trace.exists()

    def test_tuples_that_hold_each_other_twice(self, refuse, write):
        """The hash of such a one would never end; every way to make it is refused."""
        doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
        again = {
            "put": doubled,
            "after an empty BUILD": doubled.replace(b"q", b"Nbq"),
            "after an empty APPENDS": doubled.replace(b"q", b"(eq"),
            "through a parameter": b"".join(
                p_call(p_global("torch._utils", "_rebuild_parameter"), b")")
                + b"q"
                + bytes([i])
                + b"h"
                + bytes([i])
                + b"\x86"
                for i in range(60)
            ),
            "memoized": b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60)),
        }
        for way, code in again.items():
            pickled = files.p_whole(b"})" + code + b"Ns") if way != "memoized" else None
            write("x.pth", pickled or files.p_whole(b"}" + code + b"Ns"))
            refuse("x.pth", "uses a tuple twice|malformed parameter", seconds=5)

    def test_names_that_command_a_terminal(self, refuse, write):
        for name in ("\x1b[2J", "a\nb", "\ud800", "x" * 100_000):
            encoded = name.encode("utf-8", "surrogatepass")
            text = b"X" + struct.pack("<I", len(encoded)) + encoded
            write("x.pth", files.p_whole(text + text + b"\x93"))
            refuse("x.pth", "asks for")


class TestZip:
    def test_members_outside_the_archive(self, refuse, run, tmp_path, sound):
        """Nothing is ever extracted: such names are only looked up, or not at all."""
        for name in ("../../outside", "/outside", "archive/../../outside"):
            data = io.BytesIO(sound["pth-zip"])
            with zipfile.ZipFile(data, "a") as archive:
                archive.writestr(name, b"mine")
            Path("x.pth").write_bytes(data.getvalue())
            assert run("weights", "verify", "x.pth")[0] == 0
            key = p_tensor(p_storage(f"../{name}", 4), (4,), (1,))
            files.write_zip("y.pth", p_dict({"features.0.bias": key}), {})
            refuse("y.pth", "conv1_1/kernel is missing")
        found = [path.name for path in tmp_path.rglob("*")]
        assert sorted(found) == ["desk", "x.pth", "y.pth"]

    def test_compressed_bomb(self, refuse):
        tensor = p_tensor(p_storage("0", 2**28), (2**28,), (1,))
        with zipfile.ZipFile("x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", files.p_whole(p_dict({"a": tensor})))
            archive.writestr("archive/data/0", bytes(2**24))
        refuse("x.pth", "compressed or too large")

    def test_too_many_members(self, refuse):
        with zipfile.ZipFile("x.pth", "w") as archive:
            for index in range(40_000):
                archive.writestr(f"archive/{index}", b"")
        refuse("x.pth", "list of members has .* bytes, too many")

    def test_the_list_of_members_lies_of_its_length(self, refuse, sound):
        data = bytearray(sound["pth-zip"])
        for offset, value in ((12, 2**31), (12, 2**32 - 1), (16, 2**31), (10, 0)):
            broken = data.copy()
            width = 2 if offset == 10 else 4
            broken[len(data) - 22 + offset :][:width] = b""
            at = len(data) - 22 + offset
            broken[at : at + width] = value.to_bytes(width, "little")
            Path("x.pth").write_bytes(broken)
            if offset != 10:  # the number of members is not used
                refuse("x.pth")

    def test_large_form(self, run, refuse, sound):
        """Records for 64 bits, as PyTorch writes them in large files."""
        data, end = sound["pth-zip"][:-22], sound["pth-zip"][-22:]
        count, size, start = struct.unpack("<HII", end[10:20])
        numbers = (44, 45, 45, 0, 0, count, count, size, start)
        record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", *numbers)
        locator = b"PK\6\7" + struct.pack("<IQI", 0, len(data), 1)
        Path("x.pth").write_bytes(data + record + locator + end)
        assert run("weights", "verify", "x.pth")[0] == 0
        huge = record[:40] + struct.pack("<Q", 2**40) + record[48:]
        Path("x.pth").write_bytes(data + huge + locator + end)
        refuse("x.pth", "list of members has 1099511627776 bytes")
        Path("x.pth").write_bytes(data + bytes(56) + locator + end)
        refuse("x.pth", "damaged")

    def test_storages_that_are_read_again_and_again(self):
        def read(path, limit):
            with open_torch(Path(path), limit=limit) as stored:
                return {name: tensor.read() for name, tensor in stored.items()}

        arrays = files.make_arrays(network="caffe")
        state = files.torch_state(files.flip(arrays))
        flat = np.concatenate([np.ravel(array) for array in state.values()])
        start, value = 0, {}
        for name, array in state.items():
            strides = [s // 4 for s in np.ascontiguousarray(array).strides]
            storage = p_storage("0", flat.size)
            value[name] = p_tensor(storage, array.shape, strides, offset=start)
            start += array.size
        files.write_zip("x.pth", p_dict(value), {"0": flat.tobytes()})
        found = read("x.pth", flat.nbytes)  # one storage of all is read once
        assert all((found[name] == array).all() for name, array in state.items())
        for index, (name, array) in enumerate(state.items()):
            strides = [s // 4 for s in np.ascontiguousarray(array).strides]
            value[name] = p_tensor(p_storage(str(index % 2), flat.size), array.shape, strides)
        files.write_zip("y.pth", p_dict(value), {key: flat.tobytes() for key in "01"})
        with pytest.raises(InputError, match="save copies of its tensors"):
            read("y.pth", 3 * flat.nbytes)


class TestHdf5:
    def plain(self):
        files.write_keras("x.h5", files.make_arrays(network="caffe"))
        return h5py.File("x.h5", "a")

    def test_external_link(self, refuse, tmp_path):
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["secret"] = np.ones(4, np.float32)
        for place in ("block1_conv1/bias:0", "aaa"):
            with self.plain() as file:
                if place in file:
                    del file[place]
                file[place] = h5py.ExternalLink(tmp_path / "other.h5", "/secret")
            refuse("x.h5", f"{place} is a link to another place or file")

    def test_many_links_in_cycles(self, refuse):
        with self.plain() as file:
            for index in range(300):
                file[f"a{index}"] = file["/"]
            for name in [name for name in file if name.startswith("block")]:
                del file[name]
        refuse("x.h5", "more than 10000 entries", seconds=10)

    @pytest.mark.parametrize(
        "storage",
        [
            {"chunks": True},
            {"compression": "gzip", "fletcher32": True},
            {"compression": "gzip", "shuffle": True},
            {"shuffle": True, "fletcher32": True},
        ],
    )
    def test_chunks_and_filters_that_are_read(self, run, storage):
        arrays = files.make_arrays(network="caffe")
        files.write_keras("x.h5", files.flip(arrays), **storage)
        assert run("weights", "convert", "x.h5", "x.safetensors") == (0, "")
        found = convert("x.safetensors").arrays
        assert all((found[name] == array).all() for name, array in arrays.items())

    def bias(self, *numbers, chunk=4):
        """A file of which a bias is stored with filters of these numbers; still empty."""
        file = self.plain()
        del file["block1_conv1/bias:0"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((chunk,))
        for number in numbers:
            values = {1: (9,), 2: (4,), 3: ()}.get(number, (3,))
            properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
        space = h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
        group, kind = file["block1_conv1"].id, h5py.h5t.IEEE_F32LE
        h5py.h5d.create(group, b"bias:0", kind, space, properties)
        return file

    # The last is one that would be looked for on the disk.
    @pytest.mark.parametrize("numbers", [(1, 1), (1, 2), (2, 1, 2), (6,), (2, 1, 32015)])
    def test_other_filters(self, refuse, numbers):
        self.bias(*numbers).close()
        refuse("x.h5", "HDF5 filters .*h5repack")

    def test_chunks_far_larger_than_the_array(self, refuse):
        self.bias(chunk=2**26).close()
        refuse("x.h5", "1 chunks of 268435456 bytes", seconds=5)

    @pytest.mark.parametrize("numbers", [(1,), (2, 1), (2, 1, 3)])
    @pytest.mark.parametrize("length", [17, 2**24, 2**28])
    def test_chunks_that_are_bombs(self, refuse, numbers, length):
        with self.bias(*numbers) as file:
            file["block1_conv1/bias:0"].id.write_direct_chunk((0,), zlib.compress(bytes(length)))
        refuse("x.h5", "inflates to more than 16 bytes|chunks of .* are damaged", seconds=5)

    def test_declared_size(self, refuse):
        with self.plain() as file:
            del file["block1_conv1/bias:0"]
            file.create_dataset("block1_conv1/bias:0", (2**20, 2**20), "f8")
        refuse("x.h5", r"conv1_1/bias has shape \(1048576, 1048576\)")

    @pytest.mark.parametrize("dtype", [np.dtype(("f4", (2**20,))), "S1000000", "c16"])
    def test_types(self, refuse, dtype):
        with self.plain() as file:
            del file["block1_conv1/bias:0"]
            file.create_dataset("block1_conv1/bias:0", (4,), dtype)
        refuse("x.h5", "conv1_1/bias ")


def matrix(kind, shape, *parts, name=b""):
    """A MATLAB array of a class, with its data elements."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, np.array(shape, "<i4").tobytes())
    return element(14, head + element(1, name) + b"".join(parts))


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


class TestMatlab:
    def write(self, *variables, packed=False):
        head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
        if packed:
            small = [zlib.compress(variable, 1) for variable in variables]
            variables = [struct.pack("<II", 15, len(data)) + data for data in small]
        Path("x.mat").write_bytes(head + b"".join(variables))

    @pytest.mark.parametrize("packed", [False, True])
    def test_cells_and_text_without_end(self, refuse, packed):
        empty = struct.pack("<II", 14, 0)
        self.write(matrix(1, (1, 200_000), 200_000 * empty, name=b"layers"), packed=packed)
        refuse("x.mat", "more than 100000 fields and cells", seconds=10)
        names = element(1, b"ab" * 2**16)
        parts = element(5, struct.pack("<i", 2)), names, 2**16 * empty
        self.write(matrix(2, (1, 1), *parts, name=b"layers"), packed=packed)
        refuse("x.mat", "too many fields", seconds=10)
        self.write(matrix(4, (1, 2**24), element(16, bytes(2**24)), name=b"meta"), packed=packed)
        refuse("x.mat", "damaged|missing", seconds=10)

    def test_nesting(self, refuse):
        inner = matrix(1, (0, 0))
        for _ in range(400):
            inner = matrix(1, (1, 1), inner)
        self.write(matrix(1, (1, 1), inner, name=b"layers"))
        refuse("x.mat", "nested too deep")

    def test_many_axes(self, refuse):
        self.write(matrix(7, (1,) * 200, element(7, bytes(4)), name=b"layers"))
        refuse("x.mat", "too many axes")

    def test_many_variables(self, refuse):
        self.write(2**17 * struct.pack("<II", 1, 0))
        refuse("x.mat", "more than 100000 fields", seconds=10)

    @pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
    def test_mean_colours(self, refuse, tmp_path, value):
        files.write_matconvnet("x.mat", files.make_arrays(network="caffe"), mean=3 * [value])
        refuse("x.mat", "mean colour")

    def test_mean_image_of_any_size(self, refuse):
        files.write_matconvnet(
            "x.mat", files.make_arrays(network="caffe"), mean=np.zeros(3 * 2**20 + 3, np.uint8)
        )
        refuse("x.mat", "mean image has the shape")

    def test_zlib_bomb(self, refuse):
        """It says that it holds a little, and holds a gigabyte."""
        body = matrix(7, (1, 2), element(7, bytes(8)), name=b"layers")
        packer = zlib.compressobj(9)
        data = packer.compress(body) + b"".join(packer.compress(bytes(2**24)) for _ in range(16))
        data += packer.flush()
        Path("x.mat").write_bytes(
            b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(data)) + data
        )
        refuse("x.mat", seconds=10)


class TestSafetensors:
    def write(self, header, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(text) if length is None else length
        Path("x").write_bytes(struct.pack("<Q", length) + text + data)

    @pytest.mark.parametrize("length", [0, 1, 10**6, 8 * 2**20 + 1, 2**24 * 5, 2**31, 2**63])
    def test_length_of_the_header(self, refuse, length):
        self.write({"a": 1}, bytes(100), length)
        refuse("x")

    def test_large_header(self, refuse):
        self.write({"__metadata__": {"a": "x" * 9 * 2**20}})
        refuse("x", "header should have .* bytes, expected at most")

    def test_depth(self, refuse):
        self.write(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        refuse("x", "damaged")

    def test_too_many_arrays(self, refuse):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        self.write({f"a{index}": entry for index in range(10_001)})
        refuse("x", "10001 arrays")

    @pytest.mark.parametrize(
        "second",
        [
            {"data_offsets": [8, 24]},  # overlaps
            {"data_offsets": [32, 48]},  # leaves a gap
            {"data_offsets": [16, 40]},  # beyond the end
            {"data_offsets": [32, 16]},
            {"data_offsets": [-16, 32]},
            {"shape": [5]},
            {"shape": [2**62, 2**62]},
            {"shape": [-4]},
            {"shape": 2000 * [1]},
            {"dtype": "F31"},
            {"dtype": "I32"},
        ],
    )
    def test_entries(self, refuse, second):
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        names = "features.0.bias", "features.2.bias"
        good = entry | {"data_offsets": [16, 32]}
        self.write(dict(zip(names, (entry, good | second), strict=True)), bytes(32))
        refuse("x")

    def test_far_too_many_channels(self, refuse):
        """A sparse file, of which the arrays are not read."""
        header, end = {}, 0
        for name, shape in expected_shapes((1024,) * 5).items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        self.write({"__metadata__": {"format": "nst_jax.weights"}} | header)
        os.truncate("x", os.path.getsize("x") + end)
        refuse("x", "numbers, expected at most 134217728", seconds=5)

    @pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "x" * 200_000, "\ud800"])
    def test_text_that_is_shown(self, refuse, text, sound):
        data = sound["canonical"]
        end = 8 + int.from_bytes(data[:8], "little")
        for key in ("name", "source", "preprocessing", "normalized"):
            header = json.loads(data[8:end])
            about = header["__metadata__"]
            if key == "preprocessing":
                about[key] = json.dumps(json.loads(about[key]) | {"kind": text})
            elif key == "normalized":
                entry = {"images": 1, "pooling": text, "inactive": {}}
                about[key] = json.dumps(entry)
            else:
                about[key] = text
            self.write(header, data[end:])
            refuse("x")

    def test_numbers_in_the_header(self, refuse, sound):
        data = sound["canonical"]
        end = 8 + int.from_bytes(data[:8], "little")
        for entry in ('{"images": 1e999}', '{"images": NaN}', "9" * 5000, "[" * 50_000):
            header = json.loads(data[8:end])
            full = entry[:-1] + ', "pooling": "max", "inactive": {}}' if "{" in entry else entry
            header["__metadata__"]["normalized"] = full
            self.write(header, data[end:])
            refuse("x")


class TestFiles:
    def test_pipe(self, refuse, run):
        os.mkfifo("x")
        code, error = run("weights", "convert", "x", "y.safetensors", seconds=5)
        assert code == 2 and "is no file" in error
        assert run("weights", "verify", "x", seconds=5)[0] == 2

    @pytest.mark.parametrize("form", FORMS)
    def test_far_too_large(self, refuse, sound, form):
        """A sparse file, whose checksum would take minutes."""
        Path("x").write_bytes(sound[form])
        os.truncate("x", 2**40)
        refuse("x", "has 1024.0 GiB, expected at most 2", seconds=5)

    def test_name_of_the_file(self, run, sound):
        name = os.fsdecode(b"a\n\x1b[2J\xff.h5")
        Path(name).write_bytes(sound["keras-W"])
        assert run("weights", "convert", name, "y.safetensors") == (0, "")
        assert run("weights", "verify", "y.safetensors") == (0, "")
