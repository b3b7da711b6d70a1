"""``nst-jax stylize``, run in this process with a small network: results, failures, Ctrl-C."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.commands import (  # noqa: F401
    SHALLOW,
    SIZE,
    at_step,
    check_refused,
    desk,
    listing,
    pixels,
    press,
    record,
    run,
    words,
)
from helpers.images import smooth_image
from PIL import Image

import nst_jax
from nst_jax.checkpoint import store
from nst_jax.cli import app, main, weights
from nst_jax.cli.checks import check_outputs, check_seed, check_size
from nst_jax.cli.options import ImageOptions, RunOptions, WatchOptions
from nst_jax.cli.parsing import parse
from nst_jax.config import PRESETS, Config, to_flat
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image, to_uint8
from nst_jax.images.read import load_rgba
from nst_jax.system.threads import set_threads
from nst_jax.weights import load

pytestmark = pytest.mark.sampled


def reference(variables, **settings):
    """The same run by the library's function."""
    return nst_jax.stylize(
        variables,
        load_image("content.png", size=SIZE),
        load_image("style.png", size=SIZE),
        config=Config.of(**{"steps": 3, "memory_size": 100} | settings),
    )


class Everything(NamedTuple):
    """A run with every output, and what it printed."""

    folder: Path
    out: str
    err: str
    seconds: float


SETTINGS = dict(steps=5, tv_weight=0.5, style_layers="relu1_1=0.5,relu2_1")


@pytest.fixture(scope="module")
def everything(tmp_path_factory, content, style, tiny_weights_file):
    folder = tmp_path_factory.mktemp("everything")
    before, out, err = os.getcwd(), StringIO(), StringIO()
    os.chdir(folder)
    try:
        save_image("content.png", content)
        save_image("style.png", style)
        options = dict(preset="neural-style", seed=7, weights=tiny_weights_file)
        outputs = dict(save_every=2, animation="film.gif", plot="curve.svg", checkpoint="kept")
        started = time.perf_counter()
        with redirect_stdout(out), redirect_stderr(err):
            assert main(words(**SETTINGS, **options, **outputs)) == 0
        seconds = time.perf_counter() - started
    finally:
        os.chdir(before)
    return Everything(folder, out.getvalue(), err.getvalue(), seconds)


