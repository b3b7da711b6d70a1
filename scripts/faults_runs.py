"""Runs of the command line to do harm to: what they are, what they leave, what they should leave.

They are processes as a person starts them, with small drawn images and the slim weights.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageSequence
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
SLIM = ROOT / "weights" / "vgg19-slim.safetensors"
FOLDER = "checkpoints"
STEPPING = re.compile(r"^step \d|^\d+/\d+ images", re.MULTILINE)
PATIENCE = 240.0  # seconds that a process may take


class Unexpected(Exception):
    """A promise that was not kept."""


class Marks(NamedTuple):
    """Seconds from the start of a process to its first step and to its end."""

    first_step: float
    end: float


class Started(NamedTuple):
    """A process, its folder, and the file that gets what it says."""

    process: subprocess.Popen
    folder: Path
    log: Path


def expect(condition: Any, words: str) -> None:
    """Raise ``Unexpected`` with the words unless the condition holds."""
    if not condition:
        raise Unexpected(words)


STEPS = 60  # of the commands, unless they say so; with a checkpoint before the first and at each


def _stylize(*words: str, steps: int = STEPS) -> list[str]:
    layers = ["--content-layers", "relu2_2", "--style-layers", "relu1_1", "relu2_1"]
    return [
        *("stylize", "content.png", "--style", "style.png", "-o", "out.png", "--size", "48"),
        *("--preset", "neural-style", "--steps", str(steps), "--weights", str(SLIM), *layers),
        *("--checkpoint", FOLDER, "--checkpoint-every", "1", *words),
    ]


def _batch() -> list[str]:
    words = _stylize("--batch-size", "2", "--optimizer", "adam", steps=24)
    words[0:2] = ["batch", "in"]
    words[words.index("out.png")] = "out"
    every = words.index("--checkpoint-every")
    return words[:every] + words[every + 2 :]


COMMANDS = {
    "Adam": _stylize("--optimizer", "adam"),
    "L-BFGS": _stylize(),
    "L-BFGS with line search": _stylize("--optimizer", "lbfgs-linesearch", steps=30),
    "coarse to fine": _stylize(
        *("--min-size", "24", "--scale-steps", "20", "--optimizer", "adam", "--averaging", "0.9"),
        *("--animation", "out.gif", "--save-every", "16"),
    ),
    "tiles": _stylize("--tile", "32", steps=30),
    "batch": _batch(),
}
RESUME = ["resume", FOLDER]


def draw_inputs(folder: Path) -> None:
    """Make a folder with the images that the commands read."""
    folder.mkdir()
    (folder / "in").mkdir()
    shapes = {"content": (36, 48), "style": (40, 33)}
    shapes |= {"in/a": (24, 32), "in/b": (30, 24), "in/c": (24, 32), "in/d": (24, 32)}
    for seed, (name, (height, width)) in enumerate(shapes.items()):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width][..., None] / 9
        waves = np.sin(y * rng.normal(size=3) + x * rng.normal(size=3))
        pixels = 0.5 + 0.3 * waves + rng.uniform(-0.2, 0.2, size=(height, width, 3))
        Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8)).save(folder / f"{name}.png")


def environment(cache: Path) -> dict[str, str]:
    """That of the processes: this checkout, with a cache of its own for compiled programs."""
    return os.environ | {"PYTHONPATH": str(ROOT), "NST_JAX_CACHE": str(cache)}


def start(
    words: Sequence[str], folder: Path, *, cache: Path, program: Sequence[str] = ("-m", "nst_jax")
) -> Started:
    """Start a command in a folder; what it says is beside the folder."""
    log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=folder,
            env=environment(cache),
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    return Started(process, folder, log)


def wait(started: Started) -> tuple[int, str]:
    """The exit code of a process that ends by itself, and what it said.

    Raises:
      Unexpected: for a process that hangs, and for a traceback.
    """
    try:
        code = started.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        started.process.kill()
        started.process.wait()
        raise Unexpected(f"hangs: {started.log.read_text()[-300:]!r}") from None
    said = started.log.read_text()
    expect("Traceback" not in said or code < 0, f"traceback: {said[-800:]!r}")
    return code, said


def run(words: Sequence[str], folder: Path, *, cache: Path, **options: Any) -> tuple[int, str]:
    """Start a command and wait, see ``start`` and ``wait``."""
    return wait(start(words, folder, cache=cache, **options))


def refused(code: int, said: str, words: str, *, folder: Path) -> str:
    """Check that a command was refused by one line, with nothing written."""
    lines = [line for line in said.splitlines() if line.startswith("nst-jax: error: ")]
    right = code == 2 and len(lines) == 1 and words in lines[0]
    expect(right, f"expected exit code 2 and {words!r}, found {code}: {said[-300:]!r}")
    left = [path.name for path in outputs(folder) if path.name != "filling"]
    expect(not left, f"{left} was written")
    return "refused, exit 2"


def measure(words: Sequence[str], folder: Path, *, cache: Path) -> Marks:
    """Run a command to its end.

    Raises:
      Unexpected: where it does not end well.
    """
    begun, first_step = time.monotonic(), 0.0
    started = start(words, folder, cache=cache)
    while started.process.poll() is None and not first_step:
        time.sleep(0.01)
        if STEPPING.search(started.log.read_text()):
            first_step = time.monotonic() - begun
    code, said = wait(started)
    expect(code == 0 and first_step, f"a run without faults ends by {code}: {said[-300:]!r}")
    return Marks(first_step, time.monotonic() - begun)


def outputs(folder: Path) -> Iterator[Path]:
    """The files that a command has written, but its checkpoints."""
    read = {folder / "content.png", folder / "style.png"}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path not in read and parts[0] not in ("in", FOLDER):
            yield path


def results(folder: Path) -> dict[str, Any]:
    """What must not depend on how often a run was ended: pixels, losses, steps, frames.

    Raises:
      Unexpected: where something is not whole.
    """
    found: dict[str, Any] = {}
    for path in outputs(folder):
        name = str(path.relative_to(folder))
        expect(not path.name.startswith("."), f"{name} is left over")
        found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    try:
        match path.suffix:
            case ".png" | ".gif":
                with Image.open(path) as image:
                    return [
                        (np.asarray(frame).shape, np.asarray(frame).tobytes())
                        for frame in ImageSequence.Iterator(image)
                    ]
            case ".json":
                record = json.loads(path.read_text())
                names = ("status", "scales", "steps", "evaluations", "final_loss", "history")
                return {name: record[name] for name in names}
            case ".jsonl":
                *lines, last = path.read_text().split("\n")
                expect(last == "", "the manifest's last line is cut off")
                names = ("output", "status", "steps", "final_loss", "final_terms")
                records = [json.loads(line) for line in lines]
                return [{name: record[name] for name in names} for record in records]
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise Unexpected(f"{path.name} is not whole: {error}") from None
    raise Unexpected(f"{path.name} is of no known kind")


def check_visible(folder: Path) -> None:
    """Check that everything which has its final name is whole; by other code than the package's.

    Raises:
      Unexpected: where it is not.
    """
    for path in outputs(folder):
        if path.suffix == ".jsonl":  # whose last line may be cut off, and is passed over then
            for line in path.read_text().split("\n")[:-1]:
                json.loads(line)
        elif not path.name.startswith("."):
            _content(path)
    for path in checkpoints(folder / FOLDER):
        digests = json.loads((path / "manifest.json").read_text())["files"]
        for name, digest in digests.items():
            file = (path.parent if name.startswith("checkpoint-inputs/") else path) / name
            right = hashlib.sha256(file.read_bytes()).hexdigest() == digest
            expect(right, f"{path.name} is visible, but {name} is not whole")
            if file.suffix == ".safetensors":
                load_file(file)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("checkpoint-[0-9]*"))


def check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Check that a run left what the uninterrupted one did, and no half-written file.

    Raises:
      Unexpected: with what differs.
    """
    found = results(folder)
    other = sorted(set(found) ^ set(wanted))
    expect(not other, f"only one of the two has {', '.join(other)}")
    for name, content in wanted.items():
        expect(found[name] == content, f"{name} is another one than without a fault")
    left = [path.name for path in (folder / FOLDER).glob(".*")]
    expect(not left, f"{', '.join(left)} is left over among the checkpoints")
