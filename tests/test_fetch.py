"""Downloads against a local server: good, wrong, broken off, stalled, repeated, by two at once."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import weight_files as files

from nst_jax import download as download_module
from nst_jax import fetch as module
from nst_jax import shapes as shapes_module
from nst_jax.cli import main
from nst_jax.convert import convert
from nst_jax.errors import InputError
from nst_jax.fetch import SOURCES, Source, cache_dir, cached_path, fetch


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "vgg19.h5"
    files.write_keras(path, files.flip(files.make_arrays(network="caffe")))
    return path.read_bytes()


@pytest.fixture
def server(content, monkeypatch):
    """A server whose pages each have a fault of their own; it keeps what was asked for."""
    monkeypatch.setattr(shapes_module, "CHANNELS", files.SMALL)
    monkeypatch.setattr(download_module, "WAITS", (0.01, 0.02, 0.03))
    monkeypatch.setattr(download_module, "STALL", 0.5)
    asked, ranges, ended = [], [], threading.Event()
    half = len(content) // 2

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            ranges.append(self.headers["Range"])
            getattr(self, self.path[1:].replace("-", "_"), self.missing)()

        def answer(self, body, *, status=200, length=None, **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def answer_range(self, whole=content, **headers):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
            self.answer(whole[start:], status=206, Content_Range=span, **headers)

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

        def flaky(self):
            """Breaks off twice, and goes on where it is asked to."""
            if self.first():
                self.answer(content[:half], length=len(content), ETag='"1"')
            elif asked.count(self.path) == 2:
                assert self.headers["If-Range"] == '"1"'
                self.answer_range(content[: half + 1000], length=half)
            else:
                self.answer_range(ETag='"1"')

        def no_ranges(self):
            self.dropped() if self.first() else self.good()

        def changed(self):
            """Another file at first, of which the rest does not fit; it ignores If-Range."""
            if self.first():
                self.answer(bytes(half), length=len(content), ETag='"1"')
            elif self.headers["Range"]:
                self.answer_range(ETag='"2"')
            else:
                self.good()

        def always_changed(self):
            if self.headers["Range"]:
                self.answer_range(bytes(len(content)))
            else:
                self.dropped()

        def wrong_place(self):
            if self.headers["Range"]:
                self.answer(content[5:], status=206, Content_Range=f"bytes 5-{len(content)}/*")
            else:
                self.dropped() if self.first() else self.good()

        def no_such_range(self):
            if self.headers["Range"]:
                self.send_error(416)
            else:
                self.dropped() if self.first() else self.good()

        def broken(self):
            self.send_error(500)

        def busy(self):
            self.answer(b"", status=503, Retry_After="0") if self.first() else self.good()

        def busy_date(self):
            then = "Thu, 01 Jan 1970 00:00:00 GMT"
            self.answer(b"", status=429, Retry_After=then) if self.first() else self.good()

        def busy_for_hours(self):
            self.answer(b"", status=503, Retry_After="7200")

        def drip(self, data=content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.drip_bytes(data)

        def drip_header(self):
            self.drip_bytes(b"HTTP/1.1 200 OK\r\nX: " + bytes(10**6))

        def drip_bytes(self, data):
            for byte in data:
                self.wfile.write(bytes([byte]))
                if ended.wait(0.02):
                    break

        def silent(self):
            ended.wait(20)

        def silent_once(self):
            self.silent() if self.first() else self.good()

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

        def strange_lengths(self):
            self.answer(content, length="9" * 30 if self.first() else len(content))

        def held(self):
            """Half of it, and the rest when the test lets it go."""
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:half])
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

    go_on = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}"
        yield SimpleNamespace(url=url, asked=asked, ranges=ranges, go_on=go_on)
        ended.set()
        go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def offer(server, content, monkeypatch):
    """Make a source "test" of these pages of the server."""

    def offer(*pages, checksum=None, base=None):
        source = Source(
            urls=tuple(f"{base or server.url}/{page}" for page in pages),
            filename="vgg19.h5",
            checksum=checksum or f"md5:{hashlib.md5(content).hexdigest()}",
            preprocessing="caffe",
            licence="CC BY 4.0",
            summary="",
        )
        monkeypatch.setitem(SOURCES, "test", source)

    return offer


def refuse(cache, match):
    with pytest.raises(InputError, match=match) as caught:
        fetch("test", cache=cache, progress=False)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_good_file_is_converted_and_kept(server, offer, content, tmp_path, algorithm):
    offer("good", checksum=f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    path = fetch("test", cache=tmp_path / "new" / "cache", progress=False)
    assert path == cached_path("test", cache=tmp_path / "new" / "cache")
    converted = convert(path)
    expected = files.make_arrays(network="caffe")
    assert all((converted.arrays[name] == expected[name]).all() for name in expected)
    assert converted.record.source == f"{server.url}/good (keras)"
    assert converted.record.source_md5 == hashlib.md5(content).hexdigest()
    assert converted.record.source_sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert fetch("test", cache=str(path.parent)) == path
    assert server.asked == ["/good"]


def test_damaged_cache_is_fetched_again(server, offer, tmp_path):
    offer("good")
    path = fetch("test", cache=tmp_path, progress=False)
    whole = path.read_bytes()
    for broken in (whole[:-100], b"", b"hello"):
        path.write_bytes(broken)
        assert fetch("test", cache=tmp_path, progress=False).read_bytes() == whole
    assert len(server.asked) == 4


def test_wrong_file_leaves_nothing_and_can_be_repeated(server, offer, tmp_path):
    offer("wrong")
    message = refuse(tmp_path / "cache", "md5 is .*, expected")
    for part in (f"{server.url}/wrong", "vgg19.h5", "--weights FILE"):
        assert part in message
    offer("good")
    assert fetch("test", cache=tmp_path / "cache", progress=False).is_file()


def test_dropped_connection(offer, tmp_path):
    offer("dropped")
    refuse(tmp_path, r"the connection broke \(.*IncompleteRead.*, 4 times")


@pytest.mark.parametrize("first", ["missing", "wrong", "dropped", "busy-for-hours", "loop"])
def test_addresses_are_tried_in_turn(server, offer, tmp_path, first):
    offer(first, "good")
    assert fetch("test", cache=tmp_path, progress=False).is_file()
    times = {"dropped": 4, "loop": 31}.get(first, 1)
    assert server.asked == [*times * [f"/{first}"], "/good"]


def test_a_broken_connection_is_taken_up_where_it_ended(server, offer, content, tmp_path, capsys):
    offer("flaky")
    assert fetch("test", cache=tmp_path).is_file()
    half = len(content) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + 1000}-"]
    lines = capsys.readouterr().err.splitlines()
    assert sum("; trying again in 0 s" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("page", "times"),
    [
        ("no-ranges", 2),
        ("changed", 3),
        ("wrong-place", 3),
        ("no-such-range", 3),
        ("busy", 2),
        ("busy-date", 2),
        ("silent-once", 2),
        ("no-length", 1),
        ("strange-lengths", 2),
        ("moved", 1),
    ],
)
def test_what_a_further_attempt_mends(server, offer, tmp_path, page, times):
    offer(page)
    assert fetch("test", cache=tmp_path, progress=False).is_file()
    assert server.asked.count(f"/{page}") == times


@pytest.mark.parametrize(
    ("page", "match", "times"),
    [
        ("missing", "404 Not Found", 1),
        ("broken", "500 Internal Server Error, 4 times", 4),
        ("busy-for-hours", "503 Service Unavailable, and asks to wait for 7200 s", 1),
        ("always-changed", "the connection broke", 6),
        ("drip", "it stalled for 0.5 s, 4 times", 4),
        ("drip-header", "it stalled for 0.5 s, 4 times", 4),
        ("silent", "it stalled for 0.5 s, 4 times", 4),
        ("endless", "it sends more than 1000000 bytes", 1),
        ("garbage", "no connection|the connection broke", None),
        ("loop", "TooManyRedirects", None),
        ("elsewhere", "InvalidSchema", 1),
    ],
)
def test_what_stays_wrong(server, offer, tmp_path, page, match, times, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE", 10**6)
    offer(page)
    started = time.monotonic()
    refuse(tmp_path, match)
    assert time.monotonic() - started < 60
    assert times is None or server.asked.count(f"/{page}") == times


def test_declared_length_beyond_the_limit(server, offer, content, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE", len(content) - 1)
    offer("good")
    refuse(tmp_path, f"it has {len(content)} bytes, expected at most {len(content) - 1}")


def test_attempts_are_counted_since_the_last_progress(server, offer, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "WAITS", (0.01,))
    offer("flaky")  # it breaks off twice
    refuse(tmp_path / "a", "2 times")
    server.asked.clear()
    monkeypatch.setattr(download_module, "_PROGRESS", 1000)
    assert fetch("test", cache=tmp_path / "b", progress=False).is_file()


FETCH = """
import sys
sys.path.insert(0, {tests!r})
import weight_files, nst_jax.shapes
from nst_jax import cli, download, fetch
nst_jax.shapes.CHANNELS = weight_files.SMALL
download.STALL = 60
fetch.SOURCES["keras"] = fetch.Source(*{source!r})
sys.exit(cli.main(["weights", "fetch"]))
"""


@pytest.fixture
def start(offer, tmp_path):
    """Start ``nst-jax weights fetch`` as a process of its own, with a cache in ``tmp_path``."""
    running = []

    def start():
        code = FETCH.format(tests=str(Path(__file__).parent), source=tuple(SOURCES["test"]))
        environment = os.environ | {"NST_JAX_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
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


def test_two_processes_download_once(server, offer, start, tmp_path):
    offer("held")
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
def test_a_process_that_is_ended(server, offer, start, tmp_path, monkeypatch, number):
    offer("held")
    process = start()
    folder = tmp_path / "cache"
    wait_for(lambda: server.asked and list(folder.glob(".fetch-*/*")))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert process.returncode == 130 and err == "nst-jax: interrupted\n"
        assert os.listdir(folder) == []
    else:
        assert len(os.listdir(folder)) == 2  # the lock's file and a part of the download
        (folder / ".vgg19-keras-abcdefgh.safetensors").touch()  # as of one killed while writing
    offer("good")
    monkeypatch.setitem(SOURCES, "keras", SOURCES["test"])
    path = fetch("keras", cache=folder, progress=False)
    assert path.is_file() and os.listdir(folder) == [path.name]


class TestFullDisk:
    @pytest.fixture
    def refused(self, offer, tmp_path, monkeypatch, capsys):
        def refused():
            offer("good")
            monkeypatch.setitem(SOURCES, "keras", SOURCES["test"])
            monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
            assert main(["weights", "fetch"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("nst-jax: error: ") and error.count("\n") == 1
            assert not list((tmp_path / "cache").iterdir())
            return error

        return refused

    def test_while_downloading(self, refused):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            error = refused()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "File too large" in error and "NST_JAX_CACHE" in error

    @pytest.mark.parametrize("call", ["os.fsync", "tempfile.mkdtemp", "os.replace"])
    def test_at_any_other_time(self, refused, monkeypatch, call):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(call, full)
        assert "No space left on device" in refused()


def test_every_address_is_named(server, offer, tmp_path):
    offer("missing", "wrong")
    message = refuse(tmp_path, "404")
    assert f"{server.url}/missing" in message and f"{server.url}/wrong" in message


def test_no_server(offer, tmp_path):
    offer("good", base="http://127.0.0.1:9")
    refuse(tmp_path, "tried http://127.0.0.1:9/good .*--weights FILE")


def test_plain_http_needs_a_full_checksum(server, offer, content, tmp_path):
    offer("good", checksum=f"sha256:{hashlib.sha256(content).hexdigest()[:8]}")
    refuse(tmp_path, "is not https")
    assert server.asked == []


def test_redirect_to_plain_http_needs_a_full_checksum(
    server, offer, content, tmp_path, monkeypatch
):
    offer("moved")
    assert fetch("test", cache=tmp_path / "a", progress=False).is_file()
    offer("moved", checksum=f"sha256:{hashlib.sha256(content).hexdigest()[:8]}")
    may_use = module._may_use
    monkeypatch.setattr(
        module, "_may_use", lambda url, checksum: "moved" in url or may_use(url, checksum)
    )
    refuse(tmp_path / "b", "redirected to .*/good, which is not https")


def test_progress_bar(offer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    offer("good")
    fetch("test", cache=tmp_path)
    captured = capsys.readouterr()
    assert captured.out == "" and "vgg19.h5" in captured.err


def test_download_of_another_network(offer, content, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_module, "CHANNELS", (4, 4, 4, 4, 4))
    offer("good")
    refuse(tmp_path, "conv3_1/kernel has shape")


def test_unknown_source():
    with pytest.raises(InputError, match="expected one of keras, matconvnet"):
        fetch("vgg")


def test_cache_that_cannot_be_written(offer, tmp_path):
    offer("good")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="set NST_JAX_CACHE"):
        fetch("test", cache=tmp_path / "file" / "cache", progress=False)


def test_cache_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path and cached_path("keras").parent == tmp_path
    monkeypatch.delenv("NST_JAX_CACHE")
    assert "nst_jax" in str(cache_dir())


def test_sources_may_be_fetched():
    for name, source in SOURCES.items():
        assert source.urls[0].startswith("https://")
        assert source.preprocessing in ("caffe", "torchvision")
        for url in source.urls:
            assert url.endswith(source.filename), name
            assert module._may_use(url, source.checksum)
