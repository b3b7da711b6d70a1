"""Standard input and output as images, unusual file names, and output options of commands."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from nst_jax.cli import main
from nst_jax.errors import InputError
from nst_jax.images import load_image, read_texts, save_image
from nst_jax.images.read import load_rgba
from nst_jax.system.streams import check_standard_output, standard_input, write_standard_output

SHALLOW = ["--style-layers", "relu1_1", "--content-layers", "relu1_1"]


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch, content, style):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    save_image("content.png", content)
    save_image("style.png", style)
    standard_input.cache_clear()
    yield tmp_path
    standard_input.cache_clear()


@pytest.fixture
def set_input(monkeypatch):
    """Put bytes on standard input."""

    def set_input(data):
        standard_input.cache_clear()
        stream = SimpleNamespace(buffer=io.BytesIO(data), closed=False, isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stream)

    return set_input


@pytest.fixture
def run(capsysbinary, tiny_weights_file):
    def run(*words):
        code = main([*words, "--weights", str(tiny_weights_file)])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return run


def stylize(content="content.png", style="style.png", output="out.png", **options):
    line = ["stylize", content, "--style", style, "-o", output, "--size", "32", "--steps", "2"]
    for name, value in options.items():
        line += ["--" + name.replace("_", "-"), str(value)]
    return [*line, *SHALLOW]


def check_refused(result, *texts):
    code, out, err = result
    assert (code, out) == (2, b"") and len(err.splitlines()) == 1, err
    assert all(text in err for text in texts), err


class TestStandardInput:
    def test_gives_the_same_result_as_the_file(self, run, set_input, desk):
        assert run(*stylize(init="content.png"))[0] == 0
        files = {"content": "content.png", "style": "style.png", "init": "content.png"}
        for role, name in files.items():
            set_input((desk / name).read_bytes())
            assert run(*stylize(**files | {role: "-"}, output=f"{role}.out.png"))[0] == 0
            again = load_image(f"{role}.out.png")
            np.testing.assert_array_equal(again, load_image("out.png"))

    def test_commands_that_do_not_accept_it(self, run, set_input, desk):
        set_input((desk / "content.png").read_bytes())
        check_refused(run(*stylize("-", "-")), "- is given for several inputs")
        batch = ["batch", "content.png", "--style", "-", "-o", "results", "--size", "32"]
        check_refused(run(*batch), "- is a single image")
        set_input(b"a text")
        check_refused(run(*stylize("-")), "standard input is not an image in a known format")

    def test_closed_or_terminal(self, monkeypatch):
        for stream, message in (
            (None, "standard input is closed: expected an image"),
            (SimpleNamespace(closed=True), "standard input is closed"),
            (SimpleNamespace(closed=False, isatty=lambda: True), "standard input is a terminal"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "stdin", stream)
                with pytest.raises(InputError, match=message):
                    standard_input()

    def test_empty_or_too_long(self, set_input):
        set_input(b"")
        with pytest.raises(InputError, match="standard input is empty: expected an image file"):
            standard_input()
        set_input(bytes(2000))
        with pytest.raises(InputError, match="standard input is over 9.31e-07 GiB: name a file"):
            standard_input(most=1000)


class TestStandardOutput:
    def test_gets_only_the_image(self, run, set_input, desk):
        code, out, _ = run(*stylize())
        assert (code, out) == (0, b"out.png\n")
        before = {path.name for path in desk.iterdir()}
        set_input((desk / "content.png").read_bytes())
        code, out, _ = run(*stylize("-", output="-"))
        assert code == 0 and out.startswith(b"\x89PNG")
        with Image.open(io.BytesIO(out)) as image:
            np.testing.assert_array_equal(
                np.asarray(image) / np.float32(255), load_image("out.png")
            )
            record = json.loads(image.text["nst_jax"])
        assert record["settings"]["content"] == "-" and record["steps"] == 2
        assert {path.name for path in desk.iterdir()} == before

    def test_of_other_commands(self, run, set_input, desk):
        for line in ("texture - --style-layers relu1_1", "reconstruct - --layer relu1_1"):
            set_input((desk / "style.png").read_bytes())
            code, out, _ = run(*line.split(), "-o", "-", "--size", "32", "--steps", "2")
            assert code == 0 and out.startswith(b"\x89PNG")

    def test_commands_that_cannot_write_to_it(self, run):
        check_refused(run(*stylize(output="-", save_every=1)), "save_every", "name a file")
        line = ["sweep", "content.png", "--style", "style.png", "-o", "-", "--over", "steps=1,2"]
        check_refused(run(*line, *SHALLOW), "a sweep writes a sheet and a JSON file")

    def test_closed_or_terminal(self, monkeypatch):
        for stream, message in (
            (None, "standard output is closed: expected a file or pipe for the PNG"),
            (SimpleNamespace(closed=False, isatty=lambda: True), "standard output is a terminal"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "stdout", stream)
                with pytest.raises(InputError, match=message):
                    check_standard_output()

    def test_broken_pipe_is_one_error(self, monkeypatch):
        with broken_pipe() as stream:  # closing it flushes it, which must not raise again
            monkeypatch.setattr(sys, "stdout", stream)
            with pytest.raises(OSError, match="Broken pipe: 'standard output'"):
                write_standard_output(bytes(10**6))


def broken_pipe():
    """A stream whose reader has closed its end."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


