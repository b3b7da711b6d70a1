"""Large images on the command line: estimates, tiles, coarse to fine, several devices."""

# ruff: noqa: F401, F811

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import smooth_image
from helpers.commands import (
    PLAIN,
    SHALLOW,
    SIZE,
    Run,
    at_step,
    check_refused,
    desk,
    listing,
    pixels,
    press,
    record,
    run,
    use_devices,
    words,
)
from PIL import Image

from nst_jax.cli import checks, main, planning
from nst_jax.cli import estimate as estimate_command
from nst_jax.cli import run as job_run
from nst_jax.images import save_image
from nst_jax.images.read import load_rgba
from nst_jax.system.memory import host_bytes, own_memory
from nst_jax.transfer import planner

pytestmark = pytest.mark.sampled

ADAM = {**SHALLOW, "optimizer": "adam", "steps": 2}
COARSE = {"min_size": 16, "scale_factor": 2}  # 16x12 and 32x24 px
GIB = 2**30


def flags(**options):
    """``style_layers="a b"`` is ``--style-layers a b``."""
    line = []
    for name, value in options.items():
        if value is not None:
            line += ["--" + name.replace("_", "-")]
            line += [] if value is True else str(value).split()
    return line


@pytest.fixture
def command(capsys, tiny_weights_file):
    def command(*names, **options):
        code = main([*names, *flags(**{"weights": tiny_weights_file} | options)])
        return Run(code, *capsys.readouterr())

    return command


def same(one, other):
    """Check that two images are the same to rounding."""
    apart = abs(pixels(one).astype(int) - pixels(other)) > 1
    # Where a derivative is that of rounding Adam's step has its sign.
    assert apart.mean() < 1e-3


def gib(text):
    """Figures of an estimate in GiB by their names, and the other lines."""
    found = re.findall(r"^  (\S.*?) +(\S+) (GiB|MiB)$", text, re.MULTILINE)
    others = [line for line in text.splitlines() if not line.startswith("  ")]
    units = {"GiB": 1, "MiB": 1 / 1024}
    return {name: float(value) * units[unit] for name, value, unit in found}, others


