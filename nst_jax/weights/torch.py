"""Read the tensors of a PyTorch file without PyTorch, and without running code from the file.

A ``.pth`` file is a pickle that describes tensors, and their bytes. There are two layouts
(``torch/serialization.py``):

* zip, since PyTorch 1.6: an archive with the members ``NAME/data.pkl`` (the pickle),
  ``NAME/data/KEY`` (the bytes of each storage) and, in recent versions, ``NAME/byteorder``, all
  uncompressed;
* legacy: five pickles one after another (magic number, protocol version, system info, the object,
  the list of storage keys), then for each key the number of elements (int64) and the bytes.

In both, the object refers to a storage by the persistent id ``("storage", type, key, location,
number of elements)``; legacy files append a view, None or ``(key, start, length)``. A tensor is a
call of ``torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)``.

A pickle is a program for a stack machine, which can import and call anything. Here it may use only
the opcodes and names that a dictionary of tensors needs, and it builds descriptions instead of
tensors: which elements of which storage. Each description is checked as soon as it is made; the
bytes are read later.

References: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch; ``pickletools`` of
Python's standard library, which documents each opcode; PKWARE's APPNOTE.TXT (zip).
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

# Positions of the convolutions in torchvision's nn.Sequential, which counts ReLUs and poolings too.
_TORCH_VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)

_TORCH_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

_TORCH_NAME = re.compile(r"(?:^|\.)(?:features\.(\d+)|(conv\d_\d))\.(weight|bias)$")

_PARTS = {"weight": "kernel", "bias": "bias"}

_MAX_PICKLE = 16 * 2**20  # bytes

_MAX_DIRECTORY = 200 * MAX_ITEMS  # bytes of a zip archive's central directory

# Bytes: the longest comment, the end of central directory record, and for zip64 its locator and
# record (APPNOTE.TXT 4.3.16, 4.3.15 and 4.3.14).
_ZIP_TAIL = 2**16 + 22 + 20 + 56

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # MAGIC_NUMBER of torch/serialization.py

_LEGACY_PROTOCOL = 1001  # PROTOCOL_VERSION

_BIG_ENDIAN = (
    "expected a little-endian PyTorch file, got a big-endian one: save it again on another machine"
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

# A state of VGG-19 takes about a thousand opcodes. The limit also bounds the nesting of values:
# Python hashes nested tuples by recursion in C, and too many levels would overflow its stack.
_MAX_OPCODES = 20_000

# Opcodes whose result may be fetched again from the memo (BINGET). Those that make tuples are left
# out: a tuple that holds the same tuple twice, and so on 60 levels deep, is tiny in memory, but its
# hash, which a dictionary key needs, takes 2^60 steps.
_SHARED = frozenset(
    """BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST GLOBAL
    STACK_GLOBAL BINPERSID REDUCE""".split()
)

# Opcodes that a dictionary of tensors needs. Left out on purpose are, among others, INST, OBJ and
# NEWOBJ (make instances), EXT1 to EXT4 (import by number), the text opcodes of protocol 0 such as
# STRING and PERSID, and those of bytes (BINBYTES, BYTEARRAY8).
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINGET LONG_BINGET BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD""".split()
)


class Storage(NamedTuple):
    """``length`` elements from ``start`` on, in the storage ``key`` of ``total`` elements."""

    key: str
    dtype: str
    total: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A strided view that lies inside its storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@contextmanager
def open_pth(path: Path) -> Iterator[OpenedWeights]:
    """Open a PyTorch file, zip or legacy, and rename its tensors by `from_torch_names`."""
    with open_torch(path) as state:
        yield OpenedWeights("torch", from_torch_names(state))


