"""Arrays in foreign files: what is known before they are read, and one error for damaged files.

A file may have been made to do harm. What it may contain is therefore bounded here and in every
reader, by several times what the largest honest file needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError

MAX_FILE = 2 * 2**30  # bytes; all of VGG-19 has 575 MB, or 1.15 GB in float64

MAX_ITEMS = 10_000  # groups, arrays, members; an honest file has some hundreds

MAX_VALUES = 2**27  # in all convolutions and lifts together; VGG-19's have 2e7


class Stored(NamedTuple):
    """An array in an open file. ``read`` reads it, so a wrong shape is refused before that."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class OpenedWeights(NamedTuple):
    """The convolutions in an open file by our names; ``header`` is that of a canonical file."""

    form: str
    arrays: dict[str, Stored]
    header: dict[str, str] | None = None


def add(arrays: dict[str, Stored], name: str, stored: Stored) -> None:
    """Put an array under a name that is still free, else raise `InputError`."""
    if name in arrays:
        raise InputError(f"{name} is there twice, expected one network: save VGG-19 alone")
    arrays[name] = stored


@contextmanager
def damaged_is_input_error(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a reader of a foreign format raises on a damaged file into an `InputError`.

    Messages gain the file's path here, so what runs in the ``with`` block need not name it. What
    they quote of the file is printable and not endless, whatever it was there.

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
    except Exception as error:  # each library has its own dozen, and none documents them
        reason = printable(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"{path} is damaged or no {what} file ({reason}): get the file again"
        ) from error


def printable(text: str, limit: int = 600) -> str:
    """Text of a foreign file for a message: one line without a terminal's control characters.

    >>> printable("a\\n b\\x1b[2J", 6)
    'a b?[2'
    """
    words = " ".join(text[: 4 * limit].split())
    return "".join(c if c.isprintable() else "?" for c in words[:limit])