class TestOutputs:
    @pytest.fixture(autouse=True)
    def there(self, everything, monkeypatch, desk):
        monkeypatch.chdir(everything.folder)

    def test_messages_and_files(self, everything):
        assert everything.out == "out.png\n"
        plan, compiled, *steps = everything.err.splitlines()
        assert plan.startswith("nst-jax: 32x24 px: about ") and plan.endswith("; the whole image")
        assert compiled.startswith("compiled in ")
        assert steps and all(line.startswith("step ") for line in steps)
        names = {"out.png", "out.json", "out_00002.png", "out_00004.png"}
        names |= {"content.png", "style.png", "film.gif", "curve.svg", "kept"}
        assert {*os.listdir()} == names

    def test_image_and_previews_are_those_of_the_library(self, variables):
        flat = {"style_layers": {"relu1_1": 0.5, "relu2_1": 1}, "tv_weight": 0.5, "steps": 5}
        np.testing.assert_array_equal(
            pixels("out.png"), to_uint8(reference(variables, **flat).image)
        )
        for step in (2, 4):
            expected = to_uint8(reference(variables, **flat | {"steps": step}).state.image)
            np.testing.assert_array_equal(pixels(f"out_0000{step}.png"), expected)

    def test_record(self, everything, tiny_weights_file):
        found = record()
        settings = found["settings"]
        assert set(flat_types()) <= set(settings)
        assert not {"styles", "regions", "run", "watch", "config"} & set(settings)
        assert settings["content"] == "content.png" and settings["style"] == ["style.png"]
        assert (settings["size"], settings["steps"], settings["tv_weight"]) == (SIZE, 5, 0.5)
        assert settings["style_layers"] == {"relu1_1": 0.5, "relu2_1": 1.0}
        assert settings["preset"] == "neural-style" and found["seed"] == 7
        assert settings["labels"] is None and settings["region_styles"] == []
        assert "max_megapixels" not in settings and "masks" not in settings
        assert found["versions"]["nst_jax"] == nst_jax.__version__
        assert found["versions"]["jax"] == jax.__version__
        assert found["device"]["platform"] == jax.default_backend()
        digest = hashlib.sha256(tiny_weights_file.read_bytes()).hexdigest()
        assert found["weights"] == {"name": "tiny", "sha256": digest}
        assert found["image"] == {"width": 32, "height": 24}
        assert found["status"] == "done" and found["steps"] == found["evaluations"] == 5

    def test_recorded_times(self, everything):
        timing = record()["timing"]
        assert set(timing) == {"load_s", "plan_s", "compile_s", "steps_s", "total_s"}
        assert min(timing.values()) > 0
        parts = sum(timing.values()) - timing["total_s"]
        assert parts <= timing["total_s"] <= everything.seconds

    def test_recorded_losses(self):
        found = record()
        history = found["history"]
        assert set(history) == {"total", "content", "style", "tv"}
        assert {len(values) for values in history.values()} == {5}
        terms = np.array([history[name] for name in ("content", "style", "tv")])
        np.testing.assert_allclose(history["total"], terms.sum(0), rtol=1e-6)
        assert found["final_loss"] == min(history["total"]) < history["total"][0]
        assert history["content"][0] == 0 and min(history["tv"]) > 0  # started from the content

    def test_recorded_memory(self):
        memory = record()["memory"]
        assert set(memory) == {"estimated_bytes", "peak_bytes"}
        estimated = memory["estimated_bytes"]
        assert set(estimated) == {"program", "network", "state", "targets", "scratch"}
        assert min(estimated.values()) > 0
        if jax.default_backend() == "cpu":
            assert memory["peak_bytes"] > estimated["program"] - 2 * 10**8

    def test_record_inside_the_image(self):
        with Image.open("out.png") as image:
            texts = image.text
        assert texts["Software"] == f"nst_jax {nst_jax.__version__}"
        found = record()
        left_out = ("history", "timing", "memory")  # long, or different in equal runs
        assert json.loads(texts["nst_jax"]) == {k: found[k] for k in found if k not in left_out}

    def test_animation_from_the_start_to_the_result(self):
        with Image.open("film.gif") as image:
            assert image.size == (32, 24) and image.n_frames > 3  # more than the previews
            first = np.asarray(image.convert("RGB"), int)
            image.seek(image.n_frames - 1)
            last = np.asarray(image.convert("RGB"), int)
        # A GIF has 256 colours.
        assert np.abs(first - to_uint8(load_image("content.png", size=SIZE))).mean() < 5
        assert np.abs(last - pixels("out.png")).mean() < 5

    def test_plot_and_checkpoint(self):
        assert os.path.getsize("curve.svg") > 5000
        assert store.load(Path("kept")).record["kind"] == "image"


