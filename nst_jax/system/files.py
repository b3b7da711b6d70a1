"""Files: written whole or not at all, checked before any work; the user's cache."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nst_jax.errors import InputError

CACHE_VARIABLE = "NST_JAX_CACHE"

_umask_lock = threading.Lock()

_temporaries: set[Path] = set()  # files and folders that are being written

_made: set[Path] = set()  # folders that are removed where they stay empty


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it into place if the block ends well.

    The temporary file has the same suffix, and is removed where the block fails. It is moved only
    when its bytes are on the disk, so that a crash leaves no empty file either.
    """
    path = Path(os.path.realpath(path))  # of a link the file that it points to is replaced
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    _temporaries.add(temporary)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~umask())  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


@contextmanager
def temporary_folder(parent: Path, *, prefix: str) -> Iterator[Path]:
    """Give a folder for what is on its way, which is removed at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _temporaries.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _temporaries.discard(folder)


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove a folder at the end of the block where nothing has been written to it."""
    _made.add(folder)
    try:
        yield
    finally:
        _made.discard(folder)
        with suppress(OSError):
            folder.rmdir()


def cache_dir() -> Path:
    """The per-user folder of what can be had again, or the one in ``NST_JAX_CACHE``.

    Raises:
      InputError: as ``expanded``.
    """
    if folder := os.environ.get(CACHE_VARIABLE):
        return expanded(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("nst_jax"))


def expanded(path: str | Path) -> Path:
    """A path with ``~`` or ``~name`` at its beginning replaced.

    Raises:
      InputError: where nobody knows that home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} begins with no known home: write the whole path") from None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file, by "sha256" or, for example, "md5"."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def umask() -> int:
    """The process's umask, which is read by setting it."""
    with _umask_lock:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def discard_temporaries() -> None:
    """Remove what is being written: for a process that ends without its clean-up."""
    for path in list(_temporaries):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for folder in list(_made):
        with suppress(OSError):  # something is in it
            folder.rmdir()


def check_free(path: Path, *, overwrite: bool, advice: str = "set overwrite") -> None:
    """Check that ``path`` names a file that may be written.

    Args:
      path: the file.
      overwrite: whether it may be there.
      advice: how its overwriting is allowed.

    Raises:
      InputError: where it exists and may not be overwritten, is a directory, has a name that the
        file system refuses, or lies in no folder.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected the name of a file to write")
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path} exists: choose another output name, or {advice}")
    if not os.path.isdir(path.parent):
        raise InputError(f"the folder {path.parent} of {path.name} does not exist: create it first")
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def check_folder(folder: Path) -> None:
    """Check that files can be made in a folder.

    Raises:
      InputError: where they cannot.
    """
    try:
        # Permission bits do not tell for read-only file systems, nor for the superuser.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from None


def check_writable(path: Path, *, overwrite: bool, advice: str = "set overwrite") -> None:
    """Check, before any work, that ``path`` can be written; see ``check_free``, ``check_folder``.

    Raises:
      InputError: as they do.
    """
    check_free(path, overwrite=overwrite, advice=advice)
    check_folder(Path(path).parent)


def remove_leftovers(paths: Sequence[Path]) -> None:
    """Remove temporary files that killed writers of these files have left in their folders.

    Only where no other process writes to files with such names.
    """
    prefixes = {(path.parent, _prefix(path), path.suffix) for path in paths}
    for folder in {path.parent for path in paths}:
        for name in os.listdir(folder):
            stem, suffix = os.path.splitext(name)
            head, dash, random = stem.rpartition("-")
            if len(random) == 8 and (folder, head + dash, suffix) in prefixes:
                (folder / name).unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.stem[:40]}-"  # of a long name a part, so that the temporary one fits too
