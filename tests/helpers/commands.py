"""Run commands in a folder of small images, and read what they write."""

import json
import re
import resource
import signal
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from nst_jax.cli import main
from nst_jax.cli import run as job
from nst_jax.images import save_image

SIZE = 32  # of the content, 32x24; most runs share it, and so their compiled programs

# Layers that compile quickly.
SHALLOW = dict(content_layers="relu2_1", style_layers="relu1_1 relu2_1")


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch, content, style):
    """A folder with two images; weights are found only if a test names them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    save_image("content.png", content)
    save_image("style.png", style)
    return tmp_path


class Run(NamedTuple):
    code: int
    out: str
    err: str


def words(**options):
    """A command line: ``style_layers="a b"`` is ``--style-layers a b``."""
    options = {"size": SIZE, "steps": 3, "style": "style.png", "output": "out.png"} | options
    line = ["stylize", str(options.pop("content", "content.png"))]
    for name, value in options.items():
        if value is None:
            continue
        line += ["--" + name.replace("_", "-")] + ([] if value is True else str(value).split())
    return line


@pytest.fixture
def run(capsys, tiny_weights_file):
    def run(**options):
        code = main(words(**{"weights": tiny_weights_file} | options))
        return Run(code, *capsys.readouterr())

    return run


def record(name="out.json"):
    """The JSON next to an image, parsed strictly: the standard has no NaN and Infinity."""

    def refuse(number):
        raise AssertionError(f"{number} is not JSON")

    with open(name, encoding="utf-8") as file:
        return json.load(file, parse_constant=refuse)


def listing(folder):
    """All files below a folder, with their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def check_refused(desk, match, run):
    """Check that a run ends with one line and writes nothing."""
    before = listing(desk)
    code, out, err = run()
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nst-jax: error: ")
    assert re.search(match, err), err
    assert listing(desk) == before


def pixels(name):
    with Image.open(name) as image:
        return np.asarray(image)


# A run in which all terms of the loss count from the first step on.
PLAIN = dict(init="noise", noise_scale=0.3, steps=6, **SHALLOW)


def use_devices(monkeypatch, count):
    """Use ``count`` of the CPU devices; the loop is compiled for each of them."""
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def acting(monkeypatch, module, display="progress_display"):
    """Give a function that runs ``act`` while the progress of a step is shown."""

    def arrange(step, act):
        @contextmanager
        def silent(steps):
            def show(progress):
                if getattr(progress, "step", progress) == step:
                    act()

            yield show

        monkeypatch.setattr(module, display, silent)

    before = signal.getsignal(signal.SIGINT)
    yield arrange
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def at_step(monkeypatch):
    yield from acting(monkeypatch, job)


@pytest.fixture
def press(at_step):
    """Give a function that presses Ctrl-C at a step."""
    return partial(at_step, act=ctrl_c)


@contextmanager
def small_files(size):
    """Limit files to ``size`` bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
