"""The file formats of VGG-19 weights: recognise the format, and find each layer's arrays.

Every ``open_*`` is a context manager that yields `OpenedWeights`: the arrays of the convolutions
under the names ``conv1_1/kernel`` and ``conv1_1/bias``, with kernels as [height, width, in, out].
Everything else in the file is ignored. Channel order and preprocessing are left to ``convert``.

This module reads Keras' .h5 and MatConvNet's .mat; ``weights.torch`` reads PyTorch's .pth and
``weights.canonical`` .safetensors.

The HDF5 library limits little: it follows links to other files, loads plugins for filters that it
does not have, and inflates a chunk to any length. Only datasets that lie in the file and use the
built-in filters are therefore read. SciPy's ``loadmat`` reads .mat files too, but a flipped bit can
crash the process (it uses an array's type number as an index without checking it), and it reads
every array.

References: "HDF5 File Format Specification Version 3.0" (The HDF Group); "MAT-File Format"
(MathWorks), level 5, whose names are used here.
"""

import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.errors import InputError
from nst_jax.weights.canonical import open_safetensors
from nst_jax.weights.foreign import (
    MAX_FILE,
    MAX_ITEMS,
    OpenedWeights,
    Stored,
    add,
    damaged_is_input_error,
)
from nst_jax.weights.torch import open_pth

CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green, blue, of pixels in 0-255

_MAX_AVERAGE = 3 * 2**20  # numbers in the mean image, which has 224 x 224 x 3

# Names in Keras' files, after an optional ``model_weights/`` (``model.save``):
#   Keras 1:  block1_conv1/block1_conv1_W_1:0          (the published file)
#   Keras 2:  block1_conv1/block1_conv1/kernel:0, and block1_conv1/kernel:0 after some conversions
# The ``:0`` is TensorFlow's number of the output and may be missing. Keras 3's ``.weights.h5``
# numbers the variables of a layer instead (``layers/.../vars/0``) and is not read.
_KERAS_NAME = re.compile(
    r"(?:^|/)block(\d)_conv(\d)/(?:.+/)?(?:block\d_conv\d_)?(W|b|kernel|bias)(?:_1)?(?::0)?$"
)

_PARTS = {"W": "kernel", "kernel": "kernel", "b": "bias", "bias": "bias"}

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # H5Z_FILTER_* of the HDF5 library

# Data types (mi...) of stored numbers: miINT8 = 1, miUINT8 = 2, ..., miSINGLE = 7, miDOUBLE = 9.
# miUTF8 = 16, miUTF16 = 17 and miUTF32 = 18 are read as numbers too.
_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}

_TYPES |= {12: "<i8", 13: "<u8", 16: "u1", 17: "<u2", 18: "<u4"}

_MATRIX, _COMPRESSED = 14, 15  # miMATRIX, miCOMPRESSED

_CELL, _STRUCT, _CHAR = 1, 2, 4  # mxCELL_CLASS, mxSTRUCT_CLASS, mxCHAR_CLASS

# Classes (mx...) of numeric arrays: mxDOUBLE_CLASS = 6, ..., mxUINT64_CLASS = 15.
_CLASSES = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}

_CLASSES |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}

_MAX_BYTES = 2**30  # of the file and of its decompressed variables; all of VGG-19 takes 575 MB

_MAX_ENTRIES = 100_000  # fields, cells and variables; MatConvNet's files have some thousand

_MAX_DEPTH = 20  # nesting of cells and structs; MatConvNet's files have 4

_MAX_AXES = 32

_MAX_TEXT = 2**16  # characters of a text, and bytes of the names of a struct's fields


