"""Download the published weights once, check them and keep them converted in a per-user cache."""

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
    expanded,
    file_digest,
    remove_leftovers,
    temporary_folder,
)
from nst_jax.weights.canonical import write_canonical
from nst_jax.weights.convert import convert
from nst_jax.weights.foreign import MAX_FILE, printable

_PIECE = 2**18  # bytes

_PASSING = (408, 425, 429)  # statuses of a server that may give the file later

_log = logging.getLogger(__name__)


class Published(NamedTuple):
    """A published file. ``checksum`` is "md5:..." or "sha256:...", ``limit`` in bytes."""

    urls: tuple[str, ...]
    filename: str
    checksum: str
    preprocessing: str
    licence: str
    summary: str
    limit: int = MAX_FILE


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"

_VLFEAT = "www.vlfeat.org/matconvnet/models/"

# vlfeat.org is also tried by plain http: its certificate has expired before, and the checksum
# settles what was received.
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
        summary="the original network as MatConvNet has it, 550 MB",
    ),
    "matconvnet-beta16": Published(
        urls=tuple(
            f"{s}://{_VLFEAT}beta16/imagenet-vgg-verydeep-19.mat" for s in ("https", "http")
        ),
        filename="imagenet-vgg-verydeep-19.mat",
        checksum="md5:8ee3263992981a1d26e73b3ca028a123",
        preprocessing="caffe",
        licence="CC BY 4.0",
        summary="the same in the older MatConvNet format, 550 MB",
    ),
    # PyTorch publishes the first eight digits, in the file's name; the others are those that
    # several projects, independent of each other, state for the file.
    "torchvision": Published(
        urls=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
        filename="vgg19-dcbb9e9d.pth",
        checksum="sha256:dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        preprocessing="torchvision",
        licence="BSD-3-Clause",
        summary="the network that torchvision trained, other features than the original, 575 MB",
    ),
}

DEFAULT_SOURCE = "keras"


def cached_path(source: str, *, cache: Path | None = None) -> Path:
    """Where `fetch` keeps the weights of a source, whether they are there or not."""
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
    """Download, check and convert published weights, unless the cache has them.

    Where another process fetches the same, it is waited for and what it has got is taken.
    Proxies and certificates are those of the environment, as ``requests`` reads them.

    Args:
      source: a name in ``sources``.
      cache: the folder to keep them in; the per-user cache if not given.
      sources: what can be fetched, by name; others than `SOURCES` for a mirror.
      retries: further attempts at each address, after 1, 2, 3 ... seconds.
      timeout: seconds to connect, and between two packets, after which an attempt has failed.
      show: called with the bytes received so far, and those to come in all where that is known.
      say: called with a line of text where something takes longer: a further attempt, or another
        process that fetches the same. By default these lines are logged.

    Returns:
      The canonical file in the cache. A download that fails leaves nothing behind.

    Raises:
      InputError: for an unknown source, where no address gives the expected file, or where the
        cache cannot be written.
    """
    if source not in sources:
        raise InputError(f"unknown weights {source!r}: expected one of {', '.join(sources)}")
    folder = cache_dir() if cache is None else expanded(cache)
    target = cached_path(source, cache=folder)
    if _is_complete(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(target, say=say), _scratch(target) as scratch:
            if not _is_complete(target):  # by now
                published = sources[source]
                url = _download(
                    published, scratch, retries=retries, timeout=timeout, show=show, say=say
                )
                _keep(published, scratch / published.filename, url, target)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {folder} ({error.strerror or error}): make room or get "
            f"the right to write there, or set {CACHE_VARIABLE} to a folder of yours"
        ) from error
    return target


def _is_complete(path: Path) -> bool:
    """Whether a file is there and whole, by its own checksum."""
    try:
        convert(path)
    except InputError:
        return False
    return True


@contextmanager
def _alone(target: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file in the cache. The system frees that of a process that is killed."""
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
        # Removed while it is held: who waited for it finds that it is gone, and makes another.
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the target while it is fetched; what killed processes left is removed."""
    prefix = f".fetch-{target.stem}-"
    for left in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    remove_leftovers([target])
    with temporary_folder(target.parent, prefix=prefix) as folder:
        yield folder


def _keep(source: Published, file: Path, url: str, target: Path) -> None:
    """Convert a downloaded file into the cache, with a record of where it comes from."""
    converted = convert(file, preprocessing=source.preprocessing)
    record = replace(
        converted.record,
        source=f"{url} ({converted.form})",
        source_md5=file_digest(file, "md5"),
    )
    write_canonical(target, converted.arrays, record, overwrite=True)


class _Refused(Exception):
    """This address does not give the file, whenever it is asked; the message is the reason."""


def _download(
    source: Published,
    folder: Path,
    *,
    retries: int,
    timeout: float,
    show: Callable[[int, int | None], None],
    say: Callable[[str], None],
) -> str:
    """Download from the first address that gives the published file, and return that address."""
    import pooch
    import requests

    tried = []
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
                files.fetch(source.filename, downloader=cast(Any, get))  # its type names others
        # A ValueError where the checksum is another one.
        except (_Refused, requests.RequestException, ValueError) as error:
            tried.append(f"{url} ({_in_words(error, source)})")
        else:
            return url
    raise InputError(
        f"cannot download {source.filename}: tried {'; '.join(tried)}; check the connection, or "
        f"get that file ({source.checksum}) by other means and name it as the weights"
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the lines that pooch prints of every file."""
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
    """Write what an address gives to a file, up to a limit in bytes."""
    import requests

    # Not compressed, so that the length is that of the file.
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if 400 <= answer.status_code < 500 and answer.status_code not in _PASSING:
            raise _Refused(f"{answer.status_code} {answer.reason}")
        answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and len(length) < 19 else None
        with file.open("wb") as out:
            for piece in answer.iter_content(_PIECE):
                out.write(piece)
                if out.tell() > limit:
                    raise _Refused(f"it sends more than {limit} bytes")
                show(out.tell(), total)


def _in_words(error: Exception, source: Published) -> str:
    """Why an address did not give the file, in a few words."""
    import requests

    if isinstance(error, requests.Timeout):
        return "it does not answer in time"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {printable(error.response.reason or '', 60)}"
    if type(error) is requests.ConnectionError:
        return "no connection, or it broke"  # its own text is long and nested
    if isinstance(error, _Refused):
        return printable(str(error))
    if isinstance(error, requests.RequestException):
        return printable(f"{type(error).__name__}: {error}", 120)
    return f"its {source.checksum.split(':')[0]} is not that of the published file"