def from_torch_names(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename PyTorch's parameters, and transpose kernels from [out, in, h, w] to [h, w, in, out].

    Knows torchvision's ``features.0.weight`` and Gatys' ``conv1_1.weight``, with any prefix such as
    ``module.``, and leaves out other parameters.

    Raises:
      InputError: if the names belong to another network of the VGG family.
    """
    matches = {name: match for name in state if (match := _TORCH_NAME.search(name))}
    positions = {int(match[1]) for match in matches.values() if match[1]}
    if any(name.endswith(".running_mean") for name in state):
        raise InputError("expected VGG-19 without batch normalisation, got a network with it")
    if positions == set(_TORCH_VGG16):
        raise InputError("expected VGG-19 (16 convolutions), got VGG-16 (13): use a file of VGG-19")
    if positions - set(_TORCH_VGG19):
        raise InputError(
            f"expected VGG-19's convolutions at {list(_TORCH_VGG19)} of features, got "
            f"{sorted(positions)}: use a VGG-19 without batch normalisation"
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
    """Open the state in a PyTorch file, zip or legacy, without running code from it.

    Args:
      path: a file written by ``torch.save``: a dictionary of tensors, or a dictionary that holds
        one as ``state_dict``.
      limit: the most bytes to read from storages, counting a storage each time it is read.

    Yields:
      The tensors by name, in their stored axis order, to be read while the file is open.

    Raises:
      InputError: if the file is damaged, or needs anything but tensors and dictionaries.
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
            f"expected a dictionary of tensors in the PyTorch file, got {type(state).__name__}: "
            "save model.state_dict()"
        )
    read = _bounded(read, limit)
    return {
        name: Stored(tensor.shape, tensor.storage.dtype, partial(_read_tensor, tensor, read))
        for name, tensor in dict.items(state)
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _bounded(read: Callable[[Storage], bytes], limit: int) -> Callable[[Storage], bytes]:
    """Wrap ``read``: cache the last storage, and bound the bytes read in total."""
    total = 0

    @lru_cache(maxsize=1)
    def bounded(storage: Storage) -> bytes:
        nonlocal total
        data = read(storage)
        total += len(data)
        if total > limit:
            raise InputError(
                f"expected at most {limit} bytes of storages (VGG-19 has 575 million): save "
                "copies of VGG-19's tensors alone"
            )
        return data

    return bounded


def _read_tensor(tensor: Tensor, read: Callable[[Storage], bytes]) -> np.ndarray:
    storage = tensor.storage
    dtype = _numpy_dtype(storage.dtype)
    flat = np.frombuffer(read(storage), dtype, storage.total)[storage.start + tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    # `_tensor` has checked that the view ends inside the storage.
    values = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.copy()


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype("<u2") if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a zip archive with far too many members, before zipfile makes an object of each.

    Sizes and offsets are those of APPNOTE.TXT: the end of central directory record (4.3.16) has 22
    bytes and the size of the directory at 12. For zip64 (4.3.14, 4.3.15) a record of 56 bytes, with
    the size at 40, and a locator of 20 bytes come before it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_TAIL))
    tail = file.read()
    plain = tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0"  # no comment
    end = len(tail) - 22 if plain else tail.rfind(b"PK\5\6")
    if end < 0:
        raise InputError("the zip archive is damaged or cut short: get the file again")
    (length,) = struct.unpack_from("<I", tail, end + 12)
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\6\7":  # zip64
        if tail[end - 76 : end - 72] != b"PK\6\6":
            raise InputError("the zip archive is damaged: get the file again")
        (length,) = struct.unpack_from("<Q", tail, end - 36)
    if length > _MAX_DIRECTORY:
        raise InputError(
            f"expected a zip directory of at most {_MAX_DIRECTORY} bytes, got {length}: get the "
            "file again"
        )


