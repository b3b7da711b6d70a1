"""Large images on the command line: estimates, tiles, coarse to fine, several devices."""

# ruff: noqa: F401, F811

import re

import jax
import numpy as np
import pytest
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
from helpers.images import smooth_image
from PIL import Image

from nst_jax.cli import estimate as estimate_command
from nst_jax.cli import main, planning
from nst_jax.cli.checks import check_room
from nst_jax.cli.options import StyleOptions
from nst_jax.cli.planning import make_spread_mesh
from nst_jax.cli.regions import style_size
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.system.memory import process_memory

pytestmark = pytest.mark.sampled

ADAM = {**SHALLOW, "optimizer": "adam", "steps": 2}
COARSE = {"min_size": 16, "scale_factor": 2}  # 16x12 and 32x24 px
GIB = 2**30


@pytest.fixture
def estimate(capsys, tiny_weights_file):
    def estimate(content="content.png", **options):
        given = {"size": SIZE, "weights": tiny_weights_file, **SHALLOW, "steps": None} | options
        line = words(content=content, style=None, output=None, **given)
        return Run(main(["estimate", *line[1:]]), *capsys.readouterr())

    return estimate


def same(one, other):
    """Check that two images are the same up to rounding."""
    apart = abs(pixels(one).astype(int) - pixels(other)) > 1
    # Adam's step has the sign of rounding errors in pixels with a derivative of about 0.
    assert apart.mean() < 1e-3


def gib(text):
    """Figures of an estimate in GiB by their names, and the other lines."""
    found = re.findall(r"^  (\S.*?) +(\S+) (GiB|MiB)$", text, re.MULTILINE)
    others = [line for line in text.splitlines() if not line.startswith("  ")]
    units = {"GiB": 1, "MiB": 1 / 1024}
    return {name: float(value) * units[unit] for name, value, unit in found}, others


class TestEstimate:
    @pytest.mark.parametrize("config", [{}, {"optimizer": "adam"}], ids=["lbfgs", "adam"])
    def test_parts_add_up_and_nothing_is_written(self, estimate, desk, config):
        before = listing(desk)
        code, out, err = estimate(size=150, **config)
        assert (code, err) == (0, "") and listing(desk) == before
        figures, (head, last) = gib(out)
        assert head.startswith("150x112 px with tiny on ")
        assert last == "execution plan: the whole image"
        parts = ["program", "network", "content and style", "image and optimiser", "activations"]
        assert list(figures) == [*parts, "total", "available"]
        assert figures["total"] == pytest.approx(sum(figures[part] for part in parts), rel=0.06)
        pixel_bytes = 150 * 112 * 12 / GIB
        images = 4 if config else 204  # the image, the best, and the optimiser's
        assert figures["image and optimiser"] == pytest.approx(images * pixel_bytes, rel=0.06)

    @pytest.mark.optimized
    def test_it_is_what_a_run_records(self, estimate, run):
        options = {"size": 96, **PLAIN}
        figures, _ = gib(estimate(**options).out)
        run(**options | {"steps": 1})
        found = record()["memory"]["estimated_bytes"]
        names = {"network": "network", "content and style": "targets"}
        names |= {"image and optimiser": "state", "activations": "scratch"}
        for name, recorded in names.items():
            assert figures[name] == pytest.approx(found[recorded] / GIB, rel=0.06)

    @pytest.mark.slow
    @pytest.mark.optimized
    def test_a_smaller_memory(self, estimate, desk, monkeypatch):
        monkeypatch.setattr(estimate_command, "process_memory", lambda: 0)  # this process is large
        code, out, _ = estimate(memory=0.09, size=300)
        figures, others = gib(out)
        assert code == 0 and figures["available"] == pytest.approx(0.09, rel=0.06)
        assert re.fullmatch("the whole image at once would need .*iB", others[1])
        assert re.match("execution plan: the whole image, L-BFGS .* pairs", others[2])
        code, out, _ = estimate(memory=0.03, size=300)
        figures, others = gib(out)
        assert code == 0 and re.match("execution plan: tiles of 256 px, .*L-BFGS", others[2])
        names = ("content and style", "image and optimiser", "activations")
        assert sum(figures[name] for name in names) <= 0.87 * 0.03
        match = r"300x225 px needs about .*, 12 MiB are free: a longer side of about \d+ px would"
        check_refused(desk, match, lambda: estimate(size=300, memory=12 / 1024))

    def test_the_program_is_part_of_the_memory(self, estimate, desk):
        process = process_memory() / GIB
        figures, _ = gib(estimate(memory=process + 1).out)
        assert figures["program"] == pytest.approx(process, rel=0.2)
        assert figures["available"] == pytest.approx(process + 1, rel=0.06)
        check_refused(desk, "0 GiB are free", lambda: estimate(memory=0.8 * process))

    @pytest.mark.parametrize(
        "options, match",
        [
            ({"styled_regions": -1}, "styled_regions is -1: expected 0"),
            ({"memory": 0}, "memory is 0.0: expected GiB, .*above 0"),
            ({"memory": "nan"}, "memory is nan"),
            ({"content": "nowhere.png"}, "nowhere.png does not exist"),
            ({"size": 1}, "content image is 1x1 px, but layer"),
        ],
    )
    def test_bad_input(self, estimate, desk, options, match):
        check_refused(desk, match, lambda: estimate(**options))

    def test_regions_count(self, estimate):
        figures = [gib(estimate(size=150, styled_regions=count).out)[0] for count in (0, 3)]
        assert figures[1]["activations"] > 1.05 * figures[0]["activations"]
        assert figures[1]["content and style"] > figures[0]["content and style"]

    def test_scales_and_chosen_plans_are_shown(self, estimate):
        out = estimate(**COARSE, tile=16).out.splitlines()
        assert out[-2] == "execution plan: tiles of 16 px"
        assert re.match(r"scales: 16x12 \(1000 steps\), 32x24 \(1000 steps\); the figures", out[-1])


