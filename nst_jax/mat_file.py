"""Read variables of a MATLAB 5 file: structs, cells, text and arrays.

SciPy's ``loadmat`` reads these files too, but a single flipped bit can make it crash the process
(it takes an array's type number as an index without checking it), and it reads every array.

Source: MathWorks, "MAT-File Format" (level 5), whose names are used here.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.errors import InputError
from nst_jax.stored import Stored

_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
_TYPES |= {12: "<i8", 13: "<u8", 16: "u1", 17: "<u2", 18: "<u4"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_CLASSES = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}
_CLASSES |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}
_MAX_BYTES = 2**30  # of the file, and of its variables decompressed; all of VGG-19 is 575 MB
_MAX_ITEMS = 100_000  # fields, cells and variables; MatConvNet has some thousand
_MAX_DEPTH = 20  # of cells and structs within each other; MatConvNet has 4
_MAX_AXES = 32
_MAX_TEXT = 2**16  # characters, and bytes of the names of a struct's fields


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Read some variables of a file.

    Args:
      path: a MATLAB 5 file, compressed or not.
      names: the variables wanted; others are not even decompressed.

    Returns:
      Those that are there: a struct as a dictionary, a cell array as a list in column order, text
      as a string, an array as `Stored`; empty dictionaries for arrays of structs and None for
      what else there may be.

    Raises:
      InputError: where the file is big-endian or absurdly large.
      Exception: others where it is damaged; see `damaged_is_input_error`.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise InputError("the MATLAB file has more than 1 GiB, too much for VGG-19: save it alone")
    data = memoryview(path.read_bytes())
    if data[126:128] != b"IM":
        raise InputError("the MATLAB file is big-endian or cut short: save it again elsewhere")
    variables: dict[str, Any] = {}
    at, total, items = 128, 0, _counter()
    while at < len(data):
        next(items)
        kind, size = struct.unpack_from("<II", data, at)
        element = data[at : at + 8 + size]
        # Only matrices are padded, and their sizes are multiples of 8 already.
        at += 8 + size
        if len(element) < 8 + size:
            raise ValueError("a variable is cut short")
        head = element[:1032]
        if kind == _COMPRESSED:
            head = memoryview(zlib.decompressobj().decompress(head[8:], 1024))
        name = _name(head)
        if name not in names:
            continue
        if kind == _COMPRESSED:
            (size,) = struct.unpack_from("<I", head, 4)
            total += size
            if total > _MAX_BYTES:
                raise InputError(f"the MATLAB file's {name} has {size} bytes, too many for VGG-19")
            # One byte more than it should hold, so that zlib goes on to compare its checksum.
            element = memoryview(zlib.decompressobj().decompress(element[8:], 8 + size + 1))
        variables[name] = _matrix(_element(element, 0)[1], items)
    return variables


def _counter() -> Iterator[int]:
    """Count variables, fields and cells, up to far more than an honest file has."""
    yield from range(_MAX_ITEMS)
    raise InputError(f"there are more than {_MAX_ITEMS} fields and cells: save the network alone")


def _name(element: memoryview) -> str:
    """Name of a top-level variable, of which the beginning is enough; empty for other elements."""
    kind, _ = struct.unpack_from("<II", element, 0)
    if kind != _MATRIX:
        return ""
    at = 8
    for _ in range(2):  # its flags and dimensions
        _, _, at = _element(element, at)
    return bytes(_element(element, at)[1]).decode()


def _element(data: memoryview, at: int) -> tuple[int, memoryview, int]:
    """Type, contents and end of the data element at a position."""
    kind, size = struct.unpack_from("<II", data, at)
    if kind >> 16:  # the small form: size and type in one word, contents in the other
        kind, size = kind & 0xFFFF, kind >> 16
        contents, end = data[at + 4 : at + 4 + min(size, 4)], at + 8
    else:
        contents, end = data[at + 8 : at + 8 + size], at + 8 + size + (-size) % 8
    if len(contents) < size:
        raise ValueError("a data element is cut short")
    return kind, contents, end


def _matrix(data: memoryview, items: Iterator[int], depth: int = 0) -> Any:
    next(items)
    if depth > _MAX_DEPTH:
        raise ValueError("cells are nested too deep")
    if not data:  # how an empty array is written inside cells and structs
        return Stored((0, 0), "float64", partial(np.zeros, (0, 0)))
    _, flags, at = _element(data, 0)
    _, sizes, at = _element(data, at)
    _, _, at = _element(data, at)  # the name, empty inside cells and structs
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
    # Numbers may be stored in a smaller type than that of the array.
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
    found = []
    for _ in range(count):
        kind, body, at = _element(data, at)
        if kind != _MATRIX:
            raise ValueError("a cell or field is no matrix")
        found.append(_matrix(body, items, depth))
    return found
