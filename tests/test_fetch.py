"""Downloads against a local server: good, wrong, interrupted, missing, repeated."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import weight_files as files

from nst_jax import fetch as module
from nst_jax import shapes as shapes_module
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
    """A server of /good, /wrong, /dropped and /moved; it counts what was asked for."""
    monkeypatch.setattr(shapes_module, "CHANNELS", files.SMALL)
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/good")
                self.end_headers()
                return
            if self.path not in ("/good", "/wrong", "/dropped"):
                self.send_error(404)
                return
            body = content if self.path != "/wrong" else b"<html>" + content
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.path != "/dropped" else body[: len(body) // 2])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", asked=asked)
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
    refuse(tmp_path, "IncompleteRead|ChunkedEncoding|Connection")


@pytest.mark.parametrize("first", ["missing", "wrong", "dropped"])
def test_addresses_are_tried_in_turn(server, offer, tmp_path, first):
    offer(first, "good")
    assert fetch("test", cache=tmp_path, progress=False).is_file()
    assert server.asked == [f"/{first}", "/good"]


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
