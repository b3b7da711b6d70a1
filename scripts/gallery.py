"""Draw the gallery: docs/gallery.md and its images, from the commands that the page shows.

    python scripts/gallery.py [--only NAME ...] [--output docs] [--work FOLDER] [--looks FOLDER]

The commands run one after the other in this process, with the slim weights that come with the
package, in a folder of their own, which ``--work`` names and keeps. The default look alone is
taken from a comparison, see ``gallery_looks.py``.
"""

import os
import re
import shlex
import sys
import tempfile
import time
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import tyro
from gallery_controls import OTHERS, STYLES, Control
from gallery_images import INPUTS, write_inputs
from gallery_looks import LOOK, LOOK_TITLE, RECORD, draw_looks, section, take_record
from gallery_regions import REGIONS
from PIL import Image

from nst_jax.cli import main as nst_jax
from nst_jax.errors import InputError
from nst_jax.images import contact_sheet, load_image, load_mask, to_uint8
from nst_jax.system import atomic_write, keep_freed_memory
from nst_jax.weights import find_weights
from nst_jax.weights.load import WEIGHTS_VARIABLE

CONTROLS = (*STYLES, *REGIONS, *OTHERS)
NAMES = ("inputs", *(control.name for control in CONTROLS), LOOK)
QUALITY = 85
KEPT_DIFFERENCE = 2 / 255  # of a part that is kept, at most

HEAD = """
# Gallery

What each control does, with and without it. Each sheet is made by the commands above it, in the
order of its images, in a folder with the files of the first section; a command that stands here
several times need run only once. All use the slim weights that come with nst_jax: where the full
VGG-19 is on your machine, add `--model vgg19-slim` for the same images. The page and all
images but the last are made by `python scripts/gallery.py`.

## Images and masks

`python scripts/gallery.py --only inputs --work FOLDER` puts these files into a folder. Scripts
have drawn them all. In a mask white is inside; in an image of labels each colour is a region.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the gallery.

    Attributes:
      only: The sheets to draw, by name; by default all. The page is always written.
      output: The folder of gallery.md and images/gallery.
      work: The folder where the commands run; by default one that is removed afterwards.
      looks: The folder of a comparison by compare_looks.py, whose sheet and table are then taken
        anew; by default they stay as they are.
    """

    only: tuple[str, ...] = ()
    output: Path = Path(__file__).resolve().parent.parent / "docs"
    work: Path | None = None
    looks: Path | None = None


def page(docs: Path) -> str:
    """The text of gallery.md, in a folder that holds looks.json."""
    parts = [HEAD.strip(), image_link("inputs", "all files that the commands read")]
    for control in CONTROLS:
        commands = dict.fromkeys(command for _, command in control.images)
        shown = "; ".join(label for label, _ in control.images if label)
        parts += [
            f"## {control.title}",
            fill(" ".join(control.text.split()), 100, break_on_hyphens=False),
            "```bash\n" + "\n".join(map(shell_lines, commands)) + "\n```",
            image_link(control.name, shown or control.title.lower()),
        ]
    parts += [*section(docs), image_link(LOOK, LOOK_TITLE.lower())]
    return "\n\n".join(parts) + "\n"


def image_link(name: str, words: str) -> str:
    return f"![{words}](images/gallery/{name}.jpg)"


def shell_lines(command: str) -> str:
    """A command in lines of at most 100 characters, broken before flags."""
    lines = [""]
    for words in re.split(" (?=-)", command):
        if len(lines[-1]) + len(words) > 97:
            lines.append("   ")
        lines[-1] += " " + words
    return " \\\n".join(lines).lstrip()


def run_command(command: str, done: dict[str, Path]) -> np.ndarray:
    """The image that a command writes; one that has run already does not run again.

    Raises:
      InputError: where the command fails; it has said why.
    """
    if command not in done:
        words = shlex.split(command)[1:]
        with redirect_stdout(sys.stderr):
            if nst_jax([*words, "--overwrite"]) != 0:
                raise InputError(f"this command failed: {command}")
        done[command] = Path(words[words.index("-o") + 1])
    return load_image(done[command])


def draw_sheet(control: Control, done: dict[str, Path]) -> np.ndarray:
    """The sheet of a control, ``[H, W, 3]``."""
    images = [(label, run_command(command, done)) for label, command in control.images]
    if len(images) == 1:
        return images[0][1]
    labels, shown = zip(*((label, image) for label, image in images if label), strict=True)
    if control.tiled:
        shown = [np.tile(image, (2, 2, 1)) for image in shown]
    if control.crop is not None:
        left, top, right, bottom = control.crop
        shown = [image[top:bottom, left:right] for image in shown]
        shown = [image.repeat(3, axis=0).repeat(3, axis=1) for image in shown]
    return contact_sheet(shown, labels=labels, columns=control.columns)


def draw_inputs() -> np.ndarray:
    """The sheet of the files that the commands read, each in a thin frame."""
    images = [load_image(name, size=256) for name in INPUTS]
    for image in images:
        image[[0, -1]] = image[:, [0, -1]] = 0.6
    return contact_sheet(images, labels=list(INPUTS.values()), columns=5)


def draw_any(name: str, done: dict[str, Path], looks: Path | None) -> np.ndarray:
    """The sheet of a name; ``looks`` is the folder of a comparison."""
    if name == LOOK and looks is not None:
        return draw_looks(looks)
    sheets = {control.name: control for control in CONTROLS}
    return draw_sheet(sheets[name], done) if name in sheets else draw_inputs()


def kept_difference() -> float:
    """Mean difference of the kept tower from the content."""
    kept = load_image("kept.png")
    mask = load_mask("tower.png", shape=kept.shape[:2]) == 1
    return float(np.abs(kept - load_image("lake.jpg", size=max(kept.shape)))[mask].mean())


def draw(options: Options) -> None:
    """Write the page and the wanted sheets, and print times and sizes.

    Raises:
      InputError: for an unknown name, a command that fails, and a kept part that has changed.
    """
    for name in options.only:
        if name not in NAMES:
            raise InputError(f"no sheet is named {name!r}: expected one of {', '.join(NAMES)}")
    if LOOK in options.only and options.looks is None:
        raise InputError(f"{LOOK} is taken from a comparison: name its folder by --looks")
    looks = options.looks and options.looks.resolve()  # the commands run in another folder
    folder = (options.output / "images" / "gallery").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if looks is not None:
        take_record(looks, options.output)
    docs = options.output if (options.output / RECORD).exists() else Options().output
    with atomic_write(options.output / "gallery.md") as temporary:
        temporary.write_text(page(docs), "utf-8")
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    started, total, done = time.perf_counter(), 0, {}
    place = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    with place as work, chdir(work):
        write_inputs(Path())
        for name in options.only or NAMES:
            if name == LOOK and looks is None:
                continue
            sheet = draw_any(name, done, looks)
            path = folder / f"{name}.jpg"
            Image.fromarray(to_uint8(sheet)).save(path, quality=QUALITY, optimize=True)
            total += path.stat().st_size
            seconds = time.perf_counter() - started
            print(f"{path}: {path.stat().st_size} bytes, at {seconds:.0f} s", flush=True)
            if name == "keep":
                difference = kept_difference()
                print(f"the kept part differs by {255 * difference:.3f} / 255")
                if difference >= KEPT_DIFFERENCE:
                    raise InputError("the kept part has changed")
    print(f"{total} bytes")


def main() -> int:
    options = tyro.cli(Options)
    os.environ.pop(WEIGHTS_VARIABLE, None)
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
