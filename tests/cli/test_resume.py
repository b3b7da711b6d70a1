"""``nst-jax resume``: a run that was ended anywhere goes on as if it had not been."""

import json
import os
import re
import shutil
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import smooth_image
from helpers.commands import (  # noqa: F401
    Run,
    at_step,
    check_refused,
    desk,
    listing,
    pixels,
    record,
    small_files,
    use_devices,
    words,
)
from helpers.resuming import (
    changed,
    run,  # noqa: F401
)

from nst_jax.checkpoint import load_position, save_position, store
from nst_jax.checkpoint.store import held
from nst_jax.cli import batch_run, main
from nst_jax.cli.outputs import not_written_words
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.images import write as image_output
from nst_jax.optim import run as solver_run
from nst_jax.transfer import Callback, single, stylize

pytestmark = pytest.mark.sampled

ADAM = dict(optimizer="adam", learning_rate=2)


class Killed(BaseException):
    """In place of SIGKILL: nothing of the program sees it."""


@pytest.fixture
def kill(monkeypatch):
    """Give a function that ends the program after so many checkpoints."""

    def arrange(after):
        left, save = after, store.save

        def killing(*args, **options):
            nonlocal left
            save(*args, **options)
            left -= 1
            if left < 0:
                raise Killed

        monkeypatch.setattr(store, "save", killing)
        return lambda: monkeypatch.setattr(store, "save", save)

    return arrange


def told(name="out.json"):
    """A record but for what differs from run to run."""
    left_out = ("timing", "memory")
    return {key: value for key, value in record(name).items() if key not in left_out}


def compare(run, kill, line, *, outputs=("out.png",), afters=(0, 1, 4)):
    """A run that is ended after so many checkpoints and goes on, and one that is not."""
    whole = run(line)
    assert whole.code == 0, whole.err
    expected = {name: Path(name).read_bytes() for name in outputs}, told()
    for name in (*outputs, "out.json"):
        os.unlink(name)
    keep = ["--checkpoint", "kept", "--checkpoint-every", "1", "--overwrite"]
    for after in afters:
        restore = kill(after)
        with pytest.raises(Killed):
            run([*line, *keep])
        restore()
        assert not Path("out.png").exists()
        code, out, err = run(["resume", "kept"])
        assert code == 0 and f"nst-jax: going on from step {after}, to write " in err, err
        taken = [line for line in err.splitlines() if line.startswith("step ")]
        complete = after == len(told()["history"]["total"])
        assert not taken if complete else taken[0].startswith(f"step {after + 1}/")
        assert Path(out.strip()).samefile("out.png")
        assert {name: Path(name).read_bytes() for name in outputs} == expected[0]
        assert told() == expected[1]
        for name in (*outputs, "out.json"):
            os.unlink(name)


RUNS = {
    "adam": dict(ADAM, steps=6),
    "lbfgs": dict(steps=6, color="luminance"),
    "linesearch": dict(steps=5, optimizer="lbfgs-linesearch"),
    "noise": dict(ADAM, steps=6, init="noise", seed=3),
    "scales": dict(
        ADAM, steps=3, min_size=16, scale_steps=3, content_layers="relu2_1", style_layers="relu1_1"
    ),
    "tiles": dict(steps=5, tile=16, content_layers="relu2_1", style_layers="relu1_1"),
    "average": dict(ADAM, steps=5, averaging=0.9),
}


@pytest.mark.parametrize(
    "name", [pytest.param("adam", marks=pytest.mark.optimized), *list(RUNS)[1:]]
)
def test_a_resumed_run_writes_the_same_image(run, kill, name):
    compare(run, kill, words(**RUNS[name]))


@pytest.mark.slow
def test_with_all_that_is_written_and_read(run, kill, style):
    """Previews, an animation, masks, transparency, an initial image; the inputs may be gone."""
    mask = np.zeros((36, 48, 3), np.float32)
    mask[:, :24] = 1
    save_image("mask.png", mask)
    save_image("init.png", smooth_image(36, 48, seed=4))
    save_image("clear.png", smooth_image(36, 48, seed=1), alpha=mask[..., 0])
    given = dict(ADAM, steps=6, content="clear.png", init="init.png")
    given |= dict(content_mask="mask.png", region_styles="1", save_every=2, animation="film.gif")
    outputs = ("out.png", "out_00004.png", "out_00006.png", "film.gif")
    compare(run, kill, words(**given), outputs=outputs, afters=(3,))


