"""Download the published weights once, check them and keep them converted in a per-user cache."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nst_jax.canonical import write_canonical
from nst_jax.convert import convert, file_digest
from nst_jax.download import Failed, download
from nst_jax.errors import InputError
from nst_jax.files import expanded, remove_leftovers
from nst_jax.stored import MAX_FILE

CACHE_VARIABLE = "NST_JAX_CACHE"


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
        return expanded(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("nst_jax"))


def cached_path(source: str, *, cache: Path | None = None) -> Path:
    """Where `fetch` keeps the weights of a source, whether they are there or not."""
    return (cache_dir() if cache is None else cache) / f"vgg19-{source}.safetensors"


def fetch(
    source: str = DEFAULT_SOURCE, *, cache: str | Path | None = None, progress: bool = True
) -> Path:
    """Download, check and convert published weights, unless the cache has them.

    Where another process fetches the same, it is waited for and what it has got is taken.

    Args:
      source: a name in `SOURCES`.
      cache: the folder to keep them in; the per-user cache if not given.
      progress: whether to show a progress bar on standard error, and to tell of further attempts.

    Returns:
      The canonical file in the cache. A download that fails leaves nothing behind.

    Raises:
      InputError: for an unknown source, where no address gives the expected file, or where the
        cache cannot be written.
    """
    if source not in SOURCES:
        raise InputError(f"unknown weights {source!r}: expected one of {', '.join(SOURCES)}")
    folder = cache_dir() if cache is None else expanded(cache)
    target = cached_path(source, cache=folder)
    if _is_complete(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(target, progress=progress):
            if not _is_complete(target):  # by now
                _fetch(SOURCES[source], target, progress=progress)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {folder} ({error.strerror or error}): make room or get "
            f"the right to write there, or set {CACHE_VARIABLE} to a folder of yours"
        ) from error
    return target


def _fetch(source: Source, target: Path, *, progress: bool) -> None:
    prefix = f".fetch-{target.stem}-"
    for left in target.parent.glob(f"{prefix}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    remove_leftovers([target])
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        file = scratch / source.filename
        url = _download(source, file, progress=progress)
        converted = convert(file, preprocessing=source.preprocessing)
        record = replace(
            converted.record,
            source=f"{url} ({converted.form})",
            source_md5=file_digest(file, "md5"),
        )
        write_canonical(target, converted.arrays, record, overwrite=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _alone(target: Path, *, progress: bool) -> Iterator[None]:
    """Hold the lock of a file in the cache. The system frees that of a process that is killed."""
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.stem}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process is fetching {target.name}: waiting for it", progress=progress)
        lock.acquire()
    try:
        yield
    finally:
        # Removed while it is held: who waited for it finds that it is gone, and makes another.
        with suppress(OSError):
            path.unlink()
        lock.release()


def _is_complete(path: Path) -> bool:
    """Whether a file is there and whole, by its own checksum."""
    try:
        convert(path)
    except InputError:
        return False
    return True


def _download(source: Source, file: Path, *, progress: bool) -> str:
    """Download from the first address that gives the expected file, and return that address."""
    algorithm, expected = source.checksum.split(":")
    tried = []
    for url in source.urls:
        if not _may_use(url, source.checksum):
            raise InputError(
                f"{url} is not https, and {source.checksum!r} is no full checksum: expected one "
                "of the two"
            )
        try:
            for resume in (True, False):
                pieces = _get(url, file, source.checksum, resume=resume, progress=progress)
                found = file_digest(file, algorithm)
                if found.startswith(expected):
                    return url
                file.unlink()
                if not (pieces and resume):  # else they may be of different files
                    break
                _say(f"{url}: the pieces do not fit; beginning anew", progress=progress)
        except Failed as failed:
            tried.append(f"{url} ({failed})")
            continue
        tried.append(f"{url} ({algorithm} is {found}, expected {expected})")
    raise InputError(
        f"cannot download {source.filename}: tried {'; '.join(tried)}; check the connection, or "
        f"get that file ({source.checksum}) by other means and pass --weights FILE"
    )


def _may_use(url: str, checksum: str) -> bool:
    """Plain http only where a full checksum tells whether the file was changed on its way."""
    algorithm, digits = checksum.split(":")
    return url.startswith("https://") or len(digits) == {"md5": 32, "sha256": 64}[algorithm]


def _get(url: str, file: Path, checksum: str, *, resume: bool, progress: bool) -> bool:
    def check_redirect(address: str) -> None:
        if not _may_use(address, checksum):
            raise Failed(f"redirected to {address}, which is not https")

    def say(text: str) -> None:
        _say(text, progress=progress)

    with _progress_bar(file.name, show=progress) as show:
        return download(
            url,
            file,
            limit=MAX_FILE,
            resume=resume,
            check_url=check_redirect,
            show=show,
            say=say,
        )


def _say(text: str, *, progress: bool) -> None:
    if progress:
        print(f"nst-jax: {text}", file=sys.stderr)


@contextmanager
def _progress_bar(name: str, *, show: bool) -> Iterator[Any]:
    """A progress bar: a function of the bytes that are there, and of all or None."""
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
