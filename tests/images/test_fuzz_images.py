"""Damaged images through the command line: read, or refused in one line; nothing else happens."""

import os

import pytest
from conftest import smooth_image
from helpers.damage import FORMATS, damaged, image_bytes
from helpers.fuzzing import check_ended, command, listing

from nst_jax.images import save_image

READING = "--size 24 --weights nowhere.h5"  # which is missed only when all images have been read
RUNNING = "--size 24 --steps 1 --content-layers relu2_1 --style-layers relu1_1 --weights"


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    save_image("style.png", smooth_image(24, 24, seed=1))
    return tmp_path


def fuzz(desk, capsys, format, seeds, words):
    """Run a command on damaged files; how many were read."""
    data, read = image_bytes(format), 0
    for seed in seeds:
        name = f"damaged.{format.lower()}"
        with open(name, "wb") as file:
            file.write(damaged(data, seed=seed))
        before = listing(desk)
        role = ["damaged", "style.png"] if seed % 4 else ["style.png", "damaged"]
        content, style = [name if word == "damaged" else word for word in role]
        line = ["stylize", content, "--style", style, "-o", "out.png", *words.split()]
        ended = command(line, capsys)
        check_ended(ended)
        read += ended.code != 2 or "nowhere.h5" in ended.err
        if ended.code == 0:
            assert listing(desk).keys() - before.keys() == {"out.png", "out.json"}
            for output in ("out.png", "out.json"):
                os.unlink(output)
        assert listing(desk) == before, f"{format}, seed {seed}"
    return read


@pytest.mark.parametrize("format", FORMATS)
def test_some(desk, capsys, format):
    fuzz(desk, capsys, format, range(6), READING)


@pytest.mark.campaign
@pytest.mark.parametrize("format", FORMATS)
def test_many(desk, capsys, format):
    read = fuzz(desk, capsys, format, range(1000, 1500), READING)
    assert 0 < read < 500  # harmless damage, and other


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_whole_runs(desk, capsys, format, tiny_weights_file):
    fuzz(desk, capsys, format, range(2000, 2012), f"{RUNNING} {tiny_weights_file}")