class TestResult:
    @pytest.mark.parametrize("suffix", [".webp", ".tif", ".png", ".jpg"])
    def test_formats_and_transparency(self, run, content, suffix):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        if suffix != ".jpg":
            save_image("content.png", content, alpha=alpha)
        assert run(output=f"out{suffix}", save_every=2, steps=2, **SHALLOW).code == 0
        assert record()["status"] == "done"
        assert load_image(f"out{suffix}").shape == (24, 32, 3)
        if suffix != ".jpg":
            expected = to_uint8(load_rgba("content.png", size=SIZE).alpha)
            for name in (f"out{suffix}", f"out_00002{suffix}"):
                np.testing.assert_array_equal(pixels(name)[..., 3], expected)

    def test_overwrite_and_the_limit_of_pixels(self, run, desk, monkeypatch):
        """The command sets the limit, whatever Pillow's was."""
        (desk / "out.png").write_text("old")
        (desk / "out.json").write_text("old")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert run(overwrite=True, max_megapixels=0.002, **SHALLOW).code == 0
        assert pixels("out.png").shape == (24, 32, 3) and record()["status"] == "done"

    def test_the_seed_repeats(self, run):
        for name, seed in (("one", 5), ("again", 5), ("other", 6)):
            assert run(seed=seed, init="noise", noise_scale=0.3, output=f"{name}.png").code == 0
        np.testing.assert_array_equal(pixels("again.png"), pixels("one.png"))
        assert (pixels("other.png") != pixels("one.png")).any()

    def test_initial_image_from_a_file(self, run):
        """An image of another size is scaled to the result; its rounding may differ by a pixel."""
        run(steps=2)
        run(steps=2, init="content.png", output="same.png")
        assert record("same.json")["history"] == record()["history"]
        save_image("start.png", smooth_image(17, 24, seed=3))
        assert run(steps=2, init="start.png", output="other.png").code == 0
        assert record("other.json")["history"]["content"][0] > 0

    @pytest.mark.parametrize("preset", PRESETS)
    def test_every_preset_runs(self, run, preset):
        scales = {"min_size": "None"} if PRESETS[preset].config.pyramid.min_size else {}
        assert run(preset=preset, steps=2, **SHALLOW, **scales).code == 0
        assert record()["settings"]["preset"] == preset
        for key in ("style_weight", "pooling", "optimizer"):
            assert record()["settings"][key] == to_flat(PRESETS[preset].config)[key]

    def test_version(self, capsys):
        for line in (["--version"], ["version"]):
            assert main(line) == 0
            assert capsys.readouterr().out == f"{nst_jax.__version__}\n"


# A value for every setting, as on the command line and in Python, with settings that it needs.
FLAGS = {
    "content_layers": ("relu2_1=3 relu3_1", {"relu2_1": 3, "relu3_1": 1}, {}),
    "style_layers": ("course relu1_1 relu2_1", {"relu1_1": 0.5, "relu2_1": 0.5}, {}),
    "content_losses": ("features laplacian4=3", {"features": 1, "laplacian4": 3}, {}),
    "style_losses": ("gram,mean-std=10", {"gram": 1, "mean-std": 10}, {}),
    "histogram_layers": ("relu1_1", ("relu1_1",), {"style_losses": "histogram"}),
    "covariance_eps": ("10", 10, {"style_losses": "wasserstein"}),
    "content_weight": ("3", 3, {}),
    "style_weight": ("1e3", 1000, {}),
    "tv_weight": ("0", 0, {}),
    "pooling": ("l2", "l2", {}),
    "gram_normalization": ("hw", "hw", {}),
    "tv_form": ("isotropic", "isotropic", {}),
    "tv_order": ("2", 2, {}),
    "tv_reduction": ("mean", "mean", {}),
    "mse_factor": ("0.25", 0.25, {}),
    "pixel_range": ("1", 1, {}),
    "style_mixing": ("sum", "sum", {}),
    "guides": ("inside", "inside", {}),
    "padding": ("circular", "circular", {}),
    "color": ("match-pca", "match-pca", {}),
    "optimizer": ("adam", "adam", {}),
    "learning_rate": ("0.5", 0.5, {}),
    "memory_size": ("7", 7, {}),
    "adam_beta1": ("0.5", 0.5, {"optimizer": "adam"}),
    "adam_beta2": ("0.5", 0.5, {"optimizer": "adam"}),
    "adam_epsilon": ("1e-3", 1e-3, {"optimizer": "adam"}),
    "clip": ("", True, {"optimizer": "adam"}),
    "preconditioner": ("spectral", "spectral", {}),
    "steps": ("7", 7, {}),
    "min_size": ("16", 16, {}),
    "scale_factor": ("2", 2, {"min_size": 16}),
    "scale_steps": ("4 3", (4, 3), {"min_size": 16}),
    "averaging": ("0.5", 0.5, {}),
    "init": ("blend", "blend", {}),
    "noise": ("uniform", "uniform", {}),
    "noise_scale": ("0.2", 0.2, {}),
    "noise_ratio": ("0.2", 0.2, {}),
    "convolution": ("winograd", "winograd", {}),
    "precision": ("bfloat16", "bfloat16", {}),
    "tile": ("16", 16, {}),
    "remat": ("on", "on", {}),
}


