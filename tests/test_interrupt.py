"""Signals in real processes: also amid compiled code, which Python's own handlers wait for."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nst_jax import interrupt

# What blocks is a call of compiled code that releases the interpreter's lock, as XLA's do.
SCRIPT = """
import hashlib, os, sys, threading
from pathlib import Path
from nst_jax.files import atomic_write
from nst_jax.interrupt import end_on_signals, exit_code, stop_on_signals
begun = threading.Lock()
begun.acquire()
def tell():
    with begun:
        print("ready", flush=True)
threading.Thread(target=tell, daemon=True).start()
try:
    with end_on_signals(), stop_on_signals() as asked, atomic_write(Path("out.png")) as temporary:
        if sys.argv[1] == "running":
            asked()
        sys.setswitchinterval(1000)  # the thread goes on when compiled code lets it
        begun.release()
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(float(sys.argv[2])))
        print(asked(), flush=True)
except KeyboardInterrupt as interruption:
    sys.exit(exit_code(interruption))
"""


def start(folder, state, rounds):
    line = [sys.executable, "-c", SCRIPT, state, str(rounds)]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("number", interrupt.SIGNALS)
@pytest.mark.parametrize("state, again", [("running", True), ("before", False)])
def test_compiled_code_does_not_keep_it(tmp_path, number, state, again):
    process = start(tmp_path, state, 2e9)  # many minutes
    try:
        process.send_signal(number)
        deadline = time.monotonic() + 60
        while again and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number and out == b""
    assert err.splitlines()[-1] == b"nst-jax: interrupted"
    assert os.listdir(tmp_path) == []


def test_one_is_a_request(tmp_path):
    process = start(tmp_path, "running", 3e6)  # longer than the grace
    try:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, b"15\n") and os.listdir(tmp_path) == ["out.png"]


def test_nothing_is_left_of_the_handlers():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    for context in (interrupt.stop_on_signals, interrupt.end_on_signals):
        with context():
            assert signal.getsignal(signal.SIGTERM) not in before
        assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1


# What is raised within a finaliser is told and dropped.
LOST = """
import time
from nst_jax.interrupt import end_on_signals
class Finalised:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(5)
with end_on_signals():
    Finalised()
    time.sleep(600)
"""


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_lost_exception_does_not_keep_it(number):
    process = subprocess.Popen([sys.executable, "-c", LOST], stdout=-1, stderr=-1)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Exception ignored" in err and err.endswith(b"nst-jax: interrupted\n")


def interrupted(*words, **environment):
    """Exit code, output and errors of a Python that gets SIGINT once it has said "ready"."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_amid_an_import(tmp_path):
    """An exception there makes some extensions crash."""
    (tmp_path / "slow.py").write_text(
        "import time\nprint('ready', flush=True)\ntry:\n    time.sleep(600)\n"
        "except BaseException:\n    print('raised', flush=True)\n"
    )
    script = "from nst_jax.interrupt import end_on_signals\nwith end_on_signals():\n    import slow"
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{script}"
    assert interrupted("-c", code) == (130, b"", b"nst-jax: interrupted\n")


def test_amid_the_command_s_own_imports(tmp_path):
    (tmp_path / "tyro.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(600)\n")
    found = interrupted("-m", "nst_jax", "version", PYTHONPATH=str(tmp_path))
    assert found == (-signal.SIGINT, b"", b"")
