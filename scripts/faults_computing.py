"""Runs whose computation fails: what they say, write, and end with."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from faults_runs import COMMANDS, ROOT, draw_inputs, expect, results, run
from PIL import Image

PROGRAM = str(ROOT / "scripts" / "faults_injected.py")
ALWAYS = 99999


def _run(
    fault: str, first: int, last: int, words: list[str], folder: Path, *, cache: Path
) -> tuple[int, str]:
    program = (PROGRAM, fault, str(first), str(last))
    return run(words, folder, cache=cache, program=program)


def recovers(folder: Path, *, cache: Path, fault: str, name: str, at: int) -> str:
    """A fault once: the run goes on from its best image, says so, and ends well."""
    draw_inputs(folder)
    code, said = _run(fault, at, at, COMMANDS[name], folder, cache=cache)
    told = "was not finite at step" in said and "(1 of 3)" in said
    expect(code == 0 and told, f"exit code {code}: {said[-300:]!r}")
    record = results(folder)["out.json"]
    losses = [loss for loss in record["history"]["total"] if loss is not None]
    expect(record["status"] == "done", f"status {record['status']}")
    steps = int(COMMANDS[name][COMMANDS[name].index("--steps") + 1])
    expect(record["steps"] >= steps, f"only {record['steps']} steps")
    expect(record["final_loss"] < losses[0], "the loss is not lower than at the start")
    if "--averaging" not in COMMANDS[name]:
        expect(record["final_loss"] == min(losses), "the result is not the best image")
    return "goes on from the best image, exit 0"


def diverges(folder: Path, *, cache: Path, fault: str, name: str, at: int) -> str:
    """A fault from some time on: three times it goes on, then the best image is written."""
    draw_inputs(folder)
    code, said = _run(fault, at, ALWAYS, COMMANDS[name], folder, cache=cache)
    expect(code == 1 and "nst-jax: diverged at step" in said, f"exit code {code}: {said[-300:]!r}")
    expect(at == 1 or "(3 of 3)" in said, f"ended too early: {said[-300:]!r}")
    record = results(folder)["out.json"]
    expect(record["status"] == "diverged", f"status {record['status']}")
    with Image.open(folder / "out.png") as image:
        expect(np.asarray(image).std() > 1, "the image is of one colour")
    if at == 1:
        with Image.open(folder / "content.png") as first, Image.open(folder / "out.png") as image:
            # To rounding: the network's mean is taken off and added again.
            other = np.abs(np.asarray(image, int) - np.asarray(first.convert("RGB"), int)).max()
        expect(other <= 1, "the image is not the initial one")
    else:
        # Where only the gradient is not finite the loss is there, but does not count.
        losses = record["history"]["total"][: at - 1]
        expect(record["final_loss"] == min(losses), "the result is not the best image")
    return "best image, exit 1"


def smaller(folder: Path, *, cache: Path, at: int, words: list[str], told: str) -> str:
    """The memory does not suffice at a chunk of steps: the run goes on in a smaller way."""
    draw_inputs(folder)
    code, said = _run("memory", at, at, _larger(*words), folder, cache=cache)
    found = re.search(f"nst-jax: out of memory, retrying {told}", said)
    expect(code == 0 and found, f"exit code {code}: {said[-400:]!r}")
    expect(results(folder)["out.json"]["status"] == "done", "not done")
    return "goes on in a smaller way, exit 0"


def never(folder: Path, *, cache: Path, words: list[str], told: str) -> str:
    """The memory never suffices: one line says what would fit."""
    draw_inputs(folder)
    code, said = _run("memory", 1, ALWAYS, _larger(*words), folder, cache=cache)
    *_, last = said.splitlines()
    right = last.startswith("nst-jax: error: an image of ") and re.search(told, last)
    expect(code == 2 and right, f"exit code {code}: {said[-400:]!r}")
    expect(not results(folder), "something was written")
    return "refused, exit 2"


def _larger(*words: str) -> list[str]:
    """A command whose image is large enough for tiles."""
    command = list(COMMANDS["Adam"])
    command[command.index("--size") + 1] = "300"
    command[command.index("--steps") + 1] = "8"
    return [*command, *words]


_SIZE = "a longer side of about .* px would fit"
TRIALS: dict[str, Callable[..., str]] = {
    "NaN in the loss once, Adam": partial(recovers, fault="loss", name="Adam", at=6),
    "NaN in the loss once, L-BFGS": partial(recovers, fault="loss", name="L-BFGS", at=6),
    "NaN in the gradient once, Adam": partial(recovers, fault="gradient", name="Adam", at=6),
    "NaN in the gradient once, L-BFGS": partial(recovers, fault="gradient", name="L-BFGS", at=9),
    "NaN in Adam's state once": partial(recovers, fault="state", name="Adam", at=5),
    "NaN in the state of L-BFGS once": partial(recovers, fault="state", name="L-BFGS", at=5),
    "NaN in the state of the line search once": partial(
        recovers, fault="state", name="L-BFGS with line search", at=5
    ),
    "NaN in the loss once, coarse to fine": partial(
        recovers, fault="loss", name="coarse to fine", at=4
    ),
    "NaN in the loss from a step on": partial(diverges, fault="loss", name="Adam", at=6),
    "NaN in the gradient from a step on": partial(diverges, fault="gradient", name="L-BFGS", at=6),
    "NaN in the loss from the start": partial(diverges, fault="loss", name="Adam", at=1),
    "out of memory at the first chunk": partial(
        smaller, at=1, words=[], told="from step 0, .*activations recomputed|from the beginning"
    ),
    "out of memory at the first chunk, to tiles": partial(
        smaller, at=1, words=["--remat", "off"], told=".*tiles of 256 px"
    ),
    "out of memory amid the run, to tiles": partial(
        smaller, at=5, words=["--remat", "off"], told="from step [34]: tiles of 256 px"
    ),
    "out of memory in any way": partial(never, words=[], told=_SIZE),
    "out of memory, and no other way left": partial(
        never, words=["--tile", "off", "--remat", "off"], told="tile auto would need less"
    ),
}