def test_every_setting_is_a_flag():
    assert {*FLAGS} == {*flat_types()}
    for name, (text, value, others) in FLAGS.items():
        others = {"steps": None} | others
        base = parse(words(**others)).run.config
        config = parse(words(**others | {name: value is True or text})).run.config
        assert config == base.but(**{name: value}) != base, name


class TestWeights:
    def test_variable_and_flag(self, capsys, monkeypatch, tiny_weights_file):
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(tiny_weights_file))
        assert main(words(**SHALLOW)) == 0
        assert record()["weights"]["name"] == "tiny"
        monkeypatch.setenv("NST_JAX_WEIGHTS", "nowhere.h5")
        assert main(words(overwrite=True, weights=tiny_weights_file, **SHALLOW)) == 0
        assert main(words(overwrite=True)) == 2
        assert "nowhere.h5 (from NST_JAX_WEIGHTS)" in capsys.readouterr().err

    def test_installed_slim_weights_are_used_with_a_message(self, capsys, monkeypatch, slim_file):
        slim_file = shutil.copy(slim_file, Path.cwd() / load.SLIM_FILE)
        monkeypatch.setattr(load, "_installed", lambda *_: iter([("shipped", slim_file)]))
        line = words(content_layers="relu2_2", style_layers="relu1_1 relu3_1")
        assert main(line) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "slim" in line]
        assert len(said) == 1 and "'nst-jax weights fetch'" in said[0]
        assert record()["weights"]["name"] == "small-slim"
        # No message for a person who chose them.
        for chosen in (["--model", "vgg19-slim"], ["--weights", str(slim_file)]):
            assert main([*line, "--overwrite", *chosen]) == 0
        assert "no full VGG-19 was found" not in capsys.readouterr().err
        assert main([*line, "--overwrite", "--model", "vgg19"]) == 2
        error = capsys.readouterr().err
        assert "no full VGG-19 on this machine: run 'nst-jax weights fetch'" in error

    def test_nothing_is_downloaded_if_there_are_none(self, capsys, monkeypatch, desk):
        monkeypatch.setattr(load, "_installed", lambda *_: iter([]))
        before = listing(desk)
        for model, message in ((None, "no weights"), ("vgg19-slim", "install it again")):
            assert main(words(model=model)) == 2
            assert message in capsys.readouterr().err and listing(desk) == before

    def test_commands(self, capsys, monkeypatch, tiny_weights_file, desk):
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(tiny_weights_file))
        assert main(["weights", "list"]) == 0
        assert str(tiny_weights_file) in capsys.readouterr().out
        monkeypatch.setattr(weights, "fetch", lambda source, **_: f"fetched {source}")
        assert main(["weights", "fetch", "--source", "torchvision"]) == 0
        assert capsys.readouterr().out == "fetched torchvision\n"
        (desk / "broken").write_bytes(b"no weights")
        broken = (["verify", "broken"], ["convert", "broken", "new.safetensors"])
        for line in (["verify", "nowhere"], *broken):
            assert main(["weights", *line]) == 2
            assert capsys.readouterr().err.startswith("nst-jax: error: ")
        assert not (desk / "new.safetensors").exists()


@pytest.mark.parametrize(
    "options, steps",
    [
        (dict(optimizer="adam", learning_rate=1e30), 8),  # every second image overflows
        (dict(style_weight=1e38), 1),  # the loss of the first step does
    ],
)
def test_a_diverged_run_writes_the_best_image(run, options, steps):
    extras = dict(save_every=1, animation="film.gif", plot="curve.png")
    code, out, err = run(steps=9, **options, **extras)
    assert (code, out) == (1, "out.png\n")
    last = err.splitlines()[-1]
    assert f"diverged at step {steps}" in last and "learning rate" in last
    assert err.count("not finite at step ") == (3 if steps > 1 else 0)
    found = record()
    assert found["status"] == "diverged" and found["steps"] == steps
    assert found["history"]["total"][-1] is None
    finite = [loss for loss in found["history"]["total"] if loss is not None]
    assert found["final_loss"] == min(finite, default=None)
    # No step but the start had a finite loss.
    np.testing.assert_array_equal(pixels("out.png"), to_uint8(load_image("content.png", size=SIZE)))


