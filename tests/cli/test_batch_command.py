"""The command ``batch``: images as made alone, restarts, failures, several processes."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import QUICK, smooth_image
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
from helpers.traces import count_traces
from PIL import Image
from rich.console import Console

from nst_jax.cli import batch, batch_records, batch_run, main
from nst_jax.cli.batch_files import Item
from nst_jax.cli.batch_records import Loaded
from nst_jax.cli.batch_run import choose_width, even_width, prepare_group, read
from nst_jax.cli.progress import job_display
from nst_jax.errors import InputError
from nst_jax.images import save_image, to_uint8
from nst_jax.images.read import load_rgba
from nst_jax.transfer.plan import USABLE
from nst_jax.transfer.types import LoopMemory

pytestmark = pytest.mark.sampled

SIZE = 32
SETTINGS = {
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


def words(*contents, **options):
    """A command line, of the folder ``in`` in one style unless told otherwise."""
    given = {"style": "style.png", "output_dir": "out"} | SETTINGS | options
    return ["batch", *(contents or ["in"]), *flags(**given)]


@pytest.fixture
def one_device(monkeypatch):
    use_devices(monkeypatch, 1)


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A folder with images, three contents of one size in ``in``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    use_devices(monkeypatch, 2)
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("abc"):
        save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed))
    save_image("style.png", smooth_image(32, 26, seed=11))
    save_image("two.png", smooth_image(20, 32, seed=12))
    save_image("three.png", smooth_image(32, 26, seed=13))
    return tmp_path


@pytest.fixture
def run(capsys, tiny_weights_file):
    def run(*contents, **options):
        capsys.readouterr()
        code = main(words(*contents, **{"weights": tiny_weights_file} | options))
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def alone(capsys, tiny_weights_file):
    """The pixels and the loss that ``stylize`` gives."""
    numbers = iter(range(1000))

    def alone(content, style="style.png", **options):
        name = f"alone{next(numbers)}.png"
        given = SETTINGS | {"style": style, "output": name, "weights": tiny_weights_file} | options
        assert main(["stylize", content, *flags(**given)]) in (0, 1)
        capsys.readouterr()
        found = pixels(name), record(Path(name).with_suffix(".json"))["final_loss"]
        Path(name).unlink()
        return found

    return alone


def records(path=MANIFEST):
    """The records by their outputs; every line is one, and of no output there are two."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    found = {line["output"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def statuses(path=MANIFEST):
    return {name: found["status"] for name, found in records(path).items()}


def outputs(folder="out"):
    """Names of the images, each of which is whole; what else there is are manifests."""
    names = sorted(os.listdir(folder))
    others = [name for name in names if not name.endswith(".png")]
    assert all(re.fullmatch(r"manifest(-\d-of-\d)?\.jsonl", name) for name in others)
    names = [name for name in names if name.endswith(".png")]
    for name in names:
        with Image.open(Path(folder, name)) as image:
            image.load()
    return names


def stamps(folder="out"):
    """Which file each image is, and when it was written."""
    stats = {path.name: path.stat() for path in Path(folder).glob("[!.]*.png")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def all_pixels(folder="out"):
    return {name: pixels(Path(folder, name)).tobytes() for name in outputs(folder)}


def check_same(names, alone, *, content="in/{}.png", style="style.png", **options):
    """Check outputs against ``stylize``."""
    assert outputs() == sorted(names)
    found = records()
    assert sorted(found) == sorted(names)
    for name in names:
        source, chosen = name.removesuffix(".png").split("__")
        chosen = " ".join(f"{style}.png" for style in chosen.split("+"))
        image, loss = alone(content.format(source), chosen, **options)
        np.testing.assert_array_equal(pixels(f"out/{name}"), image)
        assert found[name]["final_loss"] == loss


class TestResults:
    @pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "lbfgs-linesearch"])
    def test_one_style(self, one_device, run, alone, optimizer):
        options = {"optimizer": optimizer}
        options |= {} if optimizer == "adam" else {"learning_rate": None}
        code, out, err = run(**options)
        assert (code, out) == (0, "out/manifest.jsonl\n")
        assert err.splitlines()[-1] == "nst-jax: 3 made"
        check_same(NAMES, alone, **options)
        assert len(set(all_pixels().values())) == 3

    def test_pairs(self, run, alone):
        names = ["a__two.png", "b__style.png", "c__three.png"]
        assert run(style="two.png style.png three.png", pair=True).code == 0
        check_same(names, alone)

    def test_grid(self, run, alone):
        assert run("in/a.png", "in/c.png", style="two.png style.png", grid=True).code == 0
        check_same([f"{c}__{s}.png" for c in "ac" for s in ("style", "two")], alone)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"style_blend": "1 3"},
            {"style_blend": "1 3", "layer_styles": "relu1_1=2"},
            {"style_mixing": "sum"},
        ],
    )
    def test_mixed_styles(self, one_device, run, alone, options):
        assert run(style="style.png two.png", **options).code == 0
        check_same([f"{name}__style+two.png" for name in "abc"], alone, **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"color": "keep-yiq"},
            {"color": "luminance"},
            {"color": "match-pca"},
            {"init": "noise", "seed": 7, "noise_scale": 0.2},
        ],
    )
    def test_settings(self, one_device, run, alone, options):
        assert run(**options).code == 0
        check_same(NAMES, alone, **options)

    def test_colours_of_the_content_with_several_styles(self, one_device, run, alone):
        """What is computed of a style for one content is not taken for another."""
        options = {"color": "luminance"}
        assert (
            run("in/a.png", "in/b.png", style="style.png two.png", grid=True, **options).code == 0
        )
        names = [f"{c}__{s}.png" for c in "ab" for s in ("style", "two")]
        check_same(names, alone, **options)

    def test_transparency(self, run, alone):
        alpha = np.linspace(0.1, 1, 24 * 32).reshape(24, 32)
        save_image("in/b.png", smooth_image(24, 32, seed=1), alpha=alpha)
        assert run().code == 0
        check_same(NAMES, alone)
        assert [pixels(f"out/{name}").shape[-1] for name in NAMES] == [3, 4, 3]
        expected = to_uint8(load_rgba("in/b.png", size=SIZE).alpha)
        np.testing.assert_array_equal(pixels("out/b__style.png")[..., 3], expected)

    def test_several_sizes(self, run, alone):
        """In one job, in the order of the command line or not, some of them scaled."""
        shapes = {"d": (32, 24), "e": (24, 32), "f": (48, 64), "g": (40, 30), "h": (20, 32)}
        for seed, (name, shape) in enumerate(shapes.items()):
            save_image(f"in/{name}.png", smooth_image(*shape, seed=seed + 20))
        assert run(batch_size=2).code == 0
        check_same([f"{name}__style.png" for name in "abcdefgh"], alone)
        sizes = {name[0]: tuple(found["image"].values()) for name, found in records().items()}
        assert sizes == dict.fromkeys("abcef", (32, 24)) | dict.fromkeys("dg", (24, 32)) | {
            "h": (32, 20)
        }

    @pytest.mark.parametrize("batch_size", [1, 2, 3, "auto"])
    def test_batch_size(self, run, alone, batch_size, monkeypatch):
        for name, seed in zip("de", (4, 5)):
            save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed))
        use_devices(monkeypatch, 4)
        widths = spy_widths(monkeypatch)
        assert run(batch_size=batch_size).code == 0
        check_same([f"{name}__style.png" for name in "abcde"], alone)
        # On CPUs one image for each of four devices, and batches of even sizes.
        assert widths == {1: [1] * 5, 2: [2, 2, 1], 3: [3, 2], "auto": [3, 2]}[batch_size]


