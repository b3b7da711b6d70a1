"""Standard input and output as files, both called ``-``. Standard library only."""

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

MOST_BYTES = 2**30  # of standard input

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def standard_input(*, most: int = MOST_BYTES) -> bytes:
    """All bytes of standard input, at most so many; it is read at the first call.

    Raises:
      InputError: where there is none, or it is a terminal, empty or endless.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input is closed: expected an image, as by < FILE")
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: expected an image, as by < FILE")
    data = sys.stdin.buffer.read(most + 1)
    if not data:
        raise InputError("standard input is empty: expected an image file")
    if len(data) > most:
        raise InputError(f"standard input holds over {most / 2**30:.3g} GiB: name a file instead")
    return data


@contextmanager
def lasting_streams() -> Iterator[list[OSError]]:
    """Let standard output and error fail without an exception, which would end a run.

    As of ``nst-jax ... 2>&1 | tee log``, where Ctrl-C ends ``tee``, too. What cannot be encoded is
    written as escapes.

    Gives a list of why standard output could not be written, complete once it is flushed; the first
    of them is logged at the end. That its reader has gone, such as ``head``, which has seen enough,
    is no reason.
    """
    output, error = sys.stdout, sys.stderr
    errors: list[OSError] = []
    sys.stdout, sys.stderr = output and _Lasting(output, errors), error and _Lasting(error, [])
    try:
        yield errors
    finally:
        print(end="", flush=True)
        if errors:
            _log.error("cannot write to standard output (%s)", errors[0].strerror)
        sys.stdout, sys.stderr = output, error


class _Lasting:
    """A text stream of which writing never fails; a list gets the errors but of broken pipes."""

    def __init__(self, stream: TextIO, errors: list[OSError]):
        self._stream, self._errors = stream, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if getattr(self._stream, "errors", None) == "strict":
            encoding = self._stream.encoding
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._tried():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._tried():
            self._stream.flush()

    @contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # broken, or closed
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                self._errors.append(error)
            with suppress(OSError, ValueError):
                _drop(self._stream)


def _drop(stream: TextIO) -> None:
    """Send to nowhere what is still to come, so that nothing is left to be flushed at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_standard_output() -> None:
    """Check that an image can be written to standard output.

    Raises:
      InputError: where it is closed or a terminal.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise InputError("standard output is closed: expected a file or pipe for the PNG")
    if sys.stdout.isatty():
        raise InputError("standard output is a terminal: expected a file or pipe for the PNG")


def write_standard_output(data: bytes) -> None:
    """Write to standard output at once.

    Raises:
      OSError: where it cannot be written, as of a pipe that is closed.
    """
    stream = sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except OSError as error:
        _drop(stream)
        raise OSError(error.errno, error.strerror, "standard output") from None
