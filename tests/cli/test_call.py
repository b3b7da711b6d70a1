"""Command lines as checkpoints save them, parsed again in another folder."""

from pathlib import Path

import pytest

from nst_jax.cli.parsing import Call, input_files, parse, parse_call, with_inputs, with_paths
from nst_jax.errors import InputError

STYLIZE = (
    "stylize a/content.png --style b.png /c.png --content-mask m.png - --style-mask n.png "
    "--region-styles 1 2 --init start.png -o out/d.png --animation e.gif --checkpoint kept "
    "--weights w.h5 --style-layers relu1_1=2 relu2_1 --size 99"
).split()
BATCH = "batch photos 'x/*.png' --style b.png -o out --checkpoint kept".replace("'", "").split()


def test_paths_are_absolute():
    options = parse_call(Call(STYLIZE, "/there"))
    assert options.content == Path("/there/a/content.png")
    assert options.styles.style == (Path("/there/b.png"), Path("/c.png"))
    assert options.regions.content_mask == (Path("/there/m.png"), Path("-"))
    assert options.run.config.initial.init == "/there/start.png"
    assert options.run.weights == Path("/there/w.h5")
    assert (options.output, options.watch.animation) == (
        Path("/there/out/d.png"),
        Path("/there/e.gif"),
    )
    assert options.size == 99 and options.run.config.loss.style_layers == (
        ("relu1_1", 2.0),
        ("relu2_1", 1.0),
    )
    batch = parse_call(Call(BATCH, "/there"))
    assert batch.contents == (Path("/there/photos"), Path("/there/x/*.png"))
    assert batch.output_dir == Path("/there/out")


def test_values_that_are_not_paths_stay():
    options = parse(STYLIZE)
    assert with_paths(options, lambda _, path: path) == options


@pytest.mark.parametrize(
    "words, files",
    [
        (STYLIZE, "a/content.png b.png /c.png m.png - n.png start.png"),
        ("texture b.png c.png -o out.png --size 9".split(), "b.png c.png"),
        ("reconstruct b.png -o out.png --layer relu1_1".split(), "b.png"),
        (
            "stylize a.png --style a.png --labels l.png --style-labels s.png -o o.png".split(),
            "a.png a.png l.png s.png",
        ),
    ],
)
def test_input_files(words, files):
    options = parse(words)
    assert sorted(map(str, input_files(options))) == sorted(files.split())
    moved = with_inputs(options, {Path(name): Path("/copies", name) for name in files.split()})
    assert all(str(path).startswith("/") for path in input_files(moved))
    assert moved.output == options.output


@pytest.mark.parametrize(
    "arguments, directory, error",
    [
        ("stylize", "/", TypeError),
        (["stylize", 1], "/", ValueError),
        (["presets"], 1, TypeError),
        (["presets", "a\0"], "/", ValueError),
        (["presets"], "/\0", ValueError),
        ([], "/", InputError),
        (["--help"], "/", InputError),
        (["stylize", "a.png"], "/", InputError),
        ([*STYLIZE, "--steps", "-1"], "/", InputError),
        ([*STYLIZE, "--preset", "none"], "/", InputError),
    ],
)
def test_invalid_command_lines(arguments, directory, error, capsys):
    with pytest.raises(error):
        parse_call(Call(arguments, directory))
    assert capsys.readouterr() == ("", "")
