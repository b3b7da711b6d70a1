"""Arrays in foreign files: what is known before they are read, and one error for damaged files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError


class Stored(NamedTuple):
    """An array in an open file. ``read`` reads it, so a wrong shape is refused before that."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Opened(NamedTuple):
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

    Messages gain the file's path here, so what runs in the ``with`` block need not name it.

    Args:
      path: the file, for the message.
      what: its supposed form, such as "Keras .h5".

    Raises:
      InputError: in place of any other exception in the ``with`` block.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # each library has its own dozen, and none documents them
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise InputError(
            f"{path} is damaged or no {what} file ({reason}): get the file again"
        ) from error
