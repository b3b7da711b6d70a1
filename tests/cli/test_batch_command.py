"""The command ``batch``: results, records, restarts, failures, memory, several processes."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import QUICK
from helpers.commands import (
    Run,
    acting,
    check_refused,
    ctrl_c,
    listing,
    pixels,
    record,
    use_devices,
)
from helpers.images import smooth_image
from helpers.traces import count_traces
from PIL import Image

from nst_jax.cli import batch, batch_records, batch_run, main
from nst_jax.cli.batch_files import Item
from nst_jax.cli.batch_records import BatchJob, Loaded, job_fingerprint
from nst_jax.cli.batch_run import choose_batch_size, even_batch_size, load_items, prepare_group
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import save_image, to_uint8
from nst_jax.images.read import load_rgba
from nst_jax.transfer.plan import USABLE
from nst_jax.transfer.types import LoopMemory

pytestmark = pytest.mark.sampled

SIZE = 32
SETTINGS = {
    "preset": "neural-style",
    "content_layers": "relu2_1",
    "style_layers": "relu1_1 relu2_1",
    "optimizer": "adam",
    "learning_rate": 2,
    "steps": 3,
    "size": SIZE,
}
NAMES = ["a__style.png", "b__style.png", "c__style.png"]
MANIFEST = "out/manifest.jsonl"


def flags(**options):
    """``style_layers="a b"`` is ``--style-layers a b``."""
    words = []
    for name, value in options.items():
        if value is not None:
            words += ["--" + name.replace("_", "-")]
            words += [] if value is True else str(value).split()
    return words


def command_line(*contents, **options):
    """A command line, by default for the folder ``in`` and one style."""
    given = {"style": "style.png", "output_dir": "out"} | SETTINGS | options
    return ["batch", *(contents or ["in"]), *flags(**given)]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_weights_file):
    """The batch that most tests start from or compare with, computed once.

    Image b has transparency; c is larger than the others, and scaled to another shape.
    """
    folder = tmp_path_factory.mktemp("base")
    (folder / "in").mkdir()
    alpha = np.linspace(0.1, 1, 24 * 32).reshape(24, 32)
    save_image(folder / "in/a.png", smooth_image(24, 32, seed=0))
    save_image(folder / "in/b.png", smooth_image(24, 32, seed=1), alpha=alpha)
    save_image(folder / "in/c.png", smooth_image(40, 64, seed=2))
    save_image(folder / "style.png", smooth_image(32, 26, seed=11))
    save_image(folder / "two.png", smooth_image(32, 26, seed=12))
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("NST_JAX_CACHE", str(folder / "cache"))
        use_devices(patch, 1)
        code = main(command_line(weights=tiny_weights_file))
    return SimpleNamespace(folder=folder, result=Run(code, out.getvalue(), err.getvalue()))


@pytest.fixture(autouse=True)
def desk(base, tmp_path, monkeypatch):
    """A copy of the base's input images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    use_devices(monkeypatch, 1)
    shutil.copytree(
        base.folder, tmp_path, ignore=shutil.ignore_patterns("out", "cache"), dirs_exist_ok=True
    )
    return tmp_path


@pytest.fixture
def done(base, desk):
    """A copy of the finished batch."""
    shutil.copytree(base.folder / "out", desk / "out")


@pytest.fixture
def run(capsys, tiny_weights_file):
    def run(*contents, **options):
        capsys.readouterr()
        code = main(command_line(*contents, **{"weights": tiny_weights_file} | options))
        return Run(code, *capsys.readouterr())

    return run


def stylized(content, weights, style="style.png", **options):
    """The pixels and the loss that ``stylize`` gives."""
    given = SETTINGS | {"style": style, "output": "single.png", "weights": weights} | options
    assert main(["stylize", content, *flags(overwrite=True, **given)]) in (0, 1)
    return pixels("single.png"), record("single.json")["final_loss"]