class TestExecutionPlans:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"tile": 64}, {"remat": "on"}])
    def test_they_give_the_same_image(self, run, options):
        assert run(size=150, output="whole.png", tile="off", **ADAM).code == 0
        code, _, err = run(size=150, **ADAM, **options)
        (scale,) = record()["scales"]
        assert code == 0 and err.splitlines()[0].endswith(f"; {scale['computed']}")
        assert scale["computed"] != record("whole.json")["scales"][0]["computed"]
        same("out.png", "whole.png")

    @pytest.mark.parametrize("free, computed", [(0.08, "the whole.*30 pairs"), (0.03, "tiles of")])
    def test_less_memory(self, run, monkeypatch, free, computed):
        monkeypatch.setattr(planning, "free_bytes", lambda device: int(free * GIB))
        code, _, err = run(size=300, **SHALLOW, steps=30)
        plan = err.splitlines()[0]
        assert code == 0 and re.search(f"iB; {computed}", plan)
        (scale,) = record()["scales"]
        assert re.match(computed, scale["computed"]) and scale["computed"] in plan

    @pytest.mark.slow
    def test_what_does_not_fit_is_refused(self, run, desk, monkeypatch):
        monkeypatch.setattr(planning, "free_bytes", lambda device: int(0.012 * GIB))
        match = "300x225 px needs about .*: a longer side of about [0-9]+ px would fit"
        check_refused(desk, match, lambda: run(size=300, **SHALLOW))

    @pytest.mark.slow
    def test_the_loop_is_compiled_once(self, run, caplog):
        """The program that is compiled for the memory plan is the run's."""
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


