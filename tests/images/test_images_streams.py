"""Standard input and output as images, odd file names, and flags of the outputs."""

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
import tifffile
from PIL import Image

from nst_jax.cli import main
from nst_jax.errors import InputError
from nst_jax.images import load_image, read_texts, save_image
from nst_jax.images.read import load_rgba
from nst_jax.system.streams import check_standard_output, standard_input

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
def given(monkeypatch):
    """Put bytes on standard input."""

    def given(data):
        stream = SimpleNamespace(buffer=io.BytesIO(data), closed=False, isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stream)

    return given


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


def refused(result, *texts):
    code, out, err = result
    assert (code, out) == (2, b"") and len(err.splitlines()) == 1, err
    assert all(text in err for text in texts), err


class TestStandardInput:
    def test_gives_what_the_file_gives(self, run, given, desk):
        assert run(*stylize(init="content.png"))[0] == 0
        files = {"content": "content.png", "style": "style.png", "init": "content.png"}
        for place, name in files.items():
            standard_input.cache_clear()
            given((desk / name).read_bytes())
            assert run(*stylize(**files | {place: "-"}, output=f"{place}.out.png"))[0] == 0
            again = load_image(f"{place}.out.png")
            np.testing.assert_array_equal(again, load_image("out.png"))

    def test_is_one(self, run, given, desk):
        given((desk / "content.png").read_bytes())
        refused(run(*stylize("-", "-")), "- stands for several inputs")

    def test_is_empty(self, run, given):
        given(b"")
        refused(run(*stylize("-")), "standard input is empty")

    def test_is_no_image(self, run, given):
        given(b"a text")
        refused(run(*stylize("-")), "standard input is no image in a known format")

    def test_is_cut(self, run, given, desk):
        given((desk / "content.png").read_bytes()[:500])
        refused(run(*stylize("-")), "cannot read the image standard input (")

    @pytest.mark.parametrize("stream", [None, SimpleNamespace(closed=True)])
    def test_is_closed(self, run, monkeypatch, stream):
        monkeypatch.setattr(sys, "stdin", stream)
        refused(run(*stylize("-")), "standard input is closed")

    def test_is_a_terminal(self, run, monkeypatch):
        stream = SimpleNamespace(closed=False, isatty=lambda: True)
        monkeypatch.setattr(sys, "stdin", stream)
        refused(run(*stylize("-")), "standard input is a terminal")

    def test_is_endless(self, given):
        given(bytes(2000))
        with pytest.raises(InputError, match="standard input holds over 9.31e-07 GiB: name a file"):
            standard_input(most=1000)

    def test_has_as_many_pixels_as_it_may(self, run, given, desk):
        given((desk / "content.png").read_bytes())
        result = run(*stylize("-", max_megapixels=0.001))
        refused(result, "standard input has 0.001728 megapixels")

    def test_of_estimate(self, run, given, desk):
        given((desk / "content.png").read_bytes())
        code, out, _ = run("estimate", "-", "--size", "32", *SHALLOW)
        assert code == 0 and out.startswith(b"32x24 px with ")

    def test_of_batch_is_refused(self, run, desk):
        options = ["--style", "style.png", "-o", "results", "--size", "32"]
        refused(run("batch", "-", *options), "- stands for one image")
        options[1] = "-"
        refused(run("batch", "content.png", *options), "- stands for one image")


