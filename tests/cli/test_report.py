"""What lies beside an image, and the progress on the terminal."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from nst_jax.cli import record as report
from nst_jax.cli.progress import planning_display, progress_display
from nst_jax.errors import InputError
from nst_jax.transfer import Progress
from nst_jax.types import Info, Terms


@dataclass
class Setting:
    path: Path
    layers: tuple


def strict_json(path):
    """Read JSON as the standard has it, without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

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


@pytest.mark.parametrize(
    "output, step, expected",
    [("o.png", 7, "o_00007.png"), ("x/o.v2.jpg", 123456, "x/o.v2_123456.jpg")],
)
def test_preview_path(output, step, expected):
    assert report.preview_path(Path(output), step) == Path(expected)


@pytest.mark.parametrize("name", ["a.gif", "a.GIF"])
@pytest.mark.parametrize("count", [1, 2, 7])
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
    assert durations[-1] == 2000  # it stays at its end
    for duration in durations[:-1]:  # GIF counts in hundredths of a second
        assert duration == pytest.approx(1000 / count, abs=10)


HISTORY = {"total": [6.0, 3.0, 4.0], "content": [0.0, 1.0, 2.0], "tv": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        {"total": [6.0, None], "tv": [None, None]},
        {"total": [None]},
        {"total": [0.0, 0.0]},
        {"total": [1.0]},
    ],
)
def test_plot_of_any_history(tmp_path, history):
    report.write_plot(tmp_path / "a.png", history)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1050, 675)


@pytest.mark.parametrize(
    "name, start",
    [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.JPG", b"\xff")],
)
def test_forms_of_a_plot(tmp_path, name, start):
    report.check_plotting(tmp_path / name)
    report.write_plot(tmp_path / name, HISTORY)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_shows_the_terms(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    report.write_plot(tmp_path / "a.svg", HISTORY)
    text = (tmp_path / "a.svg").read_text()
    assert ">total</text>" in text and ">content</text>" in text and ">loss</text>" in text
    assert ">tv</text>" not in text  # a term of zeros has no place on a logarithmic axis


def test_plot_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a.txt is no name of a plot: expected .png"):
        report.check_plotting(tmp_path / "a.txt")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match="--plot needs matplotlib: .*pip install matplotlib"):
        report.check_plotting(tmp_path / "a.png")


def show_steps(steps, done, console=None):
    """Show the progress of a run of so many steps after each of ``done``."""
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


def test_progress_of_few_steps(capsys):
    show_steps(3, [1, 2, 3])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["step 1/3", "step 2/3", "step 3/3"]


def terminal():
    return Console(stderr=True, force_terminal=True, width=120, color_system=None)


def test_progress_on_a_terminal(capsys):
    show_steps(100, [1, 50, 100], terminal())
    out, err = capsys.readouterr()
    assert out == "" and "compiling" in err and "compiled in 2.2 s" in err
    last = err[err.rindex("stylizing") :]
    assert "100/100" in last and "loss 10, 0.5 s/step" in last


def test_planning_is_said_on_terminals_alone(capsys):
    with planning_display():
        pass
    assert capsys.readouterr() == ("", "")
    with planning_display(terminal()):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "planning" in err and err.endswith("\x1b[2K")  # erased at the end
