"""The gallery page shows every control, with commands that parse and images that are there."""

import json
import re
import shlex
from dataclasses import fields
from typing import get_args, get_type_hints

import gallery_looks
import numpy as np
import pytest
from gallery import CONTROLS, NAMES, Options, draw, page, shell_lines
from gallery_images import INPUTS, content_masks
from look_report import summary
from PIL import Image

from nst_jax.cli.options import RegionOptions, StyleOptions
from nst_jax.cli.parsing import parse
from nst_jax.config import LossConfig
from nst_jax.config.config import INITS
from nst_jax.errors import InputError
from nst_jax.images import save_image

DOCS = Options().output
PAGE = (DOCS / "gallery.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
SHOWN = ("style_layers", "content_layers", "style_mixing", "guides", "padding", "color", "init")


def test_the_page_is_what_the_script_writes():
    assert page(DOCS) == PAGE, "run python scripts/gallery.py"


def test_the_page_names_every_control():
    names = [field.name for kind in (StyleOptions, RegionOptions) for field in fields(kind)]
    for name in (*names, *SHOWN):
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{flag}(?![\w-])", PAGE), f"the gallery does not name {flag}"
    for name in ("style_mixing", "guides", "color"):
        for value in get_args(get_type_hints(LossConfig)[name]):
            assert re.search(rf"(?<![\w-]){value}(?![\w-])", PAGE), f"{name} {value}"


def test_every_image_is_there_and_linked_once():
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert links == [f"images/gallery/{name}.jpg" for name in NAMES]
    assert {DOCS / link for link in links} == set((DOCS / "images" / "gallery").iterdir())
    total = 0
    for link in links:
        total += (DOCS / link).stat().st_size
        with Image.open(DOCS / link) as image:
            assert image.format == "JPEG" and image.width < 1500
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
            if options.run.config.initial.init not in INITS:
                assert options.run.config.initial.init in there
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


@pytest.fixture
def comparison(tmp_path):
    """A folder as compare_looks.py leaves it; each image has a grey of its own."""
    folder = tmp_path / "looks"
    (folder / "inputs").mkdir(parents=True)
    results = []
    for content, style in gallery_looks.PAIRS:
        for name in (content, style):
            save_image(folder / "inputs" / f"{name}.png", np.full((300, 400, 3), 0.95))
        for setting in gallery_looks.SHOWN:
            grey = (len(results) + 1) / 20
            found = {"content": content, "style_image": style, "setting": setting}
            found |= {"network": "full", "steps": 10 + len(results), "seconds": 2.0}
            found |= {"status": "done", "style": grey, "content_change": 0.5}
            results.append(found | {"image": f"{len(results)}.png"})
            save_image(folder / results[-1]["image"], np.full((300, 400, 3), grey))
    judge = {"network": "full"}
    record = {"size": 400, "seconds": 2.0, "judge": judge, "device": {"platform": "cpu"}}
    record |= {"settings": {name: name for name in gallery_looks.SHOWN}, "versions": {}}
    record |= {"results": results, "summary": summary(results)}
    (folder / "looks.json").write_text(json.dumps(record))
    return folder


def test_the_look_is_taken_from_a_comparison(comparison, tmp_path):
    output = tmp_path / "docs"
    draw(Options(only=(gallery_looks.LOOK,), output=output, looks=comparison))
    assert {path.name for path in output.iterdir()} == {"gallery.md", "looks.json", "images"}
    text = (output / "gallery.md").read_text("utf-8")
    assert text == page(output) and "as many steps as fit into 2 s at 400 px" in " ".join(
        text.split()
    )
    for row in summary(json.loads((comparison / "looks.json").read_text())["results"]):
        assert f"| full | `{row['setting']}` | {row['steps']} | 2.0 | {row['style']:.3f} |" in text
    with Image.open(output / "images" / "gallery" / "default-look.jpg") as sheet:
        assert sheet.width < 1500
        pixels = np.asarray(sheet.convert("L"), float) / 255
    for grey in np.arange(1, 10) / 20:  # every result is there
        assert (np.abs(pixels - grey) < 0.012).mean() > 0.02


def test_a_look_without_its_comparison_is_refused(comparison, tmp_path):
    with pytest.raises(InputError, match="name its folder by --looks"):
        draw(Options(only=(gallery_looks.LOOK,), output=tmp_path / "docs"))
    with pytest.raises(InputError, match="has no looks.json"):
        gallery_looks.draw_looks(comparison / "inputs")
    record = json.loads((comparison / "looks.json").read_text())
    (comparison / "looks.json").write_text(json.dumps(record | {"results": record["results"][:-1]}))
    with pytest.raises(InputError, match="has no image of lake, fields, wasserstein by the full"):
        gallery_looks.draw_looks(comparison)


def test_an_unknown_sheet_is_refused(tmp_path):
    with pytest.raises(InputError, match="no sheet is named 'colour'.*color"):
        draw(Options(only=("colour",), output=tmp_path))
    assert not list(tmp_path.iterdir())
