"""Read the tensors of a PyTorch file without PyTorch, and without running anything in it.

A ``.pth`` file is a pickle that describes tensors, with their bytes beside it: in members of a zip
archive (PyTorch 1.6 and later), or behind the pickle in the same file (the older, "legacy" form).

A pickle is a program. Here it may use only the instructions and the few names that a dictionary
of tensors needs, and it builds descriptions instead of tensors: which elements of which storage.
Each description is checked as it is made; the bytes are read later.

Source: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch.
"""

import io
import math
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nst_jax.config.layers import CONVS
from nst_jax.errors import InputError
from nst_jax.weights.foreign import (
    MAX_FILE,
    MAX_ITEMS,
    OpenedWeights,
    Stored,
    add,
    damaged_is_input_error,
)

# Positions in torchvision's nn.Sequential, where ReLU and pooling count as well.
_TORCH_VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)

_TORCH_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

_TORCH_NAME = re.compile(r"(?:^|\.)(?:features\.(\d+)|(conv\d_\d))\.(weight|bias)$")

_PARTS = {"weight": "kernel", "bias": "bias"}

_MAX_PICKLE = 16 * 2**20

_MAX_DIRECTORY = 200 * MAX_ITEMS  # bytes of a zip archive's list of members

_ZIP_TAIL = 2**16 + 22 + 20 + 56  # bytes: the longest comment, and the records at the end

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_LEGACY_PROTOCOL = 1001

_BIG_ENDIAN = (
    "the PyTorch file was written on a big-endian machine, expected little-endian: save it again "
    "on another machine"
)

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")  # the first is from before 0.4

# A state of VGG-19 takes about a thousand. The limit also bounds how deep values are nested,
# since Python hashes nested tuples by recursion in C.
_MAX_OPCODES = 20_000

# What may be used a second time, by the instruction that made it. Not a tuple: of forty that each
# hold the one before twice, the hash would take days.
_SHARED = frozenset(
    """BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST GLOBAL
    STACK_GLOBAL BINPERSID REDUCE""".split()
)

_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINGET LONG_BINGET BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD""".split()
)


class Storage(NamedTuple):
    """A run of ``length`` elements from ``start`` in the storage ``key`` of ``total`` elements."""

    key: str
    dtype: str
    total: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A strided view of a storage, known to lie inside it. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@contextmanager
def open_pth(path: Path) -> Iterator[OpenedWeights]:
    """Open a PyTorch file of either serialisation, with the names of `from_torch_names`."""
    with open_torch(path) as state:
        yield OpenedWeights("torch", from_torch_names(state))


def from_torch_names(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename PyTorch's parameters and turn their kernels from [out, in, h, w] to [h, w, in, out].

    Known are torchvision's ``features.0.weight`` and Gatys' ``conv1_1.weight``, with any prefix
    such as ``module.``; other parameters are left out.

    Raises:
      InputError: where the names are those of another network of the VGG family.
    """
    matches = {name: match for name in state if (match := _TORCH_NAME.search(name))}
    positions = {int(match[1]) for match in matches.values() if match[1]}
    if any(name.endswith(".running_mean") for name in state):
        raise InputError("this network has batch normalisation, expected VGG-19 without it")
    if positions == set(_TORCH_VGG16):
        raise InputError("this is VGG-16 (13 convolutions), expected VGG-19 (16): use that file")
    if positions - set(_TORCH_VGG19):
        raise InputError(
            f"features has convolutions at {sorted(positions)}, expected VGG-19's "
            f"{list(_TORCH_VGG19)}: use a VGG-19 without batch normalisation"
        )
    arrays: dict[str, Stored] = {}
    for name, match in matches.items():
        conv = match[2] or CONVS[_TORCH_VGG19.index(int(match[1]))]
        add(arrays, f"{conv}/{_PARTS[match[3]]}", _hwio(state[name]))
    return arrays


def _hwio(stored: Stored) -> Stored:
    if len(stored.shape) != 4:
        return stored
    out, inputs, height, width = stored.shape
    return Stored(
        (height, width, inputs, out), stored.dtype, lambda: stored.read().transpose(2, 3, 1, 0)
    )


@contextmanager
def open_torch(path: Path, *, limit: int = MAX_FILE) -> Iterator[dict[str, Stored]]:
    """Open the state of a PyTorch file, zip or legacy; nothing in it is executed.

    Args:
      path: a file written by ``torch.save``: a dictionary of tensors, or one that holds such a
        dictionary as ``state_dict``.
      limit: bytes that may be read of its storages, each as often as it is.

    Yields:
      The tensors by name, in their stored axis order, to be read while the file is open.

    Raises:
      InputError: where the file is damaged, or needs anything but tensors and dictionaries.
    """
    with damaged_is_input_error(path, "PyTorch"), path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"PK\x03\x04":
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                yield _stored(*_open_zip(archive), limit)
        else:
            yield _stored(*_open_legacy(file), limit)


