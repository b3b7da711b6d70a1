"""PPMs of more than 8 bits and PFMs of colours, which Pillow reads with 8 bits, or not at all."""

import math
import re
from typing import NamedTuple

import numpy as np

from nst_jax.picture_samples import Samples, in_unit_range

_BLANK = rb"(?:\s|#[^\n]*\n)+"  # a comment goes on to its line's end
_HEAD = re.compile(
    rb"(P6|PF)" + _BLANK + rb"(\d+)" + _BLANK + rb"(\d+)" + _BLANK + rb"([-+.\deE]+)\s"
)


class Netpbm(NamedTuple):
    """The header of a file.

    Attributes:
      shape: height and width.
      dtype: of its numbers, with their byte order.
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
    return Netpbm(shape, ">u2", top, found.end()) if 255 < top < 65536 else None


def netpbm_samples(data: bytes, header: Netpbm) -> Samples:
    """Samples of a deep file.

    Raises:
      ValueError: for a file that is cut off, and floats outside of [0, 1].
    """
    count = 3 * math.prod(header.shape)
    size = count * np.dtype(header.dtype).itemsize
    if not count or len(data) < header.start + size:
        raise ValueError("it is cut off")
    values = np.frombuffer(data, header.dtype, count, header.start).reshape(*header.shape, 3)
    if header.dtype.endswith("f4"):
        return Samples(in_unit_range(values)[::-1], "rgb")  # from the bottom to the top
    return Samples(np.minimum(values / np.float32(header.top), 1), "rgb")
