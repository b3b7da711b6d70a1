"""The reader of PyTorch files agrees with PyTorch, runs no code, and refuses everything else."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import weight_files as files
from helpers.weight_files import (
    p_call,
    p_dict,
    p_global,
    p_int,
    p_storage,
    p_tensor,
    p_text,
    p_tuple,
)

from nst_jax.errors import InputError
from nst_jax.weights.torch import open_torch


def read(path, **options):
    with open_torch(path, **options) as state:
        return {name: stored.read() for name, stored in state.items()}


def refuse(path, match):
    with pytest.raises(InputError, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 2000 and str(path) in message


@pytest.fixture(autouse=True)
def desk(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=[files.write_zip, files.write_legacy], ids=["zip", "legacy"])
def write(request):
    """Write a value and its storages in either layout; gives the path."""

    def write(value, blobs=None, **options):
        request.param(Path("x.pth"), value, blobs or {}, **options)
        return Path("x.pth")

    return write


class TestAgainstTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture(params=[True, False], ids=["zip", "legacy"])
    def saved(self, request, torch):
        def save(value):
            torch.save(value, "x.pth", _use_new_zipfile_serialization=request.param)
            return read(Path("x.pth"))

        return save

    def test_state_of_a_module(self, torch, saved):
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        state = module.state_dict() | {"parameter": torch.nn.Parameter(torch.ones(3))}
        for value in (state, {"epoch": 3, "best": 0.5, "state_dict": state | {"note": "x"}}):
            found = saved(value)
            assert list(found) == list(state)
            for name, tensor in state.items():
                np.testing.assert_array_equal(found[name], tensor.detach().numpy())

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
    def test_types(self, torch, saved, dtype):
        tensor = torch.arange(-3, 9).reshape(3, 4).to(getattr(torch, dtype)) / 7
        tensor = tensor.to(getattr(torch, dtype))
        expected = tensor.to(torch.float64)
        np.testing.assert_array_equal(saved({"a": tensor})["a"].astype(float), expected.numpy())

    def test_views_and_shared_storages(self, torch, saved):
        whole = torch.arange(60.0).reshape(3, 4, 5)
        views = {
            "whole": whole,
            "slice": whole[1:, 2],
            "transposed": whole.transpose(0, 2),
            "scalar": whole[2, 3, 4],
            "empty": whole[:0],
            "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        }
        found = saved(views)
        for name, tensor in views.items():
            assert found[name].shape == tuple(tensor.shape)
            np.testing.assert_array_equal(found[name], tensor.numpy())

    def test_a_whole_module_is_refused(self, torch):
        torch.save(torch.nn.Linear(2, 2), "x.pth")
        refuse(Path("x.pth"), r"asks for torch\.nn\.modules\.linear\.Linear")


def test_strided_view(write):
    """A file written by hand, for machines without PyTorch."""
    tensor = p_tensor(p_storage("7", 12), (2, 3), (6, 2), offset=1)
    path = write(p_dict({"a": tensor}), {"7": np.arange(12, dtype=np.float32).tobytes()})
    np.testing.assert_array_equal(read(path)["a"], [[1, 3, 5], [7, 9, 11]])


@pytest.mark.parametrize(("start", "match"), [(4, None), (8, "inside the 12 .*storage 'k'")])
def test_legacy_view_of_a_storage(start, match):
    view = p_tuple(p_text("v"), p_int(start), p_int(6))
    tensor = p_tensor(p_storage("k", 12, view=view), (3,), (2,))
    blob = np.arange(12, dtype=np.float32).tobytes()
    files.write_legacy("x", p_dict({"a": tensor}), {"k": blob})
    if match:
        return refuse(Path("x"), match)
    np.testing.assert_array_equal(read(Path("x"))["a"], [4, 6, 8])


class Evil:
    """Reduces to a call, as in a malicious pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestNothingIsExecuted:
    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize("function", [os.system, eval, getattr, __import__])
    def test_functions(self, function, protocol):
        evil = pickle.dumps(Evil(function, "touch executed"), protocol)
        with zipfile.ZipFile("x.pth", "w") as archive:
            archive.writestr("a/data.pkl", evil)
        Path("y.pth").write_bytes(evil)
        for path in (Path("x.pth"), Path("y.pth")):
            refuse(path, rf"asks for \w+\.{function.__name__}, .*it was not executed")
        assert not os.path.exists("executed")
        if function is os.system:  # what a pickle does elsewhere
            pickle.loads(evil)
            assert os.path.exists("executed")

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("builtins", "getattr"),
            ("torch", "load"),
            ("torch.storage", "_load_from_bytes"),  # loads a pickle within the pickle
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("nst_jax.weights.torch", "os"),
        ],
    )
    def test_names_close_to_the_allowed_ones(self, write, module, name):
        match = f"asks for {module}.{name}".replace(".", r"\.")
        parts = (part.encode() for part in (module, name))
        stacked = b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93"
        for function in (p_global(module, name), stacked):  # GLOBAL, STACK_GLOBAL
            refuse(write(p_dict({"a": p_call(function, p_text("touch executed"))})), match)
        assert not os.path.exists("executed")

    @pytest.mark.parametrize(
        ("code", "opcode"),
        [
            (b"(ios\nsystem\n", "INST"),
            (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
            (b"\x82\x01", "EXT1"),
            (b"Pid\n", "PERSID"),
            (b"\x96" + struct.pack("<Q", 2**40), "BYTEARRAY8"),
        ],
    )
    def test_opcodes(self, write, code, opcode):
        refuse(write(code), f"pickle opcode {opcode}|damaged")

    def test_changes_to_the_readers_functions_end_with_the_pickle(self, write):
        function = p_global("torch._utils", "_rebuild_tensor_v2")
        state = p_tuple(b"N", p_dict({"__defaults__": p_tuple(p_int(1))}))
        read(write(p_dict({"a": function + state + b"b"})))
        test_strided_view(write)

    def test_replaced_methods_are_not_called(self, write):
        ordered = p_call(p_global("collections", "OrderedDict"))
        state = p_dict({"items": p_global("torch._utils", "_rebuild_parameter")})
        assert read(write(ordered + state + b"b")) == {}

    @pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\ud800", "x" * 100_000])
    def test_names_are_printable_in_the_message(self, write, name):
        encoded = name.encode("utf-8", "surrogatepass")
        text = b"X" + struct.pack("<I", len(encoded)) + encoded
        refuse(write(text + text + b"\x93"), "asks for")


class TestTensorsOutsideTheFile:
    @pytest.mark.parametrize(
        ("shape", "strides", "offset", "match"),
        [
            ((13,), (1,), 0, "inside their storage of 12 elements"),
            ((2,), (1,), 11, "inside"),
            ((), (), 12, "inside"),
            ((2**40, 2**40), (0, 0), 0, "inside"),
            ((-1,), (1,), 0, "sizes, strides and offsets"),
            ((2,), (-1,), 5, "sizes, strides and offsets"),
            ((2**63,), (1,), 0, "sizes, strides and offsets"),
            ((2, 2), (1,), 0, "malformed tensor"),
        ],
    )
    def test_bounds(self, write, shape, strides, offset, match):
        tensor = p_tensor(p_storage("0", 12), shape, strides, offset=offset)
        refuse(write(p_dict({"a": tensor}), {"0": bytes(48)}), match)

    @pytest.mark.parametrize(
        ("tensors", "match"),
        [
            ([(p_storage("0", 2**40), 2**40)], "cut short|damaged|too large"),
            ([(p_storage("1", 12), 12)], "damaged"),  # no such storage
            ([(p_int(3), 1)], "malformed tensor"),
            ([(p_storage("0", 12), 12), (p_storage("0", 12, kind="DoubleStorage"), 12)], "two"),
        ],
    )
    def test_storages(self, write, tensors, match):
        value = {str(i): p_tensor(one, (n,), (1,)) for i, (one, n) in enumerate(tensors)}
        refuse(write(p_dict(value), {"0": bytes(48)}), match)

    @pytest.mark.parametrize("count", [-1, 2**62])
    def test_legacy_counts(self, count):
        tensor = p_tensor(p_storage("0", 12), (12,), (1,))
        files.write_legacy("x", p_dict({"a": tensor}), {"0": bytes(48)})
        data = Path("x").read_bytes()
        Path("x").write_bytes(data[:-56] + struct.pack("<q", count) + data[-48:])
        refuse(Path("x"), "cut short")

    def test_storages_read_again_and_again(self):
        """Tensors that share a storage read it once; alternating storages are bounded in total."""
        size = 1000
        blob = np.arange(size, dtype=np.float32).tobytes()
        for keys, limit in (("0000", 4 * size), ("0101", 12 * size)):
            value = {str(i): p_tensor(p_storage(k, size), (3,), (1,)) for i, k in enumerate(keys)}
            files.write_zip("x.pth", p_dict(value), dict.fromkeys(keys, blob))
            if keys == "0000":
                assert len(read(Path("x.pth"), limit=limit)) == 4
            else:
                with pytest.raises(InputError, match="save copies of VGG-19's tensors"):
                    read(Path("x.pth"), limit=limit)


class TestExcessivePickles:
    @pytest.mark.parametrize(
        ("code", "match"),
        [
            (p_int(1) + b"r" + struct.pack("<I", 2**31), "at most 20000 pickle opcodes"),  # memo
            (b")" + 100_000 * b"\x85", "at most 20000 pickle opcodes"),  # nested tuples
            (b"})" + 15_000 * b"\x85" + b"Ns0", "opcode POP|damaged"),
            (b"X" + struct.pack("<I", 2**31), "damaged"),  # a long text
            (p_int(3), "expected a dictionary of tensors .*got int"),
        ],
    )
    def test_values(self, write, code, match):
        refuse(write(code), match)

    def test_nested_key(self, write):
        assert read(write(b"})" + 15_000 * b"\x85" + b"Ns")) == {}

    @pytest.mark.parametrize(
        "made_by",
        [
            b"q%ch%c\x86",
            b"Nbq%ch%c\x86",  # after an empty BUILD
            b"(eq%ch%c\x86",  # after an empty APPENDS
            p_call(p_global("torch._utils", "_rebuild_parameter"), b")") + b"q%ch%c\x86",
            b"\x94h%c\x86",  # MEMOIZE
        ],
    )
    def test_tuples_that_hold_the_same_tuple_twice(self, write, made_by):
        """Their hash as a key of a dictionary would take 2^60 steps."""
        levels = (made_by % ((i,) * made_by.count(b"%c")) for i in range(60))
        code = b"})" + b"".join(levels) + b"Ns"
        refuse(write(code), "fetches a tuple|malformed parameter")


class TestFiles:
    def test_compressed_members(self):
        value = p_dict({"a": p_tensor(p_storage("0", 2**20), (2**20,), (1,))})
        files.write_zip("x", value, {"0": bytes(2**22)}, compression=zipfile.ZIP_DEFLATED)
        refuse(Path("x"), "compressed or too large")

    def test_big_endian(self):
        files.write_legacy("x", p_dict({}), {}, little_endian=False)
        files.write_zip("y", p_dict({}), {}, byteorder=b"big")
        for path in (Path("x"), Path("y")):
            refuse(path, "big-endian")

    def test_other_contents(self):
        np.savez("x.npz", a=np.zeros(3))
        refuse(Path("x.npz"), "without data.pkl")
        Path("x").write_bytes(2 * pickle.dumps({"a": 1}, 2))
        refuse(Path("x"), "pickle written by torch.save, got another")

    def test_members_outside_the_archive_are_never_extracted(self, tmp_path):
        path = Path("x.pth")
        files.write_zip(path, p_dict({}), {})
        for name in ("../../outside", "/outside", "archive/../../outside"):
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(name, bytes(16))
            assert read(path) == {}
            tensor = p_tensor(p_storage(f"../{name}", 4), (4,), (1,))
            files.write_zip("y.pth", p_dict({"a": tensor}), {})
            refuse(Path("y.pth"), "damaged")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "y.pth"]


