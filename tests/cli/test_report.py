"""The files beside an image, and the progress on standard error."""

import importlib.metadata
import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from nst_jax.cli import record as report
from nst_jax.cli.progress import job_display, planning_display, progress_display
from nst_jax.errors import InputError
from nst_jax.transfer import Progress
from nst_jax.types import Info, Terms


@dataclass
class Setting:
    path: Path
    layers: tuple


def strict_json(path):
    """Read standard JSON, which has no NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_json(tmp_path):
    record = {
        "numbers": (1, 0.5, float("nan"), float("inf"), None, True),
        "array": np.array([[1.5, np.nan]]),
        "setting": Setting(Path("a/b.png"), (("relu1_1", 1.0),)),
        "name": "né",
    }
    report.write_json(tmp_path / "a.json", record)
    assert strict_json(tmp_path / "a.json") == {
        "numbers": [1, 0.5, None, None, None, True],
        "array": [[1.5, None]],
        "setting": {"path": "a/b.png", "layers": [["relu1_1", 1.0]]},
        "name": "né",
    }


def test_history_record():
    loss, content, style, tv = np.float32([[6, np.inf], [1, 2], [2, np.nan], [3, 0]])
    history = Info(loss, Terms(content, style, tv), np.ones(2), np.ones(2, np.int32))
    assert report.history_record(history) == {
        "total": [6, None],
        "content": [1, 2],
        "style": [2, None],
        "tv": [3, 0],
    }


@pytest.mark.parametrize("name, count", [("a.gif", 1), ("a.GIF", 7)])
def test_animation(tmp_path, name, count):
    frames = [np.full((6, 8, 3), 30 * step, np.uint8) for step in range(count)]
    report.write_animation(tmp_path / name, frames, seconds=1)
    with Image.open(tmp_path / name) as image:
        found, durations = [], []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    np.testing.assert_array_equal(found, frames)
    assert durations[-1] == 2000  # a pause at the end
    for duration in durations[:-1]:  # GIF has a resolution of 10 ms
        assert duration == pytest.approx(1000 / count, abs=10)


HISTORY = {"total": [6.0, 3.0, 4.0], "content": [0.0, 1.0, 2.0], "tv": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    "name, start, history",
    [
        ("a.svg", b"<?xml", HISTORY),
        ("a.pdf", b"%PDF", {"total": [6.0, None], "tv": [None, None]}),
        ("a.png", b"\x89PNG", {"total": [None]}),
        ("a.JPG", b"\xff", {"total": [0.0, 0.0]}),
    ],
)
def test_formats_of_a_plot_and_histories_without_numbers(tmp_path, name, start, history):
    report.check_plotting(tmp_path / name)
    report.write_plot(tmp_path / name, history)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_shows_the_terms(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    report.write_plot(tmp_path / "a.svg", HISTORY)
    text = (tmp_path / "a.svg").read_text()
    assert ">total</text>" in text and ">content</text>" in text and ">loss</text>" in text
    assert ">tv</text>" not in text  # a term of zeros cannot be shown on a logarithmic axis


def test_plot_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a.txt is not a name for a plot: expected .png"):
        report.check_plotting(tmp_path / "a.txt")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match="--plot requires matplotlib: .*pip install matplotlib"):
        report.check_plotting(tmp_path / "a.png")


def show_steps(steps, done, console=None):
    """Show the progress of a run after each of the steps ``done``."""
    with progress_display(steps, console=console) as show:
        for step in done:
            info = Info(np.float32(1000 / step), None, None, None)
            show(Progress(step, steps, info, None, 0.5, 2.25))


def test_progress_without_a_terminal(capsys):
    show_steps(100, range(1, 101))
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    assert first == "compiled in 2.2 s"
    assert [line.split(",")[0] for line in lines] == [
        f"step {step}/100" for step in (1, *range(10, 101, 10))
    ]
    assert lines[2] == "step 20/100, loss 50, 0.5 s/step, 40 s left"


def terminal():
    return Console(stderr=True, force_terminal=True, width=120, color_system=None)


def test_progress_on_a_terminal(capsys):
    show_steps(100, [1, 50, 100], terminal())
    out, err = capsys.readouterr()
    assert out == "" and "compiling" in err and "compiled in 2.2 s" in err
    last = err[err.rindex("stylizing") :]
    assert "100/100" in last and "loss 10, 0.5 s/step" in last


def test_planning_is_shown_only_on_a_terminal(capsys):
    with planning_display():
        pass
    assert capsys.readouterr() == ("", "")
    with planning_display(terminal()):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "planning" in err and err.endswith("\x1b[2K")  # erased at the end


def show_job(images, reports, *, terminal=False):
    """Show the progress of a job at given seconds; returns what was printed."""
    now, file = 100.0, StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    with job_display(images, console=console, clock=lambda: now) as show:
        for seconds, done in reports:
            now = 100.0 + seconds
            show(done)
    return file.getvalue()


@pytest.mark.parametrize(
    "images, reports, lines",
    [
        (
            *(8, [(0, 0.25), (1, 0.5), (2, 1.0), (10, 3.0), (12, 3.5), (20, 8.0)]),
            [
                "0/8 images",
                "1/8 images, 0.375 images/s, 19 s left",
                "3/8 images, 0.275 images/s, 18 s left",
                "8/8 images, 0.388 images/s, 0 s left",
            ],
        ),
        # Slow images: a line every half minute.
        (
            *(2, [(seconds, seconds / 200) for seconds in range(0, 101, 5)]),
            [
                "0/2 images",
                "0/2 images, 0.005 images/s, 365 s left",
                "0/2 images, 0.005 images/s, 330 s left",
            ],
        ),
        (2, [(0, 1 - 1e-12)], ["1/2 images"]),  # a sum of fractions
    ],
)
def test_progress_of_a_job(images, reports, lines):
    assert show_job(images, reports).splitlines() == lines


def test_progress_of_a_job_on_a_terminal():
    text = show_job(8, [(0, 0.25), (2, 1.0), (20, 8.0)], terminal=True)
    assert "8/8 images, 0.388 images/s, 0 s left" in text
