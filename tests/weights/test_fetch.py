"""Downloads from a local server: sound, wrong, interrupted, silent, repeated, by two processes."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import weight_files as files

from nst_jax.errors import InputError
from nst_jax.weights.convert import convert
from nst_jax.weights.fetch import Published, cached_path, fetch


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "vgg19.h5"
    files.write_keras(path, files.flip(files.make_arrays(network="caffe")))
    return path.read_bytes()


@pytest.fixture
def server(content):
    """A server with one page for each fault; it records the requests."""
    requests, bodies, ended, resume = [], {"/good": content}, threading.Event(), threading.Event()
    half = len(content) // 2

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if self.path in bodies:
                self.answer(bodies[self.path])
            else:
                getattr(self, self.path[1:].replace("-", "_"), self.missing)()

        def answer(self, body, *, status=200, length=None, **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def missing(self):
            self.send_error(404)

        def wrong(self):
            self.answer(b"<html>" + content)

        def moved(self):
            self.answer(b"", status=302, Location="/good")

        def loop(self):
            self.answer(b"", status=302, Location="/loop")

        def dropped(self):
            self.answer(content[:half], length=len(content))

        def broken(self):
            self.send_error(500)

        def busy(self):
            self.answer(b"", status=429)

        def silent(self):
            ended.wait(20)

        def half_and_silent(self):
            self.dropped()
            self.wfile.flush()
            ended.wait(20)

        def endless(self):
            self.send_response(200)
            self.end_headers()
            while not ended.is_set():
                self.wfile.write(bytes(10**5))

        def no_length(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def huge_length(self):
            self.answer(content, length="9" * 30)

        def flaky(self):
            """A different fault each time, in the end the file."""
            faults = (self.dropped, self.wrong, self.busy, self.silent, self.huge_length)
            number = requests.count(self.path) - 1
            faults[number]() if number < len(faults) else self.answer(content)

        def slow(self):
            """Half of the file, and the rest when the test says so."""
            self.dropped()
            resume.wait(20)
            self.wfile.write(content[half:])

        def handle_one_request(self):
            with suppress(OSError):  # the client has gone
                super().handle_one_request()

        def finish(self):
            with suppress(OSError):
                super().finish()

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}"
        yield SimpleNamespace(url=url, requests=requests, bodies=bodies, resume=resume)
        ended.set()
        resume.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def offer(server, content):
    """Make a table of one source, "test", at these pages of the server."""

    def offer(*pages, checksum=None, **options):
        return {
            "test": Published(
                urls=tuple(f"{server.url}/{page}" for page in pages),
                filename="vgg19.h5",
                checksum=checksum or f"md5:{hashlib.md5(content).hexdigest()}",
                preprocessing="caffe",
                licence="CC BY 4.0",
                summary="",
                **options,
            )
        }

    return offer


fetch_test = partial(fetch, "test", retries=0, timeout=0.5)


def refuse(cache, match, sources, **options):
    with pytest.raises(InputError, match=match) as caught:
        fetch_test(cache=cache, sources=sources, **options)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_good_file_is_converted_and_kept(server, offer, content, tmp_path, algorithm, capfd):
    sources = offer("good", checksum=f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    shown = []
    path = fetch_test(
        cache=tmp_path / "new" / "cache", sources=sources, show=lambda *sizes: shown.append(sizes)
    )
    assert path == cached_path("test", cache=tmp_path / "new" / "cache")
    converted = convert(path)
    expected = files.make_arrays(network="caffe")
    assert all((converted.arrays[name] == expected[name]).all() for name in expected)
    assert converted.record.source == f"{server.url}/good (keras)"
    assert converted.record.source_md5 == hashlib.md5(content).hexdigest()
    assert converted.record.source_sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert fetch_test(cache=str(path.parent), sources=sources) == path
    assert server.requests == ["/good"]
    assert shown[-1] == (len(content), len(content))
    assert "".join(capfd.readouterr()) == ""  # nothing is printed


def test_damaged_cache_is_fetched_again(server, offer, tmp_path):
    sources = offer("good")
    path = fetch_test(cache=tmp_path, sources=sources)
    whole = path.read_bytes()
    for broken in (whole[:-100], b"", b"hello"):
        path.write_bytes(broken)
        assert fetch_test(cache=tmp_path, sources=sources).read_bytes() == whole
    assert len(server.requests) == 4


FAULTS = {
    "missing": "404 Not Found",
    "broken": "500 Internal Server Error",
    "dropped": "ChunkedEncodingError: ",
    "silent": "no response in time",
    "half-and-silent": "no connection, or it broke",
    "endless": "it sends more than 1000000 bytes",
    "loop": "TooManyRedirects: ",
    "wrong": "its md5 differs from the published file's",
}


def test_every_address_is_tried_and_named(server, offer, tmp_path):
    started = time.monotonic()
    message = refuse(tmp_path / "cache", "by other means", offer(*FAULTS, limit=10**6))
    assert time.monotonic() - started < 15
    for page, reason in FAULTS.items():
        assert f"{server.url}/{page} ({reason}" in message
    assert set(server.requests) == {f"/{page}" for page in FAULTS}
    path = fetch_test(cache=tmp_path / "cache", sources=offer("missing", "wrong", "good"))
    assert path.is_file() and server.requests[-3:] == ["/missing", "/wrong", "/good"]


def test_further_attempts(server, offer, tmp_path, monkeypatch):
    lines, pauses = [], []
    monkeypatch.setattr("time.sleep", pauses.append)
    path = fetch_test(cache=tmp_path, sources=offer("flaky"), retries=5, say=lines.append)
    assert path.is_file() and server.requests == 6 * ["/flaky"]
    assert lines == 5 * [f"trying {server.url}/flaky again"]
    assert pauses == [1, 2, 3, 4, 5]


def test_no_further_attempt_after_a_permanent_error(server, offer, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    sources = offer("missing", "endless", "broken", limit=10**6)
    refuse(tmp_path, "cannot download", sources, retries=1)
    assert server.requests == ["/missing", "/endless", "/broken", "/broken"]


@pytest.mark.parametrize("page", ["moved", "no-length"])
def test_redirects_and_unknown_lengths(offer, tmp_path, page):
    assert fetch_test(cache=tmp_path, sources=offer(page)).is_file()


FETCH = """
import sys
from nst_jax import cli
from nst_jax.weights import fetch
fetch.SOURCES["keras"] = fetch.Published(*{source!r})
sys.exit(cli.main(["weights", "fetch"]))
"""


@pytest.fixture
def start(offer, tmp_path):
    """Start ``nst-jax weights fetch`` in another process, with a cache in ``tmp_path``."""
    running = []

    def start(page="slow", **environment):
        code = FETCH.format(source=tuple(offer(page)["test"]))
        settings = {"NST_JAX_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        options["env"] = os.environ | settings | environment
        running.append(subprocess.Popen([sys.executable, "-c", code], **options))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_download_once(server, start, tmp_path):
    first = start()
    wait_for(lambda: server.requests)
    second = start()
    line = "nst-jax: another process is fetching vgg19-keras.safetensors: waiting for it\n"
    assert second.stderr.readline() == line
    server.resume.set()
    path = str(tmp_path / "cache" / "vgg19-keras.safetensors")
    for process in (first, second):
        assert process.communicate(timeout=60)[0].strip() == path and process.returncode == 0
    assert server.requests == ["/slow"] and os.listdir(tmp_path / "cache") == [Path(path).name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_killed_processes(server, offer, start, tmp_path, number):
    process = start()
    folder = tmp_path / "cache"
    wait_for(lambda: server.requests and list(folder.glob(".fetch-*/*")))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert process.returncode == 130 and err == "nst-jax: interrupted\n"
        assert os.listdir(folder) == [".vgg19-keras.lock"]  # not held by anyone
    else:
        assert len(os.listdir(folder)) == 2  # the lock and part of the download
        (folder / ".vgg19-keras-abcdefgh.safetensors").touch()  # as if killed while writing
    path = fetch("keras", cache=folder, sources={"keras": offer("good")["test"]})
    assert path.is_file() and os.listdir(folder) == [path.name]


def test_full_disk(offer, tmp_path):
    with files.largest_file(10_000):
        error = refuse(tmp_path, "File too large", offer("good"))
    assert "NST_JAX_CACHE" in error


def test_command(start, server, tmp_path):
    process = start("good", FORCE_COLOR="1")  # imitates a terminal
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("vgg19-keras.safetensors\n")
    assert "keras" in error and "\x1b" in error
    os.remove(out.strip())
    process = start("missing")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert error.startswith("nst-jax: error: cannot download") and error.count("\n") == 1


def test_published_file_that_cannot_be_used(server, offer, tmp_path):
    server.bodies["/other"] = b"hello"
    checksum = f"md5:{hashlib.md5(b'hello').hexdigest()}"
    refuse(tmp_path / "cache", "has an unknown format", offer("other", checksum=checksum))


def test_unknown_source():
    with pytest.raises(InputError, match="expected one of the weights keras, .*got 'vgg'"):
        fetch("vgg")


def test_cache_that_cannot_be_written(offer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="set NST_JAX_CACHE"):
        fetch_test(cache=tmp_path / "file" / "cache", sources=offer("good"))
