"""Download published weights once, verify them and keep them converted in a per-user cache."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

from nst_jax.errors import InputError
from nst_jax.system.files import (
    CACHE_VARIABLE,
    cache_dir,
    expand_home,
    file_digest,
    remove_leftovers,
    temporary_folder,
)
from nst_jax.weights.canonical import write_canonical
from nst_jax.weights.convert import convert
from nst_jax.weights.foreign import MAX_FILE, printable

_CHUNK = 2**18  # bytes

# Client errors (4xx) that may pass: request timeout, too early, too many requests (RFC 9110,
# section 15.5.9; RFC 8470, section 5.2; RFC 6585, section 4).
_TEMPORARY_STATUSES = (408, 425, 429)

_log = logging.getLogger(__name__)


class Published(NamedTuple):
    """A published weights file.

    Attributes:
      urls: addresses, tried in this order.
      filename: the published name.
      checksum: "md5:..." or "sha256:..." of the file.
      preprocessing: "caffe" or "torchvision".
      licence: the terms of use.
      summary: a few words for `list_weights`.
      limit: the most bytes to download.
    """

    urls: tuple[str, ...]
    filename: str
    checksum: str
    preprocessing: str
    licence: str
    summary: str
    limit: int = MAX_FILE


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"

_VLFEAT = "www.vlfeat.org/matconvnet/models/"

# vlfeat.org's certificate has expired before, so plain http is tried too: the checksum decides
# whether the file is the published one.
SOURCES = {
    "keras": Published(
        urls=(_KERAS + "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",),
        filename="vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="md5:253f8cb515780f3b799900260a226db6",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the original network, convolutions only, 80 MB",
    ),
    "matconvnet": Published(
        urls=tuple(f"{s}://{_VLFEAT}imagenet-vgg-verydeep-19.mat" for s in ("https", "http")),
        filename="imagenet-vgg-verydeep-19.mat",
        checksum="md5:106118b7cf60435e6d8e04f6a6dc3657",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the original network in MatConvNet's format, 550 MB",
    ),
    "matconvnet-beta16": Published(
        urls=tuple(
            f"{s}://{_VLFEAT}beta16/imagenet-vgg-verydeep-19.mat" for s in ("https", "http")
        ),
        filename="imagenet-vgg-verydeep-19.mat",
        checksum="md5:8ee3263992981a1d26e73b3ca028a123",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the same in MatConvNet's older format, 550 MB",
    ),
    # PyTorch publishes the first eight digits in the file's name. Several independent projects
    # state the whole checksum.
    "torchvision": Published(
        urls=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
        filename="vgg19-dcbb9e9d.pth",
        checksum="sha256:dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        preprocessing="torchvision",
        licence="BSD-3-Clause",
        summary="torchvision's network, whose features differ from the original's, 575 MB",
    ),
}

DEFAULT_SOURCE = "keras"


def cached_path(source: str, *, cache: Path | None = None) -> Path:
    """Where `fetch` keeps the weights of a source, whether or not they exist."""
    return (cache_dir() if cache is None else cache) / f"vgg19-{source}.safetensors"


def fetch(
    source: str = DEFAULT_SOURCE,
    *,
    cache: str | Path | None = None,
    sources: Mapping[str, Published] = SOURCES,
    retries: int = 3,
    timeout: float = 60,
    show: Callable[[int, int | None], None] = lambda done, total: None,
    say: Callable[[str], None] = _log.info,
) -> Path:
    """Download, verify and convert published weights, unless they are in the cache.

    If another process is fetching the same weights, wait for it and use its file. Proxies and
    certificates come from the environment, as ``requests`` reads them.

    Args:
      source: a name in ``sources``.
      cache: the folder to keep the weights in; the per-user cache if not given.
      sources: what can be fetched, by name; pass another mapping to use a mirror.
      retries: number of further attempts at each address, after 1, 2, 3 ... seconds.
      timeout: seconds to wait for a connection, and between two packets.
      show: called with the bytes received so far and the total, or None if that is unknown.
      say: called with a line of text before a further attempt, and before waiting for another
        process. By default these lines are logged.

    Returns:
      The canonical file in the cache. A failed download leaves nothing behind.

    Raises:
      InputError: for an unknown source, if no address provides the published file, or if the
        cache cannot be written.
    """
    if source not in sources:
        raise InputError(f"expected one of the weights {', '.join(sources)}, got {source!r}")
    folder = cache_dir() if cache is None else expand_home(cache)
    target = cached_path(source, cache=folder)
    if _is_complete(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target, say=say), _scratch_folder(target) as scratch:
            if not _is_complete(target):  # another process may have fetched it meanwhile
                published = sources[source]
                url = _download(
                    published, scratch, retries=retries, timeout=timeout, show=show, say=say
                )
                _convert_download(published, scratch / published.filename, url, target)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {folder} ({error.strerror or error}): free some space, "
            f"make the folder writable, or set {CACHE_VARIABLE} to another folder"
        ) from error
    return target


def _is_complete(path: Path) -> bool:
    """Whether a canonical file exists and matches its own checksum."""
    try:
        convert(path)
    except InputError:
        return False
    return True


@contextmanager
def _locked(target: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file in the cache.

    The operating system releases the lock of a killed process.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.stem}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching {target.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        # Removed while it is still locked: `FileLock` in a waiting process sees that the file is
        # gone and creates a new one. Removed after the release, a third process could lock the
        # new file while the second still holds the old one.
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside the target, and remove those left by killed processes."""
    prefix = f".fetch-{target.stem}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    remove_leftovers([target])
    with temporary_folder(target.parent, prefix=prefix) as folder:
        yield folder


