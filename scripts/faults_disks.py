"""Runs whose disk is full or read-only, from the start or from some step on."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults_ends import Reference, reach_checkpoint
from faults_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    STEPPING,
    STEPS,
    check_same,
    checkpoints,
    draw_inputs,
    expect,
    refused,
    results,
    run,
    start,
    wait,
)

SMALL = 2**20  # bytes of a small disk


def can_mount(folder: Path) -> bool:
    """Whether this user may mount small file systems, for which it takes the superuser."""
    try:
        with small_disk(folder / "probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, *, size: int = SMALL) -> Iterator[None]:
    """Mount a file system of so many bytes in the memory."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _mount("-o", f"remount,rw,size={8 * SMALL}", str(folder))
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def fill(folder: Path) -> None:
    """Fill a disk to its last byte."""
    with suppress(OSError), open(folder / "filling", "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


def make_read_only(folder: Path) -> None:
    """Let nothing be written any more; as soon as no file is open for it."""
    while True:
        with suppress(subprocess.CalledProcessError):
            return _mount("-o", "remount,ro", str(folder))
        time.sleep(0.001)


def free(folder: Path) -> None:
    """Undo ``fill`` or ``make_read_only``."""
    _mount("-o", "remount,rw", str(folder))
    (folder / "filling").unlink(missing_ok=True)


def disk_full(folder: Path, reference: Reference, *, cache: Path) -> str | None:
    """The disk of the checkpoints is full from some step on: the run goes on without.

    Returns:
      None where all checkpoints were there before the disk was full.
    """
    draw_inputs(folder)
    place = folder / FOLDER
    with small_disk(place):
        started = start(COMMANDS["Adam"], folder, cache=cache)
        reach_checkpoint(started, 3)
        words = f"cannot write a checkpoint to {FOLDER} (No space left"
        while started.process.poll() is None and words not in started.log.read_text():
            fill(place)  # once more: an old checkpoint that is removed makes room
        code, said = wait(started)
        told = words in said
        if not told and checkpoints(place)[-1].name.endswith(f"-{STEPS:08}"):
            return None
        expect(code == 0 and told, f"exit code {code}: {said[-300:]!r}")
        free(place)
        check_same(folder, reference.results)
        expect(checkpoints(place), "the checkpoints before are gone")
        code, said = run(RESUME, folder, cache=cache)
        expect(code == 0, f"resume ends by {code}: {said[-300:]!r}")
        check_same(folder, reference.results)
    return "goes on, exit 0"


def disk_full_before(folder: Path, reference: Reference, *, cache: Path) -> str:
    """There is no room for the first checkpoint: the run does not begin."""
    draw_inputs(folder)
    with small_disk(folder / FOLDER, size=8192):
        code, said = run(COMMANDS["Adam"], folder, cache=cache)
    return refused(code, said, "cannot write a checkpoint", folder=folder)


def read_only_before(folder: Path, reference: Reference, *, cache: Path) -> str:
    """The output's folder is read-only: the run does not begin."""
    draw_inputs(folder)
    with small_disk(folder / "disk"):
        make_read_only(folder / "disk")
        code, said = run(_to_disk(COMMANDS["Adam"]), folder, cache=cache)
        return refused(code, said, "Read-only file system", folder=folder)


def output_disk(
    folder: Path,
    reference: Reference,
    *,
    cache: Path,
    spoil: Callable[[Path], None],
    kept: bool = True,
    name: str = "coarse to fine",
) -> str:
    """The output's disk is full or read-only at the end: the result is kept elsewhere.

    Args:
      spoil: ``fill`` or ``make_read_only``.
      kept: whether there are checkpoints.
      name: of the command.
    """
    draw_inputs(folder)
    words = _to_disk(COMMANDS[name])
    disk = folder / "disk"
    with small_disk(disk):
        if not kept:
            place = words.index("--checkpoint")
            words[place : place + 4] = []
        started = start(words, folder, cache=cache)
        if name == "batch":
            while not STEPPING.search(started.log.read_text()) and started.process.poll() is None:
                time.sleep(0.002)
        elif kept:
            reach_checkpoint(started, 5)
        else:
            while not (list(disk.glob("*_00016.png")) or started.process.poll() is not None):
                time.sleep(0.002)
        spoil(disk)
        code, said = wait(started)
        expect(code == 2 and "cannot write" in said, f"exit code {code}: {said[-300:]!r}")
        if not kept:
            found = re.search(r"the image is kept as (\S+\.png),", said)
            expect(found, f"nothing is kept: {said[-300:]!r}")
            assert found
            place = Path(found[1])
            (folder / "kept").mkdir()
            shutil.move(place, folder / "kept" / "out.png")
            place.parent.rmdir()
            free(disk)
            same = results(folder)["kept/out.png"] == reference.results["out.png"]
            expect(same, "another image is kept")
            return "kept in the temporary folder, exit 2"
        free(disk)
        code, said = run(RESUME, folder, cache=cache)
        expect(code == 0, f"resume ends by {code}: {said[-300:]!r}")
        found = {path.removeprefix("disk/"): value for path, value in results(folder).items()}
        wanted = {  # previews that could not be written are not made again
            path: value for path, value in reference.results.items() if not path.startswith("out_")
        }
        same = all(found.get(path) == value for path, value in wanted.items())
        expect(same, "resume leaves another result")
    return "exit 2, written by resume"


def _to_disk(words: list[str]) -> list[str]:
    """A command with its outputs in the folder ``disk``."""
    moved = {name: f"disk/{name}" for name in ("out.png", "out.gif", "out")}
    return [moved.get(word, word) for word in words]
