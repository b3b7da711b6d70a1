"""Checkpoints of a run in a folder: arrays and plain data, whole or not at all.

Contract: a checkpoint is a folder ``checkpoint-00000003`` with ``arrays.safetensors``,
``run.json`` and ``manifest.json``, which has the sha256 of each; beside it is
``checkpoint-inputs.safetensors`` with what all of them share. Nothing here needs JAX, nothing is
unpickled.
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.files import umask
from nst_jax.manifest import file_digest

FORMAT = 1
KEPT = 2
INPUTS, ARRAYS, RECORD, MANIFEST = (
    "checkpoint-inputs.safetensors",
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
      inputs: of all of them.
      path: its folder.
      damaged: newer ones that were passed over, and why.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
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
    remove_leftovers(folder)
    (folder / INPUTS).unlink(missing_ok=True)


def remove_damaged(saved: Saved) -> None:
    """Remove the checkpoints that ``load`` has passed over, so that no sound one goes for them."""
    with suppress(OSError):
        for path in checkpoints(saved.path.parent):
            if _number(path) > _number(saved.path):
                remove(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have left half-written or half-removed."""
    for name in os.listdir(folder):
        if re.fullmatch(r"\.checkpoint-\w{8}", name):
            shutil.rmtree(folder / name, ignore_errors=True)


def save_inputs(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write what all checkpoints of a run share; before the first of them.

    Returns:
      Its sha256, for ``save``.

    Raises:
      OSError: where it cannot be written.
    """
    temporary = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=folder))
    try:
        _write_arrays(temporary / INPUTS, arrays)
        digest = file_digest(temporary / INPUTS)
        (temporary / INPUTS).chmod(0o666 & ~umask())
        _to_disk(temporary / INPUTS)
        os.replace(temporary / INPUTS, folder / INPUTS)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def inputs_digest(folder: Path) -> str:
    """What ``save_inputs`` returned.

    Raises:
      InputError: where the file cannot be read.
    """
    try:
        return file_digest(folder / INPUTS)
    except OSError as error:
        raise InputError(f"cannot read {folder / INPUTS}: {error.strerror}") from None


def save(
    folder: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, inputs: str
) -> Path:
    """Write a checkpoint; of those before only the newest stays.

    It is there when all its bytes are on the disk, under its name only then.

    Args:
      folder: where the checkpoints are.
      record: plain data, NaN and infinity included.
      arrays: any but bfloat16.
      inputs: from ``save_inputs``.

    Returns:
      Its folder.

    Raises:
      OSError: where it cannot be written; those before stay.
    """
    before = checkpoints(folder)
    path = folder / f"checkpoint-{_number(before[-1]) + 1 if before else 0:08}"
    temporary = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=folder))
    try:
        _write_arrays(temporary / ARRAYS, arrays)
        (temporary / RECORD).write_text(json.dumps(record), "utf-8")
        digests = {name: file_digest(temporary / name) for name in (ARRAYS, RECORD)}
        files = digests | {INPUTS: inputs}
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}), "utf-8")
        for name in (ARRAYS, RECORD, MANIFEST, ""):
            _to_disk(temporary / name)
        for name in (ARRAYS, RECORD, MANIFEST):
            (temporary / name).chmod(0o666 & ~umask())
        temporary.chmod(0o777 & ~umask())  # mkdtemp's 0700 is for secrets
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    manifest = _read_json(path / MANIFEST)
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{path} has format {manifest['format']}, expected {FORMAT}: use the nst-jax that "
            "wrote it"
        )
    places = {name: path / name for name in (ARRAYS, RECORD)} | {INPUTS: path.parent / INPUTS}
    for name, place in places.items():
        if not _is_file(place):
            raise ValueError(f"{name} is no file, or is not there")
        if file_digest(place) != manifest["files"][name]:
            raise ValueError(f"the checksum of {name} does not match")
    return _read_json(places[RECORD]), _read_arrays(places[ARRAYS]), _read_arrays(places[INPUTS])


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
