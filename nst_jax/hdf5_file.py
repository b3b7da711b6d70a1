"""Datasets of an HDF5 file that lie in this file, in one of the plain ways, and unfold to no more.

The HDF5 library itself bounds little: it follows links to other files, loads plugins for filters
that it has not, and inflates a chunk to whatever length it has.
"""

import math
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from nst_jax.errors import InputError
from nst_jax.stored import MAX_ITEMS, Stored

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # numbers of the filters that are built in


def datasets(file: Any, *, depth: int = 4) -> Iterator[tuple[str, Any]]:
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


def stored(name: str, dataset: Any) -> Stored:
    """A dataset to be read while its file is open.

    Its ``read`` raises `InputError` where the data lie in another file, where they need other
    filters than shuffle, deflate (gzip) and fletcher32, or where they unfold to more than they
    should.
    """
    return Stored(dataset.shape, str(dataset.dtype), partial(_read, name, dataset))


def _read(name: str, dataset: Any) -> np.ndarray:
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