class TestScales:
    def test_outputs_have_the_size_of_the_result(self, run, desk, content):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        save_image("content.png", content, alpha=alpha)
        (desk / "out_00008.png").write_text("old")  # after the last step, so no output
        options = {**ADAM, **COARSE, "steps": 3, "scale_steps": 4}
        code, _, err = run(**options, save_every=2, animation="film.gif")
        assert code == 0 and (desk / "out_00008.png").read_text() == "old"
        for name in ("out_00002.png", "out_00004.png", "out_00006.png"):
            np.testing.assert_array_equal(pixels(name)[..., 3], pixels("out.png")[..., 3])
        with Image.open("film.gif") as image:
            assert image.size == (32, 24) and image.n_frames == 1 + 7 + 1
        assert record()["scales"] == [
            {"width": 16, "height": 12, "steps": 4, "computed": "the whole image"},
            {"width": 32, "height": 24, "steps": 3, "computed": "the whole image"},
        ]
        assert record()["steps"] == 7
        said = [line.split(":")[0] for line in err.splitlines() if line.startswith("scale ")]
        assert said == ["scale 1/2, 16x12 px", "scale 2/2, 32x24 px"]
        assert "step 7/7" in err.splitlines()[-1]

    @pytest.mark.parametrize("min_size, lines", [(32, 1), (16, 0)])
    def test_min_size_without_a_coarser_scale_is_logged(self, run, min_size, lines):
        code, _, err = run(**ADAM, min_size=min_size)
        assert code == 0 and lines == err.count("min_size")
        found = re.findall(f"nst-jax: min_size {min_size} .* no scale .* 32x24 px", err)
        assert len(found) == lines

    @pytest.mark.parametrize(
        "command",
        [
            "stylize content.png --style style.png --style-layers relu2_1 --content-layers relu2_1",
            "texture content.png --style-layers relu2_1",
            "reconstruct content.png --layer relu1_1",
        ],
    )
    def test_previews_of_all_scales_are_checked(self, command, desk, capsys, traced_work):
        (desk / "out_00006.png").write_text("old")
        line = f"{command} --size 32 -o out.png --save-every 2 --min-size 16 --scale-factor 2"
        line += " --scale-steps 4 --steps 3"

        def attempt():
            return Run(main(line.split()), *capsys.readouterr())

        check_refused(desk, "out_00006.png exists: .*--overwrite", attempt)

    @pytest.mark.parametrize(
        "step, averaging, message, scales",
        [
            (2, 0, "wrote the best image so far, enlarged from 16x12 px", [2]),
            (5, 0, "wrote the best image so far", [4, 1]),
            (2, 0.5, "wrote the average so far, enlarged from 16x12 px", [2]),
        ],
    )
    def test_interrupted(self, run, press, step, averaging, message, scales):
        press(step)
        options = ADAM | COARSE | {"scale_steps": 4, "averaging": averaging}
        code, out, err = run(**options, save_every=1)
        assert (code, out) == (130, "out.png\n")
        assert err.splitlines()[-1] == f"nst-jax: stopped at step {step}: {message}"
        assert pixels("out.png").shape == (24, 32, 3)
        found = record()
        assert (found["status"], found["steps"]) == ("stopped", step)
        assert [scale["steps"] for scale in found["scales"]] == scales
        assert found["image"] == {"width": 32, "height": 24}

    def test_diverged_at_a_coarse_scale(self, run):
        code, _, err = run(**ADAM | COARSE | {"scale_steps": 9}, learning_rate=1e30)
        assert code == 1 and "diverged at step 8" in err.splitlines()[-1]
        assert pixels("out.png").shape == (24, 32, 3)
        assert len(record()["scales"]) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "command, sides",
        [
            ("texture style.png --style-layers relu1_1 --tileable --size 36", [18, 36]),
            ("reconstruct content.png --layer relu2_1 --size 32", [16, 32]),
        ],
    )
    def test_other_commands(self, command, sides, tiny_weights_file):
        line = f"{command} -o t.png --optimizer adam --steps 2 --min-size 16 --scale-factor 2"
        assert main([*line.split(), "--weights", str(tiny_weights_file)]) == 0
        assert [scale["width"] for scale in record("t.json")["scales"]] == sides
        assert record("t.json")["steps"] == 4


class TestStyleScale:
    def test_larger_styles(self, run):
        for scale in (1, 2):
            assert run(**ADAM, style_scale=scale, output=f"{scale}.png").code == 0
            assert record(f"{scale}.json")["settings"]["style_scale"] == scale
        assert (pixels("2.png") != pixels("1.png")).any()

    def test_sizes_are_checked(self):
        with pytest.raises(InputError, match="the size of the styles is 198000: expected 1 to"):
            style_size(2000, StyleOptions(style=(), style_scale=99))
        with pytest.raises(InputError, match=r"a style of 99000x\d+ px needs more than \S+ GiB"):
            check_room((10**9, 99000), what="style")


class TestSpread:
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
        computed = {"rows": "the whole image", "tiles": "tiles of 128 px"}
        assert [scale["computed"] for scale in found["scales"]] == [computed[spread]]

    def test_a_height_that_rows_do_not_divide(self, run, desk):
        """The message names a size that does."""
        save_image("content.png", smooth_image(60, 80, seed=1))
        code, out, err = run(size=76, **ADAM, spread="rows")
        assert (code, out) == (2, "") and err.count("\n") == 1
        size, height = re.search(r"a longer side of (\d+) px \(height (\d+) px\)", err).groups()
        assert int(height) % 8 == 0 and abs(int(size) - 76) <= 6
        assert run(size=size, **ADAM, spread="rows").code == 0
        assert pixels("out.png").shape == (int(height), int(size), 3)

    @pytest.mark.parametrize(
        "spread, settings, match",
        [
            ("rows", {"tile": 64}, "tile is 64, and --spread rows uses no tiles"),
            ("tiles", {"tile": "off"}, "with --tile off there are none: leave out --tile off, "),
            ("tiles", {"remat": "on"}, "with --remat on there are none: leave out --remat on, "),
        ],
    )
    def test_settings_are_checked(self, spread, settings, match):
        with pytest.raises(InputError, match=match):
            make_spread_mesh(spread, config=Config.of(**settings))

    def test_one_device(self, monkeypatch):
        use_devices(monkeypatch, 1)
        with pytest.raises(InputError, match="spread rows divides an image among several devices"):
            make_spread_mesh("rows", config=Config())

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
        assert {pixels(name).shape for name in previews} == {(64, 80, 3)}
