"""Arrays in files of foreign formats: what their headers declare, and one error for damage.

A weights file may be malicious. This module and every reader therefore bound what a file may
contain, at several times what the largest honest file needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError

MAX_FILE = 2 * 2**30  # bytes; the whole of VGG-19 takes 575 MB, or 1.15 GB in float64

MAX_ITEMS = 10_000  # groups, arrays or members; an honest file has some hundreds

MAX_VALUES = 2**27  # in all convolutions and projections together; VGG-19 has 2e7


class Stored(NamedTuple):
    """An array in an open file, not read yet.

    Attributes:
      shape: the declared shape. It is checked before anything is read or allocated.
      dtype: the declared type, by NumPy's name.
      read: reads the values while the file is open.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class OpenedWeights(NamedTuple):
    """The convolutions in an open file.

    Attributes:
      form: "canonical", "keras", "matconvnet", "torch" or "safetensors".
      arrays: the arrays under the names ``conv1_1/kernel`` and ``conv1_1/bias``.
      header: the metadata of a canonical file, None for other forms.
    """

    form: str
    arrays: dict[str, Stored]
    header: dict[str, str] | None = None


def add(arrays: dict[str, Stored], name: str, stored: Stored) -> None:
    """Add an array under a new name; raise `InputError` if the name is taken."""
    if name in arrays:
        raise InputError(f"expected one network, got {name} twice: save VGG-19 alone")
    arrays[name] = stored


@contextmanager
def damaged_is_input_error(path: Path, what: str) -> Iterator[None]:
    """Turn any exception that a reader raises on a damaged file into an `InputError`.

    The file's path is added to each message, so the ``with`` block need not name it. Text quoted
    from the file is made printable and cut to a bounded length.

    Args:
      path: the file, for the message.
      what: its supposed form, such as "Keras .h5".

    Raises:
      InputError: in place of any other exception in the ``with`` block.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {printable(str(error))}") from error
    # h5py, zipfile, zlib, pickle, struct and safetensors each raise a dozen types on damaged
    # input, and none of them documents which.
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"{path} is damaged or not a {what} file ({reason}): get the file again"
        ) from error


def printable(text: str, limit: int = 600) -> str:
    """One line of a foreign file's text for a message, without terminal control characters.

    >>> printable("a\\n b\\x1b[2J", 6)
    'a b?[2'
    """
    words = " ".join(text[: 4 * limit].split())
    return "".join(c if c.isprintable() else "?" for c in words[:limit])
