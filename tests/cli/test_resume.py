"""``nst-jax resume``: a run that was ended anywhere continues as if it had not been."""

import json
import os
import re
import shutil
import signal
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import (  # noqa: F401
    SHALLOW,
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
from helpers.images import smooth_image
from helpers.resuming import changed, run  # noqa: F401

import nst_jax
from nst_jax.checkpoint import load_position, save_position, store
from nst_jax.checkpoint.store import locked
from nst_jax.cli import batch_run, main
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.images import write as image_output
from nst_jax.optim import run as solver_run
from nst_jax.transfer import Callback, single

pytestmark = pytest.mark.sampled

ADAM = dict(optimizer="adam", learning_rate=2, **SHALLOW)


class Killed(BaseException):
    """Stands for SIGKILL: the program does not catch it."""


@contextmanager
def killed_after(count):
    """End the program when it has saved a number of checkpoints after the one of the start."""
    left, save = count, store.save

    def killing(*args, **options):
        nonlocal left
        save(*args, **options)
        left -= 1
        if left < 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store, "save", killing)
        yield


KEEP = ["--checkpoint", "kept", "--checkpoint-every", "1", "--overwrite"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, content, style, tiny_weights_file):
    """Checkpoints of a run of five steps that was killed after three, and the whole run's image."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        save_image("content.png", content)
        save_image("style.png", style)
        line = words(**ADAM, steps=5, preset="neural-style", weights=tiny_weights_file)
        assert main(line) == 0
        with killed_after(3):
            main([*line, *KEEP])
    return folder / "kept", pixels(folder / "out.png")


@pytest.fixture
def kept(killed, desk):
    """The killed run's checkpoints as ``kept`` in this test's folder; returns the whole image."""
    folder, expected = killed
    shutil.copytree(folder, desk / "kept")
    for saved in store.checkpoints(desk / "kept"):
        changed(lambda entry: entry.update(directory=str(desk)), saved)
    return expected


def comparable(name="out.json"):
    """A record without what differs from run to run."""
    left_out = ("timing", "memory")
    return {key: value for key, value in record(name).items() if key not in left_out}


def compare(run, line, *, outputs=("out.png",), afters=(0, 2)):
    """Compare a run that is killed after some checkpoints and resumed with one that is not."""
    whole = run(line)
    assert whole.code == 0, whole.err
    expected = {name: Path(name).read_bytes() for name in outputs}, comparable()
    steps = expected[1]["steps"]
    for after in (*afters, steps):
        for name in (*outputs, "out.json"):
            os.unlink(name)
        with killed_after(after):
            run([*line, *KEEP])
        assert not Path("out.png").exists()
        code, out, err = run(["resume", "kept"])
        assert code == 0 and f" from step {after}, " in err, err
        taken = [line for line in err.splitlines() if line.startswith("step ")]
        assert not taken if after == steps else taken[0].startswith(f"step {after + 1}/")
        assert Path(out.strip()).samefile("out.png")
        assert {name: Path(name).read_bytes() for name in outputs} == expected[0]
        assert comparable() == expected[1]


# The library's resumed runs are tested with more settings, see tests/transfer/test_position.py.
RUNS = {
    "adam": dict(ADAM, steps=5),
    "lbfgs": dict(SHALLOW, steps=5, color="luminance"),
    "scales": dict(ADAM, steps=3, min_size=16, scale_steps=3, averaging=0.9),
    "tiles": dict(SHALLOW, steps=5, tile=16, init="noise", seed=3),
}


@pytest.mark.parametrize(
    "name", [pytest.param("adam", marks=pytest.mark.optimized), *list(RUNS)[1:]]
)
def test_a_resumed_run_writes_the_same_image(run, name):
    compare(run, words(**RUNS[name]))


@pytest.mark.slow
def test_a_resumed_run_with_all_inputs_and_outputs(run):
    """Previews, an animation, masks, transparency and an initial image."""
    mask = np.zeros((36, 48, 3), np.float32)
    mask[:, :24] = 1
    save_image("mask.png", mask)
    save_image("init.png", smooth_image(36, 48, seed=4))
    save_image("clear.png", smooth_image(36, 48, seed=1), alpha=mask[..., 0])
    given = dict(ADAM, steps=6, content="clear.png", init="init.png")
    given |= dict(content_mask="mask.png", region_styles="1", save_every=2, animation="film.gif")
    outputs = ("out.png", "out_00004.png", "out_00006.png", "film.gif")
    compare(run, words(**given), outputs=outputs, afters=(3,))


def test_needs_only_the_folder(run, desk, kept):
    """Neither the images nor the folder where the run was started."""
    for name in ("content.png", "style.png"):
        os.unlink(name)
    (desk / "elsewhere").mkdir()
    os.rename("kept", "elsewhere/moved")
    os.chdir("elsewhere")
    assert run(["resume", "moved"]).code == 0
    np.testing.assert_array_equal(pixels(desk / "out.png"), kept)


@pytest.mark.parametrize("command", ["texture", "reconstruct"])
@pytest.mark.slow
def test_other_commands(run, command):
    line = f"{command} style.png -o out.png --size 32 --steps 4 --optimizer adam".split()
    layers = {"reconstruct": "--layer", "texture": "--style-layers"}
    compare(run, [*line, layers[command], "relu2_1"], afters=(2,))


def test_killed_again(run, kept):
    with killed_after(0):
        run(["resume", "kept"])
    assert run(["resume", "kept"]).code == 0
    np.testing.assert_array_equal(pixels("out.png"), kept)


def test_before_the_first_checkpoint(run, monkeypatch):
    def fail(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store, "save", fail)
        with pytest.raises(Killed):
            run([*words(steps=3, **ADAM), "--checkpoint", "kept"])
    for folder in ("kept", "nowhere"):
        code, out, err = run(["resume", folder])
        assert (code, out) == (2, "") and len(err.splitlines()) == 1
        assert err.startswith(f"nst-jax: error: nothing was saved in {folder}")


def test_a_damaged_checkpoint_is_skipped(run, kept):
    path = Path("kept/checkpoint-00000003/arrays.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, _, err = run(["resume", "kept"])
    assert code == 0
    assert err.startswith("nst-jax: checkpoint-00000003 is damaged (the checksum of arrays")
    assert "continuing from the one before" in err and "from step 2" in err
    np.testing.assert_array_equal(pixels("out.png"), kept)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda r: r["versions"].update(jax="0.1"), r"was saved with jax 0\.1 \(here "),
        (lambda r: r["versions"].update(nst_jax="9"), r"was saved with nst_jax 9 \(here "),
        (lambda r: r["weights"].update(sha256="ab" * 32), "the run began with the weights tiny"),
        (lambda r: r.pop("arguments"), "was not written by this program"),
        (
            lambda r: r["arguments"].append("--what"),
            "another run: unexpected arguments: --what",
        ),
        (lambda r: r.update(arguments="stylize"), "its command line is not a list"),
        (lambda r: r.update(arguments=["presets"]), "input files (are others|differ)"),
        (lambda r: r["arguments"].extend(["--steps", "-1"]), "is from another run: steps is -1"),
        (lambda r: r["arguments"].extend(["--optimizer", "lbfgs"]), "does not belong to"),
        (lambda r: r["arguments"].extend(["--init", "a.png"]), "input files (are others|differ)"),
        (lambda r: r.update(kind="batch"), "was not written by this program"),
        (lambda r: r["position"].update(scale=3), "at scale 3 of a run of 1"),
        (lambda r: r.update(settings=[]), "its settings are"),
        (lambda r: r.update(kind="position"), "kept holds a run started in Python"),
        (lambda r: r.pop("device"), "was not written by this program"),
    ],
)
def test_other_runs_are_refused(run, kept, change, match):
    changed(change)
    code, out, err = run(["resume", "kept"])
    lines = [line for line in err.splitlines() if line.startswith("nst-jax: error: ")]
    assert (code, out) == (2, "") and len(lines) == 1
    assert re.search(match, lines[0]), err


@pytest.mark.parametrize("format", [1, 99])
def test_checkpoints_of_another_version(run, kept, format):
    changed(lambda r: r["versions"].update(nst_jax="0.0.1"))
    for folder in store.checkpoints(Path("kept")):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": format}))
    match = f"was written by nst_jax 0.0.1 in format {format}: expected format"
    code, out, err = run(["resume", "kept"])
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and match in err


def test_a_changed_copy_of_an_input_is_refused(run, kept):
    (copy,) = Path("kept/checkpoint-inputs").glob("00*")
    copy.write_bytes(copy.read_bytes()[:-1])
    code, _, err = run(["resume", "kept"])
    assert code == 2 and "the checksum of checkpoint-inputs/00" in err


def test_other_devices_are_logged(run, kept):
    changed(lambda r: r["device"].update(kind="abacus", count=3))
    code, _, err = run(["resume", "kept"])
    assert code == 0 and "nst-jax: the run started on 3 x abacus, got " in err
    changed(lambda r: r["device"].update(kind="abacus", count=3))
    changed(lambda r: r["arguments"].extend(["--spread", "tiles"]))
    code, _, err = run(["resume", "kept"])
    assert code == 2 and err.endswith(": resume on the same number\n")


@pytest.mark.parametrize("spread", ["rows", "tiles"])
@pytest.mark.slow
def test_on_several_devices(run, spread):
    save_image("content.png", smooth_image(32, 48, seed=1))
    options = dict(size=48, steps=4, spread=spread, convolution="direct", style_layers="relu1_1")
    compare(run, words(content_layers="relu2_1", **options), afters=(2,))


def test_positions_in_python(variables, tmp_path, content, style):
    layers = dict(style_layers=["relu1_1", "relu2_1"], content_layers=["relu2_1"])
    config = Config.of(steps=6, optimizer="adam", learning_rate=2, **layers)
    start = partial(nst_jax.stylize, variables, content, [style], config=config)

    def keep(progress):
        save_position("kept", progress.position())
        return progress.step < 4

    start(callback=Callback(keep, every=2))
    position = load_position("kept")
    assert position.step == 4 and len(store.checkpoints(Path("kept"))) == 2
    np.testing.assert_array_equal(start(init=position).image, start().image)
    changed(lambda record: record["device"].update(threads=7))
    with pytest.warns(UserWarning, match="used 7 threads before and uses "):
        load_position("kept")
    with pytest.raises(InputError, match="nothing was saved"):
        load_position(tmp_path)


def test_weights_elsewhere(run, kept, slim_file, tiny_weights_file):
    changed(lambda r: r["weights"].update(path="/nowhere/tiny.safetensors"))
    code, _, err = run(["resume", "kept", "--weights", slim_file])
    assert code == 2 and "resume with the former, or " in err
    assert run(["resume", "kept", "--weights", tiny_weights_file]).code == 0


def test_a_new_run_does_not_replace_checkpoints(run, kept, desk):
    line = [*words(**ADAM), "--checkpoint", "kept"]
    check_refused(desk, "kept (holds|contains) the checkpoints of a run: ", lambda: run(line))


def test_a_run_that_is_going_on_is_not_disturbed(run, kept):
    with locked(Path("kept")):
        (Path("kept") / ".checkpoint-12345678").mkdir()  # what it is writing
        Path(".out-12345678.png").touch()
        code, _, err = run(["resume", "kept"])
        assert code == 2 and "another run has the checkpoints in kept: wait until it ends\n" in err
        assert Path("kept/.checkpoint-12345678").exists() and Path(".out-12345678.png").exists()
    assert run(["resume", "kept"]).code == 0
    assert not Path("kept/.checkpoint-12345678").exists()
    assert not Path(".out-12345678.png").exists()


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")


class TestFaults:
    @pytest.fixture
    def wrapped(self, monkeypatch):
        """Give a function that wraps the calls that take steps, counted from 1."""

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

    @pytest.mark.parametrize("when, keep", [(3, True), (1, False)])
    @pytest.mark.slow
    def test_out_of_memory_continues_with_a_cheaper_plan(self, run, wrapped, when, keep):
        def wrapper(count, take):
            if count == when:
                raise OUT_OF_MEMORY
            return take()

        save_image("content.png", smooth_image(300, 400, seed=1))
        line = words(size=400, steps=4, **ADAM)
        line += ["--save-every", "1"]
        wrapped(wrapper)
        result = run(
            [*line, *(["--checkpoint", "kept", "--checkpoint-every", "1"] if keep else [])]
        )
        assert result.code == 0, result.err
        step = f"step {when - 1}" if keep and when > 1 else "the beginning"
        assert re.search(f"nst-jax: out of memory, .* from {step}[,:]", result.err)
        assert record()["scales"][0]["computed"] != "the whole image"
        assert record()["steps"] == 4

    @pytest.mark.slow
    def test_out_of_memory_with_every_plan(self, run, wrapped, desk):
        def wrapper(count, take):
            raise OUT_OF_MEMORY

        wrapped(wrapper)
        code, out, err = run(words(steps=2, **ADAM))
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
        assert re.search("not finite at step 2: .* from the best image with a fresh optimi", err)
        assert record()["status"] == "done" and record()["recoveries"] == 1

    def test_a_full_disk_at_a_checkpoint(self, run, at_step):
        """The result fits on it, checkpoints do not."""
        line = [*words(steps=5, **ADAM), "--checkpoint", "kept", "--checkpoint-every", "1"]
        with ExitStack() as stack:
            at_step(2, lambda: stack.enter_context(small_files(16_384)))
            code, _, err = run(line)
        assert code == 0 and Path("out.png").exists()
        assert "cannot write a checkpoint to kept (File too large), " in err
        expected = pixels("out.png")
        code, _, err = run(["resume", "kept"])
        assert code == 0 and " from step 1" in err
        np.testing.assert_array_equal(pixels("out.png"), expected)

    @pytest.mark.parametrize("keep", [True, False])
    def test_a_folder_that_is_gone_at_the_end(self, run, at_step, monkeypatch, tmp_path, keep):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr("tempfile.tempdir", None)
        (tmp_path / "tmp").mkdir()
        (tmp_path / "made").mkdir()
        line = words(steps=3, output="made/out.png", **ADAM)
        at_step(3, lambda: os.rmdir("made"))
        code, out, err = run([*line, *(["--checkpoint", "kept"] if keep else [])])
        os.mkdir("made")
        last = err.splitlines()[-1]
        assert (code, out) == (2, "")
        said = "cannot write made/out.png (No such file or directory): "
        assert last.startswith(f"nst-jax: error: {said}")
        if keep:
            assert "then " in last and "'nst-jax resume kept'" in last
            assert run(["resume", "kept"]).code == 0 and Path("made/out.png").exists()
        else:
            (kept,) = (tmp_path / "tmp").glob("nst-jax-*/out.png")
            assert last.endswith(f"the image is kept as {kept}, move it to where you want it")
            at_step(-1, None)
            run(line)
            np.testing.assert_array_equal(pixels(kept), pixels("made/out.png"))

    @pytest.mark.parametrize("name", ["out.json", "film.gif"])
    def test_other_outputs_that_cannot_be_written(self, run, at_step, name):
        at_step(2, lambda: os.mkdir(name))
        code, out, err = run([*words(steps=2, **ADAM), "--animation", "film.gif"])
        assert (code, out) == (2, "") and Path("out.png").exists()
        assert err.endswith(f"{name} (Is a directory): the image is written as out.png\n")
        assert Path("out.json").is_file() == (name == "film.gif")

    def test_an_encoder_that_fails(self, run, monkeypatch, tmp_path):
        """The message does not promise that ``resume`` could write the image."""

        def fail(*arguments, format, **options):
            if format == "WEBP":
                raise ValueError("encoding error 5:\nof 16384 pixels")
            return encode(*arguments, format=format, **options)

        encode = image_output.encode
        monkeypatch.setattr(image_output, "encode", fail)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        line = words(steps=2, save_every=1, output="out.webp", **ADAM)
        code, out, err = run([*line, "--checkpoint", "kept"])
        last = err.splitlines()[-1]
        assert (code, out) == (2, "")
        assert "cannot write out_00001.webp (encoding error 5: of 16384 pixels), " in err
        assert "cannot write out_00002.webp" in err
        (kept,) = tmp_path.glob("nst-jax-*/out.png")
        assert last == (
            "nst-jax: error: cannot write out.webp (encoding error 5: of 16384 pixels): the "
            f"image is kept as {kept}, move it to where you want it"
        )

    def test_neither_checkpoints_nor_the_result_can_be_written(
        self, run, at_step, monkeypatch, tmp_path
    ):
        """The checkpoint of the start does not hold the result."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        os.mkdir("made")
        at_step(2, lambda: os.rmdir("made"))
        with small_files(16_384):
            line = words(steps=2, output="made/out.png", **ADAM)
            code, _, err = run([*line, "--checkpoint", "kept"])
        assert code == 2 and err.count("(File too large), ") == 1
        assert "the image is kept as " in err.splitlines()[-1]
        assert list(tmp_path.glob("nst-jax-*/out.png"))

    @pytest.mark.slow
    def test_out_of_memory_at_a_coarse_scale(self, run, wrapped):
        """Every scale has its own fallbacks."""
        failures = 0

        def wrapper(count, take):
            nonlocal failures
            if count in (3, 4):  # at the start of the second scale, twice
                failures += 1
                raise OUT_OF_MEMORY
            return take()

        line = words(**ADAM, size=48, steps=2, min_size=16, scale_steps=2)
        line += ["--scale-factor", "1.7", "--save-every", "1"]
        line += ["--checkpoint", "kept", "--checkpoint-every", "1"]
        wrapped(wrapper)
        code, _, err = run(line)
        assert code == 0 and failures == 2, err
        logged = [line for line in err.splitlines() if "out of memory" in line]
        assert len(logged) == failures
        assert all(re.search(" from step 2[,:].* scales ", line) for line in logged)
        assert [scale["steps"] for scale in record()["scales"]] == [2, 2, 2]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_leaves_a_checkpoint(self, run, at_step, number):
        run(words(steps=6, **ADAM))
        expected = pixels("out.png")
        at_step(3, partial(signal.raise_signal, number))
        before = signal.getsignal(signal.SIGTERM)
        options = dict(steps=6, save_every=1, overwrite=True, checkpoint="kept", **ADAM)
        line = words(**options)
        assert run(line).code == 128 + number
        assert signal.getsignal(signal.SIGTERM) is before
        assert record()["status"] == "stopped" and record()["steps"] == 3
        at_step(-1, None)
        code, _, err = run(["resume", "kept"])
        assert code == 0 and " from step 3" in err
        np.testing.assert_array_equal(pixels("out.png"), expected)


