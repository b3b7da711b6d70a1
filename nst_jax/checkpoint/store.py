"""Read and write the checkpoints of a run atomically: arrays, plain data and input files.

Contract: a checkpoint is a folder such as ``checkpoint-00000003`` with ``arrays.safetensors``,
``run.json`` and ``manifest.json``. Beside it, ``checkpoint-inputs`` holds copies of the files that
the run reads. The manifest lists the SHA-256 of each file. Only one run at a time uses the parent
folder. Nothing here needs JAX, and nothing is unpickled.
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.files import file_digest, temporary_folder, umask
from nst_jax.system.streams import STANDARD, standard_input

FORMAT = 2

CHECKPOINTS_KEPT = 2

LOCK = ".lock"

INPUTS, ARRAYS, RECORD, MANIFEST = (
    "checkpoint-inputs",
    "arrays.safetensors",
    "run.json",
    "manifest.json",
)

_NAME = re.compile(r"checkpoint-(\d{8,})")

_MAX_JSON = 2**26  # bytes; a run writes some thousands


class Saved(NamedTuple):
    """A checkpoint from ``load``.

    Attributes:
      record: the plain data.
      arrays: the arrays by name.
      inputs: the SHA-256 of the copied input files, by their paths relative to the parent folder.
      path: the folder of the checkpoint.
      damaged: a message for each newer checkpoint that was skipped because it is damaged.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]
    inputs: dict[str, str]
    path: Path
    damaged: tuple[str, ...]


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first; none if the folder does not exist.

    Raises:
      InputError: if the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    found = [folder / name for name in names if _NAME.fullmatch(name)]
    return sorted(found, key=lambda path: (_number(path), path))


def _number(path: Path) -> int:
    """Return a checkpoint's number; as text, ``checkpoint-100000000`` would sort too early."""
    return int(path.name.removeprefix("checkpoint-"))


def clear(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, and unfinished ones of killed runs.

    Raises:
      OSError: if they cannot be removed.
    """
    for path in checkpoints(folder):
        remove(path)
    remove_unfinished(folder)
    (folder / f"{INPUTS}.safetensors").unlink(missing_ok=True)  # format 1
    if os.path.isdir(folder / INPUTS):
        remove(folder / INPUTS)


def remove_damaged(saved: Saved) -> None:
    """Remove the damaged checkpoints that ``load`` skipped.

    Otherwise ``save``, which keeps the newest ones, would remove an undamaged one instead.
    """
    with suppress(OSError):
        for path in checkpoints(saved.path.parent):
            if _number(path) > _number(saved.path):
                remove(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left half-written or half-removed."""
    for name in os.listdir(folder):
        if re.fullmatch(r"\.checkpoint-\w{8}", name):
            shutil.rmtree(folder / name, ignore_errors=True)


def copied_names(inputs: Sequence[Path]) -> dict[Path, str]:
    """Map a run's input files to the paths of their copies, relative to the parent folder.

    >>> copied_names([Path("a.png"), Path("-"), Path("a.png")])[Path("-")]
    'checkpoint-inputs/01'
    """
    return {
        path: f"{INPUTS}/{number:02}{path.suffix[:10]}"
        for number, path in enumerate(dict.fromkeys(inputs))
    }


def begin(folder: Path, inputs: Sequence[Path] = ()) -> dict[str, str]:
    """Prepare a folder for the checkpoints of a new run, and copy its input files to it.

    Args:
      folder: the parent folder of the checkpoints; those of an earlier run are removed.
      inputs: files, or ``-`` for standard input.

    Returns:
      The SHA-256 of each copy, for ``save``.

    Raises:
      InputError: if the folder cannot be written.
    """
    try:
        clear(folder)
        if not inputs:
            return {}
        with temporary_folder(folder, prefix=".checkpoint-") as temporary:
            for path, name in copied_names(inputs).items():
                copy = temporary / Path(name).name
                if path == STANDARD:
                    copy.write_bytes(standard_input())
                else:
                    shutil.copyfile(path, copy)
                _fsync(copy)
            temporary.chmod(0o777 & ~umask())  # mkdtemp creates folders with mode 0700
            os.replace(temporary, folder / INPUTS)
        return {name: file_digest(folder / name) for name in copied_names(inputs).values()}
    except OSError as error:
        raise _unwritable(folder, error) from None


def save(
    folder: Path,
    record: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, str],
) -> Path:
    """Write a checkpoint atomically, and remove all earlier ones except the newest.

    All bytes are on the disk before the checkpoint gets its name.

    Args:
      folder: the parent folder of the checkpoints.
      record: plain data; NaN and infinity are allowed.
      arrays: arrays by name, of any type except bfloat16.
      inputs: from ``begin``.

    Returns:
      The folder of the checkpoint.

    Raises:
      OSError: if it cannot be written; earlier checkpoints stay.
    """
    before = checkpoints(folder)
    path = folder / f"checkpoint-{_number(before[-1]) + 1 if before else 0:08}"
    with temporary_folder(folder, prefix=".checkpoint-") as temporary:
        _write_arrays(temporary / ARRAYS, arrays)
        (temporary / RECORD).write_text(json.dumps(record), "utf-8")
        digests = {name: file_digest(temporary / name) for name in (ARRAYS, RECORD)}
        files = digests | dict(inputs)
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}), "utf-8")
        # The files, and then the folder, whose entries are data of their own (man 2 fsync).
        for name in (ARRAYS, RECORD, MANIFEST, ""):
            _fsync(temporary / name)
        for name in (ARRAYS, RECORD, MANIFEST):
            (temporary / name).chmod(0o666 & ~umask())
        temporary.chmod(0o777 & ~umask())  # mkdtemp creates folders with mode 0700
        os.replace(temporary, path)
    with suppress(OSError):  # some file systems cannot sync folders; the checkpoint exists anyway
        _fsync(folder)
    with suppress(OSError):
        for old in before[: 1 - CHECKPOINTS_KEPT]:
            remove(old)
    return path