class TestEstimate:
    @pytest.fixture
    def estimate(self, command):
        def estimate(**options):
            given = {"size": SIZE, **SHALLOW} | options
            return command("estimate", given.pop("content", "content.png"), **given)

        return estimate

    @pytest.mark.parametrize("config", [{}, {"optimizer": "adam"}], ids=["lbfgs", "adam"])
    def test_parts_add_up_and_nothing_is_written(self, estimate, desk, config):
        before = listing(desk)
        code, out, err = estimate(size=150, **config)
        assert (code, err) == (0, "") and listing(desk) == before
        figures, (head, last) = gib(out)
        assert head.startswith("150x112 px with tiny on ")
        assert last == "computed as: the whole image"
        parts = ["program, compiled", "network's kernels", "content and style"]
        parts += ["image and optimiser", "activations"]
        assert list(figures) == [*parts, "together", "of"]
        total = sum(figures[part] for part in parts)
        assert figures["together"] == pytest.approx(total, rel=0.06)
        assert figures["program, compiled"] > 0.1
        pixel_bytes = 150 * 112 * 12 / GIB
        images = 204 if not config else 4  # the image, the best, and the optimiser's
        assert figures["image and optimiser"] == pytest.approx(images * pixel_bytes, rel=0.06)

    @pytest.mark.optimized
    def test_it_tells_what_a_run_finds(self, estimate, run):
        options = {"size": 96, **PLAIN, "steps": 1}
        figures, _ = gib(estimate(**options).out)
        run(**options)
        found = record()["memory"]["estimated_bytes"]
        names = {"network's kernels": "network", "content and style": "targets"}
        names |= {"image and optimiser": "state", "activations": "scratch"}
        for name, recorded in names.items():
            assert figures[name] == pytest.approx(found[recorded] / GIB, rel=0.06)

    @pytest.mark.slow
    @pytest.mark.optimized
    def test_a_smaller_memory(self, estimate, monkeypatch):
        monkeypatch.setattr(estimate_command, "own_memory", lambda: 0)  # this process is large
        options = {"size": 300, "steps": 30}
        whole, _ = gib(estimate(**options).out)
        assert whole["together"] > 0.85 * 0.09
        code, out, _ = estimate(memory=0.09, **options)
        figures, others = gib(out)
        assert code == 0
        assert figures["of"] == pytest.approx(0.09, rel=0.06)
        assert re.fullmatch("the settings' own way would need .*iB; chosen instead:", others[1])
        assert others[2] == "computed as: the whole image, L-BFGS remembers 30 pairs"
        code, out, _ = estimate(memory=0.03, **options)
        figures, others = gib(out)
        assert code == 0 and re.match("computed as: tiles of 256 px, .*L-BFGS", others[2])
        names = ("content and style", "image and optimiser", "activations")
        assert sum(figures[name] for name in names) <= 0.87 * 0.03
        adam = {"optimizer": "adam", "learning_rate": 1}
        code, out, _ = estimate(memory=0.03, **adam, **options)
        assert code == 0 and gib(out)[1][-1] == "computed as: the whole image"

    @pytest.mark.slow
    def test_the_program_takes_its_part(self, estimate, desk):
        process = own_memory() / GIB
        figures, _ = gib(estimate(memory=process + 1).out)
        assert figures["program, compiled"] == pytest.approx(process, rel=0.2)
        assert figures["of"] == pytest.approx(process + 1, rel=0.06)
        check_refused(desk, "0 GiB are free", lambda: estimate(memory=0.8 * process))

    @pytest.mark.slow
    def test_what_does_not_fit(self, estimate, desk, monkeypatch):
        monkeypatch.setattr(estimate_command, "own_memory", lambda: 0)
        match = r"300x225 px needs about .*, 12 MiB are free: a longer side of about \d+ px would"
        check_refused(desk, match, lambda: estimate(size=300, memory=12 / 1024))
        match = "1 MiB are free: choose a smaller size"
        check_refused(desk, match, lambda: estimate(size=300, memory=1 / 1024))

    @pytest.mark.parametrize(
        "options, match",
        [
            ({"styled_regions": -1}, "styled_regions is -1: expected 0"),
            ({"memory": 0}, "memory is 0.0: expected GiB, .*above 0"),
            ({"memory": -2}, "memory is -2.0"),
            ({"memory": "nan"}, "memory is nan"),
            ({"memory": "inf"}, "memory is inf"),
            ({"content": "nowhere.png"}, "nowhere.png does not exist"),
            ({"size": 0}, "size is 0: expected"),
            ({"size": 1}, "content image is 1x1 px, but layer"),
            ({"memory_size": 10**19}, "memory_size is 10+: expected .*, at most 2147483647"),
            ({"weights": "nowhere.h5"}, "nowhere.h5"),
            ({"min_size": 16, "scale_steps": "1 2 3 4 5 6"}, "scale_steps has 6 numbers"),
            ({"precision": "tf32"}, "precision tf32 needs an NVIDIA GPU"),
            ({"max_megapixels": 0.0001}, "megapixels: expected at most"),
        ],
    )
    def test_bad_input(self, estimate, desk, options, match):
        check_refused(desk, match, lambda: estimate(**options))

    def test_regions_count(self, estimate):
        figures = [gib(estimate(size=150, styled_regions=count).out)[0] for count in (0, 3)]
        assert figures[1]["activations"] > 1.05 * figures[0]["activations"]
        assert figures[1]["content and style"] > figures[0]["content and style"]

    def test_scales_are_listed(self, estimate):
        out = estimate(**COARSE, steps=7, scale_steps=5).out
        assert out.splitlines()[-1] == (
            "scales: 16x12 (5 steps), 32x24 (7 steps); the figures are the last one's"
        )

    def test_what_the_settings_fix(self, estimate):
        assert gib(estimate(tile=16).out)[1][-1] == "computed as: tiles of 16 px"
        words = "computed as: the whole image, activations recomputed"
        assert gib(estimate(remat="on").out)[1][-1] == words


