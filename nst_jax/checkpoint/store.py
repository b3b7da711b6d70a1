"""Checkpoints of a run in a folder: arrays, plain data and input files, whole or not at all.

Contract: a checkpoint is a folder ``checkpoint-00000003`` with ``arrays.safetensors``,
``run.json`` and ``manifest.json``; beside it is ``checkpoint-inputs`` with copies of the files that
the run reads. The manifest has the sha256 of each file. One run at a time has the folder. Nothing
here needs JAX, nothing is unpickled.
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

KEPT = 2

LOCK = ".lock"

INPUTS, ARRAYS, RECORD, MANIFEST = (
    "checkpoint-inputs",
    "arrays.safetensors",
    "run.json",
    "manifest.json",
)

_NAME = re.compile(r"checkpoint-(\d{8,})")

_LARGEST_JSON = 2**26  # bytes; those of a run have some thousands


class Saved(NamedTuple):
    """What ``load`` found.

    Attributes:
      record: plain data.
      arrays: of this checkpoint.
      inputs: the sha256 of the copies of the run's input files, by their paths in the folder.
      path: its folder.
      damaged: newer ones that were passed over, and why.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]
    inputs: dict[str, str]
    path: Path
    damaged: tuple[str, ...]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none where there is no such folder.

    Raises:
      InputError: where the folder cannot be read.
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
    """Which checkpoint it is: as text, ``checkpoint-100000000`` would be before 99999999."""
    return int(path.name.removeprefix("checkpoint-"))


