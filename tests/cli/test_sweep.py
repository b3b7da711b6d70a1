"""The command ``sweep``: combinations, batches of one structure, sheets, records, refusals."""

import os
import re
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.commands import Run, acting, check_refused, ctrl_c, listing, pixels, record
from helpers.images import smooth_image
from helpers.records import make_problem, stylize

from nst_jax.cli import main, sweep
from nst_jax.cli.planning import image_memory
from nst_jax.cli.sweep import (
    MAX_COMBINATIONS,
    combinations,
    groups,
    log_batch_memory,
    sheet_columns,
)
from nst_jax.config import Config, to_flat
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError
from nst_jax.images import contact_sheet, load_image, load_mask, save_image, to_uint8
from nst_jax.transfer.batch import check_batch, structure
from nst_jax.transfer.plan import USABLE

pytestmark = pytest.mark.sampled

SHALLOW = {"content_layers": ["relu2_1"], "style_layers": ["relu1_1", "relu2_1"]}
BASE = Config.of(steps=2, **SHALLOW)
ADAM = Config.of(steps=2, optimizer="adam", learning_rate=2.0, **SHALLOW)
NOISE = BASE.but(init="blend")
SIZE = 32


class TestCombinations:
    def test_the_last_setting_changes_fastest(self):
        found = combinations(["style_weight=1,2,3", "tv-weight= 0, 5e-1"], config=BASE, seed=7)
        expected = [(a, b) for a in ("1", "2", "3") for b in ("0", "5e-1")]
        assert [tuple(item.values.values()) for item in found] == expected
        assert [list(item.values) for item in found] == [["style_weight", "tv_weight"]] * 6
        numbers = [(item.config.loss.style_weight, item.config.loss.tv_weight) for item in found]
        assert numbers == [(float(a), float(b)) for a, b in expected]
        assert {item.seed for item in found} == {7}
        others = {(item.config.loss.content_weight, item.config.steps) for item in found}
        assert others == {(BASE.loss.content_weight, BASE.steps)}

    @pytest.mark.parametrize(
        "over, values",
        [
            ("style_weight=1,2.5,1e4", [1.0, 2.5, 1e4]),
            ("clip=true,False", [True, False]),
            ("style_losses=gram=2", [(("gram", 2.0),)]),
            ("style_layers=relu1_1=0.5+relu3_1=2", [(("relu1_1", 0.5), ("relu3_1", 2.0))]),
            ("style_layers=geometric+conv1_1+relu2_1", [(("conv1_1", 0.8), ("relu2_1", 0.2))]),
            ("histogram_layers=relu1_1", [("relu1_1",)]),
            ("pooling=max,average", ["max", "average"]),
            ("min_size=16,64", [16, 64]),
            ("scale_steps=9,20+10,5+4+3", [(9,), (20, 10), (5, 4, 3)]),
            ("tile=off,64,auto", ["off", 64, "auto"]),
        ],
    )
    def test_values_have_their_types(self, over, values):
        name, _, texts = over.partition("=")
        base = NOISE.but(min_size=16) if name.startswith("scale_") else NOISE
        base = base.but(optimizer="adam") if name == "clip" else base
        base = base.but(style_losses=["histogram"]) if name == "histogram_layers" else base
        found = combinations([over], config=base, seed=0)
        for item, value in zip(found, values, strict=True):
            parsed = to_flat(item.config)[name]
            assert parsed == value and type(parsed) is type(value)
        assert [item.values for item in found] == [{name: text} for text in texts.split(",")]

    def test_another_optimizer_has_its_own_learning_rate(self):
        """The preset's is not taken over, but one that the user set is."""
        preset = Config.of(learning_rate=0.5, memory_size=3, **SHALLOW)

        def numbers(over, config):
            found = combinations(over, config=config, seed=0, preset=preset)
            optimizers = [item.config.optimizer for item in found]
            return [(one.learning_rate, getattr(one, "memory_size", None)) for one in optimizers]

        over = "optimizer=lbfgs,adam"
        assert numbers([over], preset) == [(0.5, 3), (None, None)]
        found = numbers(["learning_rate=1,2", "optimizer=adam,lbfgs"], preset)
        assert found == [(1, None), (1, 3), (2, None), (2, 3)]
        assert numbers([over], preset.but(learning_rate=0.7)) == [(0.7, 3), (0.7, None)]

    @pytest.mark.parametrize(
        "over, message",
        [
            ([], "nothing to sweep: expected --over NAME=VALUE,VALUE"),
            (["size=1"], "--over names 'size': expected seed or one of content_layers, "),
            (["style_weight"], "--over 'style_weight': expected NAME=VALUE,VALUE"),
            (["style_weight=1, ,2"], "--over 'style_weight=1, ,2': expected NAME=VALUE,VALUE"),
            (["tv_weight=1, 1"], "--over 'tv_weight=1, 1' has a value twice"),
            (["tv_weight=1", "--tv-weight=2"], "--over names tv_weight twice: give all its values"),
            (["style_weight=1,many"], "--over style_weight: 'many' is not a number"),
            (["steps=5,2.5"], "--over steps: '2.5' is not an integer"),
            (["clip=1"], "--over clip: '1' is not a truth value: expected true or false"),
            (["seed=0,-1"], "seed is -1: expected 0 to 4294967295"),
            (["style_losses=garm"], "unknown loss 'garm': expected one of gram, covariance"),
            (["style_layers=relu6_1"], "unknown layer 'relu6_1'"),
            (["scale_steps=9+"], "--over scale_steps: '' is not an integer"),
            (["scale_factor=2,3"], "--over scale_factor has no effect without min_size"),
            (["seed=1,2"], "--over seed has no effect with init content: expected --init blend or"),
            (["noise_ratio=0,1", "init=noise"], "--over noise_ratio has no effect with init noise"),
            # From ``Config``.
            (["tile=64,0"], "tile is 0: expected auto, off, or a side in pixels"),
            (["noise_ratio=0.5,2"], "noise_ratio is 2.0: expected 0 to 1"),
            (["tile=off,64", "remat=on"], "remat on has no meaning with tiles"),
            (["optimizer=lbfgs,adam", "memory_size=5"], "memory_size has no meaning for adam"),
        ],
    )
    def test_refused(self, over, message):
        with pytest.raises(InputError, match="^" + re.escape(message)):
            combinations(over, config=BASE, seed=0)

    def test_number_of_combinations(self):
        values = ",".join(map(str, range(MAX_COMBINATIONS // 2)))
        over = [f"style_weight={values}", "tv_weight=0,1"]
        assert len(combinations(over, config=BASE, seed=0)) == MAX_COMBINATIONS
        over[0] += ",1000"
        with pytest.raises(InputError, match="makes 202 combinations: expected at most 200; leave"):
            combinations(over, config=BASE, seed=0)


# Every setting: those that may differ within a batch, and those that need another program.
NUMBERS = """
style_weight=3 content_weight=0 tv_weight=2 learning_rate=0.25 init=noise noise=uniform
noise_scale=0.2 noise_ratio=0.3 style_layers=relu1_1=0.3+relu2_1=2 content_layers=relu2_1=4
content_losses=features=3 style_losses=gram=2
"""
STRUCTURES = """
steps=5 style_layers=relu1_1 content_layers=relu1_1 pooling=average gram_normalization=hw
tv_order=2 tv_form=isotropic tv_reduction=mean content_losses=laplacian4
style_losses=gram+mean-std style_losses=gram+histogram;histogram_layers=relu1_1
style_losses=wasserstein;covariance_eps=0.1 optimizer=adam optimizer=adam;adam_beta1=0.8
optimizer=adam;adam_beta2=0.9 optimizer=adam;adam_epsilon=0.1 optimizer=adam;clip=true
mse_factor=0.25 pixel_range=1 style_mixing=sum guides=all padding=circular color=luminance
memory_size=7 preconditioner=spectral convolution=direct min_size=16 min_size=16;scale_factor=3
min_size=8;scale_steps=3 averaging=0.9 precision=bfloat16 tile=16 remat=on
"""


class TestGroups:
    def test_every_setting_is_a_number_or_a_structure(self):
        def structure_of(over):
            (item,) = combinations(over, config=NOISE, seed=0)
            return structure(item.config)

        names = set()
        for text in (NUMBERS + STRUCTURES).split():
            *others, last = text.split(";")
            before = structure_of(others) if others else structure(NOISE)
            assert (structure_of([*others, last]) == before) == (text in NUMBERS.split()), text
            names.add(last.split("=")[0])
        assert names == set(flat_types())

    @pytest.mark.parametrize(
        "count, batch_size, sizes",
        [(8, 8, [8]), (9, 8, [5, 4]), (7, 3, [3, 3, 1]), (12, 5, [4, 4, 4]), (2, 1, [1, 1])],
    )
    def test_sizes_are_nearly_equal(self, count, batch_size, sizes):
        over = [f"style_weight={','.join(map(str, range(count)))}"]
        found = groups(combinations(over, config=BASE, seed=0), batch_size=batch_size)
        assert [len(group) for group in found] == sizes
        assert sum(found, []) == list(range(count))

    @pytest.mark.parametrize(
        "over, batch_size, expected",
        [
            (["style_weight=1,2,3", "pooling=max,average"], 8, [[0, 2, 4], [1, 3, 5]]),
            (["style_weight=1,2,3", "pooling=max,average"], 2, [[0, 2], [4], [1, 3], [5]]),
            # Runs with a line search are computed one by one.
            (["style_weight=1,2", "optimizer=lbfgs-linesearch,lbfgs"], 8, [[0], [2], [1, 3]]),
            (["seed=1,2,3"], 8, [[0, 1, 2]]),
        ],
    )
    def test_structures(self, over, batch_size, expected):
        items = combinations(over, config=NOISE, seed=0)
        assert groups(items, batch_size=batch_size) == expected


def test_a_batch_of_two_structures_is_refused():
    with pytest.raises(InputError, match="config 2 differs from the first in"):
        check_batch([BASE, BASE.but(pooling="average")])


@pytest.mark.parametrize(
    "over, columns",
    [(["seed=1,2,3,4,5,6,7"], 6), (["style_weight=1", "seed=1,2,3,4,5,6,7"], 7)],
)
def test_columns(over, columns):
    """A single setting is wrapped; of several, the last one varies along the rows."""
    assert sheet_columns(combinations(over, config=NOISE, seed=0)) == columns


@pytest.fixture(scope="module")
def problem(variables):
    content, style = smooth_image(24, 32, seed=1), smooth_image(32, 26, seed=2)
    return make_problem(variables, content, [style], config=ADAM)


class TestMemory:
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_more_images_than_fit(self, problem, batch_size):
        one = image_memory(problem)
        state = one.per_image - one.targets - one.scratch  # on CPUs, all images share the others
        free = int((one.per_image + (batch_size - 0.5) * state) / USABLE)
        log_batch_memory(problem, batch_size=batch_size, free=free, process=0)
        message = f"^{batch_size + 1} images of 32x24 px .*: choose --batch-size {batch_size}$"
        with pytest.raises(InputError, match=message):
            log_batch_memory(problem, batch_size=batch_size + 1, free=free, process=0)

    def test_not_even_one_fits(self, problem):
        with pytest.raises(InputError, match="^an image of 32x24 px needs about "):
            log_batch_memory(problem, batch_size=2, free=100, process=0)

    def test_unknown_memory(self, problem, capsys):
        log_batch_memory(problem, batch_size=2, free=None, process=0)
        assert "32x24 px, 2 images at once: about " in capsys.readouterr().err


TWO = "style.png two.png"
MASKS = "left.png right.png"


def draw_inputs(folder):
    save_image(folder / "content.png", smooth_image(24, 32, seed=1))
    save_image(folder / "style.png", smooth_image(32, 26, seed=2))
    save_image(folder / "two.png", smooth_image(32, 26, seed=4))
    save_image(folder / "start.png", smooth_image(24, 32, seed=9))
    left = np.broadcast_to(np.arange(32) < 14, (24, 32))
    for name, inside in (("left", left), ("right", ~left)):
        save_image(folder / f"{name}.png", np.repeat(inside[..., None] * 1.0, 3, -1))


def command_line(*over, **options):
    given = {
        "preset": "neural-style",
        "style": "style.png",
        "content_layers": "relu2_1",
        "style_layers": "relu1_1 relu2_1",
        "optimizer": "adam",
        "learning_rate": 2,
        "steps": 2,
        "size": SIZE,
        "output": "out.png",
    }
    line = ["sweep", "content.png"]
    for name, value in (given | options).items():
        flag = "--" + name.replace("_", "-")
        line += [flag] + ([] if value is True else str(value).split())
    for text in over:
        line += ["--over", text]
    return line


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_weights_file):
    """A sweep over two structures and two numbers, in batches of two."""
    folder = tmp_path_factory.mktemp("swept")
    draw_inputs(folder)
    out, err = StringIO(), StringIO()
    over = ("steps=2,1", "style_weight=1,100,1e4")
    line = command_line(*over, batch_size=2, weights=tiny_weights_file)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("NST_JAX_CACHE", str(folder / "cache"))
        code = main(line)
    return SimpleNamespace(folder=folder, result=Run(code, out.getvalue(), err.getvalue()))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with images and masks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    draw_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def run(desk, capsys, tiny_weights_file):
    def run(*over, **options):
        line = command_line(*over, **{"weights": tiny_weights_file} | options)
        return Run(main(line), *capsys.readouterr())

    return run


@pytest.fixture
def single(variables):
    """The result of ``stylize`` for the files in the folder."""

    def single(styles="style.png", *, seed=0, controls={}, **changes):
        return stylize(
            variables,
            load_image("content.png"),
            [load_image(name) for name in styles.split()],
            config=ADAM.but(**changes),
            key=jax.random.key(seed),
            **controls,
        )

    return single


def check_sheet(results, labels, columns):
    """Check that the sheet shows these results and labels."""
    images = [np.ones((24, 32, 3)) if result is None else result.image for result in results]
    expected = to_uint8(contact_sheet(images, labels=labels, columns=columns))
    np.testing.assert_array_equal(pixels("out.png"), expected)


def losses(name="out.json"):
    return [image["history"]["total"] for image in record(name)["images"]]


class TestCommand:
    def test_output(self, swept):
        code, out, err = swept.result
        assert (code, out) == (0, "out.png\n")
        memory = "nst-jax: 32x24 px, 2 images at once: about .* of .*GiB; the whole image\n"
        assert re.match(memory, err) and "compiled in " in err and "step 6/6" in err
        assert {"out.png", "out.json"} <= set(listing(swept.folder))

    def test_images_are_those_of_stylize(self, swept, single, monkeypatch):
        monkeypatch.chdir(swept.folder)
        values = [(steps, weight) for steps in (2, 1) for weight in ("1", "100", "1e4")]
        results = [single(steps=steps, style_weight=float(weight)) for steps, weight in values]
        labels = [f"steps {steps}\nstyle_weight {weight}" for steps, weight in values]
        check_sheet(results, labels, 3)
        assert losses() == [result.history.loss.tolist() for result in results]

    def test_record(self, swept):
        found = record(swept.folder / "out.json")
        values = [(steps, weight) for steps in ("2", "1") for weight in ("1", "100", "1e4")]
        assert [tuple(image["values"].values()) for image in found["images"]] == values
        for image in found["images"]:
            assert (image["status"], image["seed"]) == ("done", 0)
            assert image["steps"] == int(image["values"]["steps"])
            assert set(image["history"]) == {"total", "content", "style", "tv"}
            assert image["final_loss"] == min(image["history"]["total"])
        settings = found["settings"]
        assert settings["over"] == ["steps=2,1", "style_weight=1,100,1e4"]
        assert (settings["batch_size"], settings["size"]) == (2, SIZE)
        assert settings["style"] == ["style.png"]
        assert settings["style_layers"] == {"relu1_1": 1, "relu2_1": 1}
        assert found["image"] == {"width": 32, "height": 24}
        assert found["weights"]["name"] == "tiny" and found["timing"]["total_s"] > 0

    def test_seeds(self, run, single):
        assert run("seed=1,2", init="noise", noise_scale=0.2).code == 0
        assert [image["seed"] for image in record()["images"]] == [1, 2]
        results = [single(seed=seed, init="noise", noise_scale=0.2) for seed in (1, 2)]
        check_sheet(results, ["seed 1", "seed 2"], 2)
        assert losses()[0] != pytest.approx(losses()[1], rel=1e-4)

    def test_initial_images_from_files(self, run, single):
        save_image("large.png", smooth_image(48, 64, seed=8))
        assert run("init=content,start.png,large.png", init="start.png").code == 0
        inits = [None, load_image("start.png"), load_image("large.png", size=32)]
        results = [single(controls={"init": init}) for init in inits]
        check_sheet(results, ["init content", "init start.png", "init large.png"], 3)

    def test_regions(self, run, single):
        """Each region has its style in all layers that are swept."""
        options = dict(style=TWO, content_mask=MASKS, region_styles="2 mix", style_blend="1 3")
        code, _, err = run(
            "style_layers=relu1_1,relu1_1+relu2_1", **options, style_layers="relu1_1"
        )
        assert code == 0, err
        masks = np.stack([load_mask(name, shape=(24, 32)) for name in MASKS.split()])
        controls = {"content_masks": masks, "blend": [[0.0, 1.0], [1.0, 3.0]]}
        layers = (["relu1_1"], ["relu1_1", "relu2_1"])
        results = [single(TWO, style_layers=names, controls=controls) for names in layers]
        assert losses() == [result.history.loss.tolist() for result in results]
        labels = ["style_layers relu1_1", "style_layers relu1_1+relu2_1"]
        check_sheet(results, labels, 2)

    def test_divergence(self, run, single):
        """An image that diverges is run again alone, where it recovers as ``stylize`` does."""
        code, out, err = run("learning_rate=2,1e30", steps=4)
        assert (code, out) == (1, "out.png\n")
        assert (
            err.splitlines()[-1] == "nst-jax: diverged: the labels on the sheet show which images"
        )
        results = [single(learning_rate=rate, steps=4) for rate in (2.0, 1e30)]
        check_sheet(results, ["learning_rate 2", "learning_rate 1e30\ndiverged"], 2)
        found = record()["images"]
        assert [image["status"] for image in found] == ["done", "diverged"]
        assert found[1]["history"]["total"][-1] is None
        assert [image["recoveries"] for image in found] == [0, results[1].recoveries]
        assert results[1].recoveries > 0
        recovered = "learning_rate 1e30: the loss or its gradient was not finite: restarted from"
        (line,) = [line for line in err.splitlines() if recovered in line]
        assert line.endswith(f"({results[1].recoveries} of 3)")

    def test_losses_whose_sum_overflows(self, run):
        """The mean that is shown meanwhile does not overflow, and no image diverges."""
        style_only = dict(init="noise", steps=1, content_weight=0, tv_weight=0)
        assert run("seed=1", **style_only, style_weight=1).code == 0
        weight = 2.5e38 / losses()[0][0]
        code, _, err = run("seed=1,2", **style_only, overwrite=True, style_weight=weight)
        assert code == 0 and "Warning" not in err
        assert losses() == [[pytest.approx(2.5e38, rel=1e-4)]] * 2


@pytest.fixture
def at_step(monkeypatch):
    yield from acting(monkeypatch, sweep)


@pytest.fixture
def press(at_step):
    return partial(at_step, act=ctrl_c)


class TestUnwritable:
    def test_the_sheet_is_saved_elsewhere(self, run, single, at_step, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        os.mkdir("sheets")
        at_step(1, lambda: os.rmdir("sheets"))
        code, out, err = run("tv_weight=0", steps=1, output="sheets/out.png")
        (kept,) = tmp_path.glob("nst-jax-*/out.png")
        assert (code, out) == (2, "") and err.endswith(
            "error: cannot write sheets/out.png (No such file or directory): the image is kept "
            f"as {kept}, move it to where you want it\n"
        )
        kept.rename("out.png")
        check_sheet([single(tv_weight=0.0, steps=1)], ["tv_weight 0"], columns=1)

    def test_the_record(self, run, at_step):
        at_step(1, lambda: os.mkdir("out.json"))
        code, _, err = run("tv_weight=0", steps=1)
        assert code == 2 and err.endswith(
            "cannot write out.json (Is a directory): the sheet is written as out.png\n"
        )


class TestInterrupt:
    def test_the_sheet_shows_what_there_is(self, run, press, single):
        press(3)  # the first step of the second image, which is a chunk
        code, out, err = run("style_weight=1,100,1e4", batch_size=1)
        assert (code, out) == (130, "out.png\n")
        assert err.splitlines()[-1].startswith("nst-jax: stopped: the labels")
        found = record()["images"]
        assert [image["status"] for image in found] == ["done", "stopped", "not run"]
        assert [image.get("steps") for image in found] == [2, 1, None]
        assert found[2] == {"values": {"style_weight": "1e4"}, "seed": 0, "status": "not run"}
        results = [single(style_weight=1.0), single(style_weight=100.0, steps=1), None]
        labels = ["style_weight 1", "style_weight 100\nstopped", "style_weight 1e4\nnot run"]
        check_sheet(results, labels, 3)

    @pytest.mark.parametrize(
        "batch_size, code, statuses", [(1, 130, ["done", "not run"]), (2, 0, ["done", "done"])]
    )
    def test_at_the_last_step_of_a_batch(self, run, press, batch_size, code, statuses):
        press(2)
        assert run("style_weight=1,100", batch_size=batch_size).code == code
        assert [image["status"] for image in record()["images"]] == statuses


@pytest.mark.parametrize(
    "over, options, message",
    [
        (["sharpness=1,2"], {}, "--over names 'sharpness': expected seed or one of content_la"),
        (["tv_weight=1"], {"batch_size": 0}, "batch_size is 0: expected 1 or more"),
        (["tv_weight=1"], {"output": "old.png"}, "old.png exists: .*--overwrite"),
        (["tv_weight=1"], {"output": "-"}, "not standard output: name a file"),
        (["init=content,left.png"], {"output": "left.png", "overwrite": True}, "is an input"),
        (["tv_weight=1"], {"max_megapixels": 0.0007}, "content.png has 0.000768 megapixels"),
        (["tv_weight=1"], {"weights": "nowhere.h5"}, "nowhere.h5 .*do not exist"),
        (["averaging=0,0.5"], {}, "averaging is for stylize, one image at a time: leave it out"),
        (
            [f"seed={','.join(map(str, range(100)))}", "tv_weight=1"],
            {"init": "noise", "size": 200, "output": "o.webp"},
            "px: expected at most 16383 px a side for .webp; write o.webp as .png",
        ),
        # If only one of the combinations does not fit.
        (["style_layers=relu1_1,relu5_1"], {"size": 20}, "layer relu5_1 needs"),
        (["guides=simple,inside"], {}, "guides inside needs masks"),
        (["init=content,none.png"], {}, "none.png does not exist"),
        (["init=content,two.png"], {}, "initial image two.png is 26x32 px, .* same aspect"),
    ],
)
def test_refused_before_any_work(run, desk, traced_work, over, options, message):
    (desk / "old.png").write_text("old")
    check_refused(desk, message, lambda: run(*over, **options))
