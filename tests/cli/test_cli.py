"""The command line, run in this process with a small network: good runs, bad input, Ctrl-C."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import smooth_image
from helpers.commands import (  # noqa: F401
    PLAIN,
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
from PIL import Image

import nst_jax
from nst_jax.cli import main, weights
from nst_jax.config import PRESETS, Config, to_flat
from nst_jax.config.config import flat_types
from nst_jax.images import load_image, save_image, to_uint8
from nst_jax.images.read import load_rgba
from nst_jax.models import convolution
from nst_jax.transfer import problem
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


class TestResult:
    @pytest.mark.slow
    def test_files_and_words(self, run, desk):
        code, out, err = run()
        assert (code, out) == (0, "out.png\n")
        plan, compiled, *steps = err.splitlines()
        assert plan.startswith("nst-jax: 32x24 px: about ") and plan.endswith("; the whole image")
        assert compiled.startswith("compiled in ")
        assert steps and all(line.startswith("step ") for line in steps)
        assert set(listing(desk)) == {"content.png", "style.png", "out.png", "out.json"}

    def test_image_is_the_best_of_the_run(self, run, variables):
        run()
        np.testing.assert_array_equal(pixels("out.png"), to_uint8(reference(variables).image))

    def test_record(self, run, tiny_weights_file):
        started = time.perf_counter()
        run(steps=5, seed=7, tv_weight=0.5, style_layers="relu1_1=0.5,relu2_1")
        elapsed = time.perf_counter() - started
        found = record()
        settings = found["settings"]
        assert set(flat_types()) <= set(settings)
        assert settings["content"] == "content.png" and settings["style"] == ["style.png"]
        assert (settings["size"], settings["steps"], settings["tv_weight"]) == (SIZE, 5, 0.5)
        assert settings["style_layers"] == {"relu1_1": 0.5, "relu2_1": 1.0}
        assert settings["preset"] == "neural-style" and found["seed"] == 7
        assert found["versions"]["nst_jax"] == nst_jax.__version__
        assert found["versions"]["jax"] == jax.__version__
        assert found["device"]["platform"] == jax.default_backend()
        digest = hashlib.sha256(tiny_weights_file.read_bytes()).hexdigest()
        assert found["weights"] == {"name": "tiny", "sha256": digest}
        assert found["image"] == {"width": 32, "height": 24}
        assert found["status"] == "done" and found["steps"] == found["evaluations"] == 5

        timing = found["timing"]
        assert set(timing) == {"load_s", "plan_s", "compile_s", "steps_s", "total_s"}
        assert min(timing.values()) > 0
        assert sum(timing.values()) - timing["total_s"] <= timing["total_s"] <= elapsed

        history = found["history"]
        assert set(history) == {"total", "content", "style", "tv"}
        assert {len(values) for values in history.values()} == {5}
        terms = np.array([history[name] for name in ("content", "style", "tv")])
        np.testing.assert_allclose(history["total"], terms.sum(0), rtol=1e-6)
        assert found["final_loss"] == min(history["total"]) < history["total"][0]
        assert history["content"][0] == 0 and min(history["tv"]) > 0  # started from the content

    def test_settings_are_in_the_image_too(self, run):
        run()
        with Image.open("out.png") as image:
            texts = image.text
        assert texts["Software"] == f"nst_jax {nst_jax.__version__}"
        found = record()
        inside = json.loads(texts["nst_jax"])
        left_out = ("history", "timing", "memory")  # what may differ between equal runs, and long
        assert inside == {key: found[key] for key in found if key not in left_out}

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
    def test_other_formats(self, run, suffix):
        assert run(output=f"other{suffix}").code == 0
        assert load_image(f"other{suffix}").shape == (24, 32, 3)
        assert record("other.json")["status"] == "done"

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
    def test_transparency_is_kept(self, run, content, suffix):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        save_image("content.png", content, alpha=alpha)
        assert run(output=f"out{suffix}", save_every=2).code == 0
        expected = to_uint8(load_rgba("content.png", size=SIZE).alpha)
        for name in (f"out{suffix}", f"out_00002{suffix}"):
            np.testing.assert_array_equal(pixels(name)[..., 3], expected)

    @pytest.mark.parametrize("size, expected", [(24, (18, 24)), (64, (48, 64))])
    def test_size_of_the_longer_side(self, run, size, expected):
        assert run(size=size, **SHALLOW).code == 0
        assert pixels("out.png").shape == (*expected, 3)

    def test_limit_of_pixels(self, run, monkeypatch):
        """It is the command's, whatever Pillow's was, and the result does not depend on it."""
        assert run(output="before.png").code == 0
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert run(max_megapixels=0.002).code == 0
        np.testing.assert_array_equal(pixels("out.png"), pixels("before.png"))
        assert "max_megapixels" not in record()["settings"]

    def test_overwrite(self, run, desk):
        (desk / "out.png").write_text("old")
        (desk / "out.json").write_text("old")
        assert run(overwrite=True).code == 0
        assert pixels("out.png").shape == (24, 32, 3) and record()["status"] == "done"


OTHER = None

# Setting, another value, what else to set in both runs, and how many times larger that makes the
# terms (content, style, tv) of the first step; OTHER where the factor is no round number.
TERMS = [
    ("content_layers", "relu2_1=3", {}, (3, 1, 1)),
    ("style_layers", "relu1_1=0.5 relu2_1=0.5", {}, (1, 0.5, 1)),
    ("style_layers", "relu1_1=0.5,relu2_1=0.5", {}, (1, 0.5, 1)),
    ("style_layers", "relu1_1", {}, (1, OTHER, 1)),
    ("content_weight", 10, {}, (2, 1, 1)),
    ("style_weight", 50, {}, (1, 0.5, 1)),
    ("tv_weight", 0.004, {}, (1, 1, 4)),
    ("mse_factor", 0.25, {}, (0.25, 0.25, 1)),
    ("pixel_range", 1, {}, (1, 1, 1 / 255)),
    ("gram_normalization", "hw", {"style_layers": "relu1_1"}, (1, 4**2, 1)),  # of 4 channels
    ("tv_order", 2, {}, (1, 1, OTHER)),
    ("tv_form", "isotropic", {}, (1, 1, OTHER)),
    ("tv_form", "nine-point", {"tv_order": 2}, (1, 1, OTHER)),
    ("tv_reduction", "mean", {}, (1, 1, 1 / (24 * 32 * 3))),
    ("content_losses", "features=2", {}, (2, 1, 1)),
    ("content_losses", "self-similarity", {}, (OTHER, 1, 1)),
    ("content_losses", "features laplacian4=3", {}, (OTHER, 1, 1)),
    ("style_losses", "gram=3", {}, (1, 3, 1)),
    ("style_losses", "covariance", {}, (1, OTHER, 1)),
    ("style_losses", "gram mean-std=10", {}, (1, OTHER, 1)),
    ("style_losses", "wasserstein", {}, (1, OTHER, 1)),
    ("style_losses", "histogram", {}, (1, OTHER, 1)),
    ("histogram_layers", "relu2_1", {"style_losses": "histogram"}, (1, OTHER, 1)),
    ("covariance_eps", 10, {"style_losses": "wasserstein"}, (1, OTHER, 1)),
    ("pooling", "average", {}, (OTHER, OTHER, 1)),
    ("init", "content", {}, (0, OTHER, OTHER)),
    ("init", "blend", {}, (OTHER, OTHER, OTHER)),
    ("noise", "uniform", {}, (OTHER, OTHER, OTHER)),
    ("noise_scale", 0.2, {}, (OTHER, OTHER, OTHER)),
    ("noise_ratio", 0.2, {"init": "blend"}, (OTHER, OTHER, OTHER)),
    ("style_mixing", "sum", {"style": "style.png content.png"}, (1, OTHER, 1)),
    ("guides", "inside", {"style_mask": "mask.png"}, (1, OTHER, 1)),
    ("padding", "circular", {}, (OTHER, OTHER, OTHER)),
    ("color", "luminance", {}, (OTHER, OTHER, OTHER)),
    ("color", "match-pca", {}, (1, OTHER, 1)),
]
# Settings that do not change the first evaluation, but the ones after it.
LATER = [
    ("optimizer", "adam", {}),
    ("optimizer", "lbfgs-linesearch", {}),
    ("learning_rate", 0.5, {}),
    ("memory_size", 1, {}),
    ("preconditioner", "spectral", {}),
    ("adam_beta1", 0.5, {"optimizer": "adam"}),
    ("adam_beta2", 0.5, {"optimizer": "adam"}),
    ("adam_epsilon", 100, {"optimizer": "adam"}),
    ("clip", True, {"optimizer": "adam"}),
]
# Settings of the scales, others in the same run, and how many steps each scale takes.
SCALES = [
    ("min_size", 16, {}, [6, 6, 6]),  # 16, 23 and 32 px
    ("scale_factor", 2, {"min_size": 16}, [6, 6]),
    ("scale_steps", "1 4", {"min_size": 16}, [1, 4, 6]),
    ("scale_steps", "4", {"min_size": 16}, [4, 4, 6]),
    ("steps", 2, {"min_size": 16}, [2, 2, 2]),
]
# Settings that change how the same numbers are computed, and what is chosen then.
SAME = [
    ("tile", "off", "the whole image"),
    ("tile", 16, "tiles of 16 px"),
    ("remat", "off", "the whole image"),
    ("remat", "on", "the whole image, activations recomputed"),
]


class TestSettings:
    def terms(self, run, **options):
        assert run(overwrite=True, **options).code == 0
        history = record()["history"]
        return np.array([history[name][0] for name in ("content", "style", "tv")])

    @pytest.mark.parametrize("name, value, both, factors", TERMS)
    def test_effect_on_the_terms(self, run, name, value, both, factors):
        save_image("mask.png", np.broadcast_to(np.arange(33)[None, :, None] < 20, (40, 33, 3)))
        plain = self.terms(run, **PLAIN | both)
        assert (plain > 0).all()
        ratios = self.terms(run, **PLAIN | both | {name: value}) / plain
        for ratio, factor in zip(ratios, factors, strict=True):
            if factor is OTHER:
                assert abs(ratio - 1) > 1e-3
            else:
                assert ratio == pytest.approx(factor, rel=1e-4)

    @pytest.mark.parametrize("name, value, both", LATER)
    def test_effect_on_the_steps(self, run, name, value, both):
        histories = []
        for options in (PLAIN | both, PLAIN | both | {name: value}):
            run(overwrite=True, **options)
            histories.append(record()["history"]["total"])
        plain, changed = histories
        assert changed[0] == pytest.approx(plain[0], rel=1e-6)
        assert abs(changed[-1] / plain[-1] - 1) > 1e-4

    def test_steps(self, run):
        run(**PLAIN | {"steps": 2})
        assert len(record()["history"]["total"]) == record()["steps"] == 2

    @pytest.mark.slow
    def test_convolution_changes_rounding_only(self, run, monkeypatch):
        monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 4)
        problem._prepare.clear_cache()
        losses = {}
        for method in ("direct", "winograd"):
            run(**PLAIN, convolution=method, overwrite=True)
            losses[method] = record()["history"]["total"][0]
        problem._prepare.clear_cache()
        assert losses["winograd"] != losses["direct"]
        assert losses["winograd"] == pytest.approx(losses["direct"], rel=1e-4)

    @pytest.mark.parametrize("name, value, others, steps", SCALES)
    @pytest.mark.slow
    def test_effect_on_the_scales(self, run, name, value, others, steps):
        assert run(**PLAIN | others | {name: value}).code == 0
        history = record()["history"]["total"]
        assert len(history) == record()["steps"] == sum(steps)
        assert pixels("out.png").shape == (24, 32, 3)
        run(**PLAIN | {"steps": 1}, output="plain.png")
        # The last scale goes on from the result of the others, not from noise.
        assert history[-steps[-1]] < 0.8 * record("plain.json")["history"]["total"][0]

    def test_averaging_changes_the_result_only(self, run):
        for averaging in (0, 0.5):
            run(**PLAIN, averaging=averaging, output=f"{averaging}.png")
        plain, average = record("0.json"), record("0.5.json")
        assert average["history"] == plain["history"]
        assert (pixels("0.5.png") != pixels("0.png")).any()
        losses = plain["history"]["total"]
        assert plain["final_loss"] == min(losses)
        assert average["final_loss"] not in losses and average["final_loss"] < losses[0]

    @pytest.mark.slow
    def test_bfloat16_is_another_rounding_of_the_network(self, run):
        terms = {
            precision: self.terms(run, **PLAIN, precision=precision)
            for precision in ("float32", "bfloat16")
        }
        content, style, tv = terms["bfloat16"] / terms["float32"] - 1
        assert 1e-5 < abs(content) < 0.02 and 1e-5 < abs(style) < 0.02
        assert tv == 0  # of the image itself, which is float32

    @pytest.mark.skipif(jax.default_backend() == "gpu", reason="GPUs have it")
    def test_tf32_is_for_gpus(self, run, desk):
        match = "precision tf32 needs an NVIDIA GPU.*: choose float32 or bfloat16"
        check_refused(desk, match, lambda: run(precision="tf32"))

    @pytest.mark.parametrize("name, value, computed", SAME)
    def test_how_it_is_computed_changes_rounding_only(self, run, name, value, computed):
        plain = self.terms(run, **PLAIN)
        assert record()["scales"][0]["computed"] == "the whole image"
        changed = self.terms(run, **PLAIN | {name: value})
        assert record()["scales"][0]["computed"] == computed
        np.testing.assert_allclose(changed, plain, rtol=1e-5)

    def test_none_is_left_out(self):
        tested = {name for name, *_ in TERMS + LATER + SCALES + SAME}
        tested |= {"convolution", "averaging", "precision"}
        assert tested == set(flat_types())

    def test_the_seed_repeats(self, run):
        run(seed=5, **PLAIN)
        run(seed=5, **PLAIN, output="again.png")
        run(seed=6, **PLAIN, output="other.png")
        assert record("again.json")["history"] == record()["history"]
        np.testing.assert_array_equal(pixels("again.png"), pixels("out.png"))
        assert (pixels("other.png") != pixels("out.png")).any()

    def test_line_search_counts_its_evaluations(self, run):
        run(**PLAIN, optimizer="lbfgs-linesearch")
        assert record()["evaluations"] > record()["steps"] == 6

    def test_init_from_a_file(self, run, content):
        run(steps=2)
        run(steps=2, init="content.png", output="same.png")
        assert record("same.json")["history"] == record()["history"]
        save_image("start.png", smooth_image(72, 96, seed=3))  # is scaled to the content
        run(steps=2, init="start.png", output="other.png")
        assert record("other.json")["history"]["content"][0] > 0
        assert record("other.json")["settings"]["init"] == "start.png"

    @pytest.mark.parametrize("preset", PRESETS)
    def test_every_preset_runs(self, run, preset):
        scales = {"min_size": "None"} if PRESETS[preset].config.pyramid.min_size else {}
        assert run(preset=preset, steps=2, **SHALLOW, **scales).code == 0
        assert record()["settings"]["preset"] == preset
        for key in ("style_weight", "pooling", "optimizer"):
            assert record()["settings"][key] == to_flat(PRESETS[preset].config)[key]


class TestStyles:
    def total(self, run, style, **options):
        assert run(style=style, overwrite=True, **SHALLOW, **options).code == 0
        return record()["history"]["total"]

    def test_blend(self, run):
        save_image("two.png", smooth_image(30, 44, seed=4))
        one, two = self.total(run, "style.png"), self.total(run, "two.png")
        both = self.total(run, "style.png two.png")
        assert both[0] != pytest.approx(one[0], rel=1e-3)
        blend = "style.png two.png"
        assert self.total(run, blend, style_blend="1 1") == pytest.approx(both, rel=1e-3)
        assert self.total(run, blend, style_blend="1 0") == pytest.approx(one, rel=1e-3)
        assert self.total(run, blend, style_blend="0 3") == pytest.approx(two, rel=1e-3)
        uneven = self.total(run, blend, style_blend="1 3")
        assert uneven[0] != pytest.approx(both[0], rel=1e-3)
        assert record()["settings"]["style_blend"] == [1, 3]


class TestExtras:
    def test_previews(self, run, desk, variables):
        assert run(steps=5, save_every=2).code == 0
        names = {"out.png", "out.json", "out_00002.png", "out_00004.png"}
        assert set(listing(desk)) == {"content.png", "style.png"} | names
        for step in (2, 4):
            expected = to_uint8(reference(variables, steps=step).state.image)
            np.testing.assert_array_equal(pixels(f"out_0000{step}.png"), expected)

    def test_animation(self, run, desk):
        flat = {"init": "noise", "noise_scale": 0}
        assert run(**PLAIN | flat, tv_weight=0, animation="film.gif").code == 0
        names = {"content.png", "style.png", "out.png", "out.json", "film.gif"}
        assert set(listing(desk)) == names
        with Image.open("film.gif") as image:
            assert image.size == (32, 24) and image.n_frames > 2
            first = np.asarray(image.convert("RGB"), int)
            image.seek(image.n_frames - 1)
            last = np.asarray(image.convert("RGB"), int)
        # It begins with the start, here the network's mean colour, and ends with the result.
        assert np.abs(first - [124, 117, 104]).max() <= 1
        assert np.abs(last - pixels("out.png")).mean() < 5

    def test_animation_beside_sparse_previews(self, run, desk):
        assert run(steps=4, animation="film.gif", save_every=3).code == 0
        names = {"content.png", "style.png", "out.png", "out.json", "film.gif", "out_00003.png"}
        assert set(listing(desk)) == names
        with Image.open("film.gif") as image:
            assert image.n_frames > 3

    @pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
    def test_plot(self, run, desk, name):
        assert run(plot=name).code == 0
        assert (desk / name).stat().st_size > 5000

    def test_version(self, capsys):
        for line in (["--version"], ["version"]):
            assert main(line) == 0
            assert capsys.readouterr().out == f"{nst_jax.__version__}\n"


class TestWeights:
    def test_variable_is_the_default(self, capsys, monkeypatch, tiny_weights_file):
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(tiny_weights_file))
        assert main(words()) == 0
        assert record()["weights"]["name"] == "tiny"

    def test_flag_comes_first(self, run, monkeypatch):
        monkeypatch.setenv("NST_JAX_WEIGHTS", "nowhere")
        assert run().code == 0

    def test_shipped_slim_ones_are_taken_with_a_word(self, capsys, monkeypatch, slim_file):
        slim_file = shutil.copy(slim_file, Path.cwd() / load.SLIM_FILE)
        monkeypatch.setattr(load, "_installed", lambda *_: iter([("shipped", slim_file)]))
        line = words(content_layers="relu2_2", style_layers="relu1_1 relu3_1")
        assert main(line) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "slim" in line]
        assert len(said) == 1 and "'nst-jax weights fetch'" in said[0]
        assert record()["weights"]["name"] == "small-slim"
        assert main([*line, "--overwrite", "--model", "vgg19-slim"]) == 0
        assert main([*line, "--overwrite", "--weights", str(slim_file)]) == 0
        assert main([*words(style_layers="relu5_4"), "--overwrite"]) == 2
        assert "no full VGG-19 was found" not in capsys.readouterr().err
        monkeypatch.setenv("NST_JAX_WEIGHTS", str(slim_file))
        assert main([*line, "--overwrite"]) == 0
        monkeypatch.delenv("NST_JAX_WEIGHTS")
        assert "no full VGG-19 was found" not in capsys.readouterr().err
        assert main([*line, "--overwrite", "--model", "vgg19"]) == 2
        error = capsys.readouterr().err
        assert "no full VGG-19 on this machine: run 'nst-jax weights fetch'" in error

    def test_nothing_is_fetched_where_there_are_none(self, capsys, monkeypatch, desk):
        monkeypatch.setattr(load, "_installed", lambda *_: iter([]))
        before = listing(desk)
        assert main(words()) == 2
        assert "no weights" in capsys.readouterr().err and listing(desk) == before
        assert main(words(model="vgg19-slim")) == 2
        assert "install it again" in capsys.readouterr().err and listing(desk) == before

    def test_layers_that_slim_weights_have_not_learned(self, capsys, desk, slim_file, traced_work):
        before = listing(desk)
        assert main(words(weights=slim_file, style_layers="relu4_1")) == 2
        error = capsys.readouterr().err
        assert "trained for the layers relu1_1, relu2_2, relu3_1" in error
        assert error.count("\n") == 1 and listing(desk) == before

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


class TestDiverged:
    @pytest.mark.parametrize(
        "options, steps",
        [
            (dict(optimizer="adam", learning_rate=1e30), 8),  # every second image overflows
            (dict(learning_rate=1e38), 8),
            (dict(style_weight=1e38), 1),  # the loss does at once
        ],
    )
    def test_best_image_is_written(self, run, variables, options, steps):
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
        # Only the start had a loss.
        np.testing.assert_array_equal(
            pixels("out.png"), to_uint8(load_image("content.png", size=SIZE))
        )


class TestInterrupt:
    def test_keeps_the_best_image(self, run, press, desk, variables):
        press(3)
        assert run(steps=9, save_every=1, animation="film.gif")[:2] == (130, "out.png\n")
        assert {f"out_0000{step}.png" for step in (1, 2, 3)} <= set(listing(desk))
        assert not (desk / "out_00004.png").exists() and (desk / "film.gif").exists()
        found = record()
        assert found["status"] == "stopped" and found["steps"] == 3
        assert found["final_loss"] == min(found["history"]["total"])
        assert len(found["history"]["total"]) == 3
        np.testing.assert_array_equal(pixels("out.png"), to_uint8(reference(variables).image))

    def test_at_the_last_step_the_run_is_done(self, run, press):
        press(3)
        assert run(steps=3, save_every=1).code == 0
        assert record()["status"] == "done"


def spoil(kind, path):
    """Put something in an image's place."""
    data = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("no image\n" * 50)
    elif kind == "zero-sized":
        path.write_bytes(b"P6\n0 0\n255\n")
    elif kind == "directory":
        path.mkdir()
    else:
        assert kind == "missing"