def records(path=MANIFEST):
    """The records by output; every line is a record, and no output has two."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    found = {line["output"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def statuses(path=MANIFEST):
    return {name: found["status"] for name, found in records(path).items()}


def outputs(folder="out"):
    """Names of the images, each of which is complete; other files are manifests."""
    names = sorted(os.listdir(folder))
    others = [name for name in names if not name.endswith(".png")]
    assert all(re.fullmatch(r"manifest(-\d-of-\d)?\.jsonl", name) for name in others)
    names = [name for name in names if name.endswith(".png")]
    for name in names:
        with Image.open(Path(folder, name)) as image:
            image.load()
    return names


def stamps(folder="out"):
    """Inode and modification time of each image."""
    stats = {path.name: path.stat() for path in Path(folder).glob("[!.]*.png")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def all_pixels(folder="out"):
    return {name: pixels(Path(folder, name)).tobytes() for name in outputs(folder)}


def summary(result):
    return result.err.splitlines()[-1].removeprefix("nst-jax: ")


def many(count, height=18, width=24):
    """A folder ``many`` of images."""
    Path("many").mkdir()
    for number in range(count):
        save_image(f"many/p{number:02d}.png", smooth_image(height, width, seed=number))


def cut_jpeg(name):
    """A JPEG with a good header that is truncated within its pixels."""
    Image.fromarray((smooth_image(24, 32, seed=5) * 255).astype(np.uint8)).save("whole.jpg")
    data = Path("whole.jpg").read_bytes()
    os.unlink("whole.jpg")
    Path(name).write_bytes(data[: -len(data) // 4])


class TestResults:
    def test_output(self, base):
        code, out, err = base.result
        assert (code, out) == (0, "out/manifest.jsonl\n")
        lines = err.splitlines()
        assert re.match("nst-jax: 32x24 px: about .* of .*; the whole image$", lines[0])
        progress = [line.split(",")[0] for line in lines if "/3 images" in line]
        assert progress == [f"{done}/3 images" for done in range(4)]
        assert lines[-1] == "nst-jax: 3 written"
        assert outputs(base.folder / "out") == NAMES

    def test_images_are_those_of_stylize(self, done, tiny_weights_file):
        for name in NAMES:
            image, loss = stylized(f"in/{name[0]}.png", tiny_weights_file)
            np.testing.assert_array_equal(pixels(f"out/{name}"), image)
            assert records()[name]["final_loss"] == loss
        expected = to_uint8(load_rgba("in/b.png", size=SIZE).alpha)
        np.testing.assert_array_equal(pixels("out/b__style.png")[..., 3], expected)

    def test_records(self, done):
        assert [line["output"] for line in records().values()] == NAMES
        for name, found in records().items():
            assert found["content"] == f"in/{name[0]}.png" and found["styles"] == ["style.png"]
            assert (found["status"], found["steps"], found["evaluations"]) == ("done", 3, 3)
            assert found["seed"] == 0 and found["settings"]["size"] == SIZE
            assert found["settings"]["style_layers"] == {"relu1_1": 1, "relu2_1": 1}
            assert found["weights"]["name"] == "tiny"
            assert found["final_loss"] == pytest.approx(sum(found["final_terms"].values()))
            assert "alone" not in found
            with Image.open(f"out/{name}") as image:
                assert json.loads(image.text["nst_jax"]) == found
                assert image.text["Software"].startswith("nst_jax ")
                assert dict(zip(("width", "height"), image.size)) == found["image"]
        assert records()["c__style.png"]["image"] == {"width": 32, "height": 20}
        assert len({found["job"] for found in records().values()}) == 3

    @pytest.mark.parametrize("pairing", ["pair", "grid"])
    def test_pairs_and_grids(self, run, tiny_weights_file, pairing):
        styles = "two.png style.png"
        assert run("in/a.png", "in/b.png", style=styles, **{pairing: True}).code == 0
        pairs = ["a__two.png", "b__style.png"]
        others = [] if pairing == "pair" else [NAMES[0], "b__two.png"]
        assert outputs() == sorted(pairs + others)
        for name in outputs():
            content, style = name.removesuffix(".png").split("__")
            image, _ = stylized(f"in/{content}.png", tiny_weights_file, f"{style}.png")
            np.testing.assert_array_equal(pixels(f"out/{name}"), image)
            assert records()[name]["styles"] == [f"{style}.png"]

    def test_settings_reach_the_run(self, run, tiny_weights_file):
        """A mix of styles, another optimiser, and noise from a seed."""
        options = {"style_blend": "1 3", "layer_styles": "relu1_1=2", "seed": 7, "init": "noise"}
        options |= {"optimizer": "lbfgs", "learning_rate": None}
        assert run("in/a.png", style="style.png two.png", **options).code == 0
        image, _ = stylized("in/a.png", tiny_weights_file, "style.png two.png", **options)
        np.testing.assert_array_equal(pixels("out/a__style+two.png"), image)
        (found,) = records().values()
        assert found["styles"] == ["style.png", "two.png"] and found["seed"] == 7

    def test_one_program_for_a_size(self, run, monkeypatch):
        """A short last batch has the program of the others, if images advance together."""
        many(5)
        run_batch = batch_run.run_batch

        def together(*args, execution, **options):
            return run_batch(*args, **options, execution=execution._replace(together=True))

        monkeypatch.setattr(batch_run, "run_batch", together)
        use_devices(monkeypatch, 2)
        traces = count_traces(monkeypatch)
        style = "style.png style.png style.png two.png two.png"
        assert run("many", style=style, pair=True, batch_size=2).code == 0
        assert len(outputs()) == len(records()) == 5 and len(traces) == 1


def test_what_an_output_depends_on():
    """Settings, weights, and contents of the files, but neither names nor the batch size."""
    weights = [SimpleNamespace(info=SimpleNamespace(sha256=digit * 64)) for digit in "01"]
    files = [Path("style.png"), Path("two.png")]
    digest = {Path("a"): "1", Path("b"): "2", files[0]: "3", files[1]: "4"}.__getitem__
    settings = (Config(), 0, SIZE, SIZE, weights[0], (1.0, 2.0))
    job = BatchJob(*settings, files, None, digest, True, 1, Path("m"))
    changes = [{"config": Config.of(tv_weight=0.5)}, {"seed": 1}, {"size": 33}, {"style_size": 33}]
    changes += [{"blend": (1.0, 3.0)}, {"bit_depth": 16}, {"weights": weights[1]}]
    item = Item(Path("a"), (0,), Path("x.png"))
    items = [Item(Path("b"), (0,), Path("x.png"))]
    items += [item._replace(styles=styles) for styles in ((1,), (0, 1), (1, 0))]
    found = {job_fingerprint(job, one) for one in [item, *items]}
    found |= {job_fingerprint(job._replace(**one), item) for one in changes}
    assert len(found) == 1 + len(items) + len(changes)
    other = job._replace(batch_size=5, manifest=Path("n"), same_styles=False)
    renamed = item._replace(output=Path("y.png"))
    assert job_fingerprint(other, renamed) == job_fingerprint(job, item)


# A real process that is killed at a chosen moment, as by a loss of memory or power.
KILLED = """
import os, signal, sys
from nst_jax.cli import batch_records, batch_run, main
from nst_jax.system import files

