"""Runs of the command line as processes, for tests that kill, disturb and complete them.

All are small: drawn images, the slim weights, few steps. Tests compare what a disturbed run leaves
in its folder with what an uninterrupted run leaves.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageSequence

from helpers.images import smooth_image
from nst_jax.images import save_image

ROOT = Path(__file__).resolve().parents[2]
SLIM = ROOT / "weights" / "vgg19-slim.safetensors"
FOLDER = "checkpoints"
RESUME = ["resume", FOLDER]
STEPS = 60
STEPPING = re.compile(r"^step \d|^\d+/\d+ images", re.MULTILINE)  # progress lines in the log
PATIENCE = 240.0  # seconds until a process counts as hanging


class Process(NamedTuple):
    """A started command, the folder it runs in, and the file with its standard error."""

    popen: subprocess.Popen
    folder: Path
    log: Path

    def running(self):
        return self.popen.poll() is None

    def stepping(self):
        """Whether it has reported steps."""
        return bool(STEPPING.search(self.log.read_text()))

    def kill(self):
        self.popen.kill()
        self.popen.wait()


class Ended(NamedTuple):
    code: int
    log: str


class Reference(NamedTuple):
    """An uninterrupted run: the seconds that it took, and its results."""

    seconds: float
    results: dict


def _stylize(*words, steps=STEPS):
    layers = "--content-layers relu2_2 --style-layers relu1_1 relu2_1".split()
    return [
        *"stylize content.png --style style.png -o out.png --size 48 --preset neural-style".split(),
        *("--steps", str(steps), "--weights", str(SLIM), *layers),
        *("--checkpoint", FOLDER, "--checkpoint-every", "1", *words),
    ]


def _batch():
    words = _stylize("--batch-size", "2", "--optimizer", "adam", steps=24)
    words[:2] = ["batch", "in"]
    words[words.index("out.png")] = "out"
    every = words.index("--checkpoint-every")
    return words[:every] + words[every + 2 :]


COMMANDS = {
    "Adam": _stylize("--optimizer", "adam"),
    "L-BFGS": _stylize(),
    "L-BFGS with line search": _stylize("--optimizer", "lbfgs-linesearch", steps=30),
    "coarse to fine": _stylize(
        *"--min-size 24 --scale-steps 20 --optimizer adam --averaging 0.9".split(),
        *"--animation out.gif --save-every 16".split(),
    ),
    "tiles": _stylize("--tile", "32", steps=30),
    "batch": _batch(),
}


def draw_inputs(folder):
    """Write the images that the commands read into a folder."""
    (folder / "in").mkdir(parents=True)
    shapes = {"content": (36, 48), "style": (40, 33)}
    shapes |= {"in/a": (24, 32), "in/b": (30, 24), "in/c": (24, 32), "in/d": (24, 32)}
    for seed, (name, shape) in enumerate(shapes.items()):
        save_image(folder / f"{name}.png", smooth_image(*shape, seed=seed))


class Workshop:
    """A cache of compiled programs, and the references, which are made when first asked for."""

    def __init__(self, folder):
        self.folder, self.cache, self._references = folder, folder / "cache", {}

    def start(self, words, folder, *, cache=None, program=("-m", "nst_jax")):
        """Start a command; its standard error goes to a file beside the folder."""
        log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        variables = {"PYTHONPATH": str(ROOT), "NST_JAX_CACHE": str(cache or self.cache)}
        with open(log, "w") as file:
            popen = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=folder,
                env=os.environ | variables,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        return Process(popen, folder, log)

    def run(self, words, folder, **options):
        """Run a command to its end."""
        return wait(self.start(words, folder, **options))

    def reference(self, name):
        """The second uninterrupted run of a command: the first one compiles."""
        if name not in self._references:
            for turn in range(2):
                folder = self.folder / f"{name}-{turn}"
                draw_inputs(folder)
                started = time.monotonic()
                assert self.run(COMMANDS[name], folder).code == 0
            self._references[name] = Reference(time.monotonic() - started, results(folder))
        return self._references[name]

    def killed_run(self, folder, *, checkpoints=4, name="Adam"):
        """Kill a run once it has written some checkpoints."""
        draw_inputs(folder)
        process = self.start(COMMANDS[name], folder)
        wait_for_checkpoint(process, checkpoints)
        process.kill()
        assert len(find_checkpoints(folder)) >= 2

    def complete(self, name, folder):
        """Resume a run, or start it again if nothing was saved, and check its results."""
        saved = bool(find_checkpoints(folder))
        ended = self.run(RESUME, folder)
        if not saved:
            assert ended.code == 2 and "nothing was saved" in ended.log, ended
            ended = self.run(COMMANDS[name], folder)
        assert ended.code == 0, ended
        check_same(folder, self.reference(name).results)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def folder(tmp_path):
    """The folder of one run, which does not exist yet."""
    return tmp_path / "run"


def wait(process):
    """Wait for a process that ends by itself, without a traceback."""
    try:
        code = process.popen.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.log.read_text()[-300:]}") from None
    log = process.log.read_text()
    assert "Traceback" not in log or code < 0 or python_never_started(log), log[-800:]
    return Ended(code, log)


def python_never_started(log):
    """Whether a signal ended the interpreter while it still started, before the program."""
    return "Could not import runpy" in log or "Fatal Python error: init_" in log


def wait_for_checkpoint(process, number):
    """Wait until a checkpoint of at least this step exists."""
    while not any(int(path.name[-8:]) >= number for path in find_checkpoints(process.folder)):
        assert process.running(), f"ended early: {process.log.read_text()[-300:]}"
        time.sleep(0.0005)


def find_checkpoints(folder):
    """The checkpoints of a run, oldest first."""
    return sorted((folder / FOLDER).glob("checkpoint-[0-9]*"))


def outputs(folder):
    """The files that a command wrote, except its checkpoints."""
    inputs = {folder / "content.png", folder / "style.png"}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path not in inputs and parts[0] not in ("in", FOLDER):
            yield path


def check_refused(ended, words, folder):
    """Check that a command ended with one line of error, and wrote nothing."""
    errors = [line for line in ended.log.splitlines() if line.startswith("nst-jax: error: ")]
    assert ended.code == 2 and len(errors) == 1 and words in errors[0], ended
    assert not [path.name for path in outputs(folder) if path.name != "filling"]


def results(folder):
    """What must not depend on interruptions: pixels, losses, steps, frames, by file name."""
    found = {}
    for path in outputs(folder):
        name = str(path.relative_to(folder))
        assert not path.name.startswith("."), f"{name} is left over"
        found[name] = _content(path)
    return found


def _content(path):
    try:
        match path.suffix:
            case ".png" | ".gif":
                with Image.open(path) as image:
                    frames = [np.asarray(frame) for frame in ImageSequence.Iterator(image)]
                return [(frame.shape, frame.tobytes()) for frame in frames]
            case ".json":
                record = json.loads(path.read_text())
                names = ("status", "scales", "steps", "evaluations", "final_loss", "history")
                return {name: record[name] for name in names}
            case ".jsonl":
                *lines, last = path.read_text().split("\n")
                assert last == "", "the last line of the manifest is cut off"
                names = ("output", "status", "steps", "final_loss", "final_terms")
                return [{name: json.loads(line)[name] for name in names} for line in lines]
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise AssertionError(f"{path.name} is incomplete: {error}") from None
    raise AssertionError(f"{path.name} is of an unknown kind")


def check_visible(folder):
    """Check that every file with its final name is complete, without code of the package."""
    for path in outputs(folder):
        if path.suffix == ".jsonl":  # its last line may be cut off; readers skip it
            all(map(json.loads, path.read_text().split("\n")[:-1]))
        elif not path.name.startswith("."):
            _content(path)
    for path in find_checkpoints(folder):
        digests = json.loads((path / "manifest.json").read_text())["files"]
        for name, digest in digests.items():
            file = (path.parent if name.startswith("checkpoint-inputs/") else path) / name
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, f"{path.name}: {name}"


def check_same(folder, expected):
    """Check that a run left exactly the expected results, and no incomplete file."""
    found = results(folder)
    assert set(found) == set(expected)
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs from that of an uninterrupted run"
    assert not list((folder / FOLDER).glob(".*")), "incomplete checkpoints are left over"