class TestBatch:
    @pytest.fixture(autouse=True)
    def images(self, desk, monkeypatch):
        (desk / "in").mkdir()
        for seed, name in enumerate("abcde"):
            save_image(f"in/{name}.png", smooth_image(24, 32, seed=seed))
        use_devices(monkeypatch, 2)

    def line(self, **options):
        given = dict(ADAM, steps=5, size=32, style="style.png", output_dir="out") | options
        flags = [word for line in [words(output=None, **given)] for word in line[2:]]
        return ["batch", "in", *flags]

    def test_a_folder_in_use_is_refused_before_anything_is_made(self, run):
        with locked(Path("kept")):
            assert run([*self.line(), "--checkpoint", "kept"]).code == 2
        assert not Path("out").exists()

    def outputs(self):
        return {path.name: path.read_bytes() for path in sorted(Path("out").glob("*.png"))}

    def kill_batch(self, run, monkeypatch, *, after):
        """A batch that is killed when it has written a number of images."""
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

    def test_makes_the_missing_images(self, run, monkeypatch):
        assert run(self.line()).code == 0
        expected = self.outputs().keys(), {name: pixels(f"out/{name}") for name in self.outputs()}
        shutil.rmtree("out")
        self.kill_batch(run, monkeypatch, after=3)
        os.mkdir("elsewhere")
        os.rename("kept", "elsewhere/moved")
        with monkeypatch.context() as patched:
            patched.chdir("elsewhere")
            code, _, err = run(["resume", "moved"])
        assert code == 0 and re.search("nst-jax: 2 (made|written)", err), err
        assert self.outputs().keys() == expected[0]
        for name, image in expected[1].items():
            np.testing.assert_array_equal(pixels(f"out/{name}"), image)
        code, _, err = run(["resume", "elsewhere/moved"])
        assert code == 0 and re.search("nst-jax: 5 (there before|already there)", err)

    def test_other_threads_or_weights(self, run, monkeypatch):
        self.kill_batch(run, monkeypatch, after=1)
        changed(lambda r: r["device"].update(threads=7))
        code, _, err = run(["resume", "kept"])
        assert code == 0 and "nst-jax: the run used 7 threads before and uses " in err
        changed(lambda r: r["weights"].update(sha256="ab" * 32))
        code, _, err = run(["resume", "kept"])
        assert code == 2 and "the run began with the weights tiny" in err

    def test_refused(self, run, desk):
        for extra, match in (
            (
                ["--checkpoint", "kept", "--distributed"],
                "--checkpoint (is for one|has no)",
            ),
            (["--checkpoint", "in/a.png"], "is (no|not a) folder"),
        ):
            check_refused(desk, match, lambda extra=extra: run([*self.line(), *extra]))
