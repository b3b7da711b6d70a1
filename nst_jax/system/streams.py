"""Standard input and output as files, both named ``-``. Standard library only."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from nst_jax.errors import InputError

STANDARD = Path("-")

MAX_INPUT = 2**30  # bytes of standard input

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def standard_input(*, most: int = MAX_INPUT) -> bytes:
    """Return all bytes of standard input, which is read once and cached.

    Args:
      most: the largest number of bytes to accept.

    Raises:
      InputError: if standard input is closed, a terminal, empty or too long.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input is closed: expected an image, for example from < FILE")
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: expected an image, for example from < FILE")
    data = sys.stdin.buffer.read(most + 1)
    if not data:
        raise InputError("standard input is empty: expected an image file")
    if len(data) > most:
        raise InputError(f"standard input is over {most / 2**30:.3g} GiB: name a file instead")
    return data


@contextmanager
def tolerant_streams() -> Iterator[list[OSError]]:
    """Keep errors of writing to standard output and error from ending a run.

    For example, Ctrl-C in ``nst-jax ... 2>&1 | tee log`` also ends ``tee``. Characters that cannot
    be encoded are written as escapes.

    Yields a list of the errors of standard output, complete once it is flushed; the first is logged
    at the end. A broken pipe is not an error: readers such as ``head`` may stop early.
    """
    output, error = sys.stdout, sys.stderr
    errors: list[OSError] = []
    sys.stdout, sys.stderr = (
        output and _TolerantStream(output, errors),
        error and _TolerantStream(error, []),
    )
    try:
        yield errors
    finally:
        print(end="", flush=True)
        if errors:
            _log.error("cannot write to standard output (%s)", errors[0].strerror)
        sys.stdout, sys.stderr = output, error


class _TolerantStream:
    """A text stream whose methods never fail; errors other than broken pipes go to a list."""

    def __init__(self, stream: TextIO, errors: list[OSError]):
        self._stream, self._errors = stream, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if getattr(self._stream, "errors", None) == "strict":
            encoding = self._stream.encoding
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._catch_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._catch_errors():
            self._stream.flush()

    @contextmanager
    def _catch_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                self._errors.append(error)
            with suppress(OSError, ValueError):
                _redirect_to_null(self._stream)


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that flushing it at the exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_standard_output() -> None:
    """Check that an image can be written to standard output.

    Raises:
      InputError: if standard output is closed or a terminal.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise InputError("standard output is closed: expected a file or pipe for the PNG")
    if sys.stdout.isatty():
        raise InputError("standard output is a terminal: expected a file or pipe for the PNG")


def write_standard_output(data: bytes) -> None:
    """Write bytes to standard output and flush it.

    Raises:
      OSError: if writing fails, for example because the pipe is closed.
    """
    stream = sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except OSError as error:
        _redirect_to_null(stream)
        raise OSError(error.errno, error.strerror, "standard output") from None