moment, count = sys.argv[1], int(sys.argv[2])

def killing(module, name):
    original, calls = getattr(module, name), []

    def wrapper(*args, **options):
        calls.append(None)
        if len(calls) == count:
            if moment == "in a line":
                with open(args[0], "ab") as file:
                    file.write(b'{"output":"b__sty')
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(module, name, wrapper)

module, name = {
    "before an image": (batch_records, "save_image"),
    "within an image": (files.os, "replace"),
    "before a record": (batch_records, "append_record"),
    "in a line": (batch_records, "append_record"),
}[moment]
killing(module, name)
batch_run.WRITERS = 1  # for a certain order
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs that the processes of these tests share."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(compiled, monkeypatch, tiny_weights_file):
    """Start a process in a plain environment, and end it with the test."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_", "PYTHONWARN")):
            if name != QUICK:
                monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    processes = []

    def start(*contents, killed=None, **options):
        program = ["-c", KILLED, *map(str, killed)] if killed else ["-m", "nst_jax"]
        line = command_line(*contents, **{"weights": tiny_weights_file, "batch_size": 1} | options)
        process = subprocess.Popen(
            [sys.executable, *program, *line],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=180)
    return Run(process.returncode, out, err)


def check_restart(run, base, *, existing, temporaries=0, **options):
    """Run again: existing images stay, and all is as after an uninterrupted run."""
    before = stamps()
    assert sorted(before) == existing
    result = run(**options)
    assert result.code == 0, result.err
    counts = ((3 - len(existing), "written"), (len(existing), "already there"))
    assert summary(result) == ", ".join(f"{count} {name}" for count, name in counts if count)
    assert {name: stamp for name, stamp in stamps().items() if name in before} == before
    left = [name for name in os.listdir("out") if name.startswith(".")]
    assert len(left) == temporaries
    for name in left:
        Path("out", name).unlink()
    assert all_pixels() == all_pixels(base.folder / "out")
    expected, found = records(base.folder / MANIFEST), records()
    assert list(found) == list(expected)
    for name in found:
        moment = dict.fromkeys(("timing", "device"))
        assert found[name] | moment == expected[name] | moment


class TestRestart:
    def test_nothing_is_missing(self, done, run):
        before = listing(Path("out"))
        assert run() == (0, "out/manifest.jsonl\n", "nst-jax: 3 already there\n")
        assert listing(Path("out")) == before

    @pytest.mark.parametrize(
        "killed, existing, temporaries",
        [
            (("within an image", 2), NAMES[:1], 0),
            (("in a line", 2), NAMES[:2], 0),
            (("before an image", 2), NAMES[:1], 0),
            (("before a record", 1), NAMES[:1], 0),
            (("within an image", 4), NAMES, 1),  # the manifest
        ],
    )
    def test_killed(self, base, start, run, killed, existing, temporaries):
        assert ended(start(killed=killed)).code == -signal.SIGKILL
        check_restart(run, base, existing=existing, temporaries=temporaries)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda lines: [b"\0\xff\n", lines[0], lines[1][:40] + b"\n", lines[2], b"[1]\n"],
            lambda lines: [*lines[:-1], lines[-1][:40]],
            None,
        ],
        ids=["inside", "at the end", "missing"],
    )
    def test_damaged_manifest(self, base, done, run, damage):
        lines = Path(MANIFEST).read_bytes().splitlines(keepends=True)
        Path(MANIFEST).unlink()
        if damage is not None:
            Path(MANIFEST).write_bytes(b"".join(damage(lines)))
        check_restart(run, base, existing=NAMES)
        assert Path(MANIFEST).read_bytes().splitlines(keepends=True) == lines

    def test_missing_image_and_temporary_files(self, base, done, run):
        """Temporary files of a missing image are removed, others left alone."""
        os.unlink("out/b__style.png")
        for name in (".b__style-x1y2z3_4.png", ".a__style-x1y2z3_4.png"):
            Path("out", name).write_bytes(b"\x89PNG\r\n")
        check_restart(run, base, existing=[NAMES[0], NAMES[2]], temporaries=1)

    @pytest.mark.parametrize("foreign", [False, True])
    def test_damaged_or_foreign_image(self, done, run, desk, foreign):
        """It is replaced only with ``--overwrite``, and it alone."""
        if foreign:
            save_image("out/b__style.png", smooth_image(24, 32, seed=3))
        else:
            data = Path("out/b__style.png").read_bytes()
            Path("out/b__style.png").write_bytes(data[:-20])
        match = "out/b__style.png exists and is damaged, or was not written by this .*--overwrite"
        check_refused(desk, match, run)
        before = stamps()
        result = run(overwrite=True)
        assert result.code == 0 and summary(result) == "1 written, 2 already there"
        assert [name for name in NAMES if stamps()[name] != before[name]] == ["b__style.png"]

    def test_other_settings(self, done, run, desk):
        match = "out/a__style.png exists and was computed from other images or settings: "
        check_refused(desk, match, lambda: run(tv_weight=0.5))
        before = stamps()
        assert summary(run(overwrite=True, tv_weight=0.5)) == "3 written"
        assert not set(before.values()) & set(stamps().values())
        assert summary(run(tv_weight=0.5)) == "3 already there"

    def test_renamed_contents(self, done, run):
        """A content and its output that were both renamed are recognised."""
        os.rename("in/b.png", "in/x.png")
        os.rename("out/b__style.png", "out/x__style.png")
        assert run() == (0, "out/manifest.jsonl\n", "nst-jax: 3 already there\n")
        assert {"a__style.png", "c__style.png", "x__style.png"} <= set(statuses())


class TestInterrupt:
    @pytest.fixture
    def press(self, monkeypatch):
        """Press Ctrl-C when this number of images is done."""
        for arrange in acting(monkeypatch, batch, "job_display"):
            yield partial(arrange, act=ctrl_c)

    def test_stops_at_the_next_report(self, base, run, press):
        press(1 + 1 / 3)  # the first chunk is one step
        result = run()
        assert (result.code, result.out) == (130, "out/manifest.jsonl\n")
        assert "Ctrl-C again ends at once" in result.err
        assert summary(result) == "1 written, 2 still missing"
        assert outputs() == NAMES[:1] and statuses() == {NAMES[0]: "done"}
        press(-1)
        check_restart(run, base, existing=NAMES[:1])

    @pytest.mark.parametrize(
        "images, code, last", [(2, 130, "2 written, 1 still missing"), (3, 0, "3 written")]
    )
    def test_at_the_last_step_of_a_batch(self, run, press, images, code, last):
        press(images)
        result = run()
        assert (result.code, summary(result), outputs()) == (code, last, NAMES[:images])


class Reader:
    """An executor whose tasks end with these results or exceptions, in order."""

    def __init__(self, results):
        self.results, self.submitted = iter(results), 0

    def submit(self, load, item):
        self.submitted += 1
        future, result = Future(), next(self.results)
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
        return future


def loaded_item(item, shape):
    """As if a content of this height and width had been read."""
    return Loaded(item, np.broadcast_to(np.float32(0), (*shape, 3)), None, None, "")


def make_items(count):
    return [Item(Path(f"{number}.png"), (0,), Path("x")) for number in range(count)]


class TestFailures:
    def test_bad_images_are_skipped(self, done, run):
        """They are recorded, and computed by a later run once they are good."""
        cut_jpeg("in/cut.jpg")
        Path("in/text.png").write_text("no image\n" * 50)
        Path("in/x\ny.png").touch()
        save_image("in/flat.png", smooth_image(1, 32, seed=1))
        reasons = {
            "cut": "cannot read the image in/cut.jpg .*truncated",
            "text": "in/text.png is ",
            "x\ny": "in/x y.png is empty",
            "flat": "the content image is 32x1 px, but layer relu2_1 needs",
        }
        result = run()
        assert (result.code, result.out) == (1, "out/manifest.jsonl\n")
        assert summary(result) == "3 already there, 4 skipped"
        failed = {f"{name}__style.png" for name in reasons}
        assert statuses() == dict.fromkeys(NAMES, "done") | dict.fromkeys(failed, "failed")
        for name, reason in reasons.items():
            line = f"^nst-jax: skipping {' '.join(name.split())}__style.png: {reason}"
            assert re.search(line, result.err, re.MULTILINE)
            found = records()[f"{name}__style.png"]
            assert re.match(reason, found["error"]) and found["styles"] == ["style.png"]

        before, found = stamps(), records()
        os.unlink("in/cut.jpg")
        for name in reasons:
            shutil.copy("in/a.png", f"in/{name}.png")
        result = run()
        assert result.code == 0 and summary(result) == "4 written, 3 already there"
        assert {name: stamps()[name] for name in before} == before
        assert {name: records()[name] for name in NAMES} == {name: found[name] for name in NAMES}
        assert set(statuses().values()) == {"done"}
        for name in failed:
            np.testing.assert_array_equal(pixels(f"out/{name}"), pixels("out/a__style.png"))

    def test_content_that_vanishes_or_changes_meanwhile(self):
        items = make_items(3)
        gone = InputError("0.png does not exist")
        reader = Reader([gone, loaded_item(items[1], (24, 40)), loaded_item(items[2], (24, 32))])
        failed = {}
        sizes = dict.fromkeys(items, (24, 32))
        loaded = list(load_items(None, sizes, reader, on_failure=failed.__setitem__))
        assert [one.item for one in loaded] == items[2:]
        changed = "the size of 1.png has changed since the batch started: run the command again "
        assert failed[items[0]] is gone and str(failed[items[1]]).startswith(changed)

    def test_divergence(self, run, tiny_weights_file):
        """An image that diverges is run again alone, where it recovers as ``stylize`` does."""
        options = {"learning_rate": 1e30, "steps": 4}
        result = run("in/a.png", "in/b.png", **options)
        assert result.code == 1 and summary(result) == "2 written but diverged"
        lines = result.err.splitlines()
        assert sum(line.endswith("running it again alone") for line in lines) == 2
        recovered = "nst-jax: a__style.png: the loss or its gradient was not finite: restarted from"
        assert any(line.startswith(recovered) for line in lines)
        for name, found in records().items():
            image, _ = stylized(f"in/{name[0]}.png", tiny_weights_file, **options)
            np.testing.assert_array_equal(pixels(f"out/{name}"), image)
            assert found["alone"] and found["recoveries"] > 0 and found["steps"] == 4
            assert found["status"] == "diverged"
        result = run("in/a.png", "in/b.png", **options)
        assert result.code == 1 and summary(result) == "2 already there but diverged"


TWO = "style.png two.png"
REFUSED = [
    # Inputs; more cases are in test_batch_inputs.py.
    (["none.png"], {}, "none.png does not exist: expected a content image, a folder"),
    (["in"], {"style": ""}, "no style image"),
    (["text.png", "in/flat.png"], {}, "text.png is "),
    (["in"], {"style": "style.png cut.jpg", "grid": True}, "cannot read the image cut.jpg"),
    (["in"], {"style": "style.png", "max_megapixels": 0.0005}, "style.png has 0.000832 megapixels"),
    (["in"], {"style": "in/flat.png"}, "style image is 32x1 px, but layer relu2_1 needs"),
    # Options.
    (["in"], {"pair": True, "style": TWO}, "2 styles for 3 contents"),
    (["in"], {"pair": True, "grid": True}, "--pair and --grid contradict each other"),
    (["in"], {"batch_size": 0}, "batch_size is 0: expected 1 or more, or auto"),
    (["in"], {"size": 0}, "size is 0: expected 1 to 100000"),
    (["in"], {"init": "two.png"}, "init two.png is for a single image: expected "),
    (["in"], {"style_mixing": "sum", "style": TWO, "grid": True}, "style_mixing"),
    (["in/a.png"], {"style": TWO, "style_blend": "1 2", "grid": True}, "--style-blend and .*mix"),
    (["in"], {"style": TWO, "layer_styles": "relu5_1=1"}, "layer_styles names 'relu5_1'"),
    # Outputs.
    (["in"], {"output_dir": "style.png/out"}, "style.png is not a folder"),
    (["in"], {"output_dir": "dangling"}, "dangling is not a folder"),
    (["in"], {"output_dir": "in"}, "in/a.png was found in the output folder"),
    (["in/a.png"], {"output_dir": "o" * 300}, "cannot write .*too long"),
    # Weights and processes.
    (["in"], {"weights": "nowhere.h5"}, "nowhere.h5 .*do not exist"),
    (["in"], {"process_count": 2}, "require --distributed"),
    (["in"], {"distributed": True, "coordinator": "localhost:1"}, "1 of 3 options"),
]


@pytest.mark.parametrize("contents, options, message", REFUSED)
def test_refused_before_any_work(run, desk, traced_work, contents, options, message):
    (desk / "dangling").symlink_to("nowhere")
    Path("text.png").write_text("no image\n" * 50)
    if "flat" in f"{contents} {options}":
        save_image("in/flat.png", smooth_image(1, 32, seed=5))
    cut_jpeg("cut.jpg")
    check_refused(desk, message, lambda: run(*contents, **options))


class TestMemory:
    OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes."

    @pytest.fixture
    def limit(self, monkeypatch):
        """Let a batch run out of memory unless it fits; returns the sizes of the batches."""
        run_batch, sizes = batch_run.run_batch, []

        def limit(fits):
            def limited(elements, **options):
                sizes.append(len(elements))
                if not fits(elements):
                    raise jax.errors.JaxRuntimeError(self.OUT_OF_MEMORY)
                return run_batch(elements, **options)

            monkeypatch.setattr(batch_run, "run_batch", limited)
            return sizes

        return limit

    def test_not_even_one_fits(self, run, monkeypatch):
        monkeypatch.setattr(batch_run, "free_bytes", lambda device: 2**10)
        code, out, err = run()
        assert (code, out) == (2, "") and len(err.splitlines()) == 1
        numbers = r"an image of 32x24 px needs about \S+ MiB, 0.00098 MiB are free: choose a small"
        assert re.match(f"nst-jax: error: {numbers}", err)
        assert not Path("out").exists()

    GIB = LoopMemory(0, 2**30, 0, 0)

    @pytest.mark.parametrize(
        "asked, memory, free, largest, even",
        [
            ("auto", GIB, 1.5, 1, 1),
            ("auto", GIB, 2.5, 2, 2),
            ("auto", GIB, 99.5, 4, 3),  # one for each device
            (3, GIB, 99.5, 3, 3),
            (8, GIB, 99.5, 4, 3),
            ("auto", None, 1.5, 4, 3),
            ("auto", GIB, None, 4, 3),
        ],
    )
    def test_batch_size(self, asked, memory, free, largest, even):
        """On four CPU devices; five images take two batches at least, of nearly equal sizes."""
        free = free and int(free * 2**30 / USABLE)
        job, devices = SimpleNamespace(batch_size=asked), jax.devices()[:4]
        found = choose_batch_size(job, memory, shape=(24, 32), devices=devices, free=free)
        assert (found, even_batch_size(found, count=5)) == (largest, even)

    def test_smaller_batches_after_an_error(self, base, run, limit, monkeypatch):
        use_devices(monkeypatch, 2)
        sizes = limit(lambda elements: len(elements) == 1)
        result = run()
        assert result.code == 0 and sizes == [2, 1, 1, 1]
        assert "nst-jax: out of memory, continuing with batches of 1\n" in result.err
        assert all_pixels() == all_pixels(base.folder / "out")

    def test_one_image_is_too_large(self, run, limit):
        """Those before it are kept."""
        limit(lambda elements: elements[0].problem.shape[:2] == (24, 32))
        code, out, err = run()
        assert (code, out) == (2, "") and "Traceback" not in err
        assert err.splitlines()[-1].startswith("nst-jax: error: out of memory at 32x20 px: choose")
        assert outputs() == NAMES[:2] and statuses() == dict.fromkeys(NAMES[:2], "done")

    def test_targets_are_too_large(self):
        def failing(inputs, styles):
            raise jax.errors.JaxRuntimeError(self.OUT_OF_MEMORY)

        (item,) = make_items(1)
        with pytest.raises(InputError, match="out of memory at 32x24 px: choose a smaller --size"):
            list(prepare_group([loaded_item(item, (24, 32))], failing, on_failure=None))


class TestFullDisk:
    @pytest.mark.parametrize(
        "count, module, name, bad",
        [
            (2, batch_records, "append_record", False),
            (2, batch_records, "save_image", False),
            (1, batch_records, "append_record", True),
            (1, batch, "merge_manifests", False),
        ],
    )
    def test_is_reported(self, base, run, monkeypatch, count, module, name, bad):
        """The first error ends the command; the next run computes what is missing."""
        original, calls = getattr(module, name), []

        def failing(*args, **options):
            calls.append(None)
            if len(calls) == count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **options)

        monkeypatch.setattr(module, name, failing)
        if bad:
            Path("in/0.jpg").touch()
        code, out, err = run()
        assert (code, out) == (2, "") and "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("nst-jax: error:")]
        assert errors == err.splitlines()[-1:]
        words = r"cannot write \S+ \(No space left on device\): finished images are kept; solve"
        assert re.match(f"nst-jax: error: {words} this and run the command again", errors[0])
        Path("in/0.jpg").unlink(missing_ok=True)
        check_restart(run, base, existing=outputs() if Path("out").exists() else [])


class TestDistributed:
    @pytest.fixture
    def pair(self, start):
        """Run two processes that share the images."""

        def pair():
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port = probe.getsockname()[1]
            place = {"distributed": True, "coordinator": f"localhost:{port}", "process_count": 2}
            return [ended(one) for one in [start(process_index=i, **place) for i in (0, 1)]]

        return pair

    @pytest.mark.slow
    def test_two_processes(self, base, run, pair):
        """They share the images; a single process later completes the work of both."""
        first, second = pair()
        assert (first.code, second.code) == (0, 0), first.err + second.err
        assert first.out == second.out == "out/manifest.jsonl\n"
        parts = [records(f"out/manifest-{number}-of-2.jsonl") for number in (1, 2)]
        assert sorted(len(part) for part in parts) == [1, 2] and len(parts[0] | parts[1]) == 3
        assert records() == parts[0] | parts[1]
        os.unlink("out/b__style.png")
        check_restart(run, base, existing=[NAMES[0], NAMES[2]])
        assert not list(Path("out").glob("manifest-*"))

    @pytest.fixture
    def as_process(self, run, monkeypatch):
        """Run the command as one of several processes, without the others."""

        def as_process(index, count):
            monkeypatch.setattr(batch, "join", lambda **_: batch.Membership(index, count))
            return run(distributed=True)

        return as_process

    def test_more_processes_than_images(self, as_process):
        """Some have nothing to do; an image with a bad header is reported by the first alone."""
        Path("in/zero.png").touch()
        results = [as_process(index, 5) for index in range(5)]
        assert [result.code for result in results] == [1, 0, 0, 0, 0]
        assert any(result.err == "nst-jax: nothing to do\n" for result in results)
        assert outputs() == NAMES
        assert statuses() == dict.fromkeys(NAMES, "done") | {"zero__style.png": "failed"}

    def test_another_number_of_processes(self, as_process):
        """The newest record counts when another process computes an image that failed before."""
        shutil.copy("in/a.png", "good.png")
        cut_jpeg("in/a.png")
        assert sorted(as_process(index, 2).code for index in range(2)) == [0, 1]
        assert statuses()[NAMES[0]] == "failed"
        shutil.copy("good.png", "in/a.png")
        assert [as_process(index, 3).code for index in range(3)] == [0, 0, 0]
        assert outputs() == NAMES and statuses() == dict.fromkeys(NAMES, "done")


class TestInTheBackground:
    @pytest.mark.parametrize("side, ahead", [(2**14, 2), (2**11, 8), (16, 64)])
    def test_prefetches_fewer_large_images(self, side, ahead):
        items = make_items(100)
        reader = Reader(loaded_item(item, (side, side)) for item in items)
        coming = load_items(None, dict.fromkeys(items, (side, side)), reader, on_failure=None)
        for number in range(10):
            next(coming)
            assert reader.submitted == ahead + number

    def test_writes_behind(self, run, monkeypatch):
        """A slow disk does not delay the next images, but only a few of them wait for it."""
        many(12, 24, 32)
        write, written, seen = batch_run.write, [], []
        run_batch = batch_run.run_batch

        def writing(*args):
            deadline = time.monotonic() + 60
            while len(seen) <= min(len(written) + 1, 11):  # until the next has started
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.1)
            write(*args)
            written.append(None)

        def computing(elements, **options):
            seen.append(len(written))
            return run_batch(elements, **options)

        monkeypatch.setattr(batch_run, "write", writing)
        monkeypatch.setattr(batch_run, "run_batch", computing)
        assert run("many").code == 0
        assert len(written) == 12 and len(outputs()) == 12
        waiting = np.arange(12) - seen
        assert waiting.max() <= 2 + 4 and waiting[1:].max() >= 1
