"""The gallery page: it names every control, its commands parse, and its images exist."""

import re
import shlex
from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
from gallery import DOCS, INPUTS, PAGE, Options, copy_inputs, draw, read_sheets
from PIL import Image

from nst_jax.cli.options import RegionOptions, StyleOptions
from nst_jax.cli.parsing import parse
from nst_jax.config import LossConfig
from nst_jax.config.config import INITS
from nst_jax.errors import InputError

TEXT = PAGE.read_text("utf-8")
SHEETS = read_sheets(TEXT)


def test_the_page_names_every_control():
    options = [field.name for kind in (StyleOptions, RegionOptions) for field in fields(kind)]
    others = "style_layers content_layers style_mixing guides padding color init".split()
    for name in [*options, *others]:
        assert re.search(rf"--{name.replace('_', '-')}(?![\w-])", TEXT), name
    for name in ("style_mixing", "guides", "color"):
        for value in get_args(get_type_hints(LossConfig)[name]):
            assert re.search(rf"(?<![\w-]){value}(?![\w-])", TEXT), f"{name} {value}"


def test_every_sheet_exists_and_is_linked_once():
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    names = ["inputs", *(sheet.name for sheet in SHEETS), "default-look"]
    assert links == [f"images/gallery/{name}.jpg" for name in names]
    assert {DOCS / link for link in links} == set((DOCS / "images" / "gallery").iterdir())


def test_commands_parse_and_read_existing_files():
    assert all(len(sheet.labels) <= len(sheet.commands) for sheet in SHEETS)
    commands = {}
    for sheet in SHEETS:
        available = set(INPUTS)
        for command in sheet.commands:
            words = shlex.split(command)
            options = parse(words[1:])
            assert words[0] == "nst-jax" and options.run.preset == "fast"
            output, init = str(options.output), options.run.config.initial.init
            read = {word for word in words if word.endswith((".jpg", ".png"))} - {output}
            read |= set() if init in INITS else {init}
            assert read <= available, command
            available.add(output)
            assert commands.setdefault(output, command) == command, "two commands write one file"


def test_masks_are_opposites_and_label_images_have_three_colours(tmp_path):
    copy_inputs(tmp_path)
    images = {name: np.asarray(Image.open(tmp_path / name)) for name in INPUTS}
    for one, other in (("sky.png", "rest.png"), ("swirls.png", "furrows.png")):
        np.testing.assert_array_equal(images[one], 255 - images[other])
    assert len(np.unique(images["regions.png"].reshape(-1, 3), axis=0)) == 3


def test_an_unknown_sheet_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected one of the sheets inputs, .*got 'colour'"):
        draw(Options(only=("colour",), output=tmp_path))
