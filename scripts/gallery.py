"""Run the commands of docs/gallery.md and draw its sheets.

    python scripts/gallery.py [--only NAME ...] [--output docs/images/gallery] [--work FOLDER]

In each section of the page a block of commands stands above the link to a sheet. The link's text
labels the results of the commands, separated by semicolons; if there are fewer labels than
commands, they belong to the last ones. The commands run in this process, in a temporary folder or
in ``--work``, with the slim weights of the package. The sheet of the default look is not drawn: it
comes from a comparison that took more than an hour, see the last section of the page.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image

from nst_jax.cli import main as nst_jax
from nst_jax.errors import InputError
from nst_jax.images import contact_sheet, load_image, to_uint8
from nst_jax.system import keep_freed_memory
from nst_jax.weights import find_weights
from nst_jax.weights.load import WEIGHTS_VARIABLE

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "gallery.md"
QUALITY = 85
SECTION = re.compile(r"```sh\n(.*?)```\n\n!\[(.+?)\]\(images/gallery/(.+?)\.jpg\)", re.DOTALL)

# The files that the commands read, with their labels on the sheet "inputs".
INPUTS = {
    "lake.jpg": "lake.jpg: the content",
    "fields.jpg": "fields.jpg: strokes",
    "glass.jpg": "glass.jpg: flat cells",
    "ink.jpg": "ink.jpg: hatching",
    "sky.png": "sky.png: mask",
    "rest.png": "rest.png: its opposite",
    "tower.png": "tower.png: mask",
    "regions.png": "regions.png: labels of lake, land and sky",
    "swirls.png": "swirls.png: mask of fields.jpg",
    "furrows.png": "furrows.png: its opposite",
}
RENAMED = {"lake.jpg": "../demo_content.jpg", "fields.jpg": "../demo_style.jpg"}

FOUR_COLUMNS = {"layer-schemes", "content-layers", "regions", "style-masks", "color"}
REPEATED = {"texture"}  # each image is repeated 2 x 2, which shows seams
# Left, top, right and bottom of the part that is shown three times as large.
ENLARGED = {"feather": (60, 28, 172, 112)}


class Sheet(NamedTuple):
    """A sheet of the page: its file name without the suffix, the commands, and the labels."""

    name: str
    commands: list[str]
    labels: list[str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the sheets of the gallery.

    Attributes:
      only: Names of sheets; all by default.
      output: Folder for the sheets.
      work: Folder in which the commands run; a temporary one by default.
    """

    only: tuple[str, ...] = ()
    output: Path = DOCS / "images" / "gallery"
    work: Path | None = None


def read_sheets(page: str) -> list[Sheet]:
    """All sheets of the page with the commands above them."""
    return [
        Sheet(name, re.sub(r" \\\n +", " ", block).splitlines(), labels.split("; "))
        for block, labels, name in SECTION.findall(page)
    ]


def copy_inputs(folder: Path) -> None:
    """Copy the files that the commands read."""
    for name in INPUTS:
        shutil.copyfile(DOCS / "images" / "inputs" / RENAMED.get(name, name), folder / name)


def run_command(command: str, finished: dict[str, Path]) -> np.ndarray:
    """Run a command, unless it is among the finished ones, and load the image that it wrote.

    Raises:
      InputError: if the command fails.
    """
    if command not in finished:
        words = shlex.split(command)[1:]
        with redirect_stdout(sys.stderr):
            if nst_jax([*words, "--overwrite"]) != 0:
                raise InputError(f"this command failed: {command}")
        finished[command] = Path(words[words.index("-o") + 1])
    return load_image(finished[command])


def draw_sheet(sheet: Sheet, finished: dict[str, Path]) -> np.ndarray:
    """Draw a sheet, ``[H, W, 3]``; the image of a single command is itself the sheet."""
    images = [run_command(command, finished) for command in sheet.commands]
    if len(images) == 1:
        return images[0]
    images = images[-len(sheet.labels) :]
    if sheet.name in REPEATED:
        images = [np.tile(image, (2, 2, 1)) for image in images]
    if sheet.name in ENLARGED:
        left, top, right, bottom = ENLARGED[sheet.name]
        images = [image[top:bottom, left:right] for image in images]
        images = [image.repeat(3, axis=0).repeat(3, axis=1) for image in images]
    columns = 4 if sheet.name in FOUR_COLUMNS else 3
    return contact_sheet(images, labels=sheet.labels, columns=columns)


def draw_inputs() -> np.ndarray:
    """Draw the sheet of the input files, each in a thin frame."""
    images = [load_image(name, size=256) for name in INPUTS]
    for image in images:
        image[[0, -1]] = image[:, [0, -1]] = 0.6
    return contact_sheet(images, labels=list(INPUTS.values()), columns=5)


def draw(options: Options) -> None:
    """Draw the sheets and print the name and size of each file.

    Raises:
      InputError: for an unknown name, and if a command fails.
    """
    sheets = {sheet.name: sheet for sheet in read_sheets(PAGE.read_text("utf-8"))}
    names = ("inputs", *sheets)
    for name in options.only:
        if name not in names:
            raise InputError(f"expected one of the sheets {', '.join(names)}, got {name!r}")
    output = options.output.resolve()  # the commands run in another folder
    output.mkdir(parents=True, exist_ok=True)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    finished: dict[str, Path] = {}
    folder = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    with folder as work, chdir(work):
        copy_inputs(Path())
        for name in options.only or names:
            image = draw_inputs() if name == "inputs" else draw_sheet(sheets[name], finished)
            path = output / f"{name}.jpg"
            Image.fromarray(to_uint8(image)).save(path, quality=QUALITY, optimize=True)
            print(f"{path}: {path.stat().st_size} bytes", flush=True)


def main() -> int:
    options = tyro.cli(Options)
    os.environ.pop(WEIGHTS_VARIABLE, None)  # so that the shipped weights are found
    os.environ[WEIGHTS_VARIABLE] = str(find_weights(model="vgg19-slim"))
    try:
        draw(options)
    except InputError as error:
        print(f"gallery: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
