"""Handle Ctrl-C and SIGTERM: stop a run after its current steps, or end the process at once.

Python runs signal handlers only between bytecodes of the main thread, that is, after compiled code
returns. A thread that reads the wakeup file descriptor (``signal.set_wakeup_fd``) learns of a
signal immediately; it can end the process and remove files being written. Standard library only.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from nst_jax.system.files import discard_temporaries

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SHOW_CURSOR = b"\x1b[?25h"  # DECTCEM: progress bars hide the cursor

_log = logging.getLogger(__name__)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """End the process at once on Ctrl-C or SIGTERM within the block, and remove unfinished files.

    The exit code is 128 plus the signal's number, 130 or 143, as in shells. The process ends
    without Python's clean-up, and hence also in compiled code, imports and finalisers, where an
    exception would be lost or do harm. In threads other than the main one this has no effect,
    because only the main thread can set signal handlers.
    """
    with _watch_signals(_end, handle=lambda number, frame: None):
        yield


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Request a stop on Ctrl-C or SIGTERM within the block; a second signal ends the process.

    Yields a function that returns the number of the signal that requested the stop, or None. Until
    that function is called for the first time there is no result to keep, and the first signal
    ends the process at once.

    Example:
      >>> with stop_on_signals() as stop_requested:
      ...     while stop_requested() is None:
      ...         break  # a step
    """
    requested: int | None = None
    running = warned = False

    def handle(number: int, frame: Any) -> None:
        nonlocal requested
        requested = requested or number

    def watch(number: int) -> None:
        nonlocal warned
        if warned or not running:
            _end(number)
        warned = True
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        _log.warning("stopping at the next report; %s again ends at once", name)

    def stop_requested() -> int | None:
        nonlocal running
        running = True
        return requested

    with _watch_signals(watch, handle=handle):
        yield stop_requested


@contextmanager
def _watch_signals(
    watch: Callable[[int], Any], *, handle: Callable[[int, Any], None]
) -> Iterator[None]:
    """Call ``watch`` in a thread at each signal, and ``handle`` once compiled code returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # required by set_wakeup_fd

    def read_signals() -> None:
        while numbers := reader.recv(1):  # one byte per signal: its number
            if numbers[0] in SIGNALS:
                watch(numbers[0])

    thread = threading.Thread(target=read_signals, daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, handlers):
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()  # the thread reads what is left, and ends
        thread.join()
        reader.close()


def _end(number: int) -> NoReturn:
    discard_temporaries()
    os.write(2, SHOW_CURSOR * os.isatty(2) + b"nst-jax: interrupted\n")
    os._exit(128 + number)