def clear(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, and what killed runs have left half-written.

    Raises:
      OSError: where that is not possible.
    """
    for path in checkpoints(folder):
        remove(path)
    remove_unfinished(folder)
    (folder / f"{INPUTS}.safetensors").unlink(missing_ok=True)  # of format 1
    if os.path.isdir(folder / INPUTS):
        remove(folder / INPUTS)


def remove_damaged(saved: Saved) -> None:
    """Remove the checkpoints that ``load`` has passed over, so that no sound one goes for them."""
    with suppress(OSError):
        for path in checkpoints(saved.path.parent):
            if _number(path) > _number(saved.path):
                remove(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs have left half-written or half-removed."""
    for name in os.listdir(folder):
        if re.fullmatch(r"\.checkpoint-\w{8}", name):
            shutil.rmtree(folder / name, ignore_errors=True)


def copied_names(inputs: Sequence[Path]) -> dict[Path, str]:
    """Where the copies of a run's input files are in its folder.

    >>> copied_names([Path("a.png"), Path("-"), Path("a.png")])[Path("-")]
    'checkpoint-inputs/01'
    """
    return {
        path: f"{INPUTS}/{number:02}{path.suffix[:10]}"
        for number, path in enumerate(dict.fromkeys(inputs))
    }


def begin(folder: Path, inputs: Sequence[Path] = ()) -> dict[str, str]:
    """Make a folder ready for the checkpoints of a new run, and copy its input files there.

    Args:
      folder: where the checkpoints will be; those of another run are removed.
      inputs: files, or ``-`` for standard input.

    Returns:
      The sha256 of each copy, for ``save``.

    Raises:
      InputError: where it cannot be written.
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
                _to_disk(copy)
            temporary.chmod(0o777 & ~umask())  # its 0700 is for secrets
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
    """Write a checkpoint; of those before only the newest stays.

    It is there when all its bytes are on the disk, under its name only then.

    Args:
      folder: where the checkpoints are.
      record: plain data, NaN and infinity included.
      arrays: any but bfloat16.
      inputs: from ``begin``.

    Returns:
      Its folder.

    Raises:
      OSError: where it cannot be written; those before stay.
    """
    before = checkpoints(folder)
    path = folder / f"checkpoint-{_number(before[-1]) + 1 if before else 0:08}"
    with temporary_folder(folder, prefix=".checkpoint-") as temporary:
        _write_arrays(temporary / ARRAYS, arrays)
        (temporary / RECORD).write_text(json.dumps(record), "utf-8")
        digests = {name: file_digest(temporary / name) for name in (ARRAYS, RECORD)}
        files = digests | dict(inputs)
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}), "utf-8")
        for name in (ARRAYS, RECORD, MANIFEST, ""):
            _to_disk(temporary / name)
        for name in (ARRAYS, RECORD, MANIFEST):
            (temporary / name).chmod(0o666 & ~umask())
        temporary.chmod(0o777 & ~umask())  # its 0700 is for secrets
        os.replace(temporary, path)
    with suppress(OSError):  # not every file system can, and the checkpoint is there
        _to_disk(folder)
    with suppress(OSError):
        for old in before[: 1 - KEPT]:
            remove(old)
    return path


def load(folder: Path) -> Saved:
    """Read the newest checkpoint that is whole.

    Raises:
      InputError: where there is none, it is of another format, or cannot be read now, which says
        nothing of its being whole.
    """
    found = checkpoints(folder)
    if not found:
        there = "" if os.path.isdir(folder) else ", there is no such folder"
        raise InputError(f"nothing was saved in {folder}{there}: begin the run anew")
    damaged: list[str] = []
    for path in reversed(found):
        try:
            record, arrays, inputs = _read(path)
            return Saved(record, arrays, inputs, path, tuple(damaged))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # of files that may hold anything
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                # It may be sound, so nothing goes on from the one before, nor removes it.
                raise InputError(
                    f"cannot read {error.filename or path}: {error.strerror or error}: make it "
                    "readable, or try again when it is"
                ) from None
            reason = " ".join(f"{error}".split())[:120] or type(error).__name__
            damaged.append(f"{path.name} is damaged ({reason})")
    raise InputError(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}: begin anew")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    manifest = _read_json(path / MANIFEST)
    if manifest["format"] != FORMAT:
        raise _other_format(path, manifest["format"])
    files = manifest["files"]
    inputs = {name: digest for name, digest in files.items() if name.startswith(f"{INPUTS}/")}
    own = {name: files[name] for name in (ARRAYS, RECORD)}
    for name, digest in (own | inputs).items():
        place = path / name if name in own else path.parent / name
        if not _is_file(place):
            raise ValueError(f"{name} is no file, or is not there")
        if file_digest(place) != digest:
            raise ValueError(f"the checksum of {name} does not match")
    return _read_json(path / RECORD), _read_arrays(path / ARRAYS), inputs


def _other_format(path: Path, found: Any) -> InputError:
    try:
        writer = f"nst_jax {_read_json(path / RECORD)['versions']['nst_jax']!s:.40}"
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        writer = "another nst_jax"
    return InputError(
        f"{path} was written by {writer} in format {found!s:.40}, which this one, of format "
        f"{FORMAT}, does not read: go on with that nst_jax, or begin anew"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not _is_file(path):
        raise ValueError(f"{path.name} is no file, or is not there")
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path.name} is too large")
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no object")
    return value


def _is_file(path: Path) -> bool:
    """Whether there is such a file: to read from a pipe is to wait.

    Raises:
      OSError: where that cannot be known; ``Path.is_file`` takes this for no in some versions.
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

    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shaped = {name: plain[name].reshape(np.shape(array)) for name, array in arrays.items()}
    try:
        save_file(shaped, path)
    except SafetensorError as error:  # also for a full disk
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its name."""
    away = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=path.parent))
    os.replace(path, away / path.name)
    shutil.rmtree(away)


@contextmanager
def held(folder: Path | None, *, resumed: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder of checkpoints, which is made where it is missing.

    A run that is killed holds it no more.

    Args:
      folder: of checkpoints, or None for none.
      resumed: whether a run is to go on there, which cannot choose another folder.

    Raises:
      InputError: where another run has it, or it cannot be written.
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
        advice = "until it ends" if resumed else "for it, or choose another folder"
        raise InputError(f"another run has the checkpoints in {folder}: wait {advice}") from None
    except OSError as error:
        raise _unwritable(folder, error, resumed=resumed) from None
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody else has it
            (folder / LOCK).unlink()
        lock.release()


def _unwritable(folder: Path, error: OSError, *, resumed: bool = False) -> InputError:
    reason = f"cannot write a checkpoint to {folder} ({error.strerror})"
    if resumed:
        return InputError(f"{reason}: make it writable, or copy it and resume from the copy")
    return InputError(f"{reason}: choose another folder")