def _stored(state: Any, read: Callable[[Storage], bytes], limit: int) -> dict[str, Stored]:
    # A pickle may have replaced the methods of its dictionaries.
    if isinstance(state, dict) and isinstance(dict.get(state, "state_dict"), dict):
        state = dict.get(state, "state_dict")
    if not isinstance(state, dict):
        raise InputError(
            f"the PyTorch file holds a {type(state).__name__}, expected a dictionary of tensors: "
            "save model.state_dict()"
        )
    read = _bounded(read, limit)
    return {
        name: Stored(tensor.shape, tensor.storage.dtype, partial(_read_tensor, tensor, read))
        for name, tensor in dict.items(state)
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _bounded(read: Callable[[Storage], bytes], limit: int) -> Callable[[Storage], bytes]:
    """Read as ``read``, the last storage only once, and not more than an honest file may have."""
    total = 0

    @lru_cache(maxsize=1)
    def bounded(storage: Storage) -> bytes:
        nonlocal total
        data = read(storage)
        total += len(data)
        if total > limit:
            raise InputError(
                f"the tensors' storages have more than {limit} bytes, VGG-19's 575 million: save "
                "copies of its tensors alone"
            )
        return data

    return bounded


def _read_tensor(tensor: Tensor, read: Callable[[Storage], bytes]) -> np.ndarray:
    storage = tensor.storage
    dtype = _numpy_dtype(storage.dtype)
    flat = np.frombuffer(read(storage), dtype, storage.total)[storage.start + tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    # The pickle's reader has checked that the view ends inside the storage.
    values = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.copy()


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype("<u2") if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a zip archive of far too many members, before they become objects."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_TAIL))
    tail = file.read()
    plain = tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0"  # without a comment
    end = len(tail) - 22 if plain else tail.rfind(b"PK\5\6")
    if end < 0:
        raise InputError("the zip archive is damaged or cut short: get the file again")
    (length,) = struct.unpack_from("<I", tail, end + 12)
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\6\7":  # the form for large files
        if tail[end - 76 : end - 72] != b"PK\6\6":
            raise InputError("the zip archive is damaged: get the file again")
        (length,) = struct.unpack_from("<Q", tail, end - 36)
    if length > _MAX_DIRECTORY:
        raise InputError(
            f"the zip archive's list of members has {length} bytes, too many for a VGG-19: get the "
            "file again"
        )


def _open_zip(archive: zipfile.ZipFile) -> tuple[Any, Callable[[Storage], bytes]]:
    # Members are read by their names and never written anywhere, so any names are harmless.
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise InputError(
            "the zip archive is no PyTorch file (it has no data.pkl): expected a file that "
            "torch.save wrote"
        )
    folder = names[0].removesuffix("data.pkl")

    def member(name: str, limit: int) -> bytes:
        info = archive.getinfo(folder + name)
        # PyTorch never compresses, so no member can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise InputError(
                f"member {name!r} of the PyTorch file is compressed or too large: expected a file "
                "that torch.save wrote"
            )
        return archive.read(info)

    def read(storage: Storage) -> bytes:
        size = storage.total * _numpy_dtype(storage.dtype).itemsize
        return member(f"data/{storage.key}", size)

    if f"{folder}byteorder" in archive.namelist() and member("byteorder", 16) != b"little":
        raise InputError(_BIG_ENDIAN)
    state, _ = load_pickle(io.BytesIO(member("data.pkl", _MAX_PICKLE)))
    return state, read


def _open_legacy(file: IO[bytes]) -> tuple[Any, Callable[[Storage], bytes]]:
    magic, protocol = load_pickle(file)[0], load_pickle(file)[0]
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise InputError(
            "the pickle is no PyTorch file, or one of an unknown version: save the state again "
            "with a current PyTorch"
        )
    if not load_pickle(file)[0]["little_endian"]:
        raise InputError(_BIG_ENDIAN)
    state, dtypes = load_pickle(file)
    keys, _ = load_pickle(file)
    end = os.fstat(file.fileno()).st_size
    positions: dict[str, int] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        positions[key] = file.tell()
        after = positions[key] + count * _numpy_dtype(dtypes[key]).itemsize
        if count < 0 or after > end:
            raise InputError(f"storage {key!r} of the PyTorch file is cut short: get it again")
        file.seek(after)

    def read(storage: Storage) -> bytes:
        size = storage.total * _numpy_dtype(storage.dtype).itemsize
        if positions[storage.key] + size > end:
            raise InputError(f"storage {storage.key!r} of the PyTorch file is cut short")
        file.seek(positions[storage.key])
        return file.read(size)

    return state, read


def load_pickle(file: IO[bytes]) -> tuple[Any, dict[str, str]]:
    """Load the one pickle that starts at the file's position, and stop behind it.

    Args:
      file: a binary file that can seek.

    Returns:
      What the pickle holds, with `Tensor` for tensors, and the dtype of each storage by key.

    Raises:
      InputError: where it needs an instruction or a name beyond a dictionary of tensors, or
        describes a tensor outside its storage.
      Exception: many others where it is damaged; see `damaged_is_input_error`.
    """
    start = file.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes in text, which is refused anyway
        _check_instructions(file)
    length = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(length)))
    unpickler.dtypes = {}
    return unpickler.load(), unpickler.dtypes