class TestWays:
    @pytest.mark.slow
    def test_tiles_give_the_same_image(self, run):
        ways = {
            "off": ({"tile": "off"}, "the whole image"),
            "tiles": ({"tile": 64}, "tiles of 64 px"),
            "twice": ({"remat": "on"}, "the whole image, activations recomputed"),
        }
        for name, (options, computed) in ways.items():
            code, _, err = run(size=150, output=f"{name}.png", **ADAM, **options)
            assert code == 0 and err.splitlines()[0].endswith(f"; {computed}")
            (scale,) = record(f"{name}.json")["scales"]
            assert scale == {"width": 150, "height": 112, "steps": 2, "computed": computed}
            same(f"{name}.png", "off.png")
        assert (pixels("off.png") != load_rgba("content.png", size=150).rgb).any()

    @pytest.mark.parametrize("free, computed", [(0.08, "the whole.*30 pairs"), (0.03, "tiles of")])
    def test_with_less_memory(self, run, monkeypatch, free, computed):
        monkeypatch.setattr(planning, "free_bytes", lambda device: int(free * GIB))
        code, _, err = run(size=300, **SHALLOW, steps=30)
        told = err.splitlines()[0]
        assert code == 0 and re.search(f"iB; {computed}", told)
        assert re.search(r", because the default plan would need \d\S* .iB$", told)
        (scale,) = record()["scales"]
        assert re.match(computed, scale["computed"]) and scale["computed"] in told

    @pytest.mark.slow
    def test_what_does_not_fit_is_refused(self, run, desk, monkeypatch):
        monkeypatch.setattr(planning, "free_bytes", lambda device: int(0.012 * GIB))
        match = "300x225 px needs about .*: a longer side of about [0-9]+ px would fit"
        check_refused(desk, match, lambda: run(size=300, **SHALLOW))

    @pytest.mark.slow
    def test_the_loop_is_compiled_once(self, run, caplog):
        """The plan's program is the run's, with all that controls the objective."""
        save_image("mask.png", np.broadcast_to(np.arange(33)[None, :, None] < 20, (40, 33, 3)))
        variants = [
            {},
            {"color": "luminance", "averaging": 0.5},
            {"content_mask": "mask.png mask.png", "region_styles": "1 keep", "feather": 1},
            {"style": "style.png content.png", "style_blend": "1 2", "tile": 16},
        ]
        for number, options in enumerate(variants):
            caplog.clear()
            with jax.log_compiles():
                given = {**SHALLOW, "steps": 2, "memory_size": 13 + number} | options
                assert run(output=f"{number}.png", **given).code == 0
            finished = "Finished XLA compilation of jit(run)"
            assert sum(finished in text for text in caplog.messages) == 1, options

    def test_memory_is_recorded(self, run):
        assert run(**ADAM).code == 0
        memory = record()["memory"]
        assert set(memory) == {"estimated_bytes", "peak_bytes"}
        estimated = memory["estimated_bytes"]
        assert set(estimated) == {"program", "network", "state", "targets", "scratch"}
        assert min(estimated.values()) > 0
        assert estimated["state"] == pytest.approx(4 * 32 * 24 * 12, rel=0.01)
        if jax.default_backend() == "cpu":
            assert memory["peak_bytes"] > estimated["program"] - 2 * 10**8

    def test_precision_is_planned(self, run):
        scratch = {}
        for precision in ("float32", "bfloat16"):
            run(output=f"{precision}.png", size=150, **ADAM, precision=precision)
            scratch[precision] = record(f"{precision}.json")["memory"]["estimated_bytes"]
        assert scratch["bfloat16"]["network"] < scratch["float32"]["network"]


