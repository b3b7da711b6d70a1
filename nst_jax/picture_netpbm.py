"""PPMs of more than 8 bits and PFMs of colours, which Pillow reads with 8 bits, or not at all."""

import math
import re
from itertools import islice
from typing import NamedTuple

import numpy as np

from nst_jax.picture_samples import Samples, in_unit_range

_COMMENT = rb"#[^\n]*\n"  # it goes on to its line's end
_BLANK = rb"(?:\s|" + _COMMENT + rb")+"
_HEAD = re.compile(
    rb"(P3|P6|PF)" + _BLANK + rb"(\d+)" + _BLANK + rb"(\d+)" + _BLANK + rb"([-+.\deE]+)\s"
)


class Netpbm(NamedTuple):
    """The header of a file.

    Attributes:
      shape: height and width.
      dtype: of its numbers, with their byte order, or "text".
      top: the largest number, for integers.
      start: where the numbers begin.
    """

    shape: tuple[int, int]
    dtype: str
    top: int
    start: int


def netpbm_header(data: bytes) -> Netpbm | None:
    """The header of a deep file, or None for any other.

    Args:
      data: the first few kilobytes of a file at least.
    """
    found = _HEAD.match(data)
    if found is None:
        return None
    shape = (int(found[3]), int(found[2]))
    if found[1] == b"PF":
        order = "<" if float(found[4]) < 0 else ">"
        return Netpbm(shape, order + "f4", 1, found.end())
    top = int(found[4])
    kind = "text" if found[1] == b"P3" else ">u2"
    return Netpbm(shape, kind, top, found.end()) if 255 < top < 65536 else None


def netpbm_samples(data: bytes, header: Netpbm) -> Samples:
    """Samples of a deep file.

    Raises:
      ValueError, OverflowError: for a file that is cut off, floats outside of [0, 1], and text
        that is no numbers.
    """
    count = 3 * math.prod(header.shape)
    if header.dtype == "text":
        values = _written_out(data[header.start :], most=count)
    else:
        whole = len(data) >= header.start + count * np.dtype(header.dtype).itemsize
        values = np.frombuffer(data, header.dtype, count * whole, header.start)
    if not count or len(values) < count:
        raise ValueError("it is cut off")
    values = values.reshape(*header.shape, 3)
    if header.dtype.endswith("f4"):
        return Samples(in_unit_range(values)[::-1], "rgb")  # from the bottom to the top
    return Samples(np.minimum(values / np.float32(header.top), 1), "rgb")


def _written_out(text: bytes, *, most: int) -> np.ndarray:
    """The first numbers of a text, at most so many."""
    words = re.finditer(rb"\S+", re.sub(_COMMENT, b"\n", text))
    return np.fromiter((int(word[0]) for word in islice(words, most)), np.uint16)
