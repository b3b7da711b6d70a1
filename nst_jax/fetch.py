"""Download the published weights once, check them and keep them converted in a per-user cache."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from nst_jax.canonical import write_canonical
from nst_jax.convert import convert, file_digest
from nst_jax.errors import InputError

CACHE_VARIABLE = "NST_JAX_CACHE"
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data


class Source(NamedTuple):
    """A published file. ``checksum`` is "md5:...", or "sha256:..." with at least 8 digits."""

    urls: tuple[str, ...]
    filename: str
    checksum: str
    preprocessing: str
    licence: str
    summary: str


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
_VLFEAT = "www.vlfeat.org/matconvnet/models/"

# vlfeat.org is also tried by plain http: its certificate has expired before, and the checksum
# settles what was received.
SOURCES = {
    "keras": Source(
        urls=(_KERAS + "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",),
        filename="vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="md5:253f8cb515780f3b799900260a226db6",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the original network, convolutions only, 80 MB",
    ),
    "matconvnet": Source(
        urls=tuple(f"{s}://{_VLFEAT}imagenet-vgg-verydeep-19.mat" for s in ("https", "http")),
        filename="imagenet-vgg-verydeep-19.mat",
        checksum="md5:106118b7cf60435e6d8e04f6a6dc3657",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the original network as MatConvNet has it, 550 MB",
    ),
    "matconvnet-beta16": Source(
        urls=tuple(
            f"{s}://{_VLFEAT}beta16/imagenet-vgg-verydeep-19.mat" for s in ("https", "http")
        ),
        filename="imagenet-vgg-verydeep-19.mat",
        checksum="md5:8ee3263992981a1d26e73b3ca028a123",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the same in the older MatConvNet format, 550 MB",
    ),
    "torchvision": Source(
        urls=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
        filename="vgg19-dcbb9e9d.pth",
        checksum="sha256:dcbb9e9d",
        preprocessing="torchvision",
        licence="BSD-3-Clause",
        summary="the network that torchvision trained, other features than the original, 575 MB",
    ),
}
DEFAULT_SOURCE = "keras"


def cache_dir() -> Path:
    """The per-user folder of converted weights, or the one in ``NST_JAX_CACHE``."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("nst_jax"))


def cached_path(source: str, *, cache: Path | None = None) -> Path:
    """Where `fetch` keeps the weights of a source, whether they are there or not."""
    return (cache_dir() if cache is None else cache) / f"vgg19-{source}.safetensors"


def fetch(
    source: str = DEFAULT_SOURCE, *, cache: str | Path | None = None, progress: bool = True
) -> Path:
    """Download, check and convert published weights, unless the cache has them.

    Args:
      source: a name in `SOURCES`.
      cache: the folder to keep them in; the per-user cache if not given.
      progress: whether to show a progress bar on standard error.

    Returns:
      The canonical file in the cache. A download that fails leaves nothing behind.

    Raises:
      InputError: for an unknown source, or where no address gives the expected file.
    """
    if source not in SOURCES:
        raise InputError(f"unknown weights {source!r}: expected one of {', '.join(SOURCES)}")
    folder = cache_dir() if cache is None else Path(cache).expanduser()
    target = cached_path(source, cache=folder)
    if _is_complete(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {folder} ({error.strerror}): set {CACHE_VARIABLE} to a "
            "folder of yours"
        ) from error
    try:
        file = scratch / SOURCES[source].filename
        url = _download(SOURCES[source], file, progress=progress)
        converted = convert(file, preprocessing=SOURCES[source].preprocessing)
        record = replace(
            converted.record,
            source=f"{url} ({converted.form})",
            source_md5=file_digest(file, "md5"),
        )
        write_canonical(target, converted.arrays, record, overwrite=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _is_complete(path: Path) -> bool:
    """Whether a file is there and whole, by its own checksum."""
    try:
        convert(path)
    except InputError:
        return False
    return True


def _download(source: Source, file: Path, *, progress: bool) -> str:
    """Download from the first address that gives the expected file, and return that address."""
    tried = []
    for url in source.urls:
        if not _may_use(url, source.checksum):
            raise InputError(
                f"{url} is not https, and {source.checksum!r} is no full checksum: expected one "
                "of the two"
            )
        try:
            with _progress_bar(file.name, show=progress) as bar:
                _get(url, file, source.checksum, bar)
        except Exception as error:  # requests, urllib3, ssl and sockets each raise their own
            tried.append(f"{url} ({_reason(error)})")
            continue
        algorithm, expected = source.checksum.split(":")
        found = file_digest(file, algorithm)
        if found.startswith(expected):
            return url
        tried.append(f"{url} ({algorithm} is {found}, expected {expected})")
    raise InputError(
        f"cannot download {source.filename}: tried {'; '.join(tried)}; check the connection, or "
        f"get that file ({source.checksum}) by other means and pass --weights FILE"
    )


def _may_use(url: str, checksum: str) -> bool:
    """Plain http only where a full checksum tells whether the file was changed on its way."""
    algorithm, digits = checksum.split(":")
    return url.startswith("https://") or len(digits) == {"md5": 32, "sha256": 64}[algorithm]


def _get(url: str, file: Path, checksum: str, bar: Any) -> None:
    import pooch

    def check_redirect(response: Any, *_: Any, **__: Any) -> None:
        if not _may_use(response.url, checksum):
            raise InputError(f"redirected to {response.url}, which is not https")

    pooch.get_logger().setLevel(logging.ERROR)
    # pooch does not use the third argument here: it is for downloads that belong to a registry.
    pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT, hooks={"response": check_redirect})(
        url, str(file), None
    )


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.ConnectionError):
        return "no connection"  # its own text is long and nested
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@contextmanager
def _progress_bar(name: str, *, show: bool) -> Iterator[Any]:
    """A progress bar as pooch wants it: with ``total``, ``update``, ``reset`` and ``close``."""
    if not show:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(name, total=None)
        bar = SimpleNamespace(total=0, reset=lambda: shown.reset(task), close=lambda: None)
        bar.update = lambda size: shown.update(task, advance=size, total=bar.total or None)
        yield bar