def load(folder: Path) -> Saved:
    """Load the newest undamaged checkpoint.

    Raises:
      InputError: if there is none, if the newest has another format, or if it cannot be read now
        (for example without permission), which does not mean that it is damaged.
    """
    found = checkpoints(folder)
    if not found:
        reason = "" if os.path.isdir(folder) else ", which does not exist"
        raise InputError(f"nothing was saved in {folder}{reason}: start a new run")
    damaged: list[str] = []
    for path in reversed(found):
        try:
            record, arrays, inputs = _read(path)
            return Saved(record, arrays, inputs, path, tuple(damaged))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # damaged files may raise almost any type
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                # The checkpoint may be undamaged: resuming from an earlier one would remove it.
                raise InputError(
                    f"cannot read {error.filename or path} ({error.strerror or error}): make it "
                    "readable, or try again later"
                ) from None
            reason = " ".join(f"{error}".split())[:120] or type(error).__name__
            damaged.append(f"{path.name} is damaged ({reason})")
    raise InputError(
        f"no checkpoint in {folder} is undamaged: {'; '.join(damaged)}: start a new run"
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    manifest = _read_json(path / MANIFEST)
    if manifest["format"] != FORMAT:
        raise _other_format(path, manifest["format"])
    files = manifest["files"]
    inputs = {name: digest for name, digest in files.items() if name.startswith(f"{INPUTS}/")}
    contents = {name: files[name] for name in (ARRAYS, RECORD)}
    for name, digest in (contents | inputs).items():
        file = path / name if name in contents else path.parent / name
        if not _is_file(file):
            raise ValueError(f"{name} is missing or not a file")
        if file_digest(file) != digest:
            raise ValueError(f"the checksum of {name} does not match")
    return _read_json(path / RECORD), _read_arrays(path / ARRAYS), inputs


def _other_format(path: Path, found: Any) -> InputError:
    try:
        writer = f"nst_jax {_read_json(path / RECORD)['versions']['nst_jax']!s:.40}"
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        writer = "another nst_jax"
    return InputError(
        f"{path} was written by {writer} in format {found!s:.40}: expected format {FORMAT}; resume "
        "with that nst_jax, or start a new run"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not _is_file(path):
        raise ValueError(f"{path.name} is missing or not a file")
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path.name} is too large")
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _is_file(path: Path) -> bool:
    """Whether a path is a regular file; reading from a pipe would wait forever.

    Raises:
      OSError: if that cannot be determined, where ``Path.is_file`` of some Pythons returns False.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # ascontiguousarray makes scalars one-dimensional, hence the reshape.
    contiguous = {
        name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()
    }
    try:
        save_file(contiguous, path)
    except SafetensorError as error:  # also raised for a full disk, with the number in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder atomically: rename it before its files are removed one by one."""
    away = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=path.parent))
    os.replace(path, away / path.name)
    shutil.rmtree(away)


@contextmanager
def locked(folder: Path | None, *, resumed: bool = False) -> Iterator[None]:
    """Lock a folder of checkpoints against other runs, and create it if it is missing.

    The lock belongs to the process, so that a killed run releases it.

    Args:
      folder: the parent folder of the checkpoints, or None to lock nothing.
      resumed: whether a run is resumed there; the error then does not suggest another folder.

    Raises:
      InputError: if another run has the lock, or the folder cannot be written.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        advice = "" if resumed else ", or choose another folder"
        raise InputError(
            f"another run has the checkpoints in {folder}: wait until it ends{advice}"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error, resumed=resumed) from None
    try:
        yield
    finally:
        with suppress(OSError):  # before releasing, so that no other run has locked this file
            (folder / LOCK).unlink()
        lock.release()


def _unwritable(folder: Path, error: OSError, *, resumed: bool = False) -> InputError:
    reason = f"cannot write a checkpoint to {folder} ({error.strerror})"
    if resumed:
        return InputError(f"{reason}: make it writable, or copy it and resume from the copy")
    return InputError(f"{reason}: choose another folder")
