"""Standard input and output as files, both called ``-``. Standard library only."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from nst_jax.errors import InputError

STANDARD = Path("-")
MOST_BYTES = 2**30  # of standard input


@lru_cache(maxsize=1)
def standard_input() -> bytes:
    """All bytes of standard input, which is read at the first call.

    Raises:
      InputError: where there is none, or it is a terminal, empty or endless.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input is closed: expected a picture, as by < FILE")
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: expected a picture, as by < FILE")
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if not data:
        raise InputError("standard input is empty: expected a picture file")
    if len(data) > MOST_BYTES:
        raise InputError(f"standard input holds over {MOST_BYTES >> 30} GiB: name a file instead")
    return data


@contextmanager
def lasting_errors() -> Iterator[None]:
    """Let standard error fail without an exception: who listens to a run is not to end it.

    As of ``nst-jax ... 2>&1 | tee log``, where Ctrl-C ends ``tee``, too.
    """
    stream = sys.stderr
    sys.stderr = stream and _Lasting(stream, [])
    try:
        yield
    finally:
        sys.stderr = stream


@contextmanager
def lasting_output() -> Iterator[list[OSError]]:
    """Let standard output fail without an exception: what is printed last is not to hide the rest.

    Gives a list of why it could not be written, which is complete, and told, at the end. That its
    reader has gone, such as head, which has seen enough, is no reason.
    """
    stream, errors = sys.stdout, []
    sys.stdout = stream and _Lasting(stream, errors)
    try:
        yield errors
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.stdout = stream
        for error in errors[:1]:
            print(f"nst-jax: cannot write to standard output ({error.strerror})", file=sys.stderr)


class _Lasting:
    """A text stream of which writing never fails; a list gets the errors but of broken pipes."""

    def __init__(self, stream: TextIO, errors: list[OSError]):
        self._stream, self._errors = stream, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if getattr(self._stream, "errors", None) == "strict":  # which bears no name of odd bytes
            encoding = self._stream.encoding
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        return self._tried(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (OSError, ValueError) as error:  # broken, or closed
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                self._errors.append(error)
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return None


def check_standard_output() -> None:
    """Check that a picture can be written to standard output.

    Raises:
      InputError: where it is closed or a terminal.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise InputError("standard output is closed: expected a file or pipe for the PNG")
    if sys.stdout.isatty():
        raise InputError("standard output is a terminal: expected a file or pipe for the PNG")


def write_standard_output(data: bytes) -> None:
    """Write to standard output; where that fails nothing is left to be flushed at the exit.

    Raises:
      OSError: where it cannot be written, as of a pipe that is closed.
    """
    stream = sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # nothing to flush at exit
        raise OSError(error.errno, error.strerror, "standard output") from None