BAD_IMAGES = {
    "missing": "bad.png does not exist",
    "empty": "bad.png is empty",
    "truncated": "cannot read the image bad.png .*truncated",
    "text": "bad.png is not an image in a known format",
    "zero-sized": "bad.png is not an image in a known format",
    "directory": "bad.png is a directory",
}

BAD_OPTIONS = [
    *(({"max_megapixels": text}, "max_megapixels is .*: expected") for text in ("0", "nan", "inf")),
    ({"size": 0}, "size is 0: expected"),
    ({"size": -7}, "size is -7"),
    ({"seed": -1}, "seed is -1: expected 0 to 4294967295"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"threads": 0}, "threads is 0: expected 1 to 256"),
    ({"preset": "none"}, "unknown preset 'none': expected one of wasserstein, neural-style"),
    ({"style_layers": "relu6_1"}, "unknown layer 'relu6_1': expected .* relu5_4"),
    ({"content_layers": "fc7"}, "unknown layer 'fc7'"),
    ({"style_layers": "relu1_1 relu2_1 relu1_1"}, "relu1_1 is given twice"),
    ({"style_layers": "relu1_1=nan"}, "weight of layer relu1_1 is nan"),
    ({"content_layers": "relu1_1=-1"}, "weight of layer relu1_1 is -1"),
    ({"style_layers": "relu1_1=x"}, "'relu1_1=x' is not a number"),
    ({"content_weight": "nan"}, "content_weight is nan: expected a finite number"),
    ({"style_weight": "inf"}, "style_weight is inf"),
    ({"tv_weight": "-1"}, "tv_weight is -1"),
    ({"steps": 0}, "steps is 0: expected a whole number, 1 or more"),
    ({"learning_rate": "nan"}, "learning_rate is nan"),
    ({"noise_ratio": 1.5}, "noise_ratio is 1.5: expected 0 to 1"),
    ({"noise_ratio": "nan"}, "noise_ratio is nan"),
    ({"noise_scale": -1}, "noise_scale is -1"),
    ({"memory_size": 5, "optimizer": "adam"}, "memory_size has no meaning for adam"),
    (
        {"learning_rate": 1, "optimizer": "lbfgs-linesearch"},
        "learning_rate has no meaning for lbfgs-linesearch",
    ),
    ({"init": "nosuchfile"}, "nosuchfile does not exist"),
    ({"init": "style.png"}, "initial image style.png .*32x24 px: expected the same aspect"),
    ({"style_blend": "1 2"}, "2 blend factors for 1 styles"),
    ({"style": "style.png style.png", "style_blend": "1"}, "1 blend factors for 2 styles"),
    ({"style_blend": "nan"}, "style_blend is .*nan.*finite"),
    ({"style_blend": "-1"}, "style_blend is .*-1"),
    ({"style_blend": "0"}, "style_blend is .*above 0"),
    ({"style": ""}, "no style image"),
    ({"save_every": 0}, "save_every is 0: expected 1 or more"),
    ({"save_every": 1, "steps": 10**9}, "save_every 1 makes 1000000000 previews: expected"),
    ({"save_every": 1, "steps": 10**20}, "steps is 10+: expected .*, at most 2147483647"),
    ({"min_size": 10**400}, "min_size is 10+: expected .*, at most 100000"),
    *(({"memory_size": n}, "memory_size is .*, at most 2147483647") for n in (3 * 10**9, 10**19)),
    ({"weights": "nowhere.h5"}, "nowhere.h5 .*do not exist"),
    ({"weights": "."}, "are not a file"),
    # Too small for the deepest layer: 16 px a side for relu5_1, 8 px for conv4_1.
    ({"size": 20}, "content image is 20x15 px, but layer relu5_1 needs .* at least 16 px"),
    (
        {"size": 9, "style_layers": "relu1_1", "content_layers": "conv4_1"},
        "content image is 9x7 px, but layer conv4_1 needs .* at least 8 px",
    ),
    ({"style": "strip.png"}, "style image is 32x8 px, but layer relu5_1 needs .*at least 16 px"),
    # Outputs.
    ({"output": "out"}, "out has no suffix of a known image format: expected one of .png"),
    ({"output": "out.gif"}, "out.gif has no suffix"),
    ({"output": "nowhere/out.png"}, "nowhere of out.png does not exist"),
    ({"output": "style.png/out.png"}, "style.png of out.png does not exist"),
    ({"output": "/proc/out.png"}, "folder /proc"),
    ({"output": "a" * 300 + ".png"}, "cannot write .*too long"),
    ({"output": "folder.png"}, "folder.png is a directory"),
    ({"output": "old.png"}, "old.png exists: .*--overwrite"),
    ({"output": "oldrecord.png"}, "oldrecord.json exists: .*--overwrite"),
    ({"animation": "old.gif"}, "old.gif exists"),
    ({"plot": "old.svg"}, "old.svg exists"),
    ({"output": "preview.png", "save_every": 2}, "preview_00002.png exists"),
    ({"output": "content.png", "overwrite": True}, "content.png is an input"),
    ({"output": "./style.png", "overwrite": True}, "style.png is an input"),
    ({"output": "link.png", "overwrite": True}, "link.png is an input"),
    ({"plot": "style.png", "overwrite": True}, "style.png is an input"),
    ({"output": "old.png", "init": "old.png", "overwrite": True}, "old.png is an input"),
    ({"plot": "out.png"}, "out.png is named for two outputs"),
    ({"plot": "out_00002.png", "save_every": 2}, "out_00002.png is named for two outputs"),
    ({"plot": "curve.txt"}, "curve.txt is no name of a plot"),
    ({"animation": "film.mp4"}, "film.mp4 is no name of an animation: expected FILE.gif"),
]


