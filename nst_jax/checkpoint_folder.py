"""The folder of a run's checkpoints: whether it may be used, who has it, its first files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from nst_jax.checkpoint import checkpoints, clear, save_inputs
from nst_jax.errors import InputError
from nst_jax.files import check_folder

LOCK = ".lock"


def check_checkpoints(folder: Path | None, every: int | None, *, overwrite: bool) -> None:
    """Check, before any work, that checkpoints can be written to a folder; nothing is removed.

    Args:
      folder: where to, or None for none.
      every: at how many steps, if anyone says.
      overwrite: whether those of another run may be removed.

    Raises:
      InputError: where they cannot.
    """
    if folder is None:
        if every is not None:
            raise InputError("--checkpoint-every needs a folder: give --checkpoint DIR, too")
        return
    if every is not None and every < 1:
        raise InputError(f"checkpoint_every is {every}: expected 1 or more")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder: choose another one for the checkpoints")
    if not os.path.isdir(folder.parent):
        raise InputError(f"the folder {folder.parent} does not exist: create it first")
    check_folder(folder if os.path.isdir(folder) else folder.parent)
    if checkpoints(folder) and not overwrite:
        raise InputError(
            f"{folder} holds the checkpoints of a run: go on with it by 'nst-jax resume {folder}', "
            "choose another folder, or give --overwrite"
        )


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


def begin_folder(folder: Path, inputs: dict[str, np.ndarray]) -> str:
    """Make a folder ready for the checkpoints of a new run, and write what they share.

    Returns:
      The digest for ``checkpoint.save``.

    Raises:
      InputError: where it cannot be written.
    """
    try:
        clear(folder)
        return save_inputs(folder, inputs)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError, *, resumed: bool = False) -> InputError:
    reason = f"cannot write a checkpoint to {folder} ({error.strerror})"
    if resumed:
        return InputError(f"{reason}: make it writable, or copy it and resume from the copy")
    return InputError(f"{reason}: choose another folder")
