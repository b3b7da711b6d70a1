"""Ctrl-C and SIGTERM: the first asks a run to stop, and what need not be waited for ends at once.

Python's own handlers wait until compiled code returns, so a thread sees the signals and ends the
process, without the files that are being written. Standard library only.
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

SHOW_CURSOR = b"\x1b[?25h"  # which progress bars hide

_log = logging.getLogger(__name__)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Let Ctrl-C or SIGTERM end the process at once within the block, with nothing half-written.

    The exit code is 130 or 143, as shells have it. The process ends without Python's clean-up, so
    that it does also amid compiled code, imports and finalisers, which lose or cannot bear an
    exception. Other threads than the main one get no signals: there the block just runs.
    """
    with _seen(_end, handle=lambda number, frame: None):
        yield


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Let Ctrl-C or SIGTERM ask the block to stop, and a second one end the process at once.

    Gives a function that returns the signal that asked to stop, or None; until it was first called,
    when there is nothing to keep yet, the first signal ends at once too.

    Example:
      >>> with stop_on_signals() as asked:
      ...     while asked() is None:
      ...         break  # a step
    """
    asked: int | None = None
    running = told = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        asked = asked or number

    def see(number: int) -> None:
        nonlocal told
        if told or not running:
            _end(number)
        told = True
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        _log.warning("stopping at the next report; %s again ends at once", name)

    def asked_for() -> int | None:
        nonlocal running
        running = True
        return asked

    with _seen(see, handle=handle):
        yield asked_for


@contextmanager
def _seen(see: Callable[[int], Any], *, handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Call ``see`` with each signal in a thread at once, ``handle`` when compiled code returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        while numbers := ours.recv(1):
            if numbers[0] in SIGNALS:
                see(numbers[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handlers = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, handlers):
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        theirs.close()  # the thread sees what has come before, and ends
        thread.join()
        ours.close()


def _end(number: int) -> NoReturn:
    discard_temporaries()
    os.write(2, SHOW_CURSOR * os.isatty(2) + b"nst-jax: interrupted\n")
    os._exit(128 + number)