def spy_widths(monkeypatch):
    """How many images were computed at once."""
    widths, run_batch = [], batch_run.run_batch

    def spy(elements, **options):
        widths.append(len(elements))
        return run_batch(elements, **options)

    monkeypatch.setattr(batch_run, "run_batch", spy)
    return widths


class TestManifest:
    def test_records(self, one_device, run, desk):
        save_image("in/b.png", smooth_image(20, 32, seed=1))
        before = set(listing(desk))
        assert run(seed=3, tv_weight=0.5).code == 0
        assert set(listing(desk)) - before == {"out", MANIFEST, *(f"out/{n}" for n in NAMES)}
        lines = Path(MANIFEST).read_text("ascii").splitlines()
        assert [json.loads(line)["output"] for line in lines] == NAMES
        for name, found in records().items():
            assert found["content"] == f"in/{name[0]}.png" and found["styles"] == ["style.png"]
            assert (found["status"], found["steps"], found["evaluations"]) == ("done", 3, 3)
            assert found["seed"] == 3 and found["settings"]["tv_weight"] == 0.5
            assert found["settings"]["style_layers"] == {"relu1_1": 1, "relu2_1": 1}
            assert found["settings"]["size"] == SIZE and found["weights"]["name"] == "tiny"
            assert found["final_loss"] == pytest.approx(sum(found["final_terms"].values()))
            with Image.open(f"out/{name}") as image:
                assert json.loads(image.text["nst_jax"]) == found
                assert image.text["Software"].startswith("nst_jax ")
                assert dict(zip(("width", "height"), image.size)) == found["image"]
        assert records()["b__style.png"]["image"] == {"width": 32, "height": 20}
        assert len({found["job"] for found in records().values()}) == 3

    def test_names_of_styles(self, one_device, run):
        assert run("in/a.png", style="style.png two.png").code == 0
        assert records()["a__style+two.png"]["styles"] == ["style.png", "two.png"]


def many(count, *shapes):
    """A folder ``many`` of so many images of each size."""
    Path("many").mkdir()
    for number in range(count):
        for height, width in shapes:
            image = smooth_image(height, width, seed=number)
            save_image(f"many/p{number:02d}-{height}.png", image)


class TestCompilation:
    # Many runs in programs of their own, so small ones.
    SMALL = {"content_layers": "relu1_1", "style_layers": "relu1_1", "size": 24, "steps": 2}

    @pytest.mark.parametrize(
        "count, shapes, devices",
        [(50, [(18, 24)], 2), (4, [(18, 24), (24, 18), (20, 24)], 1)],
        ids=["one", "three"],
    )
    def test_one_trace_for_each_size(self, run, monkeypatch, count, shapes, devices):
        use_devices(monkeypatch, devices)
        traces = count_traces(monkeypatch)
        many(count, *shapes)
        assert run("many", **self.SMALL).code == 0
        assert len(outputs()) == len(records()) == count * len(shapes)
        assert len(traces) == len(shapes)

    @pytest.mark.parametrize("pair", [None, True], ids=["one-style", "pairs"])
    def test_a_short_last_batch_has_the_same_program(self, run, alone, monkeypatch, pair):
        """As on accelerators, where the images of a batch advance together."""
        many(10, (18, 24))
        style = " ".join([*["style.png"] * 8, "three.png", "three.png"]) if pair else "style.png"
        run_batch = batch_run.run_batch

        def together(*args, execution, **options):
            execution = execution._replace(together=True)
            return run_batch(*args, **options, execution=execution)

        monkeypatch.setattr(batch_run, "run_batch", together)
        use_devices(monkeypatch, 4)
        traces = count_traces(monkeypatch)
        assert run("many", style=style, pair=pair, **self.SMALL).code == 0
        assert len(traces) == 1
        found = records()
        assert len(found) == len(outputs()) == 10
        for name in ("p00-18__style.png", f"p09-18__{'three' if pair else 'style'}.png"):
            image, loss = alone(f"many/{name[:6]}.png", found[name]["styles"][0], **self.SMALL)
            assert found[name]["final_loss"] == pytest.approx(loss, rel=1e-5)
            assert np.abs(pixels(f"out/{name}").astype(int) - image).max() <= 1