def test_an_interrupted_run_keeps_the_best_image(run, press, desk, variables):
    press(3)
    assert run(steps=9, save_every=1, animation="film.gif")[:2] == (130, "out.png\n")
    assert {f"out_0000{step}.png" for step in (1, 2, 3)} <= set(listing(desk))
    assert not (desk / "out_00004.png").exists() and (desk / "film.gif").exists()
    found = record()
    assert found["status"] == "stopped" and found["steps"] == 3
    assert found["final_loss"] == min(found["history"]["total"])
    np.testing.assert_array_equal(pixels("out.png"), to_uint8(reference(variables).image))


def test_a_run_interrupted_at_its_last_step_is_done(run, press):
    press(3)
    assert run(steps=3, save_every=1, **SHALLOW).code == 0
    assert record()["status"] == "done"


# Options of check_outputs, and the error.
BAD_OUTPUTS = [
    (dict(output="out"), "out has no suffix of a known image format: expected one of .png"),
    (dict(output="nowhere/out.png"), "nowhere of out.png does not exist"),
    (dict(output="style.png/out.png"), "style.png of out.png does not exist"),
    (dict(output="/proc/out.png"), "folder /proc"),
    (dict(output="a" * 300 + ".png"), "cannot write .*too long"),
    (dict(output="folder.png"), "folder.png is a directory"),
    (dict(output="old.png"), "old.png exists: .*--overwrite"),
    (dict(output="oldrecord.png"), "oldrecord.json exists: .*--overwrite"),
    (dict(animation="old.gif"), "old.gif exists"),
    (dict(plot="old.svg"), "old.svg exists"),
    (dict(output="preview.png", save_every=2), "preview_00002.png exists"),
    (dict(output="content.png", overwrite=True), "content.png is an input"),
    (dict(output="./content.png", overwrite=True), "content.png is an input"),
    (dict(output="link.png", overwrite=True), "link.png is an input"),
    (dict(plot="content.png", overwrite=True), "content.png is an input"),
    (dict(plot="out.png"), "out.png is the name of two outputs"),
    (dict(plot="out_00002.png", save_every=2), "out_00002.png is the name of two outputs"),
    (dict(plot="curve.txt"), "curve.txt"),
    (dict(animation="film.mp4"), "film.mp4 is not the name of an animation: expected FILE.gif"),
    (dict(save_every=0), "save_every is 0: expected 1 or more"),
    (dict(save_every=1, steps=10**9), "save_every 1 makes 1000000000 previews: expected"),
    (dict(output="-", save_every=1), "standard output: name a file"),
    (dict(seed=-1), "seed is -1: expected 0 to 4294967295"),
    (dict(inputs=["-", "-"]), "- is given for several inputs"),
]


@pytest.mark.parametrize("options, message", BAD_OUTPUTS)
def test_outputs_are_checked(desk, options, message):
    for name in ("old.png", "old.gif", "old.svg", "oldrecord.json", "preview_00002.png"):
        (desk / name).write_text("old")
    (desk / "folder.png").mkdir()
    (desk / "link.png").symlink_to("content.png")
    given = {"output": "out.png", "inputs": ["content.png"], "steps": 4} | options
    paths = {name: Path(given[name]) for name in ("animation", "plot") if name in given}
    run_options = {name: given[name] for name in ("overwrite", "seed") if name in given}
    with pytest.raises(InputError, match=message):
        check_outputs(
            Path(given["output"]),
            RunOptions(**run_options),
            WatchOptions(save_every=given.get("save_every"), **paths),
            ImageOptions(),
            inputs=[Path(name) for name in given["inputs"]],
            steps=given["steps"],
        )


