"""The forms in which VGG-19's weights are found: what a file is, and which array is which layer.

Every ``open_*`` is a context manager that yields `OpenedWeights`: the arrays of the convolutions
under the names ``conv1_1/kernel`` and ``conv1_1/bias``, kernels as [height, width, in, out],
everything else in the file left out. Nothing is decided here about channel order or preprocessing.

Keras' .h5 and MatConvNet's .mat are read here, PyTorch's .pth in ``weights.torch`` and .safetensors
in ``weights.canonical``. The HDF5 library itself bounds little: it follows links to other files,
loads plugins for filters that it has not, and inflates a chunk to whatever length it has; so only
datasets that lie in the file, in one of the plain ways, are read. SciPy's ``loadmat`` reads .mat
files too, but a single flipped bit can make it crash the process (it takes an array's type number
as an index without checking it), and it reads every array.

Source: MathWorks, "MAT-File Format" (level 5), whose names are used here.
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

_KERAS_NAME = re.compile(
    r"(?:^|/)block(\d)_conv(\d)/(?:.+/)?(?:block\d_conv\d_)?(W|b|kernel|bias)(?:_1)?(?::0)?$"
)

_PARTS = {"W": "kernel", "kernel": "kernel", "b": "bias", "bias": "bias"}

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # numbers of the filters that are built in

_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}

_TYPES |= {12: "<i8", 13: "<u8", 16: "u1", 17: "<u2", 18: "<u4"}

_MATRIX, _COMPRESSED = 14, 15

_CELL, _STRUCT, _CHAR = 1, 2, 4

_CLASSES = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}

_CLASSES |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}

_MAX_BYTES = 2**30  # of the file, and of its variables decompressed; all of VGG-19 is 575 MB

_MAX_ENTRIES = 100_000  # fields, cells and variables; MatConvNet has some thousand

_MAX_DEPTH = 20  # of cells and structs within each other; MatConvNet has 4

_MAX_AXES = 32

_MAX_TEXT = 2**16  # characters, and bytes of the names of a struct's fields


def find_form(path: Path) -> str:
    """Form of a file of weights, from its first bytes and never from its name.

    Args:
      path: the file.

    Returns:
      "keras", "matconvnet", "torch" or "safetensors".

    Raises:
      InputError: where there is no such file, it is far too large, or it begins like none of these.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, expected a file of VGG-19 weights: name the file")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is no file, expected VGG-19 weights: name their file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(
            f"cannot read the weights {path} ({error.strerror}): check the path, or run "
            "'nst-jax weights fetch'"
        ) from error
    if found.st_size > MAX_FILE:  # of which the checksum alone would take minutes
        raise InputError(
            f"{path} has {found.st_size / 2**30:.1f} GiB, expected at most {MAX_FILE // 2**30} "
            "(VGG-19 has 0.6): save the network alone"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith(b"MATLAB 5"):
        return "matconvnet"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
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
    return "is of no known form"


def open_weights(path: Path) -> AbstractContextManager[OpenedWeights]:
    """Open a file of weights in whichever form it has; see `find_form` and the ``open_*``."""
    return _OPENERS[find_form(path)](path)


@contextmanager
def open_keras(path: Path) -> Iterator[OpenedWeights]:
    """Open Keras' HDF5 file, with or without the fully connected layers, of any Keras up to 2.

    Names: ``block1_conv1/block1_conv1_W_1:0`` (Keras 1) or ``block1_conv1/kernel:0`` at any depth.
    """
    import h5py

    with damaged_is_input_error(path, "Keras .h5"), h5py.File(path, "r") as file:
        arrays: dict[str, Stored] = {}
        for name, dataset in _datasets(file):
            if match := _KERAS_NAME.search(name):
                block, index, part = match.groups()
                add(arrays, f"conv{block}_{index}/{_PARTS[part]}", _dataset(name, dataset))
        yield OpenedWeights("keras", arrays)


def _datasets(file: Any, *, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """All datasets of an open file by their paths, up to some groups deep.

    Raises:
      InputError: for links to other places or files, and for far too many entries.
    """
    count = 0

    def walk(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        import h5py

        nonlocal count
        for name in group:
            count += 1
            if count > MAX_ITEMS:  # hard links may form cycles, and many of them
                raise InputError(f"there are more than {MAX_ITEMS} entries: save VGG-19 alone")
            path = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(
                    f"{path} is a link to another place or file, which is not followed: expected "
                    "one file that holds all weights"
                )
            item = group[name]
            if isinstance(item, h5py.Dataset):
                yield path, item
            elif isinstance(item, h5py.Group) and depth > 1:
                yield from walk(item, f"{path}/", depth - 1)

    return walk(file, "", depth)


def _dataset(name: str, dataset: Any) -> Stored:
    """A dataset to be read while its file is open.

    Its ``read`` raises `InputError` where the data lie in another file, where they need other
    filters than shuffle, deflate (gzip) and fletcher32, or where they unfold to more than they
    should.
    """
    return Stored(dataset.shape, str(dataset.dtype), partial(_read_dataset, name, dataset))


def _read_dataset(name: str, dataset: Any) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"the data of {name} lies in another file, which is not read: expected one file that "
            "holds all weights"
        )
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    # Behind deflate only a checksum, so that what is stored is what zlib made.
    behind = filters[filters.index(_DEFLATE) + 1 :] if _DEFLATE in filters else []
    if set(filters) - {_DEFLATE, _SHUFFLE, _FLETCHER32} or set(behind) - {_FLETCHER32}:
        raise InputError(
            f"{name} is stored with the HDF5 filters {filters[:8]}, which are not read: expected "
            "shuffle and gzip at most; h5repack -f GZIP=9 FILE OUTPUT makes them so"
        )
    if dataset.chunks is not None:
        _check_chunks(name, dataset, filters)
    return dataset[()]


def _check_chunks(name: str, dataset: Any, filters: list[int]) -> None:
    """Inflate all chunks with a limit, as HDF5 would without one."""
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    count = math.prod(-(-side // chunk) for side, chunk in sides)
    # Chunks at an edge are stored whole.
    if count > MAX_ITEMS or count * size > 8 * dataset.nbytes + 2**20:
        raise InputError(
            f"{name} is stored in {count} chunks of {size} bytes, far more than it has itself: get "
            "the file again"
        )
    if _DEFLATE not in filters:
        return
    skipped = 1 << filters.index(_DEFLATE)
    places: list[tuple[int, ...]] = []

    def visit(chunk: Any) -> bool | None:
        if chunk.size > size + 2**16 or len(places) == count:
            return True  # ends the visit
        if not chunk.filter_mask & skipped:
            places.append(chunk.chunk_offset)
        return None

    if dataset.id.chunk_iter(visit) is not None:
        raise InputError(f"the chunks of {name} are damaged: get the file again")
    for place in places:
        _, data = dataset.id.read_direct_chunk(place)
        if len(zlib.decompressobj().decompress(data, size + 1)) > size:
            raise InputError(f"a chunk of {name} inflates to more than {size} bytes")


@contextmanager
def open_matconvnet(path: Path) -> Iterator[OpenedWeights]:
    """Open MatConvNet's .mat file, of either released generation.

    The older has ``normalization.averageImage`` as a whole image and, at first, ``filters`` and
    ``biases`` instead of ``load``; the newer has ``meta.normalization``.
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
    """A bias as a vector: MATLAB has none, so it is stored as a row or a column."""
    return Stored((math.prod(stored.shape),), stored.dtype, lambda: stored.read().ravel())


def _check_average(average: Stored) -> None:
    if math.prod(average.shape) == 0:
        return
    # A whole image [224, 224, 3], or one colour in any of the shapes of a vector.
    if math.prod(average.shape) > _MAX_AVERAGE:
        raise InputError(f"the mean image has the shape {average.shape}, expected (224, 224, 3)")
    with np.errstate(all="ignore"):  # of values that are no colours
        mean = average.read().reshape(-1, 3, order="F").mean(0)
    if not np.allclose(mean, CAFFE_MEAN, atol=0.1):
        raise InputError(
            f"the mean colour is {np.round(mean, 2).tolist()}, expected {list(CAFFE_MEAN)} (red, "
            "green, blue) of imagenet-vgg-verydeep-19: use that file"
        )


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
    yield from range(_MAX_ENTRIES)
    raise InputError(f"there are more than {_MAX_ENTRIES} fields and cells: save the network alone")


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


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[OpenedWeights]]] = {
    "keras": open_keras,
    "matconvnet": open_matconvnet,
    "torch": open_pth,
    "safetensors": open_safetensors,
}
