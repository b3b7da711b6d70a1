"""Write files atomically, check output paths before any work, and find the user's cache."""

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

_temporaries: set[Path] = set()  # files and folders being written

_removed_if_empty: set[Path] = set()  # folders to remove if they stay empty


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write, and rename it to ``path`` if the block succeeds.

    The temporary file is in the same folder, because a rename is atomic only within one file
    system. It has the same suffix, and is removed if the block fails.
    """
    path = Path(os.path.realpath(path))  # replace the file that a link points to, not the link
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    _temporaries.add(temporary)
    try:
        yield temporary
        # Without fsync before the rename, a crash of the system may leave an empty file under the
        # new name: the rename may reach the disk before the data.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~umask())  # mkstemp creates files with mode 0600
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


@contextmanager
def temporary_folder(parent: Path, *, prefix: str) -> Iterator[Path]:
    """Yield a new folder, and remove it with its contents at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _temporaries.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _temporaries.discard(folder)


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove a folder at the end of the block if it is empty."""
    _removed_if_empty.add(folder)
    try:
        yield
    finally:
        _removed_if_empty.discard(folder)
        with suppress(OSError):
            folder.rmdir()


def cache_dir() -> Path:
    """Return the per-user cache folder, or the folder named by ``NST_JAX_CACHE``.

    Raises:
      InputError: if its home folder is unknown; see ``expand_home``.
    """
    if folder := os.environ.get(CACHE_VARIABLE):
        return expand_home(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("nst_jax"))


def expand_home(path: str | Path) -> Path:
    """Replace ``~`` or ``~name`` at the beginning of a path by the home folder.

    Raises:
      InputError: if that home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path} begins with an unknown home folder: write the full path"
        ) from None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file by an algorithm of ``hashlib``."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def umask() -> int:
    """Return the process's umask; POSIX can only read it by setting it."""
    with _umask_lock:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def discard_temporaries() -> None:
    """Remove files and folders being written, for a process that ends without cleaning up."""
    for path in list(_temporaries):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for folder in list(_removed_if_empty):
        with suppress(OSError):  # not empty
            folder.rmdir()


def check_output_path(path: Path, *, overwrite: bool, advice: str = "set overwrite") -> None:
    """Check that ``path`` names a file that may be written.

    Args:
      path: the file.
      overwrite: whether the file may exist.
      advice: how to allow overwriting, for the error message.

    Raises:
      InputError: if the file exists and must not be overwritten, if it is a directory, if its
        folder does not exist, or if the file system does not allow its name.
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
    """Check that files can be created in a folder.

    Raises:
      InputError: if they cannot.
    """
    try:
        # Permission bits say nothing about read-only file systems, or for the superuser.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from None


def check_writable(path: Path, *, overwrite: bool, advice: str = "set overwrite") -> None:
    """Check that ``path`` can be written, by ``check_output_path`` and ``check_folder``.

    Raises:
      InputError: as they do.
    """
    check_output_path(path, overwrite=overwrite, advice=advice)
    check_folder(Path(path).parent)


def remove_leftovers(paths: Sequence[Path]) -> None:
    """Remove the temporary files of ``atomic_write`` that killed processes left behind.

    Call it only while no other process writes these files.

    Args:
      paths: the files that were to be written.
    """
    prefixes = {(path.parent, _prefix(path), path.suffix) for path in paths}
    for folder in {path.parent for path in paths}:
        for name in os.listdir(folder):
            stem, suffix = os.path.splitext(name)
            head, dash, random = stem.rpartition("-")
            # mkstemp puts 8 random characters between the prefix and the suffix.
            if len(random) == 8 and (folder, head + dash, suffix) in prefixes:
                (folder / name).unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.stem[:40]}-"  # cut, so that the temporary name is not too long