@pytest.mark.slow
def test_needs_nothing_else(run, kill, desk):  # noqa: F811
    """Neither the images nor the folder where the run began."""
    line = words(steps=5)
    run(line)
    expected = pixels("out.png")
    os.unlink("out.png")
    restore = kill(2)
    with pytest.raises(Killed):
        run([*line, "--checkpoint", "kept", "--checkpoint-every", "1", "--overwrite"])
    restore()
    for name in ("content.png", "style.png"):
        os.unlink(name)
    (desk / "elsewhere").mkdir()
    os.rename("kept", "elsewhere/moved")
    os.chdir("elsewhere")
    assert run(["resume", "moved"]).code == 0
    np.testing.assert_array_equal(pixels(desk / "out.png"), expected)


@pytest.mark.parametrize("command", ["texture", "reconstruct"])
@pytest.mark.slow
def test_other_commands(run, kill, command):
    line = [command, "style.png", "-o", "out.png", "--size", "32", "--steps", "4"]
    compare(run, kill, [*line, *(["--layer", "relu2_1"] if command == "reconstruct" else [])])


def test_killed_again_and_again(run, kill):
    line = words(steps=7)
    run(line)
    expected = pixels("out.png")
    line += ["--checkpoint", "kept", "--checkpoint-every", "2", "--overwrite"]
    for after in (1, 0, 0):
        restore = kill(after)
        with pytest.raises(Killed):
            run(line)
        restore()
        line = ["resume", "kept"]
    assert run(line).code == 0
    np.testing.assert_array_equal(pixels("out.png"), expected)


def test_a_run_that_ended_writes_its_image_again(run):
    run([*words(steps=3), "--checkpoint", "kept"])
    before = pixels("out.png")
    os.unlink("out.png")
    assert run(["resume", "kept"]).code == 0
    np.testing.assert_array_equal(pixels("out.png"), before)


def test_before_the_first_checkpoint(run, monkeypatch):
    def fail(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store, "save", fail)
        with pytest.raises(Killed):
            run([*words(steps=3), "--checkpoint", "kept"])
    for folder in ("kept", "nowhere"):
        code, out, err = run(["resume", folder])
        assert (code, out) == (2, "") and len(err.splitlines()) == 1
        assert err.startswith(f"nst-jax: error: nothing was saved in {folder}")


def test_a_damaged_one_is_passed_over(run, kill):
    line = words(steps=5)
    run(line)
    expected = pixels("out.png")
    restore = kill(3)
    with pytest.raises(Killed):
        run([*line, "--checkpoint", "kept", "--checkpoint-every", "1", "--overwrite"])
    restore()
    path = Path("kept/checkpoint-00000003/arrays.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, _, err = run(["resume", "kept"])
    assert code == 0
    assert err.startswith("nst-jax: checkpoint-00000003 is damaged (the checksum of arrays")
    assert "going on from step 2" in err
    np.testing.assert_array_equal(pixels("out.png"), expected)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda r: r["versions"].update(jax="0.1"), r"was saved with jax 0\.1 \(here "),
        (lambda r: r["versions"].update(nst_jax="9"), r"was saved with nst_jax 9 \(here "),
        (lambda r: r["weights"].update(sha256="ab" * 32), "the run began with the weights tiny"),
        (lambda r: r.pop("arguments"), "was not written by this program"),
        (lambda r: r["arguments"].append("--what"), "its command line cannot be parsed"),
        (lambda r: r["arguments"].append("--help"), "its command line cannot be parsed"),
        (lambda r: r.update(arguments=["presets"]), "input files are others than those of its"),
        (lambda r: r["arguments"].extend(["--steps", "-1"]), "is from another run: steps is -1"),
        (lambda r: r["arguments"].extend(["--memory-size", "5"]), "does not belong to this run"),
        (lambda r: r["arguments"].extend(["--init", "a.png"]), "input files are others"),
        (lambda r: r.update(kind="batch"), "was not written by this program"),
        (lambda r: r["position"].update(scale=3), "at scale 3 of a run of 1"),
        (lambda r: r.update(settings=[]), "its settings are none"),
        (lambda r: r.update(kind="position"), "kept is of a run in Python: go on there by"),
        (lambda r: r.pop("device"), "was not written by this program"),
    ],
)
def test_other_runs_are_refused(run, desk, change, match):  # noqa: F811
    run([*words(steps=2), "--checkpoint", "kept"])
    changed(change)
    code, out, err = run(["resume", "kept"])
    lines = [line for line in err.splitlines() if line.startswith("nst-jax: error: ")]
    assert (code, out) == (2, "") and len(lines) == 1
    assert re.search(match, lines[0]), err


