"""Ctrl-C as a request to stop. Standard library only."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_on_interrupt() -> Iterator[Any]:
    """Let Ctrl-C end the run at the next chunk, and a second one at once.

    Gives a function that says whether to go on; until it was first called, when there is nothing
    to keep yet, the first Ctrl-C ends at once too.
    """
    asked, running = False, False

    def handle(signum, frame):
        nonlocal asked
        if asked or not running:
            raise KeyboardInterrupt
        asked = True
        print("nst-jax: stopping at the next report; Ctrl-C again ends at once", file=sys.stderr)

    def may_go_on() -> bool:
        nonlocal running
        running = True
        return not asked

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield may_go_on
    finally:
        signal.signal(signal.SIGINT, previous)
