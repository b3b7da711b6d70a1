"""Faults of disks and files: full, read-only, lost, damaged, or another program's."""

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from faults_ends import Reference
from faults_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    SLIM,
    Started,
    check_same,
    checkpoints,
    draw_inputs,
    expect,
    outputs,
    results,
    run,
    start,
    wait,
)
from safetensors.numpy import load_file

from nst_jax.manifest import file_digest

SMALL = 2**20  # bytes of a small disk
DAMAGED = ("arrays.safetensors", "run.json", "manifest.json")


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


def reach_checkpoint(started: Started, number: int) -> None:
    """Wait until a checkpoint of at least this number is there.

    Raises:
      Unexpected: where the process ends before.
    """
    while not any(int(path.name[-8:]) >= number for path in checkpoints(started.folder / FOLDER)):
        expect(started.process.poll() is None, f"ended early: {started.log.read_text()[-300:]!r}")
        time.sleep(0.0005)


def disk_full(folder: Path, reference: Reference, *, cache: Path) -> str:
    """The disk of the checkpoints is full from some step on: the run goes on without."""
    draw_inputs(folder)
    place = folder / FOLDER
    with small_disk(place):
        started = start(COMMANDS["Adam"], folder, cache=cache)
        reach_checkpoint(started, 3)
        fill(place)
        code, said = wait(started)
        told = f"cannot write a checkpoint to {FOLDER} (No space left" in said
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


def checkpoints_lost(folder: Path, reference: Reference, *, cache: Path) -> str:
    """The folder of the checkpoints is removed: the run goes on without."""
    draw_inputs(folder)
    started = start(COMMANDS["Adam"], folder, cache=cache)
    reach_checkpoint(started, 4)
    while (folder / FOLDER).exists():
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    code, said = wait(started)
    told = "cannot write a checkpoint" in said
    expect(code == 0 and told, f"exit code {code}: {said[-300:]!r}")
    expect(results(folder) == reference.results, "another result")
    return "goes on, exit 0"


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
        if kept:
            reach_checkpoint(started, 5)
        else:
            while not (list(disk.glob("*_00016.png")) or started.process.poll() is not None):
                time.sleep(0.002)
        spoil(disk)
        code, said = wait(started)
        expect(code == 2 and "cannot write" in said, f"exit code {code}: {said[-300:]!r}")
        if not kept:
            found = re.search(r"the picture is kept as (\S+\.png),", said)
            expect(found, f"nothing is kept: {said[-300:]!r}")
            assert found
            place = Path(found[1])
            (folder / "kept").mkdir()
            shutil.move(place, folder / "kept" / "out.png")
            place.parent.rmdir()
            free(disk)
            same = results(folder)["kept/out.png"] == reference.results["out.png"]
            expect(same, "another picture is kept")
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


def killed_at(number: int, folder: Path, *, cache: Path) -> None:
    """Make a run of Adam that was killed when it had so many checkpoints."""
    draw_inputs(folder)
    started = start(COMMANDS["Adam"], folder, cache=cache)
    reach_checkpoint(started, number)
    started.process.kill()
    started.process.wait()
    expect(len(checkpoints(folder / FOLDER)) >= 2, "less than two checkpoints")


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit, cut, empty or remove a file.

    Returns:
      What was done.
    """
    data = bytearray(path.read_bytes())
    kind = rng.choice(("bit", "cut", "empty", "remove"))
    if kind == "remove":
        path.unlink()
        return kind
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data[: {"bit": len(data), "cut": rng.randrange(len(data))}.get(kind, 0)])
    return kind


def newest_damaged(
    folder: Path, reference: Reference, rng: random.Random, *, cache: Path, name: str
) -> str:
    """The newest checkpoint has a damaged file: the one before is gone on from."""
    killed_at(rng.randint(3, 9), folder, cache=cache)
    damage(checkpoints(folder / FOLDER)[-1] / name, rng)
    code, said = run(RESUME, folder, cache=cache)
    told = "is damaged (" in said and "going on from the one before" in said
    expect(code == 0 and told, f"exit code {code}: {said[:300]!r}")
    check_same(folder, reference.results)
    return "the one before, exit 0"


def all_damaged(folder: Path, reference: Reference, rng: random.Random, *, cache: Path) -> str:
    """No checkpoint is whole: it is said."""
    killed_at(4, folder, cache=cache)
    for path in checkpoints(folder / FOLDER):
        damage(path / "run.json", rng)
    code, said = run(RESUME, folder, cache=cache)
    return refused(code, said, "no checkpoint in", folder=folder)


def other_weights(folder: Path, reference: Reference, *, cache: Path) -> str:
    """The network is another one: refused."""
    from nst_jax.weights import load_weights, save_weights

    killed_at(4, folder, cache=cache)
    weights = load_weights(SLIM)
    weights.variables["params"]["conv1_1"]["bias"] += 0.01
    save_weights(folder / "other.safetensors", weights, half=True)
    code, said = run([*RESUME, "--weights", "other.safetensors"], folder, cache=cache)
    (folder / "other.safetensors").unlink()
    return refused(code, said, "the run began with the weights", folder=folder)


def other_version(folder: Path, reference: Reference, *, cache: Path) -> str:
    """The checkpoint is of another version: refused."""
    killed_at(4, folder, cache=cache)

    def change(record: dict[str, Any]) -> None:
        record["versions"]["jax"] = "0.0.1"

    edit_record(checkpoints(folder / FOLDER)[-1], change)
    code, said = run(RESUME, folder, cache=cache)
    return refused(code, said, "was saved with jax 0.0.1", folder=folder)


def programs_cut(folder: Path, reference: Reference, *, cache: Path) -> str:
    """Compiled programs in the cache are cut off: they are compiled anew."""
    draw_inputs(folder)
    other = folder.with_name(f"{folder.name}-cache")
    shutil.copytree(cache, other)
    files = [path for path in other.rglob("*-cache") if path.is_file()]
    expect(files, "the cache holds no programs")
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, said = run(COMMANDS["Adam"], folder, cache=other)
    expect(code == 0, f"exit code {code}: {said[-300:]!r}")
    check_same(folder, reference.results)
    return "compiled anew, exit 0"


def refused(code: int, said: str, words: str, *, folder: Path) -> str:
    """Check that a command was refused by one line, with nothing written."""
    lines = [line for line in said.splitlines() if line.startswith("nst-jax: error: ")]
    right = code == 2 and len(lines) == 1 and words in lines[0]
    expect(right, f"expected exit code 2 and {words!r}, found {code}: {said[-300:]!r}")
    left = [path.name for path in outputs(folder) if path.name != "filling"]
    expect(not left, f"{left} was written")
    return "refused, exit 2"


def edit_record(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the record of a checkpoint, with the checksum that belongs to it."""
    record = json.loads((path / "run.json").read_text())
    change(record)
    (path / "run.json").write_text(json.dumps(record))
    correct_manifest(path)


def correct_manifest(path: Path) -> None:
    """Give a checkpoint's manifest the checksums of the files as they are."""
    manifest = json.loads((path / "manifest.json").read_text())
    places = {name: path / name for name in ("arrays.safetensors", "run.json")}
    places["inputs.safetensors"] = path.parent / "inputs.safetensors"
    manifest["files"] = {name: file_digest(place) for name, place in places.items()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change a file of arrays; see ``correct_manifest``."""
    from safetensors.numpy import save_file

    arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)