@pytest.mark.parametrize("format", [1, 99])
def test_of_another_program(run, desk, format):  # noqa: F811
    run([*words(steps=2), "--checkpoint", "kept"])
    changed(lambda r: r["versions"].update(nst_jax="0.0.1"))
    for folder in store.checkpoints(Path("kept")):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": format}))
    match = f"was written by nst_jax 0.0.1 in format {format}: expected format"
    code, out, err = run(["resume", "kept"])
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and match in err


def test_a_copy_that_is_changed(run):
    run([*words(steps=2), "--checkpoint", "kept"])
    (copy,) = Path("kept/checkpoint-inputs").glob("00*")
    copy.write_bytes(copy.read_bytes()[:-1])
    code, _, err = run(["resume", "kept"])
    assert code == 2 and "the checksum of checkpoint-inputs/00" in err


def test_images_that_are_others_by_now(run, kill, style):
    """The copies count."""
    line = words(steps=5)
    run(line)
    expected = pixels("out.png")
    restore = kill(2)
    with pytest.raises(Killed):
        run([*line, "--checkpoint", "kept", "--checkpoint-every", "1", "--overwrite"])
    restore()
    save_image("content.png", style)
    save_image("style.png", style / 2)
    assert run(["resume", "kept"]).code == 0
    np.testing.assert_array_equal(pixels("out.png"), expected)


def test_other_devices_are_told(run):
    run([*words(steps=2), "--checkpoint", "kept"])
    changed(lambda r: r["device"].update(kind="abacus", count=3))
    code, _, err = run(["resume", "kept"])
    assert code == 0 and "nst-jax: the run started on 3 x abacus, got " in err
    changed(lambda r: r["arguments"].extend(["--spread", "tiles"]))
    code, _, err = run(["resume", "kept"])
    assert code == 2 and err.endswith(": resume on the same number\n")


@pytest.mark.parametrize("spread", ["rows", "tiles"])
@pytest.mark.slow
def test_on_several_devices(run, kill, spread):
    save_image("content.png", smooth_image(32, 48, seed=1))
    options = dict(size=48, steps=4, spread=spread, convolution="direct", style_layers="relu1_1")
    compare(run, kill, words(content_layers="relu2_1", **options), afters=(2,))


@pytest.mark.slow
def test_positions_from_python(variables, tmp_path, content, style, monkeypatch):
    config = Config.of(
        steps=6, style_layers=(("relu1_1", 1.0),), content_layers=(("relu2_1", 1.0),)
    )
    start = partial(stylize, variables, content, [style], config=config)

    def keep(progress):
        save_position(tmp_path / "kept", progress.position())
        return progress.step < 4

    start(callback=Callback(keep, every=2))
    position = load_position(tmp_path / "kept")
    assert position.step == 4 and len(store.checkpoints(tmp_path / "kept")) == 2
    np.testing.assert_array_equal(start(init=position).image, start().image)
    monkeypatch.chdir(tmp_path)
    changed(lambda record: record["device"].update(threads=7))
    with pytest.warns(UserWarning, match="on 7 threads before and is on . now: the bits of its"):
        load_position(tmp_path / "kept")
    with pytest.raises(InputError, match="nothing was saved"):
        load_position(tmp_path)


def test_weights_elsewhere(run, desk, slim_file, tiny_weights_file):  # noqa: F811
    shutil.copy(tiny_weights_file, "mine.safetensors")
    assert main([*words(steps=2, weights="mine.safetensors"), "--checkpoint", "kept"]) == 0
    os.rename("mine.safetensors", "moved.safetensors")
    code, _, err = run(["resume", "kept", "--weights", slim_file])
    assert code == 2 and "resume with the former, or start a new run" in err
    assert run(["resume", "kept", "--weights", "moved.safetensors"]).code == 0


