"""Downloads against a local server: good, wrong, broken off, silent, repeated, by two at once."""

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
from nst_jax.system import cache_dir
from nst_jax.weights.convert import convert
from nst_jax.weights.fetch import SOURCES, Published, cached_path, fetch


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "vgg19.h5"
    files.write_keras(path, files.flip(files.make_arrays(network="caffe")))
    return path.read_bytes()


@pytest.fixture
def server(content):
    """A server whose pages each have a fault of their own; it keeps what was asked for."""
    asked, bodies, ended, go_on = [], {}, threading.Event(), threading.Event()
    half = len(content) // 2

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path in bodies:
                self.answer(bodies[self.path])
            else:
                getattr(self, self.path[1:].replace("-", "_"), self.missing)()

        def answer(self, body, *, status=200, length=None, **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def first(self):
            return asked.count(self.path) == 1

        def missing(self):
            self.send_error(404)

        def good(self):
            self.answer(content)

        def wrong(self):
            self.answer(b"<html>" + content)

        def moved(self):
            self.answer(b"", status=302, Location="/good")

        def loop(self):
            self.answer(b"", status=302, Location="/loop")

        def elsewhere(self):
            self.answer(b"", status=302, Location="nowhere://x")

        def dropped(self):
            self.answer(content[:half], length=len(content))

        def dropped_once(self):
            self.dropped() if self.first() else self.good()

        def wrong_once(self):
            self.wrong() if self.first() else self.good()

        def broken(self):
            self.send_error(500)

        def busy_once(self):
            self.answer(b"", status=429) if self.first() else self.good()

        def silent(self):
            ended.wait(20)

        def silent_once(self):
            self.silent() if self.first() else self.good()

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

        def garbage(self):
            self.wfile.write(b"\0\1\2 no http\r\n\r\n")

        def strange_length(self):
            self.answer(content, length="9" * 30 if self.first() else len(content))

        def held(self):
            """Half of it, and the rest when the test lets it go."""
            self.dropped()
            go_on.wait(20)
            self.wfile.write(content[half:])

        def handle_one_request(self):
            with suppress(OSError):  # who asked has gone
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
        yield SimpleNamespace(url=url, asked=asked, bodies=bodies, go_on=go_on)
        ended.set()
        go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def offer(server, content):
    """A table of one source "test" of these pages of the server."""

    def offer(*pages, checksum=None, base=None, **options):
        return {
            "test": Published(
                urls=tuple(f"{base or server.url}/{page}" for page in pages),
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
    assert server.asked == ["/good"]
    assert shown[-1] == (len(content), len(content))
    assert "".join(capfd.readouterr()) == ""  # a library does not print


def test_damaged_cache_is_fetched_again(server, offer, tmp_path):
    sources = offer("good")
    path = fetch_test(cache=tmp_path, sources=sources)
    whole = path.read_bytes()
    for broken in (whole[:-100], b"", b"hello"):
        path.write_bytes(broken)
        assert fetch_test(cache=tmp_path, sources=sources).read_bytes() == whole
    assert len(server.asked) == 4


def test_wrong_file_leaves_nothing_and_can_be_repeated(server, offer, tmp_path):
    message = refuse(tmp_path / "cache", "its md5 is not that of the published", offer("wrong"))
    for part in (f"{server.url}/wrong", "vgg19.h5", "by other means"):
        assert part in message
    assert fetch_test(cache=tmp_path / "cache", sources=offer("good")).is_file()


@pytest.mark.parametrize("first", ["missing", "wrong", "dropped", "silent", "loop"])
def test_addresses_are_tried_in_turn(server, offer, tmp_path, first):
    assert fetch_test(cache=tmp_path, sources=offer(first, "good")).is_file()
    times = {"loop": 31}.get(first, 1)
    assert server.asked == [*times * [f"/{first}"], "/good"]


@pytest.mark.parametrize(
    "page", ["dropped-once", "wrong-once", "busy-once", "silent-once", "strange-length"]
)
def test_what_a_further_attempt_mends(server, offer, tmp_path, page):
    lines = []
    path = fetch_test(cache=tmp_path, sources=offer(page), retries=1, say=lines.append)
    assert path.is_file() and server.asked == 2 * [f"/{page}"]
    assert lines == [f"trying {server.url}/{page} again"]


@pytest.mark.parametrize("page", ["moved", "no-length"])
def test_what_needs_none(offer, tmp_path, page):
    assert fetch_test(cache=tmp_path, sources=offer(page)).is_file()


@pytest.mark.parametrize(
    ("page", "match"),
    [
        ("missing", r"\(404 Not Found\)"),
        ("broken", r"\(500 Internal Server Error\)"),
        ("dropped", "IncompleteRead"),
        ("silent", "does not answer in time"),
        ("half-and-silent", "no connection, or it broke"),
        ("endless", "it sends more than 1000000 bytes"),
        ("garbage", "no connection, or it broke"),
        ("loop", "TooManyRedirects"),
        ("elsewhere", "InvalidSchema"),
    ],
)
def test_what_stays_wrong(offer, tmp_path, page, match):
    started = time.monotonic()
    refuse(tmp_path, match, offer(page, limit=10**6))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(("page", "times"), [("missing", 1), ("endless", 1), ("broken", 2)])
def test_attempts_where_they_may_help(server, offer, tmp_path, page, times):
    refuse(tmp_path, "cannot download", offer(page, limit=10**6), retries=1)
    assert server.asked == times * [f"/{page}"]


FETCH = """
import sys
from nst_jax import cli
from nst_jax.weights import fetch
fetch.SOURCES["keras"] = fetch.Published(*{source!r})
sys.exit(cli.main(["weights", "fetch"]))
"""


@pytest.fixture
def start(offer, tmp_path):
    """Start ``nst-jax weights fetch`` as a process of its own, with a cache in ``tmp_path``."""
    running = []

    def start(page="held", **environment):
        code = FETCH.format(source=tuple(offer(page)["test"]))
        environment = os.environ | {
            "NST_JAX_CACHE": str(tmp_path / "cache"),
            "COLUMNS": "200",
            **environment,
        }
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment
        )
        running.append(process)
        return process

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
    wait_for(lambda: server.asked)
    second = start()
    line = second.stderr.readline()
    assert line == (
        "nst-jax: another process is fetching vgg19-keras.safetensors: waiting for it\n"
    )
    server.go_on.set()
    path = str(tmp_path / "cache" / "vgg19-keras.safetensors")
    for process in (first, second):
        assert process.communicate(timeout=60)[0].strip() == path and process.returncode == 0
    assert server.asked == ["/held"] and os.listdir(tmp_path / "cache") == [Path(path).name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended(server, offer, start, tmp_path, number):
    process = start()
    folder = tmp_path / "cache"
    wait_for(lambda: server.asked and list(folder.glob(".fetch-*/*")))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert process.returncode == 130 and err == "nst-jax: interrupted\n"
        assert os.listdir(folder) == [".vgg19-keras.lock"]  # which nobody holds
    else:
        assert len(os.listdir(folder)) == 2  # the lock's file and a part of the download
        (folder / ".vgg19-keras-abcdefgh.safetensors").touch()  # as of one killed while writing
    path = fetch("keras", cache=folder, sources={"keras": offer("good")["test"]})
    assert path.is_file() and os.listdir(folder) == [path.name]


def test_full_disk(offer, tmp_path):
    with files.largest_file(10_000):
        error = refuse(tmp_path, "File too large", offer("good"))
    assert "NST_JAX_CACHE" in error


def test_every_address_is_named(server, offer, tmp_path):
    message = refuse(tmp_path, "404", offer("missing", "wrong"))
    assert f"{server.url}/missing" in message and f"{server.url}/wrong" in message


def test_no_server(offer, tmp_path):
    address = "http://127.0.0.1:9"
    refuse(
        tmp_path,
        f"tried {address}/good .no connection.*by other means",
        offer("good", base=address),
    )


def test_command(start, server, tmp_path):
    process = start("good", FORCE_COLOR="1")  # as on a terminal
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("vgg19-keras.safetensors\n")
    assert "keras" in error and "\x1b" in error
    os.remove(out.strip())
    process = start("missing")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert error.startswith("nst-jax: error: cannot download") and error.count("\n") == 1


def test_download_of_another_network(server, offer, tmp_path):
    arrays = files.make_arrays(network="caffe")
    arrays["conv3_1/kernel"] = arrays["conv3_1/kernel"][:, :, :-1]
    files.write_keras(tmp_path / "other", arrays)
    server.bodies["/other"] = (tmp_path / "other").read_bytes()
    checksum = f"md5:{hashlib.md5(server.bodies['/other']).hexdigest()}"
    refuse(tmp_path / "cache", "conv3_1/kernel has shape", offer("other", checksum=checksum))


def test_unknown_source():
    with pytest.raises(InputError, match="expected one of keras, matconvnet"):
        fetch("vgg")


def test_cache_that_cannot_be_written(offer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="set NST_JAX_CACHE"):
        fetch_test(cache=tmp_path / "file" / "cache", sources=offer("good"))


def test_cache_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path and cached_path("keras").parent == tmp_path
    monkeypatch.delenv("NST_JAX_CACHE")
    assert "nst_jax" in str(cache_dir())


def test_sources_may_be_fetched():
    for name, source in SOURCES.items():
        assert source.urls[0].startswith("https://")
        assert source.preprocessing in ("caffe", "torchvision")
        algorithm, digits = source.checksum.split(":")
        assert len(digits) == {"md5": 32, "sha256": 64}[algorithm]
        assert all(url.endswith(source.filename) for url in source.urls), name