class TestZipDirectory:
    @pytest.fixture
    def parts(self):
        """A sound file without its end of central directory record, and that record."""
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("archive/data.pkl", files.p_whole(p_dict({})))
        return data.getvalue()[:-22], data.getvalue()[-22:]

    def test_too_many_members(self):
        with zipfile.ZipFile("x.pth", "w") as archive:
            for index in range(40_000):
                archive.writestr(f"archive/{index}", b"")
        refuse(Path("x.pth"), "zip directory of at most 2000000 bytes")

    @pytest.mark.parametrize(("offset", "value"), [(12, 2**31), (12, 2**32 - 1), (16, 2**31)])
    def test_false_length_or_start(self, parts, offset, value):
        data, end = parts
        end = end[:offset] + struct.pack("<I", value) + end[offset + 4 :]
        Path("x.pth").write_bytes(data + end)
        refuse(Path("x.pth"), "expected|damaged")

    def test_zip64(self, parts):
        """The records of large archives."""
        data, end = parts
        path = Path("x.pth")
        count, size, start = struct.unpack("<HII", end[10:20])
        numbers = (44, 45, 45, 0, 0, count, count, size, start)
        record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", *numbers)
        locator = b"PK\6\7" + struct.pack("<IQI", 0, len(data), 1)
        path.write_bytes(data + record + locator + end)
        assert read(path) == {}
        huge = record[:40] + struct.pack("<Q", 2**40) + record[48:]
        path.write_bytes(data + huge + locator + end)
        refuse(path, "at most 2000000 bytes, got 1099511627776")
        path.write_bytes(data + bytes(56) + locator + end)
        refuse(path, "damaged")
