"""Signals in real processes: also amid compiled code, which Python's own handlers wait for."""

import os
import signal
import subprocess
import sys

import pytest

from nst_jax.system import end_on_signals, stop_on_signals
from nst_jax.system.signals import SIGNALS

# What blocks is a call of compiled code that releases the interpreter's lock, as XLA's do.
SCRIPT = """
import hashlib, sys, threading
from pathlib import Path
from nst_jax.system import atomic_write
from nst_jax.system.files import removed_if_empty, temporary_folder
from nst_jax.system import end_on_signals, stop_on_signals
begun = threading.Lock()
begun.acquire()
def tell():
    with begun:
        print("ready", flush=True)
threading.Thread(target=tell, daemon=True).start()
Path("results").mkdir()
with (
    end_on_signals(),
    stop_on_signals() as asked,
    removed_if_empty(Path("results")),
    temporary_folder(Path("."), prefix="folder") as folder,
    atomic_write(Path("out.png")) as temporary,
):
    (folder / "file").touch()
    if sys.argv[1] == "running":
        asked()
    sys.setswitchinterval(1000)  # the thread goes on when compiled code lets it
    begun.release()
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(float(sys.argv[2])))
    print(asked(), flush=True)
"""


def start(folder, state, rounds):
    line = [sys.executable, "-c", SCRIPT, state, str(rounds)]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("state, told", [("running", 1), ("before", 0)])
def test_compiled_code_does_not_keep_it(tmp_path, number, state, told):
    process = start(tmp_path, state, 2e9)  # many minutes
    try:
        process.send_signal(number)
        name = b"Ctrl-C" if number == signal.SIGINT else b"SIGTERM"
        first = b"stopping at the next report; %s again ends at once\n" % name
        if told:  # amid compiled code, too
            assert process.stderr is not None and process.stderr.readline() == first
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (128 + number, b"", b"nst-jax: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_one_is_a_request(tmp_path):
    process = start(tmp_path, "running", 3e6)  # seconds
    try:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, b"15\n") and os.listdir(tmp_path) == ["out.png"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_is_there_when_the_signal_is(number, caplog):
    with stop_on_signals() as asked:
        assert asked() is None
        signal.raise_signal(number)
        assert asked() == number
    (message,) = caplog.messages
    assert message.startswith("stopping at the next report")


def test_nothing_is_left_of_the_handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    for context in (stop_on_signals, end_on_signals):
        with context():
            assert signal.getsignal(signal.SIGTERM) not in before
        assert [signal.getsignal(number) for number in SIGNALS] == before
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1


# An exception would be told and dropped within a finaliser, and makes some extensions crash that
# are being imported.
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


def interrupted(*words, number=signal.SIGINT, **environment):
    """Exit code, output and errors of a Python that gets a signal once it has said "ready"."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("script", [FINALISER, IMPORT])
def test_where_an_exception_would_not_do(tmp_path, script):
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{script}"
    for number in SIGNALS:
        found = interrupted("-c", code, number=number)
        assert found == (128 + number, b"", b"nst-jax: interrupted\n")


def test_amid_the_command_s_own_imports(tmp_path):
    (tmp_path / "tyro.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(600)\n")
    found = interrupted("-m", "nst_jax", "version", PYTHONPATH=str(tmp_path))
    assert found == (-signal.SIGINT, b"", b"")