class TestScales:
    def test_previews_and_animation(self, run, desk):
        options = {**ADAM, **COARSE, "steps": 3, "scale_steps": 4}
        code, _, err = run(**options, save_every=2, animation="film.gif")
        assert code == 0
        previews = sorted(name for name in listing(desk) if name.startswith("out_"))
        assert previews == ["out_00002.png", "out_00004.png", "out_00006.png"]
        assert {pixels(name).shape for name in previews} == {(24, 32, 3)}
        with Image.open("film.gif") as image:
            assert image.size == (32, 24) and image.n_frames == 1 + 7 + 1
        assert record()["scales"] == [
            {"width": 16, "height": 12, "steps": 4, "computed": "the whole image"},
            {"width": 32, "height": 24, "steps": 3, "computed": "the whole image"},
        ]
        assert record()["steps"] == 7
        said = [line for line in err.splitlines() if line.startswith("scale ")]
        assert [line.split(":")[0] for line in said] == [
            "scale 1/2, 16x12 px",
            "scale 2/2, 32x24 px",
        ]
        assert err.splitlines()[0].startswith("nst-jax: 32x24 px: about ")
        assert "step 7/7" in err.splitlines()[-1]

    @pytest.mark.parametrize("min_size, told", [(None, 0), (16, 0), (32, 1), (64, 1)])
    def test_no_scale_before_the_last(self, run, min_size, told):
        code, _, err = run(**ADAM, min_size=min_size)
        line = f"nst-jax: min_size {min_size} leaves no scale before the last of 32x24 px"
        assert code == 0 and err.splitlines().count(line) == told == err.count("min_size")
        assert not told or err.splitlines()[1] == line
        assert (len(record()["scales"]) == 1) == (min_size != 16)

    @pytest.mark.parametrize(
        "command, name",
        [
            ("stylize", "out_00006.png"),
            ("texture", "out_00006.png"),
            ("reconstruct", "out_00006.png"),
        ],
    )
    def test_previews_of_all_scales_are_checked(self, command, name, desk, capsys, traced_work):
        save_image("content.png", smooth_image(24, 32, seed=1))
        (desk / name).write_text("old")
        names = {
            "stylize": ["stylize", "content.png", "--style", "style.png", "--size", "32"],
            "texture": ["texture", "content.png", "--size", "32"],
            "reconstruct": ["reconstruct", "content.png", "--layer", "relu1_1", "--size", "32"],
        }
        line = [*names[command], "-o", "out.png", "--save-every", "2"]
        layers = {"content_layers": "relu2_1"} if command == "stylize" else {}
        layers |= {} if command == "reconstruct" else {"style_layers": "relu2_1"}
        line += flags(**COARSE, scale_steps=4, steps=3, **layers)

        def attempt():
            return Run(main(line), *capsys.readouterr())

        check_refused(desk, f"{name} exists: .*--overwrite", attempt)

    def test_no_more_previews_than_steps_are_checked(self, run, desk):
        (desk / "out_00008.png").write_text("old")
        assert run(**ADAM | COARSE | {"steps": 3, "scale_steps": 4}, save_every=2).code == 0
        assert (desk / "out_00008.png").read_text() == "old"

    def test_transparency(self, run, content):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        save_image("content.png", content, alpha=alpha)
        assert run(**ADAM, **COARSE, save_every=1).code == 0
        expected = pixels("out.png")[..., 3]
        assert len(np.unique(expected)) > 100
        for step in (1, 2, 3, 4):
            found = pixels(f"out_0000{step}.png")
            assert found.shape == (24, 32, 4)
            np.testing.assert_array_equal(found[..., 3], expected)

    @pytest.mark.parametrize("step", [2, 4])
    def test_stopped_at_a_coarse_scale(self, run, press, step):
        press(step)
        code, out, err = run(**ADAM | COARSE | {"scale_steps": 4}, save_every=1)
        assert (code, out) == (130, "out.png\n")
        assert err.splitlines()[-1] == (
            f"nst-jax: stopped at step {step}: wrote the best image so far, enlarged from 16x12 px"
        )
        assert pixels("out.png").shape == (24, 32, 3)
        found = record()
        assert (found["status"], found["steps"]) == ("stopped", step)
        (scale,) = found["scales"]
        assert (scale["width"], scale["height"], scale["steps"]) == (16, 12, step)
        assert found["image"] == {"width": 32, "height": 24}

    def test_stopped_at_the_last_scale(self, run, press):
        press(5)
        code, _, err = run(**ADAM | COARSE | {"scale_steps": 4}, save_every=1)
        assert code == 130 and err.endswith("step 5: wrote the best image so far\n")
        assert [scale["steps"] for scale in record()["scales"]] == [4, 1]

    @pytest.mark.parametrize("step, scaled", [(2, ", enlarged from 16x12 px"), (5, "")])
    def test_stopped_with_an_average(self, run, press, step, scaled):
        press(step)
        code, _, err = run(**ADAM | COARSE | {"scale_steps": 4}, averaging=0.5, save_every=1)
        last = f"nst-jax: stopped at step {step}: wrote the average so far{scaled}"
        assert code == 130 and err.splitlines()[-1] == last

    def test_diverged_at_a_coarse_scale(self, run):
        code, _, err = run(**ADAM | COARSE | {"scale_steps": 9}, learning_rate=1e30)
        assert code == 1 and "diverged at step 8" in err.splitlines()[-1]
        assert pixels("out.png").shape == (24, 32, 3)
        assert len(record()["scales"]) == 1

    @pytest.mark.slow
    def test_a_tileable_texture(self, command):
        save_image("style.png", smooth_image(32, 32, seed=2))
        options = {"style_layers": "relu1_1 relu2_1", "optimizer": "adam", "steps": 2, **COARSE}
        code, *_ = command(
            "texture", "style.png", output="t.png", size=36, tileable=True, **options
        )
        assert code == 0 and pixels("t.png").shape == (36, 36, 3)
        for scale in record("t.json")["scales"]:
            assert scale["width"] % 2 == scale["height"] % 2 == 0
        assert len(record("t.json")["scales"]) == 2

    @pytest.mark.slow
    def test_a_reconstruction(self, command):
        options = {"layer": "relu2_1", "optimizer": "adam", "steps": 3, "size": SIZE, **COARSE}
        code, *_ = command("reconstruct", "content.png", output="r.png", **options)
        assert code == 0 and pixels("r.png").shape == (24, 32, 3)
        assert [scale["width"] for scale in record("r.json")["scales"]] == [16, 32]
        assert record("r.json")["steps"] == 6

    @pytest.mark.parametrize(
        "options, match",
        [
            ({"min_size": 0}, "min_size is 0: expected a whole number, 1 or more"),
            ({"min_size": 1}, "min_size is 1, with a scale of .* needs .*shorter side"),
            ({"scale_steps": 5}, "scale_steps has no meaning for one scale"),
            ({**COARSE, "scale_steps": "2 3"}, "scale_steps has 2 numbers, but only 1"),
            ({**COARSE, "scale_steps": 0}, "scale_steps is"),
            ({"min_size": 16, "scale_factor": 1}, "scale_factor is 1.0: expected"),
            ({"min_size": 16, "scale_factor": "nan"}, "scale_factor is nan"),
        ],
    )
    def test_bad_input(self, run, desk, options, match):
        check_refused(desk, match, lambda: run(**ADAM | options))