class TestBadInput:
    @pytest.fixture
    def refused(self, run, desk, traced_work):
        """Check that a run ends with one line before any work, and writes nothing."""

        def refused(match, **options):
            check_refused(desk, match, lambda: run(**options))

        return refused

    @pytest.mark.parametrize("role", ["content", "style", "init"])
    @pytest.mark.parametrize("kind", BAD_IMAGES)
    def test_images(self, refused, desk, role, kind):
        shutil.copy("content.png", "bad.png")
        spoil(kind, desk / "bad.png")
        refused(BAD_IMAGES[kind], **{role: "bad.png"})

    @pytest.mark.parametrize("role", ["content", "style", "init"])
    def test_images_of_too_many_pixels(self, refused, role):
        save_image("large.png", smooth_image(48, 64, seed=5))
        message = "large.png has 0.003072 megapixels: expected at most 0.003; .*max_megapixels to 1"
        refused(message, max_megapixels=0.003, **{role: "large.png"})

    @pytest.mark.parametrize("options, message", BAD_OPTIONS)
    def test_options(self, refused, desk, options, message):
        for name in ("old.gif", "old.svg", "oldrecord.json", "preview_00002.png"):
            (desk / name).write_text("old")
        shutil.copy("content.png", "old.png")
        (desk / "folder.png").mkdir()
        (desk / "link.png").symlink_to("content.png")
        save_image("strip.png", smooth_image(8, 32, seed=5))
        refused(message, **options)

    @pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
    def test_weights(self, refused, desk, tiny_weights_file, kind):
        shutil.copy(tiny_weights_file, "bad.safetensors")
        spoil(kind, desk / "bad.safetensors")
        refused("bad.safetensors", weights="bad.safetensors")

    def test_variable_that_points_nowhere(self, refused, monkeypatch):
        monkeypatch.setenv("NST_JAX_WEIGHTS", "nowhere.h5")
        refused("nowhere.h5 .from NST_JAX_WEIGHTS.", weights=None)

    def test_jpeg_for_a_transparent_image(self, refused, content):
        save_image("content.png", content, alpha=np.full(content.shape[:2], 0.5))
        refused("transparent.*JPEG.*write out.jpg as .png", output="out.jpg")

    def test_names_with_line_breaks(self, capsys):
        assert main(["stylize", "a\nb.png", "--style", "style.png", "-o", "out.png"]) == 2
        assert capsys.readouterr().err.splitlines() == [
            "nst-jax: error: a b.png does not exist: expected an image file"
        ]

    @pytest.mark.parametrize(
        "extra",
        ["--unknown 1", "--pooling sum", "--steps many", "--size 1.5", "--optimizer"],
    )
    def test_the_parsers_own_errors(self, capsys, desk, extra):
        before = listing(desk)
        with pytest.raises(SystemExit) as caught:
            main(["stylize", "content.png", "--style", "style.png", "-o", "o.png", *extra.split()])
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == "" and extra.split()[0] in err and listing(desk) == before


