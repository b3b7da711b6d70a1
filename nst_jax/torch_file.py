"""Read the tensors of a PyTorch file without PyTorch.

A ``.pth`` file is a pickle that describes tensors (``torch_pickle.py``), with their bytes beside
it: in members of a zip archive (PyTorch 1.6 and later), or behind the pickle in the same file
(the older, "legacy" form).

Source: ``torch/serialization.py`` of PyTorch.
"""

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from nst_jax.errors import InputError
from nst_jax.stored import MAX_FILE, MAX_ITEMS, Stored, damaged_is_input_error
from nst_jax.torch_pickle import Storage, Tensor, load_pickle

_MAX_PICKLE = 16 * 2**20
_MAX_DIRECTORY = 200 * MAX_ITEMS  # bytes of a zip archive's list of members
_ZIP_TAIL = 2**16 + 22 + 20 + 56  # bytes: the longest comment, and the records at the end
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BIG_ENDIAN = (
    "the PyTorch file was written on a big-endian machine, expected little-endian: save it again "
    "on another machine"
)


@contextmanager
def open_torch(path: Path) -> Iterator[dict[str, Stored]]:
    """Open the state of a PyTorch file, zip or legacy; nothing in it is executed.

    Args:
      path: a file written by ``torch.save``: a dictionary of tensors, or one that holds such a
        dictionary as ``state_dict``.

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
                yield _stored(*_open_zip(archive))
        else:
            yield _stored(*_open_legacy(file))


def _stored(state: Any, read: Callable[[Storage], bytes]) -> dict[str, Stored]:
    # A pickle may have replaced the methods of its dictionaries.
    if isinstance(state, dict) and isinstance(dict.get(state, "state_dict"), dict):
        state = dict.get(state, "state_dict")
    if not isinstance(state, dict):
        raise InputError(
            f"the PyTorch file holds a {type(state).__name__}, expected a dictionary of tensors: "
            "save model.state_dict()"
        )
    read = _bounded(read)
    return {
        name: Stored(tensor.shape, tensor.storage.dtype, partial(_read_tensor, tensor, read))
        for name, tensor in dict.items(state)
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _bounded(read: Callable[[Storage], bytes]) -> Callable[[Storage], bytes]:
    """Read as ``read``, the last storage only once, and not more than an honest file may have."""
    total = 0

    @lru_cache(maxsize=1)
    def bounded(storage: Storage) -> bytes:
        nonlocal total
        data = read(storage)
        total += len(data)
        if total > MAX_FILE:
            raise InputError(
                f"the tensors' storages have more than {MAX_FILE // 2**30} GiB, VGG-19's 0.6: save "
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