def _convert_download(source: Published, file: Path, url: str, target: Path) -> None:
    """Convert a downloaded file into the cache and record its origin."""
    converted = convert(file, preprocessing=source.preprocessing)
    record = replace(
        converted.record,
        source=f"{url} ({converted.form})",
        source_md5=file_digest(file, "md5"),
    )
    write_canonical(target, converted.arrays, record, overwrite=True)


class _PermanentError(Exception):
    """This address will never provide the file; the message says why."""


def _download(
    source: Published,
    folder: Path,
    *,
    retries: int,
    timeout: float,
    show: Callable[[int, int | None], None],
    say: Callable[[str], None],
) -> str:
    """Download from the first address that provides the published file; return that address."""
    import pooch
    import requests

    failures = []
    for url in source.urls:
        attempts = count()

        def get(url: str, file: str, _: Any, attempts: Iterator[int] = attempts) -> None:
            if next(attempts):
                say(f"trying {url} again")
            _get(url, Path(file), limit=source.limit, timeout=timeout, show=show)

        files = pooch.create(
            path=folder,
            base_url="",
            registry={source.filename: source.checksum},
            urls={source.filename: url},
            retry_if_failed=retries,
        )
        try:
            with _quiet(pooch.get_logger()):
                # pooch's annotation of ``downloader`` names only its own classes.
                files.fetch(source.filename, downloader=cast(Any, get))
        # pooch raises ValueError for a wrong checksum.
        except (_PermanentError, requests.RequestException, ValueError) as error:
            failures.append(f"{url} ({_describe_error(error, source)})")
        else:
            return url
    raise InputError(
        f"cannot download {source.filename}: tried {'; '.join(failures)}; check the connection, "
        f"or get that file ({source.checksum}) by other means and give its path as the weights"
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Suppress the lines that pooch logs for every file."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _get(
    url: str,
    file: Path,
    *,
    limit: int,
    timeout: float,
    show: Callable[[int, int | None], None],
) -> None:
    """Download an address to a file of at most ``limit`` bytes."""
    import requests

    # Without compression, Content-Length is the length of the file itself.
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if 400 <= response.status_code < 500 and response.status_code not in _TEMPORARY_STATUSES:
            raise _PermanentError(f"{response.status_code} {response.reason}")
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and len(length) < 19 else None
        with file.open("wb") as out:
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                if out.tell() > limit:
                    raise _PermanentError(f"it sends more than {limit} bytes")
                show(out.tell(), total)


def _describe_error(error: Exception, source: Published) -> str:
    """Why an address did not provide the file, in a few words."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no response in time"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {printable(error.response.reason or '', 60)}"
    # Only this class: its text is long and nested. Subclasses such as SSLError keep theirs.
    if type(error) is requests.ConnectionError:
        return "no connection, or it broke"
    if isinstance(error, _PermanentError):
        return printable(str(error))
    if isinstance(error, requests.RequestException):
        return printable(f"{type(error).__name__}: {error}", 120)
    return f"its {source.checksum.split(':')[0]} differs from the published file's"
