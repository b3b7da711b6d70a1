"""The gallery page shows every control, with commands that parse and pictures that are there."""

import re
import shlex
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from gallery import CONTROLS, NAMES, Options, draw, page, shell_lines
from gallery_pictures import INPUTS, content_masks
from PIL import Image

from nst_jax.cli import parse
from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.options import RegionOptions, StyleOptions

DOCS = Options().output
PAGE = (DOCS / "gallery.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
SHOWN = ("style_layers", "content_layers", "style_mixing", "guides", "padding", "color", "init")


def test_the_page_is_what_the_script_writes():
    assert page() == PAGE, "run python scripts/gallery.py"


def test_the_page_names_every_control():
    names = [field.name for kind in (StyleOptions, RegionOptions) for field in fields(kind)]
    for name in (*names, *SHOWN):
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{flag}(?![\w-])", PAGE), f"the gallery does not name {flag}"
    for name in ("style_mixing", "guides", "color"):
        for value in get_args(get_type_hints(Config)[name]):
            assert re.search(rf"(?<![\w-]){value}(?![\w-])", PAGE), f"{name} {value}"


def test_every_picture_is_there_and_linked_once():
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert links == [f"images/gallery/{name}.jpg" for name in NAMES]
    assert {DOCS / link for link in links} == set((DOCS / "images" / "gallery").iterdir())
    total = 0
    for link in links:
        total += (DOCS / link).stat().st_size
        with Image.open(DOCS / link) as picture:
            assert picture.format == "JPEG" and picture.width < 1500
    assert total < 2_500_000


def test_commands_parse_and_read_only_files_that_are_there():
    assert len(BLOCKS) == len(CONTROLS)
    written = set()
    for block in BLOCKS:
        there = set(INPUTS)
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line)
            options = parse(words[1:])
            assert words[0] == "nst-jax" and options.run.preset == "fast"
            read = {word for word in words if word.endswith((".jpg", ".png"))}
            output = str(options.output)
            assert read - {output} <= there, line
            if options.run.config.init not in INITS:
                assert options.run.config.init in there
            there.add(output)
            written.add((output, " ".join(words)))
    outputs = [output for output, _ in written]
    assert len(set(outputs)) == len(outputs), "two commands write the same file"


def test_long_commands_are_broken_before_flags():
    command = " ".join(["nst-jax stylize lake.jpg"] + [f"--flag{i} value other" for i in range(9)])
    lines = shell_lines(command).split(" \\\n")
    assert len(lines) > 1 and all(len(line) <= 98 for line in lines)
    assert all(line.startswith("    --") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == command


def test_masks_of_the_content_are_a_partition():
    masks = content_masks()
    assert (sum(masks[name].astype(int) for name in ("lake", "land", "sky")) == 1).all()
    # The tower stands on the headland, which hides its foot in the drawing's grass only.
    assert (masks["tower"] <= ~masks["sky"]).all() and 0.005 < masks["tower"].mean() < 0.05


def test_an_unknown_sheet_is_refused(tmp_path):
    with pytest.raises(InputError, match="no sheet is named 'colour'.*color"):
        draw(Options(only=("colour",), output=tmp_path))
    assert not list(tmp_path.iterdir())