# A real process that is killed at a moment, as by the system's lack of memory or of power.
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
    "before a batch": (batch_run, "run_batch"),
    "before an image": (batch_records, "save_image"),
    "within an image": (files.os, "replace"),
    "before a record": (batch_records, "append_record"),
    "in a line": (batch_records, "append_record"),
}[moment]
killing(module, name)
batch_run.WRITERS = 1  # so that the order is certain
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs that the processes of these tests share."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def environ(compiled, monkeypatch):
    """The environment of a process as a person starts it."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_", "PYTHONWARN")):
            if name != QUICK:
                monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return os.environ


@pytest.fixture
def start(environ, tiny_weights_file):
    """Start a process, and end it with the test."""
    processes = []

    def start(*contents, killed=None, devices=2, **options):
        program = ["-c", KILLED, *map(str, killed)] if killed else ["-m", "nst_jax"]
        process = subprocess.Popen(
            [
                *(sys.executable, *program),
                *words(
                    *contents,
                    **{"weights": tiny_weights_file, "preset": "neural-style"} | options,
                ),
            ],
            env=environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
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


def wait_for(condition, process=None):
    """Wait until something is true, or a process has ended."""
    deadline = time.monotonic() + 120
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(process):
    out, err = process.communicate(timeout=180)
    return Run(process.returncode, out, err)


def check_restart(run, *, there, made, temporaries=0, **options):
    """Start again, and check that what was there stayed and that all is as in one go."""
    before = stamps()
    assert sorted(before) == there
    result = run(**options)
    assert result.code == 0, result.err
    said = f"nst-jax: {made} made" if made else "nst-jax:"
    said += f"{',' if made else ''} {len(there)} there before" if there else ""
    assert result.err.splitlines()[-1] == said
    assert {name: stamp for name, stamp in stamps().items() if name in before} == before
    left = [name for name in os.listdir("out") if name.startswith(".")]
    assert len(left) == temporaries
    for name in left:
        Path("out", name).unlink()
    found = records()
    assert run(output_dir="whole", **options).code == 0
    assert all_pixels() == all_pixels("whole")
    expected = records("whole/manifest.jsonl")
    assert list(found) == list(expected)
    for name in found:
        moment = ("timing", "device")
        assert {key: value for key, value in found[name].items() if key not in moment} == {
            key: value for key, value in expected[name].items() if key not in moment
        }


@pytest.fixture
def done(run):
    """A job that has ended well."""
    assert run().code == 0


class TestRestart:
    def test_nothing_is_missing(self, done, run):
        before = listing(Path("out"))
        code, out, err = run()
        assert (code, out, err) == (0, "out/manifest.jsonl\n", "nst-jax: 3 there before\n")
        assert listing(Path("out")) == before

    @pytest.mark.parametrize(
        "killed, there, temporaries",
        [
            pytest.param(("before a batch", 1), [], 0, marks=pytest.mark.slow),
            pytest.param(("before a batch", 3), None, 0, marks=pytest.mark.slow),
            pytest.param(("before an image", 2), NAMES[:1], 0, marks=pytest.mark.slow),
            pytest.param(("before a record", 1), NAMES[:1], 0, marks=pytest.mark.slow),
            pytest.param(("within an image", 2), NAMES[:1], 0, marks=pytest.mark.optimized),
            pytest.param(("within an image", 4), NAMES, 1, marks=pytest.mark.slow),  # manifest
            (("in a line", 2), NAMES[:2], 0),
        ],
    )
    def test_killed(self, start, run, killed, there, temporaries, monkeypatch):
        process = start(killed=killed, batch_size=1, devices=1)
        assert ended(process).code == -signal.SIGKILL
        there = sorted(stamps()) if there is None else there  # written behind
        made = 3 - len(there)
        check_restart(run, there=there, made=made, temporaries=temporaries, batch_size=1)

    @pytest.mark.campaign
    def test_killed_from_outside(self, start, run):
        many(30, (18, 24))
        process = start("many", batch_size=1, devices=1, steps=200)
        wait_for(lambda: list(Path("out").glob("p*.png")), process)
        process.kill()
        assert ended(process).code == -signal.SIGKILL
        before = stamps()
        assert 0 < len(before) < 30
        code, _, err = run("many", steps=200)
        assert code == 0 and f"{30 - len(before)} made, {len(before)} there before" in err
        assert {name: stamps()[name] for name in before} == before
        assert len(records()) == 30

    @pytest.mark.parametrize(
        "keep",
        [
            lambda lines: lines[:-1],
            lambda lines: [*lines[:-1], lines[-1][:40]],
            lambda lines: [lines[0], lines[1][:40] + b"\n", lines[2]],
            lambda lines: [*lines, lines[0]],
            lambda lines: [b"\0\xff\n", *lines, b"[1]\n", b"{}\n", b"\n"],
            lambda lines: [],
            None,
        ],
        ids=["cut", "torn", "torn inside", "double", "garbage", "empty", "gone"],
    )
    def test_manifest_that_is_not_whole(self, done, run, keep):
        lines = Path(MANIFEST).read_bytes().splitlines(keepends=True)
        if keep is None:
            Path(MANIFEST).unlink()
        else:
            Path(MANIFEST).write_bytes(b"".join(keep(lines)))
        check_restart(run, there=NAMES, made=0)
        assert Path(MANIFEST).read_bytes().splitlines(keepends=True) == lines

    def test_missing_and_stale_files(self, done, run):
        os.unlink("out/b__style.png")
        for name in (".b__style-x1y2z3_4.png", ".a__style-x1y2z3_4.png"):
            Path("out", name).write_bytes(b"\x89PNG\r\n")
        # What a killed process has left of b is removed, the other is nobody's.
        check_restart(run, there=[NAMES[0], NAMES[2]], made=1, temporaries=1)

    def test_more_images(self, done, run):
        save_image("in/d.png", smooth_image(24, 32, seed=9))
        check_restart(run, there=NAMES, made=1)

    def test_torn_image(self, done, run, desk):
        """As it is left by a disk that lost what was written, or by a copy cut off."""
        data = Path("out/b__style.png").read_bytes()
        Path("out/b__style.png").write_bytes(data[:-20])
        check_refused(desk, "out/b__style.png exists and is damaged, or .*--overwrite", run)
        before = stamps()
        code, _, err = run(overwrite=True)
        assert code == 0 and "1 made, 2 there before" in err
        after = stamps()
        assert [name for name in NAMES if after[name] != before[name]] == ["b__style.png"]

    CHANGES = [
        {"tv_weight": 0.5},
        {"steps": 4},
        {"size": 30},
        {"style_scale": 0.8},
        {"seed": 5},
        {"style_layers": "relu1_1=2 relu2_1"},
    ]

    @pytest.mark.parametrize("options", CHANGES)
    def test_other_settings(self, one_device, done, run, desk, options):
        match = "out/a__style.png exists and is of other images or settings: .*--overwrite"
        check_refused(desk, match, lambda: run(**options))
        before = stamps()
        code, _, err = run(overwrite=True, **options)
        assert code == 0 and err.splitlines()[-1] == "nst-jax: 3 made"
        assert not set(before.values()) & set(stamps().values())
        assert run(**options).err == "nst-jax: 3 there before\n"

    @pytest.mark.parametrize("name", ["in/b.png", "style.png", "weights"])
    def test_other_files(self, done, run, desk, variables, slim_file, name):
        options = {}
        if name == "weights":
            options = {"weights": "other.safetensors"}
            from nst_jax.weights import Weights, WeightsInfo, save_weights

            info = WeightsInfo(name="other", preprocessing="caffe")
            save_weights(Path("other.safetensors"), Weights(variables, info))
        else:
            shape = pixels(name).shape
            save_image(name, smooth_image(*shape[:2], seed=77))
        changed = ["b__style.png"] if name == "in/b.png" else NAMES
        match = f"out/{changed[0]} exists and is of other images"
        check_refused(desk, match, lambda: run(**options))
        before = stamps()
        assert run(overwrite=True, **options).code == 0
        after = stamps()
        assert [name for name in NAMES if after[name] != before[name]] == changed
        assert run(**options).err == "nst-jax: 3 there before\n"

    def test_other_blend(self, one_device, run, desk):
        options = {"style": "style.png two.png"}
        assert run(style_blend="1 2", **options).code == 0
        match = "exists and is of other images or settings"
        check_refused(desk, match, lambda: run(style_blend="1 3", **options))

    def test_foreign_image_in_the_place(self, run, desk):
        (desk / "out").mkdir()
        save_image("out/b__style.png", smooth_image(24, 32, seed=3))
        check_refused(desk, "out/b__style.png exists and is damaged, or no image of this", run)
        assert run(overwrite=True).code == 0
        assert statuses() == dict.fromkeys(NAMES, "done")

    def test_renamed_contents(self, done, run):
        """Images and outputs that got other names together are known by their new ones."""
        os.rename("in/b.png", "in/x.png")
        os.rename("out/b__style.png", "out/x__style.png")
        code, _, err = run()
        assert (code, err) == (0, "nst-jax: 3 there before\n")
        assert {"a__style.png", "c__style.png", "x__style.png"} <= set(statuses())


@pytest.fixture
def at_step(monkeypatch):
    yield from acting(monkeypatch, batch, "job_display")


@pytest.fixture
def press(at_step):
    return partial(at_step, act=ctrl_c)


class TestInterrupt:
    def test_stops_at_the_next_report(self, run, press):
        press(1 + 1 / 4)  # the first chunk is one step
        code, out, err = run(steps=4, batch_size=1)
        assert (code, out) == (130, "out/manifest.jsonl\n")
        assert "Ctrl-C again ends at once" in err
        assert err.splitlines()[-1] == "nst-jax: 1 made, 2 still missing"
        assert outputs() == NAMES[:1] and statuses() == {NAMES[0]: "done"}
        press(-1)
        check_restart(run, there=NAMES[:1], made=2, steps=4, batch_size=1)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_between_two_batches(self, run, press, steps):
        press(2)
        code, _, err = run(steps=steps, batch_size=1)
        assert code == 130 and err.splitlines()[-1] == "nst-jax: 2 made, 1 still missing"
        assert outputs() == NAMES[:2]

    def test_at_the_last_step_the_job_is_done(self, run, press):
        press(3)
        assert run(batch_size=1).code == 0
        assert outputs() == NAMES

    @pytest.mark.slow
    def test_before_the_first_step(self, start):
        process = start("in")
        assert any("images at once" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "nst-jax: interrupted\n")
        assert not os.path.exists("out")

    @pytest.mark.slow
    def test_in_a_process(self, start, run):
        many(30, (18, 24))
        process = start("many", batch_size=1, devices=1, steps=2000, style_layers="relu1_1")
        wait_for(lambda: list(Path("out").glob("p*.png")), process)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        assert (code, out) == (130, "out/manifest.jsonl\n") and "Traceback" not in err
        assert 0 < len(outputs()) == len(records()) < 30
        assert f"nst-jax: {len(outputs())} made, {30 - len(outputs())} still missing" in err


def cut_jpeg(name):
    """A JPEG with a good header that is cut off within its pixels."""
    Image.fromarray((smooth_image(24, 32, seed=5) * 255).astype(np.uint8)).save("whole.jpg")
    data = Path("whole.jpg").read_bytes()
    os.unlink("whole.jpg")
    Path(name).write_bytes(data[: -len(data) // 4])


def spoil_some():
    """Put images that cannot be made among the others; what is said of each."""
    cut_jpeg("in/cut.jpg")
    Path("in/text.png").write_text("no image\n" * 50)
    Path("in/zero.png").touch()
    save_image("in/flat.png", smooth_image(1, 32, seed=1))
    return {
        "cut__style.png": "cannot read the image in/cut.jpg .*truncated",
        "text__style.png": "in/text.png is not an image in a known format",
        "zero__style.png": "in/zero.png is empty",
        "flat__style.png": "the content image is 32x1 px, but layer relu2_1 needs",
    }


def let_vanish(monkeypatch, name):
    """Remove a file when the job has been planned."""
    find_missing = batch.find_missing

    def vanishing(*args, **options):
        Path(name).unlink()
        return find_missing(*args, **options)

    monkeypatch.setattr(batch, "find_missing", vanishing)


class Reader:
    """An executor that has read each of these, in their order; an error is raised."""

    def __init__(self, contents):
        self.contents, self.asked = iter(contents), 0

    def submit(self, work, item):
        self.asked += 1
        future, content = Future(), next(self.contents)
        if isinstance(content, Exception):
            future.set_exception(content)
        else:
            future.set_result(content)
        return future


def loaded_of(item, shape):
    """As though a content of this height and width had been read."""
    return Loaded(item, np.broadcast_to(np.float32(0), (*shape, 3)), None, None, "")


class TestFailures:
    def test_bad_images_are_left_out(self, run, alone, monkeypatch):
        bad = spoil_some() | {"gone__style.png": "in/gone.png does not exist"}
        save_image("in/gone.png", smooth_image(24, 32, seed=8))
        with monkeypatch.context() as patch:
            let_vanish(patch, "in/gone.png")
            code, out, err = run(batch_size=2)
        assert (code, out) == (1, "out/manifest.jsonl\n")
        assert err.splitlines()[-1] == "nst-jax: 3 made, 5 left out" and "Traceback" not in err
        assert outputs() == NAMES
        found = records()
        assert statuses() == dict.fromkeys(NAMES, "done") | dict.fromkeys(bad, "failed")
        for name, reason in bad.items():
            assert re.search(f"^nst-jax: {name} is left out: {reason}", err, re.MULTILINE)
            assert re.match(reason, found[name]["error"])
            assert found[name]["styles"] == ["style.png"]
            assert found[name]["content"].startswith("in/" + name.split("__")[0])

        # As they are, another start changes nothing; with good files it makes what is missing.
        before = stamps()
        os.unlink("in/zero.png")
        code, _, err = run()
        assert code == 1 and err.splitlines()[-1] == "nst-jax: 3 there before, 3 left out"
        assert stamps() == before
        os.unlink("in/cut.jpg")
        for seed, name in enumerate(("text", "zero", "flat", "gone", "cut")):
            save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed + 30))
        code, _, err = run()
        assert code == 0 and err.splitlines()[-1] == "nst-jax: 5 made, 3 there before"
        assert {name: stamps()[name] for name in before} == before
        assert {name: records()[name] for name in NAMES} == {name: found[name] for name in NAMES}
        check_same([*NAMES, *bad], alone)
        assert set(statuses().values()) == {"done"}

    def test_content_of_too_many_pixels(self, run, alone):
        """Left out until the limit is raised; what was made before is not made anew."""
        save_image("in/large.png", smooth_image(48, 64, seed=8))
        code, _, err = run(max_megapixels=0.002)
        assert code == 1 and err.splitlines()[-1] == "nst-jax: 3 made, 1 left out"
        reason = (
            "in/large.png has 0.003072 megapixels: expected at most 0.002; .*max_megapixels to 1,"
        )
        assert re.search(f"^nst-jax: large__style.png is left out: {reason}", err, re.MULTILINE)
        assert re.match(reason, records()["large__style.png"]["error"])
        before = stamps()
        code, _, err = run(max_megapixels=1)
        assert code == 0 and err.splitlines()[-1] == "nst-jax: 1 made, 3 there before"
        assert {name: stamps()[name] for name in before} == before
        check_same([*NAMES, "large__style.png"], alone)

    def test_style_of_too_many_pixels(self, run, desk):
        save_image("large.png", smooth_image(48, 64, seed=8))
        check_refused(
            desk,
            "large.png has 0.003072 megapixels",
            lambda: run(style="style.png large.png", max_megapixels=0.002),
        )

    @pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
    def test_limit_of_pixels(self, run, desk, limit):
        check_refused(desk, "max_megapixels is .*: expected", lambda: run(max_megapixels=limit))

    def test_every_content_is_bad(self, run, desk):
        bad = spoil_some()["text__style.png"]
        check_refused(desk, bad, lambda: run("in/text.png", "in/zero.png", "in/flat.png"))

    def test_every_content_is_bad_behind_its_header(self, run):
        cut_jpeg("in/cut.jpg")
        code, _, err = run("in/cut.jpg")
        assert code == 1 and err.splitlines()[-1] == "nst-jax: 1 left out"
        assert outputs() == [] and statuses() == {"cut__style.png": "failed"}

    def test_content_that_vanishes_or_is_exchanged_amid_the_run(self):
        """It alone is left out."""
        items = [Item(Path(f"{name}.png"), (0,), Path("x")) for name in "abc"]
        gone = InputError("a.png does not exist")
        reader = Reader([gone, loaded_of(items[1], (24, 40)), loaded_of(items[2], (24, 32))])
        failed = {}
        coming = read(None, dict.fromkeys(items, (24, 32)), reader, fail=failed.__setitem__)
        assert [loaded.item for loaded in coming] == items[2:]
        words = "b.png has another size than at the start of the batch: run again for it"
        assert [str(error) for error in failed.values()] == [str(gone), words]
        assert list(failed) == items[:2]

    def test_name_with_a_line_break(self, run):
        Path("in/x\ny.png").touch()
        code, _, err = run()
        lines = err.splitlines()
        assert code == 1 and lines[-1] == "nst-jax: 3 made, 1 left out"
        assert "nst-jax: x y__style.png is left out: in/x y.png is empty: expected a" in err

    @pytest.mark.parametrize("kind", ["text", "cut", "zero", "gone"])
    def test_style_that_cannot_be_read(self, run, desk, traced_work, kind):
        cut_jpeg("bad.jpg")
        if kind == "text":
            Path("bad.jpg").write_text("no image\n" * 50)
        elif kind == "zero":
            os.truncate("bad.jpg", 0)
        elif kind == "gone":
            os.unlink("bad.jpg")
        check_refused(desk, "bad.jpg", lambda: run(style="style.png bad.jpg", grid=True))

    def test_a_image_that_diverges(self, run, alone):
        # A style weight with which the largest of three losses overflows and the others do not.
        options = dict(content_weight=0, tv_weight=0, steps=1)
        losses = [alone(f"in/{name}.png", style_weight=1, **options)[1] for name in "abc"]
        *_, second, largest = sorted(losses)
        assert largest / second > 1.01
        options["style_weight"] = 3.4028e38 / (second * largest) ** 0.5
        expected = ["diverged" if loss == largest else "done" for loss in losses]
        bad = expected.index("diverged")

        code, out, err = run(**options)
        assert (code, out) == (1, "out/manifest.jsonl\n")
        assert err.splitlines()[-1] == "nst-jax: 2 made, 1 made but diverged"
        assert [statuses()[name] for name in NAMES] == expected
        assert records()[NAMES[bad]]["final_loss"] is None
        check_same(NAMES, alone, **options)
        assert (pixels(f"out/{NAMES[bad]}") == pixels(f"in/{'abc'[bad]}.png")).all()

        before = listing(Path("out"))
        code, _, err = run(**options)
        assert (code, err) == (1, "nst-jax: 2 there before, 1 there before but diverged\n")
        assert listing(Path("out")) == before

    def test_a_image_that_recovers_is_told(self, run):
        code, _, err = run("in/a.png", learning_rate=1e30, steps=4)
        told = "nst-jax: a__style.png: the loss or its gradient was not finite: went on from"
        assert code == 1 and any(line.startswith(told) for line in err.splitlines())

    def test_a_image_that_diverges_is_made_once_more_alone(self, run, alone):
        """As ``stylize`` makes it, from its best image."""
        options = dict(learning_rate=1e30, steps=4)
        code, _, err = run(batch_size=2, **options)
        again = [line for line in err.splitlines() if line.endswith("making it once more alone")]
        assert code == 1 and len(again) == 3
        check_same(NAMES, alone, **options)
        for found in records().values():
            assert found["alone"] and found["recoveries"] > 0 and found["steps"] == 4
        Path("out/manifest.jsonl").unlink()
        assert run(overwrite=True, steps=2).code == 0
        assert not any("alone" in found for found in records().values())

    def test_all_diverge(self, run):
        code, _, err = run(learning_rate=1e30, batch_size=2, steps=4)
        assert code == 1 and err.splitlines()[-1] == "nst-jax: 3 made but diverged"
        assert outputs() == NAMES and set(statuses().values()) == {"diverged"}


BAD_INPUT = [
    # What to read.
    (["empty"], {}, "the folder empty holds no content image"),
    (["none.png"], {}, "none.png does not exist: expected a content image, a folder"),
    (["in/*.bmp"], {}, "no file matches in/.*.bmp"),
    (["in", "in/a.png"], {}, "in/a.png is asked for twice"),
    (["in/a.png", "other/a.jpg"], {}, "would both be written to a__style.png"),
    (["in/a.png", "other/A.png"], {}, "would both be written to A__style.png"),
    (["none.txt"], {}, "none.txt does not exist"),
    (["lost.txt"], {}, "the list lost.txt, line 2: .*x.png does not exist"),
    (["void.txt"], {}, "the list void.txt names no content image"),
    (["binary.txt"], {}, "the list binary.txt is no text in UTF-8"),
    (["in"], {"style": "none.png"}, "none.png does not exist: expected a style image"),
    (["in"], {"style": ""}, "no style image"),
    (["in"], {"style": "style.png style.png", "grid": True}, "asked for twice"),
    # What to make.
    (["in"], {"pair": True}, "1 styles for 3 contents: to pair them, give"),
    (["in"], {"pair": True, "style": "style.png two.png"}, "2 styles for 3 contents"),
    (["in"], {"pair": True, "grid": True}, "--pair and --grid contradict each other"),
    (["in"], {"batch_size": 0}, "batch_size is 0: expected 1 or more, or auto"),
    (["in"], {"batch_size": -1}, "batch_size is -1"),
    (["in"], {"seed": -1}, "seed is -1: expected 0 to 4294967295"),
    (["in"], {"seed": 2**32}, "seed is 4294967296"),
    (["in"], {"size": 0}, "size is 0: expected 1 to 100000"),
    (["in"], {"size": 1}, "content image is 1x1 px|style image is 1x1 px"),
    (["in"], {"style_layers": "relu1_1 relu5_1", "size": 20}, "px, but layer relu5_1"),
    (["in"], {"style": "strip.png"}, "style image is 32x1 px, but layer relu2_1 needs"),
    (["in"], {"padding": "circular", "size": 31}, "with circular padding layer relu2_1"),
    (["in"], {"style_layers": "relu6_1"}, "unknown layer 'relu6_1'"),
    (["in"], {"init": "two.png"}, "init two.png has no meaning for many images"),
    (["in"], {"init": "none.png"}, "init none.png has no meaning for many images"),
    (["in"], {"style_mixing": "sum"}, "style_mixing sum has no effect with one style"),
    (["in"], {"style_mixing": "sum", "style": "style.png two.png", "grid": True}, "style_mixing"),
    (["in"], {"style_blend": "1 2"}, "2 blend weights for 1 styles"),
    (["in"], {"style_blend": "1"}, "style_blend has no effect with one style"),
    (["in"], {"style": "style.png two.png", "style_blend": "1 -1"}, "style_blend is .*-1"),
    *[
        (
            ["in/a.png", "in/b.png"],
            {"style": "style.png two.png", kind: True} | options,
            f"--style-blend and --layer-styles are for styles that are mixed.* --{kind}",
        )
        for kind in ("pair", "grid")
        for options in ({"style_blend": "1 2"}, {"layer_styles": "relu1_1=2"})
    ],
    (
        ["in"],
        {"style": "style.png two.png", "layer_styles": "relu5_1=1"},
        "layer_styles names 'relu5_1', which is not a style layer",
    ),
    (["in"], {"guides": "all"}, "guides all needs masks"),
    (["in"], {"memory_size": 5}, "memory_size has no meaning for adam"),
    # Where to.
    (["in"], {"output_dir": "style.png"}, "style.png is no folder"),
    (["in"], {"output_dir": "style.png/out"}, "style.png is no folder"),
    (["in"], {"output_dir": "dangling"}, "dangling is no folder"),
    (["in"], {"output_dir": "dangling/out"}, "dangling is no folder"),
    (["in"], {"output_dir": "/proc/out"}, "folder /proc"),
    (["in"], {"output_dir": "in"}, "in/a.png was found in the output folder"),
    (["in/*.png"], {"output_dir": "./in"}, "in/a.png was found in the output folder"),
    (["taken/a__style.png", "in/a.png"], {"output_dir": "taken"}, "a__style.png is an input"),
    (["in"], {"output_dir": "folders"}, "b__style.png is a directory"),
    ([f"{'n' * 250}.png"], {}, "cannot write .*too long"),
    (["in/a.png"], {"output_dir": "o" * 300}, "cannot write .*too long"),
    # With what.
    (["in"], {"weights": "nowhere.h5"}, "nowhere.h5 .*do not exist"),
    (["in"], {"weights": "style.png"}, "style.png"),
    (["in"], {"preset": "none"}, "unknown preset 'none'"),
    # Which process.
    (["in"], {"coordinator": "localhost:1"}, "need --distributed"),
    (["in"], {"process_count": 2}, "need --distributed"),
    (["in"], {"process_index": 0}, "need --distributed"),
    (["in"], {"distributed": True, "coordinator": "localhost:1"}, "1 of 3 options"),
    (
        ["in"],
        {"distributed": True, "coordinator": "h:1", "process_count": 2, "process_index": 2},
        "process index is 2: expected 0 to 1",
    ),
    (
        ["in"],
        {"distributed": True, "coordinator": "h", "process_count": 2, "process_index": 0},
        "expected HOST:PORT of process 0",
    ),
]


class TestBadInput:
    @pytest.fixture
    def refused(self, run, desk, traced_work):
        """Check that a job ends with one line before any work, and writes nothing."""

        def refused(match, *contents, **options):
            check_refused(desk, match, lambda: run(*contents, **options))

        return refused

    @pytest.mark.parametrize("contents, options, message", BAD_INPUT)
    def test_one_line(self, refused, desk, contents, options, message):
        for name in ("empty", "other", "taken", "folders/b__style.png"):
            (desk / name).mkdir(parents=True)
        (desk / "dangling").symlink_to("nowhere")
        shutil.copy("in/b.png", "other/A.png")
        with Image.open("in/b.png") as image:
            image.save("other/a.jpg")
        shutil.copy("in/b.png", "taken/a__style.png")
        save_image("strip.png", smooth_image(1, 32, seed=5))
        if contents[0].startswith("nnn"):
            shutil.copy("in/b.png", contents[0])
        (desk / "lost.txt").write_text("in/a.png\nx.png\n")
        (desk / "void.txt").write_text("# nothing\n\n")
        (desk / "binary.txt").write_bytes(b"\xff\xfe")
        refused(message, *contents, **options)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
    def test_folder_that_is_locked(self, refused, desk):
        (desk / "locked").mkdir(mode=0o500)
        refused("cannot write to the folder locked", output_dir="locked")
        refused("cannot write to the folder .*locked", output_dir="locked/out")

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="for Linux")
    def test_folder_that_cannot_be_written(self, refused):
        refused("cannot write to the folder /proc", output_dir="/proc/out")

    def test_layers_that_slim_weights_have_not_learned(self, refused, slim_file):
        refused("trained for the layers .*, not relu2_1", weights=slim_file)

    @pytest.mark.parametrize(
        "extra", [["--batch-size", "x"], ["--batch-size", "1.5"], ["--unknown", "1"], ["--size"]]
    )
    def test_the_parsers_own_errors(self, capsys, desk, extra):
        before = listing(desk)
        assert main([*words(), *extra]) == 2
        out, err = capsys.readouterr()
        assert out == "" and extra[0] in err and listing(desk) == before

    @pytest.mark.parametrize("missing", ["in", "--style", "--output-dir"])
    def test_what_has_to_be_given(self, capsys, desk, tiny_weights_file, missing):
        before = listing(desk)
        line = ["batch", "in", "--style", "style.png", "--output-dir", "out"]
        place = line.index(missing)
        del line[place : place + (1 if missing == "in" else 2)]
        try:
            code = main([*line, "--weights", str(tiny_weights_file)])
        except SystemExit as end:  # the parser's own way
            code = end.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, "") and "Traceback" not in err and listing(desk) == before


class TestMemory:
    OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes."

    @pytest.fixture
    def limit(self, monkeypatch):
        """Let the work fail where images are too many or too large."""
        run_batch, widths = batch_run.run_batch, []

        def limit(fits):
            def limited(elements, **options):
                widths.append(len(elements))
                if not fits(elements):
                    raise jax.errors.JaxRuntimeError(self.OUT_OF_MEMORY)
                return run_batch(elements, **options)

            monkeypatch.setattr(batch_run, "run_batch", limited)
            return widths

        return limit

    def test_not_even_one_fits(self, run, desk, monkeypatch):
        monkeypatch.setattr(batch_run, "free_bytes", lambda device: 2**10)
        before = listing(desk)
        code, out, err = run()
        assert (code, out) == (2, "") and len(err.splitlines()) == 1
        numbers = r"an image of 32x24 px needs about \S+ MiB, 0.00098 MiB are free: choose a small"
        assert re.match(f"nst-jax: error: {numbers}", err)
        assert set(listing(desk)) - set(before) <= {"out"}  # and it is empty

    @pytest.mark.parametrize("fit, width", [(1, 1), (2, 2), (99, 3)])
    def test_as_many_as_fit(self, fit, width):
        """On four CPU devices: five images take two batches at least, which are made even."""
        free = int((fit + 0.5) * 2**30 / USABLE)
        most = self.choose(LoopMemory(0, 2**30, 0, 0), free)
        assert most == min(fit, 4) and even_width(most, count=5) == width

    def choose(self, memory, free):
        job = SimpleNamespace(batch_size="auto")
        return choose_width(job, memory, shape=(24, 32), devices=jax.devices()[:4], free=free)

    @pytest.mark.parametrize("memory, free", [(None, 2**30), (LoopMemory(0, 2**30, 0, 0), None)])
    def test_unknown(self, memory, free):
        """Where the memory or the need of it is not known."""
        assert self.choose(memory, free) == 4

    def test_what_is_told(self, one_device, run):
        _, _, err = run("in/a.png")
        assert re.search("^nst-jax: 32x24 px: about .* of .*; the whole image$", err, re.M)

    def test_fewer_images_after_an_error(self, run, alone, limit, monkeypatch):
        for seed, name in enumerate("defg"):
            save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed + 20))
        use_devices(monkeypatch, 4)
        widths = limit(lambda elements: len(elements) == 1)
        code, _, err = run()
        assert code == 0 and widths == [4, 2] + [1] * 7
        said = re.findall("^nst-jax: out of memory, going on by (.)$", err, re.MULTILINE)
        assert said == ["2", "1"] and err.splitlines()[-1] == "nst-jax: 7 made"
        check_same([f"{name}__style.png" for name in "abcdefg"], alone)

    def test_one_image_is_too_much(self, one_device, run, limit):
        """What was made before stays."""
        save_image("in/b.png", smooth_image(20, 32, seed=4))
        limit(lambda elements: elements[0].problem.shape[:2] == (24, 32))
        code, out, err = run(batch_size=1)
        assert (code, out) == (2, "") and "Traceback" not in err
        assert err.splitlines()[-1].startswith("nst-jax: error: out of memory at 32x20 px: choose")
        assert outputs() == [NAMES[0], NAMES[2]]
        assert statuses() == dict.fromkeys([NAMES[0], NAMES[2]], "done")

    def test_targets_are_too_much(self):
        def failing(inputs, styles):
            raise jax.errors.JaxRuntimeError(self.OUT_OF_MEMORY)

        item = Item(Path("a.png"), (0,), Path("x.png"))
        words = "out of memory at 32x24 px: choose a smaller --size, or for L-BFGS"
        with pytest.raises(InputError, match=words):
            list(prepare_group([loaded_of(item, (24, 32))], failing, fail=None))


class TestFullDisk:
    @pytest.fixture
    def fail_at(self, monkeypatch):
        """Let a function fail as on a full disk when it is called for the n-th time."""

        def fail_at(count, module, name):
            original, calls = getattr(module, name), []

            def failing(*args, **options):
                calls.append(None)
                if len(calls) == count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(*args, **options)

            monkeypatch.setattr(module, name, failing)

        return fail_at

    @pytest.mark.parametrize(
        "count, module, name, bad",
        [
            (2, batch_records, "save_image", None),
            (2, batch_records, "append_record", None),
            (1, batch_records, "append_record", "cut"),
            (1, batch_records, "append_record", "empty"),
            (1, batch, "merge_manifests", None),
        ],
    )
    def test_is_told(self, run, fail_at, count, module, name, bad):
        if bad:
            cut_jpeg("in/0.jpg")
        if bad == "empty":
            os.truncate("in/0.jpg", 0)
        fail_at(count, module, name)  # and later it works again
        code, out, err = run(batch_size=1)
        assert (code, out) == (2, "") and "Traceback" not in err
        said = [line for line in err.splitlines() if line.startswith("nst-jax: error:")]
        assert len(said) == 1 and err.splitlines()[-1] == said[0]
        words = r"cannot write \S+ \(No space left on device\): what is written stays; see to the"
        assert re.match(f"nst-jax: error: {words} place and run again", said[0])
        there = outputs() if Path("out").exists() else []
        before = stamps()
        Path("in/0.jpg").unlink(missing_ok=True)
        check_restart(run, there=there, made=3 - len(there), batch_size=1)
        assert {name: stamps()[name] for name in before} == before

    def test_folder_that_cannot_be_made(self, run, monkeypatch):
        def refuse(self, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "mkdir", refuse)
        code, out, err = run()
        assert (code, out) == (2, "") and len(err.splitlines()) == 1
        assert err.startswith("nst-jax: error: cannot write out (No space left on device)")


def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class TestDistributed:
    @pytest.fixture
    def pair(self, start):
        """Start two processes that share the images."""

        def pair(*contents, killed=None, **options):
            place = {"distributed": True, "coordinator": f"localhost:{port()}", "process_count": 2}
            return [
                start(
                    *contents,
                    process_index=index,
                    killed=killed if index == 1 else None,
                    batch_size=1,
                    **place,
                    **options,
                )
                for index in (0, 1)
            ]

        return pair

    def check_whole(self, run, *contents, **options):
        """Check images and manifest against those of one process."""
        assert run(*contents, output_dir="whole", **options).code == 0
        assert all_pixels() == all_pixels("whole")
        expected = records("whole/manifest.jsonl")
        assert {name: record["job"] for name, record in records().items()} == {
            name: record["job"] for name, record in expected.items()
        }
        assert list(records()) == list(expected) and set(statuses().values()) == {"done"}

    @pytest.mark.slow
    def test_two_processes_share_the_images(self, run, pair):
        many(6, (18, 24))
        cut_jpeg("many/p05-18.jpg")
        os.unlink("many/p05-18.png")
        first, second = [ended(process) for process in pair("many")]
        assert first.code == 0, first.err
        assert second.code == 1, second.err
        assert "nst-jax: 3 made" in first.err.splitlines()
        assert "nst-jax: 2 made, 1 left out" in second.err.splitlines()
        assert first.out == second.out == "out/manifest.jsonl\n"
        parts = [records(f"out/manifest-{number}-of-2.jsonl") for number in (1, 2)]
        assert [len(part) for part in parts] == [3, 3] and not set(parts[0]) & set(parts[1])
        assert records() == parts[0] | parts[1]
        assert len(outputs()) == 5 and statuses()["p05-18__style.png"] == "failed"

        # One process alone goes on where several have ended.
        before = stamps()
        os.unlink("many/p05-18.jpg")
        save_image("many/p05-18.png", smooth_image(18, 24, seed=5))
        os.unlink("out/p01-18__style.png")
        code, _, err = run("many")
        assert code == 0 and err.splitlines()[-1] == "nst-jax: 2 made, 4 there before"
        del before["p01-18__style.png"]
        assert {name: stamps()[name] for name in before} == before
        assert not list(Path("out").glob("manifest-*"))
        self.check_whole(run, "many")

    @pytest.mark.slow
    @pytest.mark.parametrize("killed", [("before an image", 2), ("within an image", 2)])
    @pytest.mark.parametrize("again", ["all", "one"])
    def test_one_is_killed(self, run, pair, killed, again):
        many(6, (18, 24))
        first, second = [ended(process) for process in pair("many", killed=killed)]
        assert first.code == 0 and "nst-jax: 3 made" in first.err.splitlines(), first.err
        assert second.code == -signal.SIGKILL
        for path in Path("out").glob(".p*"):
            path.unlink()
        before = stamps()
        assert len(outputs()) == 4
        if again == "one":
            code, _, err = run("many")
            assert code == 0 and err.splitlines()[-1] == "nst-jax: 2 made, 4 there before"
        else:
            first, second = [ended(process) for process in pair("many")]
            assert first.code == second.code == 0
            assert "nst-jax: 3 there before" in first.err.splitlines()
            assert "nst-jax: 2 made, 1 there before" in second.err.splitlines()
        assert {name: stamps()[name] for name in before} == before
        self.check_whole(run, "many")

    def place(self, monkeypatch, index, count):
        """Be one of several processes without the others."""
        place = batch.Membership(index, count)
        monkeypatch.setattr(batch, "join", lambda **_: place)

    def test_more_processes_than_images(self, run, monkeypatch):
        for index in range(4):
            self.place(monkeypatch, index, 4)
            code, out, err = run(distributed=True)
            assert (code, out) == (0, "out/manifest.jsonl\n")
        assert outputs() == NAMES and set(records()) == set(NAMES)

    def test_nothing_to_do(self, run, monkeypatch):
        self.place(monkeypatch, 1, 2)
        code, _, err = run("in/a.png", distributed=True)
        if not outputs():
            assert (code, err) == (0, "nst-jax: nothing to do\n")
        self.place(monkeypatch, 0, 2)
        code, _, err = run("in/a.png", distributed=True)
        assert code == 0 and outputs() == NAMES[:1]

    def test_bad_headers_are_told_by_one(self, run, monkeypatch):
        Path("in/zero.png").touch()
        codes = []
        for index in range(2):
            self.place(monkeypatch, index, 2)
            codes.append(run(distributed=True).code)
        assert codes == [1, 0] and outputs() == NAMES
        assert statuses() == dict.fromkeys(NAMES, "done") | {"zero__style.png": "failed"}

    def test_another_number_of_processes(self, run, monkeypatch):
        """What one has failed at, another makes; the newest record counts."""
        self.place(monkeypatch, 0, 2)
        cut_jpeg("in/c.png")
        first = run(distributed=True)
        self.place(monkeypatch, 1, 2)
        second = run(distributed=True)
        assert sorted([first.code, second.code]) == [0, 1]
        assert statuses()[NAMES[2]] == "failed"
        save_image("in/c.png", smooth_image(24, 32, seed=2))
        for index in range(3):
            self.place(monkeypatch, index, 3)
            assert run(distributed=True).code == 0
        assert outputs() == NAMES and statuses() == dict.fromkeys(NAMES, "done")


class TestReadAhead:
    @pytest.mark.parametrize("ahead", [1, 3, 20])
    def test_order_and_number(self, ahead):
        items = [Item(Path(f"{number}.png"), (0,), Path("x")) for number in range(10)]
        started = []

        def read(item):
            started.append(item)
            return item

        with ThreadPoolExecutor(1) as reader:
            found = []
            for item, future in batch_run.read_ahead(items, read, reader, ahead=ahead):
                assert future.result() is item
                found.append(item)
                # Others are read while this one is in use, but no more than so many.
                assert len(started) <= len(found) + ahead - 1
        assert found == started == items

    def test_reads_while_others_are_in_use(self):
        items = [Item(Path(f"{number}.png"), (0,), Path("x")) for number in range(4)]
        read, third = [], threading.Event()

        def reading(item):
            read.append(item)
            if item is items[2]:
                third.set()

        with ThreadPoolExecutor(1) as reader:
            coming = batch_run.read_ahead(items, reading, reader, ahead=3)
            next(coming)
            assert third.wait(10) and read == items[:3]

    def test_errors_come_in_their_places(self):
        items = [Item(Path(f"{number}.png"), (0,), Path("x")) for number in range(3)]

        def read(item):
            if item is items[1]:
                raise OSError("gone")
            return item

        with ThreadPoolExecutor(1) as reader:
            futures = [future for _, future in batch_run.read_ahead(items, read, reader, ahead=3)]
        assert [future.exception() is None for future in futures] == [True, False, True]

    @pytest.mark.parametrize("side, ahead", [(2**14, 2), (2**11, 8), (16, 64)])
    def test_the_command_keeps_few(self, side, ahead):
        """While an image is computed, the fewer of the next are in memory the larger they are."""
        items = [Item(Path(f"{number}.png"), (0,), Path("x")) for number in range(100)]
        reader = Reader(loaded_of(item, (side, side)) for item in items)
        coming = read(None, dict.fromkeys(items, (side, side)), reader, fail=None)
        for number in range(10):
            next(coming)
            assert reader.asked == ahead + number

    def test_the_command_writes_behind(self, run, monkeypatch):
        """A slow disk does not hold the next images up, but not all of them wait for it."""
        many(12, (24, 32))
        write, written, seen = batch_run.write, [], []
        run_batch = batch_run.run_batch

        def writing(*args):
            wait_for(lambda: len(seen) > min(len(written) + 1, 11))  # the next is begun
            time.sleep(0.1)
            write(*args)
            written.append(None)

        def computing(elements, **options):
            seen.append(len(written))
            return run_batch(elements, **options)

        monkeypatch.setattr(batch_run, "write", writing)
        monkeypatch.setattr(batch_run, "run_batch", computing)
        assert run("many", batch_size=1).code == 0
        assert len(written) == 12 and len(outputs()) == 12
        computed = np.arange(12)
        waiting = computed - seen
        assert waiting.max() <= 2 + 4 and waiting[1:].max() >= 1


class TestProgress:
    @pytest.fixture
    def shown(self):
        """Show what is done at given seconds; what was printed."""

        def shown(images, reports, *, terminal=False):
            now, file = 100.0, StringIO()
            console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
            with job_display(images, console=console, clock=lambda: now) as show:
                for seconds, done in reports:
                    now = 100.0 + seconds
                    show(done)
            return file.getvalue()

        return shown

    def test_lines(self, shown):
        reports = [(0, 0.25), (1, 0.5), (2, 1.0), (10, 3.0), (12, 3.5), (20, 8.0)]
        assert shown(8, reports).splitlines() == [
            "0/8 images",
            "1/8 images, 0.375 images/s, 19 s left",
            "3/8 images, 0.275 images/s, 18 s left",
            "8/8 images, 0.388 images/s, 0 s left",
        ]

    def test_lines_of_slow_images(self, shown):
        reports = [(seconds, seconds / 200) for seconds in range(0, 101, 5)]
        assert shown(2, reports).splitlines() == [
            "0/2 images",
            "0/2 images, 0.005 images/s, 365 s left",
            "0/2 images, 0.005 images/s, 330 s left",
        ]

    def test_rounding(self, shown):
        thirds = [(seconds, 1 / 3 + 1 / 3 + 1 / 3 - 1e-12) for seconds in (0, 1)]
        assert shown(2, thirds).splitlines()[0] == "1/2 images"

    def test_bar(self, shown):
        text = shown(8, [(0, 0.25), (2, 1.0), (20, 8.0)], terminal=True)
        assert "8/8 images, 0.388 images/s, 0 s left" in text

    def test_of_a_job(self, run):
        _, _, err = run(batch_size=1)
        lines = [line.split(",")[0] for line in err.splitlines() if "images" in line]
        assert lines == [f"{done}/3 images" for done in range(4)]