def _open_zip(archive: zipfile.ZipFile) -> tuple[Any, Callable[[Storage], bytes]]:
    # Members are only looked up by name and never extracted, so "../" in a name is harmless.
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise InputError(
            "expected a file written by torch.save, got a zip archive without data.pkl"
        )
    folder = names[0].removesuffix("data.pkl")

    def member(name: str, limit: int) -> bytes:
        info = archive.getinfo(folder + name)
        # PyTorch never compresses. Without compression no member can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise InputError(
                f"expected a file written by torch.save, got the member {name!r}, which is "
                "compressed or too large"
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
            "expected a pickle written by torch.save, got another one or an unknown version: save "
            "the state again with a current PyTorch"
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
    """Load the pickle that starts at the file's position, and stop after it.

    Args:
      file: a seekable binary file.

    Returns:
      The object in the pickle, with `Tensor` for tensors, and the dtype of each storage by key.

    Raises:
      InputError: if it uses an opcode or a name that no dictionary of tensors needs, or describes
        a tensor outside its storage.
      Exception: various others if it is damaged; see `damaged_is_input_error`.
    """
    # Two passes: the opcodes are checked without executing any, then the same bytes are loaded.
    start = file.tell()
    with warnings.catch_warnings():
        # pickletools warns of invalid escapes in STRING, an opcode that is refused anyway.
        warnings.simplefilter("ignore")
        _check_instructions(file)
    length = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(length)))
    unpickler.dtypes = {}
    return unpickler.load(), unpickler.dtypes


def _check_instructions(file: IO[bytes]) -> None:
    """Check the opcodes of one pickle without executing it, and stop after it."""
    before, memo = "", {}  # memo: index -> whether the value may be used again
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # A refused name makes a better message than the opcode after it, such as NEWOBJ.
        if opcode.name == "GLOBAL":
            _find(*str(argument).split(" ", 1))
        if opcode.name not in _OPCODES:
            raise InputError(
                f"the PyTorch file uses the pickle opcode {opcode.name}, which no dictionary of "
                "tensors needs: it was not executed; save model.state_dict()"
            )
        # The unpickler in C allocates its memo up to the largest index.
        huge_index = opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_OPCODES
        if number >= _MAX_OPCODES or huge_index:
            raise InputError(
                f"expected at most {_MAX_OPCODES} pickle opcodes in the PyTorch file: save "
                "model.state_dict() of VGG-19 alone"
            )
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = before in _SHARED
        if opcode.name in ("BINGET", "LONG_BINGET") and not memo.get(argument):
            raise InputError(
                "the pickle in the PyTorch file fetches a tuple or a missing value from its memo, "
                "which no dictionary of tensors needs: save model.state_dict()"
            )
        before = opcode.name


class _Unpickler(pickle.Unpickler):
    """Build dictionaries and descriptions of tensors; refuse every other name."""

    dtypes: dict[str, str]

    def find_class(self, module: str, name: str, /) -> Any:
        return _find(module, name)

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, storage_type, key, _, total, *view = pid
        if kind != "storage" or storage_type not in _DTYPES or not isinstance(key, str):
            raise InputError("the PyTorch file has a malformed storage: get the file again")
        # Legacy files append None or (key of the view, start, length).
        start, length = view[0][1:3] if view and view[0] else (0, total)
        _check_counts(total, start, length)
        if start + length > total:
            raise InputError(
                f"expected a view inside the {total} elements of storage {key!r} in the PyTorch "
                f"file, got {start} to {start + length}: get the file again"
            )
        storage = Storage(key, _DTYPES[storage_type], total, start, length)
        if self.dtypes.setdefault(key, storage.dtype) != storage.dtype:
            raise InputError(
                f"expected one type for storage {key!r} in the PyTorch file, got two: get the file "
                "again"
            )
        return storage


def _find(module: str, name: str) -> Any:
    # BUILD sets attributes of the objects returned here. Strings, built-in types and new lambdas
    # keep such changes within this pickle; `_tensor` itself could be altered for later ones.
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
    # Both bounds are needed: with strides of 0 the last element is the first, so that an array of
    # any size would pass the second.
    if elements > storage.length or (elements and last >= storage.length):
        raise InputError(
            f"expected tensors inside their storage of {storage.length} elements in the PyTorch "
            f"file, got shape {shape}, strides {strides}, offset {offset}: get the file again"
        )
    return Tensor(storage, offset, shape, strides)


def _check_counts(*values: Any) -> None:
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise InputError(
            "expected sizes, strides and offsets from 0 to 2^62 in the PyTorch file: get the file "
            "again"
        )
