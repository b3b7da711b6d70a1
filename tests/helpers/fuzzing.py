"""Calls of the command line with limits of time and memory, for fuzz tests."""

import signal
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nst_jax.cli import main
from nst_jax.system import peak_memory

SECONDS = 30
BYTES = 4 * 2**30


class Hangs(BaseException):
    """A command took too long; not an ``Exception``, which the command might handle."""


class Ended(NamedTuple):
    code: int
    err: str


@contextmanager
def time_limit(seconds=SECONDS):
    def end(signum, frame):
        raise Hangs

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def command(arguments, capsys):
    """Run a command in this process; the test fails if the command raises or hangs."""
    capsys.readouterr()
    peak = peak_memory()
    with time_limit():
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # from the parser
            code = ended.code
    err = capsys.readouterr().err
    assert peak_memory() < peak + BYTES, "takes too much memory"
    return Ended(code, err)


def check_ended(ended, *, parser=False):
    """Check that a command succeeded, diverged, or ended with one line of error."""
    code, err = ended
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("nst-jax: error: ")]
    if code == 2:
        assert len(errors) == 1 or (parser and not errors and err.strip()), err
        assert not errors or err.splitlines()[-1] == errors[0], err
    else:
        assert code in (0, 1) and not errors, (code, err)
        assert code == 0 or "diverged" in err or "left out" in err, err


def listing(folder):
    """All files below a folder, with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