def _check_instructions(file: IO[bytes]) -> None:
    """Go through one pickle without executing it, and stop behind it."""
    before, memo = "", {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "GLOBAL":  # refused by name here, before instructions that go with it
            _find(*str(argument).split(" ", 1))
        if opcode.name not in _OPCODES:
            raise InputError(
                f"the PyTorch file uses the pickle instruction {opcode.name}, which no "
                "dictionary of tensors needs: it was not executed; save model.state_dict()"
            )
        # The unpickler allocates a table up to the largest index.
        huge_index = opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_OPCODES
        if number >= _MAX_OPCODES or huge_index:
            raise InputError(
                f"the pickle in the PyTorch file has more than {_MAX_OPCODES} instructions, too "
                "many for a VGG-19: save model.state_dict() alone"
            )
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = before in _SHARED
        if opcode.name in ("BINGET", "LONG_BINGET") and not memo.get(argument):
            raise InputError(
                "the pickle in the PyTorch file uses a tuple twice, or nothing, which no "
                "dictionary of tensors needs: save model.state_dict()"
            )
        before = opcode.name


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries and descriptions of tensors, and refuses every other name."""

    dtypes: dict[str, str]

    def find_class(self, module: str, name: str, /) -> Any:
        return _find(module, name)

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, storage_type, key, _, total, *view = pid
        if kind != "storage" or storage_type not in _DTYPES or not isinstance(key, str):
            raise InputError("the PyTorch file has a malformed storage: get the file again")
        # Legacy files add None or (key of the view, start, count).
        start, length = view[0][1:3] if view and view[0] else (0, total)
        _check_counts(total, start, length)
        if start + length > total:
            raise InputError(f"a view of storage {key!r} in the PyTorch file lies outside it")
        storage = Storage(key, _DTYPES[storage_type], total, start, length)
        if self.dtypes.setdefault(key, storage.dtype) != storage.dtype:
            raise InputError(f"storage {key!r} in the PyTorch file has two types")
        return storage


def _find(module: str, name: str) -> Any:
    # A pickle may set attributes of what it gets here: hence constants, and new functions.
    if module == "collections" and name == "OrderedDict":
        return OrderedDict
    if module == "torch" and name in _DTYPES:
        return name
    if module == "torch._utils" and name in _REBUILD_TENSOR:
        return lambda *arguments: _tensor(*arguments)
    if module == "torch._utils" and name == "_rebuild_parameter":
        return lambda data, *_: _parameter(data)
    raise InputError(
        f"the PyTorch file asks for {module}.{name}, which no dictionary of tensors needs: it "
        "was not executed; save model.state_dict()"
    )


def _parameter(data: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise InputError("the PyTorch file has a malformed parameter: get the file again")
    return data


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    shape, strides = tuple(shape), tuple(strides)
    _check_counts(offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise InputError("the PyTorch file has a malformed tensor: get the file again")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # The bound on the last element alone would let a stride of 0 make an array of any size.
    if elements > storage.length or (elements and last >= storage.length):
        raise InputError(
            f"a tensor of shape {shape} and strides {strides} in the PyTorch file lies outside "
            f"its storage of {storage.length} elements: get the file again"
        )
    return Tensor(storage, offset, shape, strides)


def _check_counts(*values: Any) -> None:
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise InputError(
            "the PyTorch file has a negative or absurd size, stride or offset: get the file again"
        )
