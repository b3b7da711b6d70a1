"""Files that are damaged, lost, or another program's; ways to damage those of checkpoints."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults_ends import Reference, reach_checkpoint
from faults_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    SLIM,
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
from safetensors.numpy import load_file

from nst_jax.system.files import file_digest

DAMAGED = ("arrays.safetensors", "run.json", "manifest.json")


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
    folder: Path, rng: random.Random, *, reference: Reference, cache: Path, name: str
) -> str:
    """The newest checkpoint has a damaged file: the one before is gone on from."""
    killed_at(rng.randint(3, 9), folder, cache=cache)
    damage(checkpoints(folder / FOLDER)[-1] / name, rng)
    code, said = run(RESUME, folder, cache=cache)
    told = "is damaged (" in said and "continuing from the one before" in said
    expect(code == 0 and told, f"exit code {code}: {said[:300]!r}")
    check_same(folder, reference.results)
    return "the one before, exit 0"


def all_damaged(folder: Path, rng: random.Random, *, reference: Reference, cache: Path) -> str:
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


def two_at_a_time(folder: Path, reference: Reference, *, cache: Path) -> str:
    """A run is to be gone on with while it is at work: refused, and it is not disturbed."""
    draw_inputs(folder)
    started = start([*COMMANDS["Adam"], "--steps", "400"], folder, cache=cache)
    reach_checkpoint(started, 2)
    code, said = run(RESUME, folder, cache=cache)
    expect(started.process.poll() is None, "the run has ended too early")
    outcome = refused(code, said, "another run has the checkpoints", folder=folder)
    started.process.kill()
    started.process.wait()
    code, said = run(RESUME, folder, cache=cache)
    expect(code == 0, f"resume ends by {code}: {said[-300:]!r}")
    losses = results(folder)["out.json"]["history"]["total"]
    known = reference.results["out.json"]["history"]["total"]
    expect(losses[: len(known)] == known, "another history of the loss")
    return outcome


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
    copies = sorted((path.parent / "checkpoint-inputs").glob("*"))
    places |= {f"checkpoint-inputs/{copy.name}": copy for copy in copies}
    manifest["files"] = {name: file_digest(place) for name, place in places.items()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change a file of arrays; see ``correct_manifest``."""
    from safetensors.numpy import save_file

    arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)