class TestProcess:
    """As a person runs it, in a process of its own."""

    def start(self, weights, **options):
        line = [
            sys.executable,
            "-m",
            "nst_jax",
            *words(weights=weights, preset="neural-style", **options),
        ]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True)

    def test_run_and_ctrl_c(self, desk, tiny_weights_file):
        steps, style_layers = 5000, "relu1_1"
        process = self.start(
            tiny_weights_file, steps=steps, save_every=10, style_layers=style_layers
        )
        try:
            deadline = time.monotonic() + 120
            while not (desk / "out_00030.png").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert (process.returncode, out) == (130, "out.png\n")
        assert err.splitlines()[1].startswith("compiled in ") and "Traceback" not in err
        found = record()
        assert found["status"] == "stopped" and 30 <= found["steps"] < steps
        assert found["final_loss"] == min(found["history"]["total"])
        assert pixels("out.png").shape == (24, 32, 3)
        assert not [name for name in os.listdir(desk) if name.startswith(".")]

    @pytest.mark.slow
    def test_a_reader_of_errors_that_ends_does_not_end_the_run(self, desk, tiny_weights_file):
        """As of ``2>&1 | tee log``, where Ctrl-C ends tee, too."""
        process = self.start(tiny_weights_file, steps=5000, save_every=10, style_layers="relu1_1")
        try:
            deadline = time.monotonic() + 120
            while not (desk / "out_00010.png").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.stderr.close()
            process.send_signal(signal.SIGINT)
            out = process.stdout.read()
            process.stdout.close()
            process.wait(timeout=120)
        finally:
            process.kill()
        assert (process.returncode, out) == (130, "out.png\n")
        assert record()["status"] == "stopped"

    def test_before_the_first_step_nothing_is_written(self, desk, tiny_weights_file):
        """While the first step is compiled."""
        process = self.start(tiny_weights_file)
        try:
            assert process.stderr.readline().startswith("nst-jax: 32x24 px: about ")  # the plan
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert (process.returncode, out, err) == (130, "", "nst-jax: interrupted\n")
        assert set(os.listdir(desk)) == {"cache", "content.png", "style.png"}

    def test_bad_input(self, desk):
        process = self.start("nowhere.h5")
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, "")
        assert len(err.splitlines()) == 1 and err.startswith("nst-jax: error: the weights nowhere")
        assert set(listing(desk)) == {"content.png", "style.png"}