def test_a_folder_in_use_is_not_taken(run, desk, tiny_weights_file):  # noqa: F811
    run([*words(steps=2), "--checkpoint", "kept"])
    for name in ("out.png", "out.json"):
        os.unlink(name)
    line = [*words(steps=2, weights=tiny_weights_file), "--checkpoint", "kept"]

    def again():
        return run(line[: line.index("--weights")] + ["--checkpoint", "kept"])

    check_refused(desk, "kept holds the checkpoints of a run: go on with it by", again)


class TestFaults:
    @pytest.fixture
    def wrapped(self, monkeypatch):
        """Give a function that wraps the loop's calls that take steps, counted from 1."""

        def arrange(wrapper):
            count = 0

            def run(*args, num_steps, **options):
                nonlocal count
                if not isinstance(num_steps, int) or num_steps == 0:
                    return solver_run(*args, num_steps=num_steps, **options)
                count += 1
                return wrapper(count, lambda: solver_run(*args, num_steps=num_steps, **options))

            monkeypatch.setattr(single, "run", run)

        return arrange

    @pytest.mark.parametrize("when", [1, 3])
    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.slow
    def test_out_of_memory_goes_on_in_a_smaller_way(self, run, wrapped, when, keep):
        def wrapper(count, take):
            if count == when:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
            return take()

        save_image("content.png", smooth_image(300, 400, seed=1))
        line = words(size=400, steps=4, content_layers="relu2_1", style_layers="relu1_1", **ADAM)
        line += ["--save-every", "1"]
        wrapped(wrapper)
        result = run(
            [*line, *(["--checkpoint", "kept", "--checkpoint-every", "1"] if keep else [])]
        )
        assert result.code == 0, result.err
        step = f"step {when - 1}" if keep and when > 1 else "the beginning"
        assert f"nst-jax: out of memory, going on from {step}, " in result.err
        assert record()["scales"][0]["computed"] != "the whole image"
        assert record()["steps"] == 4

    @pytest.mark.slow
    def test_out_of_memory_in_every_way(self, run, wrapped, desk):  # noqa: F811
        def wrapper(count, take):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

        wrapped(wrapper)
        code, out, err = run(words(steps=2))
        assert (code, out) == (2, "") and err.splitlines()[-1].startswith("nst-jax: error: ")
        assert not {"out.png", "out.json"} & set(listing(desk))

    def test_a_loss_that_is_not_finite_once(self, run, wrapped):
        def wrapper(count, take):
            state, info = take()
            if count != 2:
                return state, info
            info = info._replace(loss=info.loss.at[0].set(np.nan))
            return state._replace(frozen=state.frozen | True), info

        wrapped(wrapper)
        code, _, err = run([*words(steps=6, **ADAM), "--save-every", "1"])
        assert code == 0
        assert "not finite at step 2: going on from the best image with a fresh optimiser" in err
        assert record()["status"] == "done" and record()["recoveries"] == 1

    def test_a_full_disk_at_a_checkpoint(self, run, at_step):
        """The result is small enough, checkpoints are not."""
        line = [*words(steps=5), "--checkpoint", "kept", "--checkpoint-every", "1"]
        with ExitStack() as stack:
            at_step(2, lambda: stack.enter_context(small_files(16_384)))
            code, _, err = run(line)
        assert code == 0 and Path("out.png").exists()
        assert "cannot write a checkpoint to kept (File too large), going on" in err
        expected = pixels("out.png")
        code, _, err = run(["resume", "kept"])
        assert code == 0 and "going on from step 1" in err
        np.testing.assert_array_equal(pixels("out.png"), expected)

    @pytest.mark.parametrize("keep", [True, False])
    def test_a_folder_that_is_gone_at_the_end(self, run, at_step, monkeypatch, tmp_path, keep):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr("tempfile.tempdir", None)
        (tmp_path / "tmp").mkdir()
        (tmp_path / "made").mkdir()
        line = [*words(steps=3, output="made/out.png")]
        at_step(3, lambda: os.rmdir("made"))
        code, out, err = run([*line, *(["--checkpoint", "kept"] if keep else [])])
        os.mkdir("made")
        last = err.splitlines()[-1]
        assert (code, out) == (2, "")
        said = "cannot write made/out.png (No such file or directory): "
        assert last.startswith(f"nst-jax: error: {said}")
        if keep:
            assert last.endswith("then 'nst-jax resume kept' writes the result")
            assert run(["resume", "kept"]).code == 0 and Path("made/out.png").exists()
        else:
            (kept,) = (tmp_path / "tmp").glob("nst-jax-*/out.png")
            assert last.endswith(f"the image is kept as {kept}, move it to where you want it")
            at_step(-1, None)
            run(line)
            np.testing.assert_array_equal(pixels(kept), pixels("made/out.png"))

    @pytest.mark.parametrize("name", ["out.json", "film.gif"])
    def test_what_stands_beside_the_image_cannot_be_written(self, run, at_step, name):
        at_step(2, lambda: os.mkdir(name))
        code, out, err = run([*words(steps=2), "--animation", "film.gif"])
        assert (code, out) == (2, "") and Path("out.png").exists()
        assert err.endswith(f"{name} (Is a directory): the image is written as out.png\n")
        assert Path("out.json").is_file() == (name == "film.gif")

    @pytest.mark.parametrize("keep", [True, False])
    def test_what_an_encoder_cannot_do(self, run, monkeypatch, tmp_path, keep):
        """Then ``resume`` could not do it either."""

        def fail(*arguments, format, **options):
            if format == "WEBP":
                raise ValueError("encoding error 5:\nof 16384 pixels")
            return encode(*arguments, format=format, **options)

        encode = image_output.encode
        monkeypatch.setattr(image_output, "encode", fail)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        line = [*words(steps=2, save_every=1, output="out.webp")]
        code, out, err = run([*line, *(["--checkpoint", "kept"] if keep else [])])
        first, second = [one for one in err.splitlines() if one.endswith(", going on")]
        last = err.splitlines()[-1]
        assert (code, out) == (2, "")
        assert "cannot write out_00001.webp (encoding error 5: of 16384 pixels), going on" in first
        assert "cannot write out_00002.webp" in second
        (kept,) = tmp_path.glob("nst-jax-*/out.png")
        assert last == (
            "nst-jax: error: cannot write out.webp (encoding error 5: of 16384 pixels): the "
            f"image is kept as {kept}, move it to where you want it"
        )

    def test_an_error_without_words(self):
        words = not_written_words(OverflowError(), Path("film.gif"))
        assert words == "cannot write film.gif (OverflowError): "

    def test_neither_checkpoints_nor_the_result_can_be_written(
        self, run, at_step, monkeypatch, tmp_path
    ):
        """The checkpoint of the start does not hold the result, so it is not promised to."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        os.mkdir("made")
        at_step(2, lambda: os.rmdir("made"))
        with small_files(16_384):
            code, _, err = run([*words(steps=2, output="made/out.png"), "--checkpoint", "kept"])
        assert code == 2 and err.count("(File too large), going on with the one before") == 1
        assert "the image is kept as " in err.splitlines()[-1]
        assert list(tmp_path.glob("nst-jax-*/out.png"))

    @pytest.mark.parametrize(
        "optimizer", ["adam", pytest.param("lbfgs", marks=pytest.mark.campaign)]
    )
    @pytest.mark.slow
    def test_out_of_memory_at_a_coarse_scale(self, run, wrapped, optimizer):
        """The scales before the last have their own way to take less."""
        failures = 0

        def wrapper(count, take):
            nonlocal failures
            if count in (3, 4):  # at the start of the second scale, twice
                failures += 1
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
            return take()

        layers = dict(content_layers="relu2_1", style_layers="relu1_1")
        line = words(**layers, optimizer=optimizer, size=48, steps=2, min_size=16, scale_steps=2)
        line += ["--scale-factor", "1.7", "--save-every", "1"]
        line += ["--checkpoint", "kept", "--checkpoint-every", "1"]
        wrapped(wrapper)
        code, _, err = run(line)
        assert code == 0 and failures == 2, err
        told = [word for word in err.splitlines() if "out of memory" in word]
        assert len(told) == failures
        assert all(
            "going on from step 2, the scales before the last as if" in word for word in told
        )
        assert [scale["steps"] for scale in record()["scales"]] == [2, 2, 2]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_leaves_a_checkpoint(self, run, at_step, number):
        run(words(steps=6))
        expected = pixels("out.png")
        at_step(3, partial(signal.raise_signal, number))
        before = signal.getsignal(signal.SIGTERM)
        line = [*words(steps=6), "--save-every", "1", "--overwrite", "--checkpoint", "kept"]
        assert run(line).code == 128 + number
        assert signal.getsignal(signal.SIGTERM) is before
        assert record()["status"] == "stopped" and record()["steps"] == 3
        at_step(-1, None)
        code, _, err = run(["resume", "kept"])
        assert code == 0 and "going on from step 3" in err
        np.testing.assert_array_equal(pixels("out.png"), expected)


class TestBatch:
    @pytest.fixture(autouse=True)
    def images(self, desk, monkeypatch):  # noqa: F811
        (desk / "in").mkdir()
        for seed, name in enumerate("abcde"):
            save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed))
        use_devices(monkeypatch, 2)

    def line(self, **options):
        given = dict(ADAM, steps=5, size=32, style="style.png", output_dir="out") | options
        flags = [word for line in [words(output=None, **given)] for word in line[2:]]
        return ["batch", "in", *flags]

    @pytest.mark.parametrize("there", [True, False])
    def test_a_refused_one_leaves_the_folders_as_they_were(self, run, there):
        if there:
            Path("out").mkdir()
        with held(Path("kept")):
            assert run([*self.line(), "--checkpoint", "kept"]).code == 2
        assert Path("out").exists() == there

    def outputs(self):
        return {path.name: path.read_bytes() for path in sorted(Path("out").glob("*.png"))}

    def kill_batch(self, run, monkeypatch, *, after):
        """A batch that is killed when it has written so many images."""
        write, left = batch_run.write, after

        def writing(*args):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            write(*args)

        with monkeypatch.context() as patched:
            patched.setattr(batch_run, "write", writing)
            with pytest.raises(Killed):
                run([*self.line(), "--checkpoint", "kept"])
        assert len(self.outputs()) == after

    @pytest.mark.parametrize("after", [3, 0])
    def test_makes_what_is_missing(self, run, monkeypatch, after):
        assert run(self.line()).code == 0
        expected = self.outputs().keys(), {name: pixels(f"out/{name}") for name in self.outputs()}
        shutil.rmtree("out")
        self.kill_batch(run, monkeypatch, after=after)
        os.mkdir("elsewhere")
        os.rename("kept", "elsewhere/moved")
        with monkeypatch.context() as patched:
            patched.chdir("elsewhere")
            code, _, err = run(["resume", "moved"])
        assert code == 0 and f"nst-jax: {5 - after} made" in err, err
        assert self.outputs().keys() == expected[0]
        for name, image in expected[1].items():
            np.testing.assert_array_equal(pixels(f"out/{name}"), image)
        code, _, err = run(["resume", "elsewhere/moved"])
        assert code == 0 and "nst-jax: 5 there before" in err

    def test_of_other_threads_or_weights(self, run, monkeypatch):
        self.kill_batch(run, monkeypatch, after=1)
        changed(lambda r: r["device"].update(threads=7))
        code, _, err = run(["resume", "kept"])
        assert code == 0 and "nst-jax: the run used 7 threads before and uses " in err
        changed(lambda r: r["weights"].update(sha256="ab" * 32))
        code, _, err = run(["resume", "kept"])
        assert code == 2 and "the run began with the weights tiny" in err

    def test_refused(self, run, desk):  # noqa: F811
        for extra, match in (
            (["--checkpoint", "kept", "--distributed"], "--checkpoint is for one process"),
            (["--checkpoint", "in/a.png"], "is no folder"),
        ):
            check_refused(desk, match, lambda extra=extra: run([*self.line(), *extra]))


def test_a_run_at_work_is_not_disturbed(run, kill):
    restore = kill(1)
    with pytest.raises(Killed):
        run([*words(steps=4, **ADAM), "--checkpoint", "kept", "--checkpoint-every", "1"])
    restore()
    with held(Path("kept")):
        (Path("kept") / ".checkpoint-12345678").mkdir()  # what it is writing
        Path(".out-12345678.png").touch()
        code, _, err = run(["resume", "kept"])
        assert code == 2 and "another run has the checkpoints in kept: wait until it ends\n" in err
        assert Path("kept/.checkpoint-12345678").exists() and Path(".out-12345678.png").exists()
    assert run(["resume", "kept"]).code == 0
    assert not Path("kept/.checkpoint-12345678").exists()
    assert not Path(".out-12345678.png").exists()
