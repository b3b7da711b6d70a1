"""Signals in real processes, also during compiled code, for which Python's own handlers wait."""

import os
import signal
import subprocess
import sys

import pytest

from nst_jax.system import end_on_signals, stop_on_signals
from nst_jax.system.signals import SIGNALS

# pbkdf2_hmac stands for compiled code: it releases the interpreter's lock, as XLA's programs do.
SCRIPT = """
import hashlib, sys, threading
from pathlib import Path
from nst_jax.system import atomic_write
from nst_jax.system.files import removed_if_empty, temporary_folder
from nst_jax.system import end_on_signals, stop_on_signals
in_compiled_code = threading.Lock()
in_compiled_code.acquire()
def print_ready():
    with in_compiled_code:
        print("ready", flush=True)
threading.Thread(target=print_ready, daemon=True).start()
Path("results").mkdir()
with (
    end_on_signals(),
    stop_on_signals() as stop_requested,
    removed_if_empty(Path("results")),
    temporary_folder(Path("."), prefix="folder") as folder,
    atomic_write(Path("out.png")) as temporary,
):
    (folder / "file").touch()
    if sys.argv[1] == "running":
        stop_requested()
    sys.setswitchinterval(1000)  # the thread continues only when compiled code releases the lock
    in_compiled_code.release()
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(float(sys.argv[2])))
    print(stop_requested(), flush=True)
"""


def start(folder, *words):
    """Start a Python process and wait until it prints "ready"."""
    line = [sys.executable, *words]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def finish(process):
    """Return the exit code, the output and the errors of a process."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    "number, state", [(signal.SIGINT, "running"), (signal.SIGTERM, "running"), (2, "before")]
)
def test_process_ends_during_compiled_code_without_unfinished_files(tmp_path, number, state):
    """At the second signal, or at the first one before the run has something to keep."""
    process = start(tmp_path, "-c", SCRIPT, state, "2e9")  # many minutes
    process.send_signal(number)
    if state == "running":
        name = b"Ctrl-C" if number == signal.SIGINT else b"SIGTERM"
        first = b"stopping at the next report; %s again ends at once\n" % name
        assert process.stderr.readline() == first
        process.send_signal(number)
    assert finish(process) == (128 + number, b"", b"nst-jax: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_first_signal_requests_a_stop(tmp_path, caplog):
    process = start(tmp_path, "-c", SCRIPT, "running", "3e6")  # seconds
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert (code, out) == (0, b"15\n") and os.listdir(tmp_path) == ["out.png"]
    for number in SIGNALS:
        with stop_on_signals() as stop_requested:
            assert stop_requested() is None
            signal.raise_signal(number)
            assert stop_requested() == number
    assert all(text.startswith("stopping at the next report") for text in caplog.messages)


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    for context in (stop_on_signals, end_on_signals):
        with context():
            assert signal.getsignal(signal.SIGTERM) not in before
        assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


# In a finaliser an exception would be printed and dropped; in an import it crashes some extensions.
FINALISER = """
import time
from nst_jax.system import end_on_signals
class Finalised:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)
with end_on_signals():
    Finalised()
"""
IMPORT = "from nst_jax.system import end_on_signals\nwith end_on_signals():\n    import slow"
SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.mark.parametrize("script, number", [(FINALISER, signal.SIGINT), (IMPORT, signal.SIGTERM)])
def test_process_ends_in_finalisers_and_imports(tmp_path, script, number):
    (tmp_path / "slow.py").write_text(SLEEP)
    process = start(tmp_path, "-c", f"import sys; sys.path.append('.')\n{script}")
    process.send_signal(number)
    assert finish(process) == (128 + number, b"", b"nst-jax: interrupted\n")


def test_command_ends_during_its_own_imports(tmp_path, monkeypatch):
    (tmp_path / "tyro.py").write_text(SLEEP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = start(tmp_path, "-m", "nst_jax", "version")
    process.send_signal(signal.SIGINT)
    assert finish(process) == (-signal.SIGINT, b"", b"")
