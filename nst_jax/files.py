"""Writing files whole or not at all. Standard library only."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nst_jax.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it into place if the block ends well.

    The temporary file has the same suffix, and is removed where the block fails.
    """
    path = Path(os.path.realpath(path))  # of a link the file that it points to is replaced
    prefix = f".{path.stem[:40]}-"  # of a long name a part, so that this one fits too
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Check that ``path`` names a file that may be written.

    Raises:
      InputError: where it exists and may not be overwritten, is a directory, has a name that the
        file system refuses, or lies in no folder.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected the name of a file to write")
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path} exists: choose another output name, or give --overwrite")
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


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any work, that ``path`` can be written; see ``check_free``, ``check_folder``.

    Raises:
      InputError: as they do.
    """
    check_free(path, overwrite=overwrite)
    check_folder(Path(path).parent)
