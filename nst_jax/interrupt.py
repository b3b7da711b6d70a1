"""Ctrl-C and SIGTERM as requests to stop. Standard library only."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from nst_jax.files import discard_temporaries

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPORTING = "<frozen importlib"  # how Python names the code of its imports
GRACE = 1.0  # seconds that the program has to end by itself where it is to end at once


class Terminated(KeyboardInterrupt):
    """SIGTERM where it ends the program at once, as KeyboardInterrupt is SIGINT."""


def exit_code(interruption: KeyboardInterrupt) -> int:
    """That of a program which a signal has ended, as shells have it.

    >>> exit_code(KeyboardInterrupt()), exit_code(Terminated())
    (130, 143)
    """
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Let Ctrl-C or SIGTERM end the block by an exception, so that nothing half-written stays.

    Amid an import the process is ended hard, without its temporary files; after a second also where
    the exception is lost, as one in a finaliser is, or compiled code keeps Python from raising it.
    """
    with _handled(_raise, running=lambda: False):
        yield


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Let Ctrl-C or SIGTERM end the run at the next chunk, and a second one at once.

    Gives a function that returns the signal that asked to stop, or None; until it was first called,
    when there is nothing to keep yet, the first signal ends at once too. What compiled code keeps
    from ending at once is ended hard after a second, without its temporary files.
    """
    asked: int | None = None
    running = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked is not None or not running:
            _raise(signum, frame)
        asked = signum
        try:
            name = "SIGTERM" if signum == signal.SIGTERM else "Ctrl-C"
            words = f"nst-jax: stopping at the next report; {name} again ends at once"
            print(words, file=sys.stderr)
        except RuntimeError:  # amid another line
            pass

    def asked_for() -> int | None:
        nonlocal running
        running = True
        return asked

    with _handled(handle, running=lambda: running):
        yield asked_for


@contextmanager
def _handled(handle: Callable[[int, Any], None], *, running: Callable[[], bool]) -> Iterator[None]:
    """Give signals to a handler, in the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = [signal.signal(one, handle) for one in SIGNALS]
    with _ended_hard(running):
        try:
            yield
        finally:
            for one, handler in zip(SIGNALS, previous):
                signal.signal(one, handler)


def _raise(signum: int, frame: Any) -> None:
    # Extensions that are being imported cannot bear an exception: some crash.
    importing = any(one.f_code.co_filename.startswith(IMPORTING) for one in _stack(frame))
    if importing:
        _end_hard(signum)
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _end_hard(signum: int) -> NoReturn:
    """End the process without its clean-up, but for what it is writing."""
    discard_temporaries()
    os.write(2, b"nst-jax: interrupted\n")
    os._exit(128 + signum)


@contextmanager
def _ended_hard(running: Callable[[], bool]) -> Iterator[None]:
    """Have a thread see signals, too, for Python's handlers wait until compiled code returns."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ended = threading.Event()

    def watch() -> None:
        seen = 0
        while numbers := ours.recv(16):
            for number in numbers:
                seen += number in SIGNALS
                if number in SIGNALS and seen > running() and not ended.wait(GRACE):
                    _end_hard(number)

    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        ended.set()
        theirs.close()  # the thread's recv returns nothing
        thread.join()
        ours.close()