class TestStyleScale:
    def test_it_changes_the_result(self, run):
        for scale in (1, 2, 0.7):
            assert run(**ADAM, style_scale=scale, output=f"{scale}.png").code == 0
            assert record(f"{scale}.json")["settings"]["style_scale"] == scale
        plain = pixels("1.png")
        assert (pixels("2.png") != plain).any() and (pixels("0.7.png") != plain).any()

    def test_it_is_a_larger_style(self, run):
        save_image("large.png", smooth_image(64, 48, seed=4))
        assert run(**ADAM, style="large.png", style_scale=2).code == 0
        losses = record()["history"]["style"]
        # The style as it is, in a result of its own size, has the same statistics.
        assert run(**ADAM, style="large.png", style_scale=1, output="one.png").code == 0
        assert record("one.json")["history"]["style"] != losses

    @pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "100"])
    def test_bad_values(self, run, desk, scale):
        check_refused(desk, "style_scale is .*: expected", lambda: run(style_scale=scale))

    def test_larger_styles_than_any(self, run, desk):
        match = "the size of the styles is 198000: expected 1 to 100000 pixels"
        check_refused(desk, match, lambda: run(size=2000, style_scale=99))

    @pytest.mark.skipif((host_bytes() or 2**40) > 2**38, reason="there may be room")
    def test_styles_for_which_there_is_no_room(self, run, desk):
        match = r"a style of \d+x99000 px needs more than \S+ GiB, .* are free: choose a smaller"
        check_refused(desk, match, lambda: run(size=1000, style_scale=99))

    def test_too_small_for_the_layers(self, run, desk):
        match = "style image is .* px, but layer"
        check_refused(desk, match, lambda: run(style_scale=0.1))


