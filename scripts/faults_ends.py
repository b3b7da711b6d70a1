"""Runs that are ended from outside, by SIGKILL or by requests to stop, and gone on with."""

import random
import re
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from faults_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    STEPPING,
    Marks,
    Started,
    check_same,
    check_visible,
    checkpoints,
    draw_inputs,
    expect,
    outputs,
    results,
    run,
    start,
    wait,
)

MOMENTS = ("start", "compilation", "steps", "save", "writing")
AHEAD = 0.0002  # seconds between two looks


class Reference(NamedTuple):
    """A command's uninterrupted run: how long it takes, and what it leaves."""

    marks: Marks
    results: dict[str, Any]


def reach(started: Started, marks: Marks, moment: str, rng: random.Random) -> bool:
    """Wait for a random time within a part of a run.

    Returns:
      Whether the process is still there.
    """
    process, folder = started.process, started.folder
    written = folder / "out" if (folder / "out").is_dir() else folder
    hidden = {"save": (folder / FOLDER, ".checkpoint-"), "writing": (written, ".")}
    match moment:
        case "start":
            time.sleep(rng.uniform(0, 0.6 * marks.first_step))
        case "compilation":
            time.sleep(rng.uniform(0.5, 1) * marks.first_step)
        case "steps":
            while process.poll() is None and not STEPPING.search(started.log.read_text()):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, marks.end - marks.first_step))
        case _:
            place, prefix = hidden[moment]
            seen, wanted, last = 0, rng.randint(1, 12 if moment == "save" else 1), set()
            while process.poll() is None and seen < wanted:
                names = {path.name for path in place.glob(f"{prefix}*")}
                seen, last = seen + len(names - last), names
                time.sleep(AHEAD)
            time.sleep(rng.uniform(0, 0.004))
    return process.poll() is None


def reach_checkpoint(started: Started, number: int) -> None:
    """Wait until a checkpoint of at least this number is there.

    Raises:
      Unexpected: where the process ends before.
    """
    while not any(int(path.name[-8:]) >= number for path in checkpoints(started.folder / FOLDER)):
        expect(started.process.poll() is None, f"ended early: {started.log.read_text()[-300:]!r}")
        time.sleep(0.0005)


def seen_at(started: Started) -> str:
    """At what a process was: from what it said and has left half-written."""
    if list((started.folder / FOLDER).glob(".checkpoint-*")):
        return "save"
    if any(path.name.startswith(".") for path in outputs(started.folder)):
        return "writing"
    said = started.log.read_text()
    if STEPPING.search(said):
        return "steps"
    return "compilation" if " px: " in said else "start"


def complete(words: list[str], folder: Path, reference: Reference, *, cache: Path) -> str:
    """Go on with a run, or begin it anew where nothing was saved; check what it leaves.

    Returns:
      "resumed" or "anew".
    """
    saved = bool(checkpoints(folder / FOLDER))
    code, said = run(RESUME, folder, cache=cache)
    if saved:
        expect(code == 0, f"resume ends by {code}: {said[-300:]!r}")
    else:
        expect(code == 2 and "nothing was saved" in said, f"resume of nothing: {said[-300:]!r}")
        code, said = run(words, folder, cache=cache)
        expect(code == 0, f"the run begun anew ends by {code}: {said[-300:]!r}")
    check_same(folder, reference.results)
    return "resumed" if saved else "anew"


def kill(
    name: str, folder: Path, reference: Reference, rng: random.Random, *, cache: Path
) -> list[str]:
    """Kill a run one to three times, the later ones while it is gone on with; then complete it.

    Returns:
      For each kill at what the run was, then how it was completed.
    """
    draw_inputs(folder)
    words, killed = COMMANDS[name], []
    for _ in range(rng.choice((1, 1, 2, 3))):
        begun = RESUME if checkpoints(folder / FOLDER) else words
        started = start(begun, folder, cache=cache)
        if not reach(started, reference.marks, rng.choice(MOMENTS), rng):
            code, said = wait(started)
            expect(code == 0, f"ends by {code}: {said[-300:]!r}")
            break
        started.process.send_signal(signal.SIGKILL)
        started.process.wait()
        killed.append(seen_at(started))
        check_visible(folder)
    if killed:
        killed.append(complete(words, folder, reference, cache=cache))
    return killed


def stop(
    name: str,
    folder: Path,
    reference: Reference,
    rng: random.Random,
    *,
    cache: Path,
    number: int,
    twice: bool = False,
) -> str | None:
    """Ask a run to stop, look at what it leaves, and complete it.

    Args:
      number: the signal.
      twice: whether to send another one a moment later.

    Returns:
      What came of it, or None where the run had ended before.
    """
    draw_inputs(folder)
    words = COMMANDS[name]
    started = start(words, folder, cache=cache)
    moments = MOMENTS[2:4] if twice else MOMENTS[:4]
    if not reach(started, reference.marks, rng.choice(moments), rng):
        wait(started)
        return None
    stepped = bool(STEPPING.search(started.log.read_text()))
    started.process.send_signal(number)
    if twice:
        time.sleep(rng.uniform(0, 0.1))
        started.process.send_signal(number)
    code, said = wait(started)
    check_visible(folder)
    found = results(folder)
    if code == 0:  # it was at its last step
        expect(found == reference.results, "ended well with other results")
        return "was complete"
    # Before and after the program, which handles it, the signal ends Python; so may the second.
    raw = code == -number and (not stepped or twice or found == reference.results)
    expect(raw or code == 128 + number, f"exit code {code} after signal {number}: {said[-300:]!r}")
    if found == reference.results:
        return "was complete"
    if not found:
        expect(not stepped or twice, f"steps, but no results: {said[-300:]!r}")
    else:
        _check_stopped(found, name=name, folder=folder, reference=reference, twice=twice)
    how = complete(words, folder, reference, cache=cache)
    there = "results kept" if found else "nothing written"
    return f"{there} ({how})"


def _check_stopped(
    found: dict[str, Any], *, name: str, folder: Path, reference: Reference, twice: bool
) -> None:
    """Check what a run leaves that was asked to stop."""
    if name == "batch":
        made = {key: value for key, value in found.items() if key.endswith(".png")}
        same = all(reference.results[key] == value for key, value in made.items())
        expect(same, "images of a batch that was stopped differ")
    elif not twice:
        expect({"out.png", "out.json"} <= set(found), f"only {', '.join(found)} was written")
        record, whole = found["out.json"], reference.results["out.json"]
        expect(record["status"] in ("stopped", "done"), f"status {record['status']}")
        losses = record["history"]["total"]
        expect(losses == whole["history"]["total"][: len(losses)], "another history of the loss")
        steps = re.search(r'"step": (\d+)', _newest_record(folder))
        right = steps and int(steps[1]) == record["steps"]
        expect(right, "the newest checkpoint is of another step than the image")
    expect(checkpoints(folder / FOLDER), "no checkpoint was written")


def _newest_record(folder: Path) -> str:
    return (checkpoints(folder / FOLDER)[-1] / "run.json").read_text()