NO_SPACE = "cannot write to standard output (No space left on device)"


class TestPrintedWords:
    """If standard output cannot be written, only the printed words are lost."""

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize("words, code", [("version", 2), ("--help", 0)])
    def test_of_commands_that_only_print(self, words, code, unbuffered):
        line = [sys.executable, "-m", "nst_jax", words]
        options = dict(stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
        with open("/dev/full", "w") as stream:
            done = subprocess.run(line, stdout=stream, text=True, **options)
        assert (done.returncode, done.stderr) == (code, f"nst-jax: {NO_SPACE}\n")
        with broken_pipe() as stream:
            done = subprocess.run(line, stdout=stream, text=True, **options)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        "reader, code, rate", [("gone", 0, 1), ("full", 0, 1), ("full", 1, 1e30)]
    )
    def test_exit_code_of_a_run_stays(
        self, monkeypatch, capsys, tiny_weights_file, reader, code, rate
    ):
        """Also the exit code 1 of a run that diverges."""
        stream = open("/dev/full", "w") if reader == "full" else broken_pipe()
        line = stylize(optimizer="adam", learning_rate=rate)
        with stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert main([*line, "--weights", str(tiny_weights_file)]) == code
        assert capsys.readouterr().err.count(NO_SPACE) == (reader == "full")

    def test_names_that_cannot_be_encoded_are_escaped(self, desk, monkeypatch, tiny_weights_file):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        name = os.fsdecode(b"\xc3\xa9\xff.png")
        assert main([*stylize(output=name), "--weights", str(tiny_weights_file)]) == 0
        assert stream.buffer.getvalue() == b"\xc3\xa9\\udcff.png\n" and Path(name).exists()


class TestNames:
    @pytest.mark.parametrize("name", ["./-x.png", "né 图 🎨;b&c%d.png"])
    def test_unusual_file_names(self, run, desk, name):
        (desk / "content.png").rename(desk / name)
        code, out, _ = run(*stylize(name, output="out " + name.removeprefix("./")))
        assert code == 0 and load_rgba(desk / out.decode().rstrip("\n")).rgb.shape == (24, 32, 3)

    def test_warnings_about_images_are_printed(self, run, desk):
        frames = [Image.new("L", (24, 24), 90 * index) for index in range(3)]
        frames[0].save("film.gif", save_all=True, append_images=frames[1:])
        (desk / "style.png").write_bytes(b"no image")
        code, _, err = run(*stylize("film.gif"))
        warning, error = err.splitlines()
        assert code == 2 and error.startswith("nst-jax: error: style.png is not an image")
        assert warning == "nst-jax: film.gif holds several images: only the first is read"


class TestOptions:
    def test_bit_depth(self, run):
        assert run(*stylize(output="a.png", bit_depth=16, animation="film.gif"))[0] == 0
        deep = imagecodecs.png_decode(Path("a.png").read_bytes())
        assert deep.dtype == np.uint16 and len(np.unique(deep % 257)) > 100
        record = json.loads(read_texts("a.png")["nst_jax"])
        assert record["settings"]["bit_depth"] == 16 and record["steps"] == 2

    def test_quality_applies_to_previews(self, run):
        assert run(*stylize(output="a.jpg", quality=10, save_every=1))[0] == 0
        assert json.loads(read_texts("a.jpg")["nst_jax"])["settings"]["quality"] == 10
        save_image("expected.jpg", load_image("a.jpg"), quality=10)
        tables = []
        for name in ("a.jpg", "a_00001.jpg", "expected.jpg"):
            with Image.open(name) as image:
                tables.append(image.quantization)
        assert tables[0] == tables[1] == tables[2]

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(output="a.jpg", bit_depth=16), "JPEG does not support bit_depth 16"),
            (dict(output="a.webp", size=16_384), "px: expected at most 16383 px a side for .webp"),
            (dict(animation="a.gif", size=65_536), "px: expected at most 65535 px a side for .gif"),
        ],
    )
    def test_limits_of_a_format_are_checked_before_the_run(self, run, desk, options, message):
        save_image("line.png", np.zeros((1, 4096, 3)))
        before = sorted(desk.iterdir())
        check_refused(run(*stylize("line.png", "line.png", **options)), message)
        assert sorted(desk.iterdir()) == before

    def test_bit_depth_of_batch(self, run, desk):
        line = ["batch", "content.png", "--style", "style.png", "-o", "results", "--size", "32"]
        line += ["--steps", "2", *SHALLOW, "--bit-depth"]
        assert run(*line, "16")[0] == 0
        (path,) = desk.glob("results/*.png")
        assert imagecodecs.png_decode(path.read_bytes()).dtype == np.uint16
        check_refused(run(*line, "8"), "was computed from other images or settings")