def find_form(path: Path) -> str:
    """Recognise the format of a weights file by its first bytes, never by its name.

    Args:
      path: the file.

    Returns:
      "keras", "matconvnet", "torch" or "safetensors".

    Raises:
      InputError: if the file does not exist, is far too large, or has none of these formats.
    """
    if os.path.isdir(path):
        raise InputError(f"expected a file of VGG-19 weights, got the folder {path}: name the file")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would block
            raise InputError(f"expected VGG-19 weights, but {path} is not a file: name a file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(
            f"cannot read the weights {path} ({error.strerror}): check the path, or run "
            "'nst-jax weights fetch'"
        ) from error
    if found.st_size > MAX_FILE:  # its checksum alone would take minutes
        raise InputError(
            f"expected at most {MAX_FILE // 2**30} GiB (VGG-19 has 0.6), got "
            f"{found.st_size / 2**30:.1f} GiB in {path}: save the network alone"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith(b"MATLAB 5"):
        return "matconvnet"
    # A zip archive, or a pickle of protocol 2 (opcode PROTO), which torch.save uses by default.
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    # The length of the JSON header, then its opening brace.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 * 2**20:
        return "safetensors"
    raise InputError(
        f"{path} {_describe(head)}, expected VGG-19 weights as .safetensors, Keras .h5, PyTorch "
        ".pth or MatConvNet .mat: get the file again, or run 'nst-jax weights fetch'"
    )


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (a download that went wrong)"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer without its data"
    if head.startswith(b"MATLAB 7"):
        return "is a MATLAB 7.3 file"
    return "has an unknown format"


def open_weights(path: Path) -> AbstractContextManager[OpenedWeights]:
    """Open a weights file in the format that `find_form` recognises."""
    return _OPENERS[find_form(path)](path)


@contextmanager
def open_keras(path: Path) -> Iterator[OpenedWeights]:
    """Open an HDF5 file of Keras 1 or 2, with or without the fully connected layers."""
    import h5py

    with damaged_is_input_error(path, "Keras .h5"), h5py.File(path, "r") as file:
        arrays: dict[str, Stored] = {}
        for name, dataset in _datasets(file):
            if match := _KERAS_NAME.search(name):
                block, index, part = match.groups()
                add(arrays, f"conv{block}_{index}/{_PARTS[part]}", _dataset(name, dataset))
        yield OpenedWeights("keras", arrays)


def _datasets(file: Any, *, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """Iterate over the datasets of an open file as (path, dataset), ``depth`` groups deep.

    Raises:
      InputError: for soft and external links, and for too many entries.
    """
    count = 0

    def walk(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        import h5py

        nonlocal count
        for name in group:
            count += 1
            # Hard links may form cycles. The depth bounds one cycle, but n of them at each of
            # d levels give n^d paths.
            if count > MAX_ITEMS:
                raise InputError(f"expected at most {MAX_ITEMS} entries: save VGG-19 alone")
            path = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(
                    f"{path} is a link, which is not followed: expected one file that holds all "
                    "weights"
                )
            item = group[name]
            if isinstance(item, h5py.Dataset):
                yield path, item
            elif isinstance(item, h5py.Group) and depth > 1:
                yield from walk(item, f"{path}/", depth - 1)

    return walk(file, "", depth)


def _dataset(name: str, dataset: Any) -> Stored:
    return Stored(dataset.shape, str(dataset.dtype), partial(_read_dataset, name, dataset))


def _read_dataset(name: str, dataset: Any) -> np.ndarray:
    """Read a dataset while its file is open.

    Raises:
      InputError: if the data lie in another file, use filters other than shuffle, deflate (gzip)
        and fletcher32, or inflate to more than their declared size.
    """
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"the data of {name} is in another file, which is not read: expected one file that "
            "holds all weights"
        )
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    # Filters are applied in this order on writing. After deflate only a checksum may follow, which
    # is appended: `_check_chunks` can then hand the stored bytes to zlib.
    after = filters[filters.index(_DEFLATE) + 1 :] if _DEFLATE in filters else []
    if set(filters) - {_DEFLATE, _SHUFFLE, _FLETCHER32} or set(after) - {_FLETCHER32}:
        raise InputError(
            f"expected no HDF5 filters other than shuffle and gzip, got {filters[:8]} for {name}: "
            "rewrite the file with h5repack -f GZIP=9 FILE OUTPUT"
        )
    if dataset.chunks is not None:
        _check_chunks(name, dataset, filters)
    return dataset[()]


def _check_chunks(name: str, dataset: Any, filters: list[int]) -> None:
    """Inflate all chunks up to their declared size, because HDF5 would inflate without limit."""
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    count = math.prod(-(-side // chunk) for side, chunk in sides)
    # A chunk at an edge of the array is stored whole, so the chunks may exceed the array.
    if count > MAX_ITEMS or count * size > 8 * dataset.nbytes + 2**20:
        raise InputError(
            f"{name} has {dataset.nbytes} bytes, but is stored in {count} chunks of {size} bytes: "
            "get the file again"
        )
    if _DEFLATE not in filters:
        return
    # Bit i of a chunk's filter mask says that filter i was not applied to it (H5Dread_chunk).
    skipped = 1 << filters.index(_DEFLATE)
    places: list[tuple[int, ...]] = []

    def visit(chunk: Any) -> bool | None:
        if chunk.size > size + 2**16 or len(places) == count:
            return True  # stops the iteration
        if not chunk.filter_mask & skipped:
            places.append(chunk.chunk_offset)
        return None

    if dataset.id.chunk_iter(visit) is not None:
        raise InputError(f"the chunks of {name} are damaged: get the file again")
    for place in places:
        _, data = dataset.id.read_direct_chunk(place)
        if len(zlib.decompressobj().decompress(data, size + 1)) > size:
            raise InputError(
                f"expected chunks of {size} bytes for {name}, got one that inflates to more: get "
                "the file again"
            )


@contextmanager
def open_matconvnet(path: Path) -> Iterator[OpenedWeights]:
    """Open a .mat file of MatConvNet, of any release.

    Each element of the cell array ``layers`` is a struct. Its ``weights`` are a pair (kernel,
    bias); the first releases have the fields ``filters`` and ``biases`` instead. The mean colour is
    in ``meta.normalization.averageImage``; older releases have ``normalization.averageImage``, a
    whole image.
    """
    with damaged_is_input_error(path, "MatConvNet .mat"):
        data = read_mat(path, ("layers", "meta", "normalization"))
        arrays: dict[str, Stored] = {}
        for layer in data.get("layers", ()):
            name = str(layer.get("name"))
            if re.fullmatch(r"conv\d_\d", name):
                pair = layer.get("weights") or (layer["filters"], layer["biases"])
                kernel, bias = pair
                add(arrays, f"{name}/kernel", kernel)
                add(arrays, f"{name}/bias", _flat(bias))
        normalization = data.get("meta", data).get("normalization", {})
        if average := normalization.get("averageImage"):
            _check_average(average)
        yield OpenedWeights("matconvnet", arrays)


def _flat(stored: Stored) -> Stored:
    """A bias as a vector; MATLAB stores it as a row or a column, for lack of vectors."""
    return Stored((math.prod(stored.shape),), stored.dtype, lambda: stored.read().ravel())


def _check_average(average: Stored) -> None:
    if math.prod(average.shape) == 0:
        return
    # A whole image [224, 224, 3], or one colour as a row or a column.
    if math.prod(average.shape) > _MAX_AVERAGE:
        raise InputError(f"expected a mean image of shape (224, 224, 3), got {average.shape}")
    with np.errstate(all="ignore"):  # infinite values are refused below
        mean = average.read().reshape(-1, 3, order="F").mean(0)
    if not np.allclose(mean, CAFFE_MEAN, atol=0.1):
        raise InputError(
            f"expected the mean colour {list(CAFFE_MEAN)} (red, green, blue) of "
            f"imagenet-vgg-verydeep-19, got {np.round(mean, 2).tolist()}: use that file"
        )


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Read some variables of a MATLAB 5 file.

    The file is a header of 128 bytes, followed by data elements. Each element is a tag (type and
    size, 4 bytes each), its contents, and padding to 8 bytes. A variable is an element of type
    miMATRIX, which is made of further elements, or of type miCOMPRESSED, which holds a miMATRIX
    compressed by zlib.

    Args:
      path: the file.
      names: the variables to read; others are not even decompressed.

    Returns:
      The variables that exist, by name: a struct as a dictionary, a cell array as a list in column
      order, text as a string, a numeric array as `Stored`. An array of structs becomes an empty
      dictionary, and anything else None.

    Raises:
      InputError: if the file is big-endian or far too large.
      Exception: various others if it is damaged; see `damaged_is_input_error`.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise InputError("expected a MATLAB file of at most 1 GiB: save VGG-19 alone")
    data = memoryview(path.read_bytes())
    # The header ends with the characters "MI" as a 16-bit number, "IM" if little-endian.
    if data[126:128] != b"IM":
        raise InputError(
            "expected a little-endian MATLAB file, got a big-endian or cut one: save it again on "
            "another machine"
        )
    variables: dict[str, Any] = {}
    at, total, items = 128, 0, _counter()
    while at < len(data):
        next(items)
        kind, size = struct.unpack_from("<II", data, at)
        element = data[at : at + 8 + size]
        # No padding to skip: the size of a matrix is a multiple of 8, and compressed elements are
        # not padded.
        at += 8 + size
        if len(element) < 8 + size:
            raise ValueError("a variable is cut short")
        head = element[:1032]  # enough for flags, dimensions and name
        if kind == _COMPRESSED:
            head = memoryview(zlib.decompressobj().decompress(head[8:], 1024))
        name = _name(head)
        if name not in names:
            continue
        if kind == _COMPRESSED:
            (size,) = struct.unpack_from("<I", head, 4)
            total += size
            if total > _MAX_BYTES:
                raise InputError(
                    f"expected at most {_MAX_BYTES} bytes of variables in the MATLAB file, got "
                    f"{size} for {name}: save VGG-19 alone"
                )
            # A limit of one byte more than declared makes zlib read on and compare the checksum.
            element = memoryview(zlib.decompressobj().decompress(element[8:], 8 + size + 1))
        variables[name] = _matrix(_element(element, 0)[1], items)
    return variables


def _counter() -> Iterator[int]:
    """Count variables, fields and cells; raise `InputError` for far too many."""
    yield from range(_MAX_ENTRIES)
    raise InputError(f"expected at most {_MAX_ENTRIES} fields and cells: save VGG-19 alone")


def _name(element: memoryview) -> str:
    """Name of a top-level variable, given its first bytes; empty for elements of other types."""
    kind, _ = struct.unpack_from("<II", element, 0)
    if kind != _MATRIX:
        return ""
    at = 8
    for _ in range(2):  # array flags, dimensions
        _, _, at = _element(element, at)
    return bytes(_element(element, at)[1]).decode()


def _element(data: memoryview, at: int) -> tuple[int, memoryview, int]:
    """Type, contents and end of the data element at a position."""
    kind, size = struct.unpack_from("<II", data, at)
    # "Small Data Element Format": up to 4 bytes of contents take the place of the size, and the
    # upper half of the first word, otherwise 0, holds the size.
    if kind >> 16:
        kind, size = kind & 0xFFFF, kind >> 16
        contents, end = data[at + 4 : at + 4 + min(size, 4)], at + 8
    else:
        contents, end = data[at + 8 : at + 8 + size], at + 8 + size + (-size) % 8
    if len(contents) < size:
        raise ValueError("a data element is cut short")
    return kind, contents, end


def _matrix(data: memoryview, items: Iterator[int], depth: int = 0) -> Any:
    """Parse the contents of a miMATRIX: array flags, dimensions, name, and the values.

    Args:
      data: the contents.
      items: counts variables, fields and cells.
      depth: the number of cells and structs around this one.
    """
    next(items)
    if depth > _MAX_DEPTH:
        raise ValueError("cells are nested too deep")
    if not data:  # an empty array inside a cell or struct has no contents
        return Stored((0, 0), "float64", partial(np.zeros, (0, 0)))
    _, flags, at = _element(data, 0)
    _, sizes, at = _element(data, at)
    _, _, at = _element(data, at)  # name, empty inside cells and structs
    if len(sizes) > 4 * _MAX_AXES:
        raise ValueError("an array has too many axes")
    shape = struct.unpack(f"<{len(sizes) // 4}i", sizes)
    if min(shape) < 0:
        raise ValueError("an array has a negative size")
    if flags[0] == _CELL:
        return _matrices(data, at, math.prod(shape), items, depth + 1)
    if flags[0] == _STRUCT:
        if math.prod(shape) != 1:
            return {}
        # The names of the fields have a fixed width and end at a zero byte.
        _, length, at = _element(data, at)
        _, text, at = _element(data, at)
        width = struct.unpack("<i", length)[0]
        if len(text) > _MAX_TEXT:
            raise ValueError("a struct has too many fields")
        fields = [bytes(text[i : i + width]) for i in range(0, len(text), width)]
        fields = [field.split(b"\0")[0].decode() for field in fields]
        return dict(zip(fields, _matrices(data, at, len(fields), items, depth + 1), strict=True))
    if flags[0] != _CHAR and flags[0] not in _CLASSES:
        return None
    kind, contents, _ = _element(data, at)
    # MATLAB stores numbers in the smallest type that holds them, whatever the array's class.
    values = partial(np.frombuffer, contents, _TYPES[kind])
    if flags[0] == _CHAR:
        if len(contents) > _MAX_TEXT:
            return None
        return "".join(map(chr, values().tolist()))
    if math.prod(shape) * np.dtype(_TYPES[kind]).itemsize != len(contents):
        raise ValueError("an array's size differs from its shape")
    dtype = _CLASSES[flags[0]]
    return Stored(shape, dtype, lambda: values().astype(dtype).reshape(shape, order="F"))


def _matrices(data: memoryview, at: int, count: int, items: Iterator[int], depth: int) -> list[Any]:
    """Parse ``count`` matrices, the cells of an array or the fields of a struct."""
    found = []
    for _ in range(count):
        kind, body, at = _element(data, at)
        if kind != _MATRIX:
            raise ValueError("a cell or field is not a matrix")
        found.append(_matrix(body, items, depth))
    return found


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[OpenedWeights]]] = {
    "keras": open_keras,
    "matconvnet": open_matconvnet,
    "torch": open_pth,
    "safetensors": open_safetensors,
}