class TestStandardOutput:
    def test_is_the_image_and_nothing_else(self, run, given, desk):
        code, out, _ = run(*stylize())
        assert (code, out) == (0, b"out.png\n")
        before = {path.name for path in desk.iterdir()}
        given((desk / "content.png").read_bytes())
        code, out, _ = run(*stylize("-", output="-"))
        assert code == 0 and out.startswith(b"\x89PNG")
        with Image.open(io.BytesIO(out)) as image:
            np.testing.assert_array_equal(
                np.asarray(image) / np.float32(255), load_image("out.png")
            )
            record = json.loads(image.text["nst_jax"])
        assert record["settings"]["content"] == "-" and record["steps"] == 2
        assert {path.name for path in desk.iterdir()} == before

    def test_of_16_bits_with_an_animation(self, run, desk):
        code, out, _ = run(*stylize(output="-", bit_depth=16, animation="film.gif"))
        assert code == 0 and imagecodecs.png_decode(out).dtype == np.uint16
        assert (desk / "film.gif").exists()

    @pytest.mark.parametrize("command", ["texture", "reconstruct"])
    def test_of_other_commands(self, run, given, desk, command):
        given((desk / "style.png").read_bytes())
        more = ["--style-layers", "relu1_1"] if command == "texture" else ["--layer", "relu1_1"]
        code, out, _ = run(command, "-", "-o", "-", "--size", "32", "--steps", "2", *more)
        assert code == 0 and out.startswith(b"\x89PNG")

    def test_has_no_previews(self, run):
        refused(run(*stylize(output="-", save_every=1)), "save_every", "name a file")

    def test_of_a_sweep_is_refused(self, run):
        line = ["sweep", *stylize(output="-")[1:], "--over", "steps=1,2"]
        line.remove("--steps")
        line.remove("2")
        refused(run(*line), "a sweep writes a sheet and a JSON file")

    def test_is_a_terminal(self, run, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        refused(run(*stylize(output="-")), "standard output is a terminal")

    def test_that_is_closed_early_is_told(self):
        """In one line, also at the interpreter's exit."""
        code = (
            "import sys\n"
            "from nst_jax.system.streams import write_standard_output\n"
            "sys.stdin.read()\n"
            "try:\n"
            "    write_standard_output(bytes(10**6))\n"
            "except OSError as error:\n"
            "    print(error, file=sys.stderr)\n"
            "    sys.exit(2)\n"
        )
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
            process.stdout.close()
            process.stdin.close()
            assert process.stderr.read() == b"[Errno 32] Broken pipe: 'standard output'\n"
        assert process.returncode == 2

    def test_that_is_none_is_told(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        with pytest.raises(InputError, match="standard output is closed"):
            check_standard_output()


class TestLastLine:
    """Of standard output that cannot be written nothing is lost but what was to be printed."""

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize("reader", ["gone", "full"])
    @pytest.mark.parametrize("words", ["version", "weights list", "--help"])
    def test_of_what_is_printed(self, words, reader, unbuffered):
        line = [sys.executable, "-m", "nst_jax", *words.split()]
        options = dict(env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, text=True)
        with open("/dev/full", "w") if reader == "full" else broken_pipe() as stream:
            done = subprocess.run(line, stdout=stream, stderr=subprocess.PIPE, **options)
        told = "nst-jax: cannot write to standard output (No space left on device)\n"
        assert done.stderr == (told if reader == "full" else "")
        assert done.returncode == (2 if reader == "full" and words != "--help" else 0)

    @pytest.mark.parametrize("code, rate", [(0, 1), (1, 1e30)])
    @pytest.mark.parametrize("buffering", [-1, 1])
    @pytest.mark.parametrize("reader", ["gone", "full"])
    def test_of_files_keeps_the_exit_code(
        self, monkeypatch, capsys, tiny_weights_file, reader, buffering, code, rate
    ):
        """Of a run that ends well, and of one that diverges."""
        stream = open("/dev/full", "w", buffering) if reader == "full" else broken_pipe(buffering)
        line = stylize(optimizer="adam", learning_rate=rate)
        with stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert main([*line, "--weights", str(tiny_weights_file)]) == code
        told = "cannot write to standard output (No space left on device)"
        assert capsys.readouterr().err.count(told) == (reader == "full")

    def test_of_a_name_of_odd_bytes(self, desk, monkeypatch, tiny_weights_file):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        name = os.fsdecode(b"\xc3\xa9\xff.png")
        assert main([*stylize(output=name), "--weights", str(tiny_weights_file)]) == 0
        assert stream.buffer.getvalue() == b"\xc3\xa9\\udcff.png\n" and Path(name).exists()


def broken_pipe(buffering=-1):
    """A stream whose reader has gone."""
    ours, theirs = os.pipe()
    os.close(ours)
    return open(theirs, "w", buffering)


class TestNames:
    @pytest.mark.parametrize("name", ["a b.png", "né 图 🎨.png", "./-x.png", "a;b&c.png", "%d.png"])
    def test_odd_ones(self, run, desk, name):
        (desk / "content.png").rename(desk / name)
        code, out, _ = run(*stylize(name, output="out " + name.removeprefix("./")))
        assert code == 0 and load_rgba(desk / out.decode().rstrip("\n")).rgb.shape == (24, 32, 3)

    def test_one_that_lies(self, run, desk, content):
        save_image("a.jpg", content)
        (desk / "a.jpg").rename("a.png")
        assert run(*stylize("a.png"))[0] == 0

    def test_what_is_told_of_a_image(self, run, desk):
        frames = [Image.new("L", (24, 24), 90 * index) for index in range(3)]
        frames[0].save("film.gif", save_all=True, append_images=frames[1:])
        (desk / "style.png").write_bytes(b"no image")
        code, _, err = run(*stylize("film.gif"))
        told, error = err.splitlines()
        assert code == 2 and error.startswith("nst-jax: error: style.png is no image")
        assert told == "nst-jax: film.gif holds several images: the first is read"

    def test_a_device_is_no_image(self, run):
        refused(run(*stylize("/dev/zero")), "/dev/zero is no regular file", "- for standard input")


class TestFlags:
    def test_bit_depth(self, run):
        for name in ("a.png", "b.tif"):
            assert run(*stylize(output=name, bit_depth=16))[0] == 0
        deep = imagecodecs.png_decode(Path("a.png").read_bytes())
        np.testing.assert_array_equal(tifffile.imread("b.tif"), deep)
        assert deep.dtype == np.uint16 and len(np.unique(deep % 257)) > 100
        for name in ("a.png", "b.tif"):
            record = json.loads(read_texts(name)["nst_jax"])
            assert record["settings"]["bit_depth"] == 16 and record["steps"] == 2
        assert run(*stylize(output="plain.png"))[0] == 0
        shallow = np.asarray(Image.open("plain.png"))
        np.testing.assert_allclose(shallow / 255, deep / 65535, atol=0.51 / 255)

    def test_quality_also_of_previews(self, run, desk):
        sizes = {}
        for quality in (10, 95):
            name = f"q{quality}.jpg"
            assert run(*stylize(output=name, quality=quality, save_every=1))[0] == 0
            sizes[quality] = [
                (desk / file).stat().st_size for file in (name, f"q{quality}_00001.jpg")
            ]
            assert json.loads(read_texts(name)["nst_jax"])["settings"]["quality"] == quality
        assert all(low < high for low, high in zip(sizes[10], sizes[95], strict=True))

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(output="a.jpg", bit_depth=16), "bit_depth 16 is more than JPEG can hold"),
            (dict(output="a.webp", bit_depth=16), "bit_depth 16 is more than WEBP can hold"),
            (dict(output="a.png", quality=90), "quality has no meaning for PNG"),
            (dict(output="-", quality=90), "quality has no meaning for PNG"),
            (dict(output="a.tif", quality=90), "quality has no meaning for TIFF"),
            (dict(output="a.jpg", quality=0), "quality is 0: expected 1 to 100"),
        ],
    )
    def test_what_a_format_cannot_do_is_refused_at_first(self, run, options, message):
        refused(run(*stylize("missing.png", **options)), message)  # before any image is read

    @pytest.mark.parametrize(
        "outputs, most",
        [(["-o", "a.webp"], 16_383), (["-o", "a.png", "--animation", "a.gif"], 65_535)],
    )
    @pytest.mark.parametrize("command", ["stylize", "texture", "reconstruct"])
    def test_a_side_that_a_format_cannot_have(self, run, desk, command, outputs, most):
        save_image("line.png", np.zeros((1, 4096, 3)))
        size = [str(most + 1)]
        words = {
            "stylize": ["line.png", "--style", "line.png", *SHALLOW],
            "texture": ["style.png", "--style-size", "32", "--style-layers", "relu1_1"],
            "reconstruct": ["line.png", "--layer", "relu1_1"],
        }[command]
        size += ["8"] if command == "texture" else []
        line = [command, *words, *outputs, "--size", *size]
        before = sorted(desk.iterdir())
        told = f" px, and a side of a {Path(outputs[-1]).suffix} has at most {most}: "
        refused(run(*line), told, "choose a smaller size")
        assert sorted(desk.iterdir()) == before

    def test_of_batch(self, run, desk):
        line = ["batch", "content.png", "--style", "style.png", "-o", "results", "--size", "32"]
        line += ["--steps", "2", *SHALLOW, "--bit-depth"]
        assert run(*line, "16")[0] == 0
        (path,) = desk.glob("results/*.png")
        assert imagecodecs.png_decode(path.read_bytes()).dtype == np.uint16
        code, _, err = run(*line, "16")
        assert code == 0 and "1 there before" in err
        refused(run(*line, "8"), "is of other images or settings")
