"""What a picture file holds, before its colours are those of sRGB.

Contract: 8-bit samples stay uint8, all deeper ones are float32 in [0, 1].
"""

from typing import Literal, NamedTuple

import numpy as np

# By the EXIF tag "Orientation": whether a file's rows are columns, and whether the rows and the
# columns of the upright picture are then in reverse.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Samples(NamedTuple):
    """A decoded picture in its file's own colour space.

    Attributes:
      values: ``[H, W, C]`` uint8 or float32; not multiplied by alpha.
      space: what the C channels are: grey (1), rgb (3) or cmyk (4, full ink is 1).
      alpha: ``[H, W]`` float32 in [0, 1], or None.
      profile: the ICC profile of the values, or None.
    """

    values: np.ndarray
    space: Literal["grey", "rgb", "cmyk"]
    alpha: np.ndarray | None = None
    profile: bytes | None = None


def is_turned(orientation: int | None) -> bool:
    """Whether an EXIF orientation swaps height and width."""
    return _TURNS.get(orientation or 1, _TURNS[1])[0]


def upright(array: np.ndarray, orientation: int | None) -> np.ndarray:
    """Turn ``[H, W, ...]`` as its EXIF orientation says; what is none leaves it as it is.

    >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    transposed, rows, columns = _TURNS.get(orientation or 1, _TURNS[1])
    array = array.swapaxes(0, 1) if transposed else array
    array = array[::-1] if rows else array
    return np.ascontiguousarray(array[:, ::-1] if columns else array)


def in_unit_range(values: np.ndarray) -> np.ndarray:
    """Integers as they are; floats as float32, checked.

    Raises:
      ValueError: for floats outside of [0, 1], of which it is not known what they mean.
    """
    if values.dtype.kind != "f":
        return values
    values = values.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError("its values are outside of 0 to 65535 (floats: 0 to 1)")
    return values