def test_numbers_are_checked():
    for size in (0, -7, 10**6):
        with pytest.raises(InputError, match=f"size is {size}: expected 1 to 100000 pixels"):
            check_size(size)
    with pytest.raises(InputError, match="seed is 4294967296"):
        check_seed(2**32)
    with pytest.raises(InputError, match="threads is 0: expected 1 to 256"):
        set_threads(threads=0)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"content": "bad.png"}, "cannot read the image bad.png .*truncated"),
        ({"style": "bad.png"}, "cannot read the image bad.png .*truncated"),
        ({"init": "bad.png"}, "cannot read the image bad.png .*truncated"),
        (
            {"init": "square.png"},
            "initial image square.png .*: expected the same aspect",
        ),
        ({"max_megapixels": 0.001}, "content.png has .* megapixels: expected at most 0.001"),
        ({"max_megapixels": "nan"}, "max_megapixels is nan: expected"),
        ({"weights": "bad.png"}, "bad.png"),
        ({"size": 20}, "content image is 20x15 px, but layer relu5_1 needs .* at least 16 px"),
        ({"plottt": "curve.png"}, "has no option --plottt: did you mean --plot"),
        ({"pooling": "sum"}, "--pooling: expected one of .*, got 'sum'"),
        (
            {"precision": "tf32"},
            "precision tf32 needs an NVIDIA GPU.*: choose float32",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_work(run, desk, traced_work, options, match):
    if "precision" in options and jax.default_backend() == "gpu":
        pytest.skip("GPUs have it")
    data = Path("content.png").read_bytes()
    Path("bad.png").write_bytes(data[: len(data) // 2])
    save_image("square.png", smooth_image(40, 40, seed=5))
    check_refused(desk, match, lambda: run(**options))


def test_file_names_with_line_breaks(capsys):
    assert main(["stylize", "a\nb.png", "--style", "style.png", "-o", "out.png"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "nst-jax: error: a b.png does not exist: expected an image file"
    ]


@pytest.mark.filterwarnings("default")
def test_warnings_of_libraries_are_one_line(capsys):
    import warnings

    with app.library_messages():
        for _ in range(2):
            warnings.warn("taken\nas that", stacklevel=1)
    assert capsys.readouterr().err == "nst-jax: warning: taken as that\n"


class TestProcess:
    """In a process, as a person runs it."""

    @pytest.fixture
    def start(self, desk, tiny_weights_file):
        """Give a function that starts a run and waits until it has written a preview."""
        processes = []

        def start(preview=None, **options):
            given = {"weights": tiny_weights_file, "preset": "neural-style"} | options
            line = [sys.executable, "-m", "nst_jax", *words(**given)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True)
            processes.append(process)
            deadline = time.monotonic() + 120
            while preview and not (desk / preview).exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return process

        yield start
        for process in processes:
            process.kill()

    LONG = dict(steps=5000, save_every=10, style_layers="relu1_1")

    def test_run_and_ctrl_c(self, start, desk):
        process = start("out_00030.png", **self.LONG)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, "out.png\n")
        assert err.splitlines()[1].startswith("compiled in ") and "Traceback" not in err
        found = record()
        assert found["status"] == "stopped" and 30 <= found["steps"] < 5000
        assert pixels("out.png").shape == (24, 32, 3)
        assert not [name for name in os.listdir(desk) if name.startswith(".")]

    @pytest.mark.slow
    def test_closing_standard_error_does_not_end_the_run(self, start):
        """As with ``2>&1 | tee log``, where Ctrl-C ends tee as well."""
        process = start("out_00010.png", **self.LONG)
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
        process.stdout.close()
        process.wait(timeout=120)
        assert (process.returncode, out) == (130, "out.png\n")
        assert record()["status"] == "stopped"

    @pytest.mark.slow
    def test_ctrl_c_before_the_first_step_writes_nothing(self, start, desk):
        process = start()
        assert re.match("nst-jax: 32x24 px: about ", process.stderr.readline())  # the plan
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (130, "", "nst-jax: interrupted\n")
        assert set(os.listdir(desk)) == {"cache", "content.png", "style.png"}