class TestSpread:
    @pytest.mark.parametrize("spread", ["rows", "tiles"])
    def test_one_device(self, run, desk, monkeypatch, spread):
        use_devices(monkeypatch, 1)
        match = f"spread {spread} divides an image among several devices.*: leave it out"
        check_refused(desk, match, lambda: run(spread=spread))

    @pytest.mark.parametrize("spread", ["rows", "tiles"])
    def test_four_devices(self, run, spread):
        height, size = (64, 80) if spread == "rows" else (160, 200)
        save_image("content.png", smooth_image(height, size, seed=1))
        assert run(size=size, **ADAM, output="alone.png").code == 0
        code, out, err = run(size=size, **ADAM, spread=spread)
        assert (code, out) == (0, "out.png\n") and "compiled in" in err
        same("out.png", "alone.png")
        found = record()
        assert found["settings"]["spread"] == spread
        assert found["memory"]["estimated_bytes"] is None and found["timing"]["plan_s"] == 0
        (scale,) = found["scales"]
        computed = {"rows": "the whole image", "tiles": "tiles of 128 px"}
        assert scale["computed"] == computed[spread]

    def test_heights_that_rows_do_not_divide(self, run, desk):
        save_image("content.png", smooth_image(60, 80, seed=1))
        code, out, err = run(size=76, **ADAM, spread="rows")
        assert (code, out) == (2, "") and err.count("\n") == 1
        size, height = re.search(r"a longer side of (\d+) px \(height (\d+) px\)", err).groups()
        assert int(height) % 8 == 0 and abs(int(size) - 76) <= 6
        assert set(listing(desk)) == {"content.png", "style.png"}
        assert run(size=size, **ADAM, spread="rows").code == 0
        assert pixels("out.png").shape == (int(height), int(size), 3)

    @pytest.mark.parametrize(
        "options, match",
        [
            ({"spread": "rows", "tile": 64}, "tile is 64, but .* among the devices \\(--spread"),
            ({"spread": "rows", "convolution": "winograd"}, "winograd"),
        ],
    )
    def test_what_does_not_go_together(self, run, desk, options, match):
        save_image("content.png", smooth_image(64, 80, seed=1))
        before = listing(desk)
        code, out, err = run(size=80, **ADAM, **options)
        assert (code, out) == (2, "") and listing(desk) == before
        assert re.search(match, err.splitlines()[-1])

    @pytest.mark.parametrize(
        "options, flags",
        [
            ({"tile": "off"}, "--tile off"),
            ({"remat": "on"}, "--remat on"),
            ({"tile": "off", "remat": "on"}, "--tile off and --remat on"),
        ],
    )
    def test_tiles_without_tiles(self, run, desk, options, flags):
        """Refused before anything else is said."""
        match = f"--spread tiles divides tiles .* with {flags} there are none: leave out {flags}, "
        check_refused(desk, match, lambda: run(**ADAM, spread="tiles", **options))

    def test_coarse_to_fine_by_rows(self, run, desk):
        save_image("content.png", smooth_image(64, 80, seed=1))
        options = {**ADAM, "size": 80, "min_size": 38, "scale_factor": 2, "spread": "rows"}
        code, _, err = run(**options, save_every=1)
        assert code == 0
        shapes = [(scale["height"], scale["width"]) for scale in record()["scales"]]
        assert shapes[-1] == (64, 80) and all(height % 8 == 0 for height, _ in shapes)
        steps = 2 * len(shapes)
        assert record()["steps"] == steps and f"step {steps}/{steps}" in err
        previews = [name for name in listing(desk) if name.startswith("out_")]
        assert len(previews) == steps
        assert {pixels(name).shape for name in previews} == {(64, 80, 3)}

    @pytest.mark.slow
    def test_as_a_person_runs_it(self, desk, tiny_weights_file):
        save_image("content.png", smooth_image(64, 80, seed=1))
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        for name, spread in (("alone.png", None), ("rows.png", "rows")):
            given = {"size": 80, "weights": tiny_weights_file, **ADAM, "output": name}
            given["preset"] = "neural-style"
            line = [sys.executable, "-m", "nst_jax", *words(**given, spread=spread)]
            done = subprocess.run(line, env=environment, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
        same("rows.png", "alone.png")
        assert record("rows.json")["device"]["count"] == 4
