"""The reader of PyTorch files gives what PyTorch would, and refuses everything else."""

import os
import pickle
import struct
import zipfile

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

WRITERS = {"zip": files.write_zip, "legacy": files.write_legacy}


def read(path):
    with open_torch(path) as state:
        return {name: stored.read() for name, stored in state.items()}


def refuse(path, match):
    with pytest.raises(InputError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Write a value and its storages in either serialisation; gives the path."""

    def write(value, blobs=None, **options):
        WRITERS[request.param](tmp_path / "x.pth", value, blobs or {}, **options)
        return tmp_path / "x.pth"

    return write


class TestAgainstTorch:
    @pytest.fixture(params=[True, False], ids=["zip", "legacy"])
    def saved(self, request, tmp_path):
        torch = pytest.importorskip("torch")

        def save(value):
            zipped = request.param
            torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
            return read(tmp_path / "x.pth")

        return save

    def test_state_of_a_module(self, saved):
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        found = saved(module.state_dict())
        assert list(found) == list(module.state_dict())
        for name, tensor in module.state_dict().items():
            np.testing.assert_array_equal(found[name], tensor.numpy())

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
    def test_types(self, saved, dtype):
        torch = pytest.importorskip("torch")
        tensor = torch.arange(-3, 9).reshape(3, 4).to(getattr(torch, dtype)) / 7
        tensor = tensor.to(getattr(torch, dtype))
        expected = tensor.to(torch.float64)
        np.testing.assert_array_equal(saved({"a": tensor})["a"].astype(float), expected.numpy())

    def test_views_and_shared_storages(self, saved):
        torch = pytest.importorskip("torch")
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

    def test_nested_state_and_parameters(self, saved):
        torch = pytest.importorskip("torch")
        parameter = torch.nn.Parameter(torch.ones(3))
        found = saved({"epoch": 3, "best": 0.5, "state_dict": {"a": parameter, "note": "x"}})
        assert list(found) == ["a"]
        np.testing.assert_array_equal(found["a"], np.ones(3))

    def test_a_whole_module_is_refused(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
        refuse(tmp_path / "x.pth", r"asks for torch\.nn\.modules\.linear\.Linear")


def test_by_hand(write):
    blob = np.arange(12, dtype=np.float32).tobytes()
    tensor = p_tensor(p_storage("7", 12), (2, 3), (6, 2), offset=1)
    np.testing.assert_array_equal(
        read(write(p_dict({"a": tensor}), {"7": blob}))["a"], [[1, 3, 5], [7, 9, 11]]
    )


def test_legacy_views_of_storages(tmp_path):
    view = p_tuple(p_text("v"), p_int(4), p_int(6))
    tensor = p_tensor(p_storage("k", 12, view=view), (3,), (2,))
    blob = np.arange(12, dtype=np.float32).tobytes()
    files.write_legacy(tmp_path / "x", p_dict({"a": tensor}), {"k": blob})
    np.testing.assert_array_equal(read(tmp_path / "x")["a"], [4, 6, 8])


class Evil:
    """Reduces to a call, as a malicious pickle does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestNothingIsExecuted:
    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (os.system, f"{os.system.__module__}.system"),
            (eval, r"(builtins|__builtin__)\.eval"),
            (getattr, r"(builtins|__builtin__)\.getattr"),
            (__import__, r"(builtins|__builtin__)\.__import__"),
        ],
    )
    def test_functions(self, tmp_path, function, name, protocol):
        target = tmp_path / "executed"
        evil = pickle.dumps(Evil(function, f"touch {target}"), protocol)
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr("a/data.pkl", evil)
        refuse(tmp_path / "x.pth", f"asks for {name}.*not executed")
        (tmp_path / "y.pth").write_bytes(evil)
        refuse(tmp_path / "y.pth", f"asks for {name}.*not executed")
        assert not target.exists()

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("torch", "load"),
            ("torch", "storage.FloatStorage"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("torch._utils", "_rebuild_device_tensor_from_numpy"),
            ("collections", "OrderedDict.fromkeys"),
            ("collections", "namedtuple"),
            ("nst_jax.weights.torch", "os"),
        ],
    )
    def test_names_beside_the_allowed_ones(self, write, module, name):
        value = p_call(p_global(module, name))
        refuse(write(p_dict({"a": value})), f"asks for {module}.{name}".replace(".", r"\."))

    def test_chain_from_an_allowed_function(self, write):
        chain = p_call(p_global("builtins", "getattr"), p_global("collections", "OrderedDict"))
        refuse(write(p_dict({"a": chain})), r"asks for builtins\.getattr")

    @pytest.mark.parametrize(
        ("code", "opcode"),
        [
            (b"cos\nsystem\n(S'a'\ntR", r"x|asks for os\.system"),
            (b"(ios\nsystem\n", "INST"),
            (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
            (b"\x82\x01", "EXT1"),
            (b"S'a'\n", "STRING"),
            (b"Pid\n", "PERSID"),
            (b"\x96" + struct.pack("<Q", 2**40), "BYTEARRAY8"),
        ],
    )
    def test_instructions(self, write, code, opcode):
        refuse(write(code), f"instruction {opcode}|damaged")

    def test_attributes_of_what_the_reader_gives_stay_with_this_pickle(self, write):
        function = p_global("torch._utils", "_rebuild_tensor_v2")
        state = p_tuple(b"N", p_dict({"__defaults__": p_tuple(p_int(1))}))
        read(write(p_dict({"a": function + state + b"b"})))
        test_by_hand(write)

    def test_replaced_methods_are_not_called(self, write):
        ordered = p_call(p_global("collections", "OrderedDict"))
        state = p_dict({"items": p_global("torch._utils", "_rebuild_parameter")})
        assert read(write(ordered + state + b"b")) == {}


class TestTensorsOutsideTheFile:
    @pytest.mark.parametrize(
        ("shape", "strides", "offset", "match"),
        [
            ((13,), (1,), 0, "outside its storage of 12 elements"),
            ((2, 3), (10, 1), 0, "outside"),
            ((2,), (1,), 11, "outside"),
            ((), (), 12, "outside"),
            ((2**40, 2**40), (0, 0), 0, "outside"),
            ((2**61,), (2**61,), 0, "outside"),
            ((-1,), (1,), 0, "negative or absurd"),
            ((2,), (-1,), 5, "negative or absurd"),
            ((2,), (1,), -1, "negative or absurd"),
            ((2**63,), (1,), 0, "negative or absurd"),
            ((2, 2), (1,), 0, "malformed tensor"),
        ],
    )
    def test_bounds(self, write, shape, strides, offset, match):
        tensor = p_tensor(p_storage("0", 12), shape, strides, offset=offset)
        refuse(write(p_dict({"a": tensor}), {"0": bytes(48)}), match)

    def test_storage_is_shorter_than_it_says(self, write):
        tensor = p_tensor(p_storage("0", 2**40), (2**40,), (1,))
        refuse(write(p_dict({"a": tensor}), {"0": bytes(48)}), "cut short|damaged|too large")

    def test_storage_is_not_there(self, write):
        tensor = p_tensor(p_storage("1", 12), (12,), (1,))
        refuse(write(p_dict({"a": tensor})), "damaged")

    def test_storage_of_two_types(self, write):
        pair = {
            "a": p_tensor(p_storage("0", 12), (12,), (1,)),
            "b": p_tensor(p_storage("0", 12, kind="DoubleStorage"), (12,), (1,)),
        }
        refuse(write(p_dict(pair), {"0": bytes(48)}), "two types")

    def test_view_outside_its_storage(self, tmp_path):
        view = p_tuple(p_text("v"), p_int(8), p_int(6))
        tensor = p_tensor(p_storage("k", 12, view=view), (3,), (1,))
        files.write_legacy(tmp_path / "x", p_dict({"a": tensor}), {"k": bytes(48)})
        refuse(tmp_path / "x", "view of storage 'k'")

    def test_tensor_of_no_storage(self, write):
        refuse(write(p_dict({"a": p_tensor(p_int(3), (1,), (1,))})), "malformed tensor")

    @pytest.mark.parametrize("count", [-1, 2**62])
    def test_legacy_counts(self, tmp_path, count):
        tensor = p_tensor(p_storage("0", 12), (12,), (1,))
        files.write_legacy(tmp_path / "x", p_dict({"a": tensor}), {"0": bytes(48)})
        data = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(data[:-56] + struct.pack("<q", count) + data[-48:])
        refuse(tmp_path / "x", "cut short")


class TestAbsurdFiles:
    def test_huge_memo_index(self, write):
        refuse(write(p_int(1) + b"r" + struct.pack("<I", 2**31)), "more than 20000 instructions")

    def test_deep_nesting(self, write):
        refuse(write(b")" + 100_000 * b"\x85"), "more than 20000 instructions")

    def test_nested_key(self, write):
        refuse(write(b"})" + 15_000 * b"\x85" + b"Ns" + b"0"), "instruction POP|damaged")
        assert read(write(b"})" + 15_000 * b"\x85" + b"Ns")) == {}

    def test_huge_string(self, write):
        refuse(write(b"X" + struct.pack("<I", 2**31)), "damaged")

    def test_compressed_members(self, tmp_path):
        tensor = p_tensor(p_storage("0", 2**20), (2**20,), (1,))
        value = p_dict({"a": tensor})
        blobs = {"0": bytes(2**22)}
        files.write_zip(tmp_path / "x", value, blobs, compression=zipfile.ZIP_DEFLATED)
        refuse(tmp_path / "x", "compressed or too large")
        files.write_zip(tmp_path / "x", value, blobs)
        assert read(tmp_path / "x")["a"].shape == (2**20,)

    @pytest.mark.parametrize("legacy", [True, False])
    def test_big_endian(self, tmp_path, legacy):
        if legacy:
            files.write_legacy(tmp_path / "x", p_dict({}), {}, little_endian=False)
        else:
            files.write_zip(tmp_path / "x", p_dict({}), {}, byteorder=b"big")
        refuse(tmp_path / "x", "big-endian")

    def test_zip_of_something_else(self, tmp_path):
        np.savez(tmp_path / "x.npz", a=np.zeros(3))
        refuse(tmp_path / "x.npz", "no data.pkl")

    def test_pickle_of_something_else(self, tmp_path):
        (tmp_path / "x").write_bytes(2 * pickle.dumps({"a": 1}, 2))
        refuse(tmp_path / "x", "no PyTorch file")

    def test_no_dictionary(self, write):
        refuse(write(p_int(3)), "holds a int, expected a dictionary")
