"""The gallery's section on the default look, from what ``compare_looks.py`` has written.

The comparison takes an hour or more, so that the gallery does not make it: ``gallery.py --looks
FOLDER`` takes its images, and keeps its means in docs/looks.json for the page's table.
"""

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from look_report import caption, sheet, summary_table

from nst_jax.cli.record import write_json
from nst_jax.errors import InputError
from nst_jax.images import load_image, resize_to

LOOK, LOOK_TITLE = "default-look", "The default look"
RECORD = "looks.json"  # in the folder of the comparison, and in docs
PAIRS = (("portrait", "candle"), ("street", "paper"), ("lake", "fields"))
SHOWN = ("neural-style", "gatys", "fast", "wasserstein")  # settings, by their labels
NETWORK = "full"
WIDEST = 1400  # pixels of the sheet, about
TEXT = """
Where no preset is named the command line takes `wasserstein`. It was chosen by eye first: faces
and edges stay whole where the others paint over them, and the style's colours arrive in the whole
image, also of dark and flat styles. The numbers agree: of these settings it is nearest to the
style and keeps the content best, with the full and with the slim network. Among others that were
tried with the slim network, larger factors of deep layers painted larger strokes and lost the
content sooner; means and deviations beside Gram matrices (`spst`) came nearest to the style and
kept the content worst. Every setting had as many steps as fit into {seconds:g} s at {size} px by
the time of its steps on one machine ({device}), compilation apart; the seconds of the table are
what they took then. Two numbers judge each result by features of the {judge} network that none of
these settings optimises. *Style* is the sliced Wasserstein distance to the style image: 0 is
the style itself, 1 the content. *Content* is the change of the content's self-similarity: 0 is
the content, 1 the style image. Less is better in both, but an image that has changed little
keeps the content best, so that they are to be read together, and with the sheet. Means and worst
values are those of all pairs of {contents} with {styles}; the sheet shows some of them. Made by
`python scripts/compare_looks.py` with these images and settings and `python scripts/gallery.py
--looks FOLDER --only default-look`.
"""
KEPT = ("size", "seconds", "judge", "settings", "device", "versions", "summary")


def section(docs: Path) -> list[str]:
    """Title, text and table of the page's section; the image is linked by the page."""
    record = json.loads((docs / RECORD).read_text("utf-8"))
    text = TEXT.format(
        seconds=record["seconds"],
        size=record["size"],
        device=record["device"]["platform"],
        judge=record["judge"]["network"],
        contents=", ".join(record["contents"]),
        styles=", ".join(record["styles"]),
    )
    lines = fill(" ".join(text.split()), 100, break_on_hyphens=False, break_long_words=False)
    meanings = "\n".join(
        f"- `{label}`: `{words}`" for label, words in record["settings"].items() if label != words
    )
    return [f"## {LOOK_TITLE}", lines, *filter(None, [meanings]), summary_table(record["summary"])]


def take_record(folder: Path, docs: Path) -> None:
    """Keep a comparison's means beside the page.

    Raises:
      InputError: where there is no comparison.
    """
    record = read_record(folder)
    names = {
        plural: list(dict.fromkeys(found[name] for found in record["results"]))
        for plural, name in (("contents", "content"), ("styles", "style_image"))
    }
    write_json(docs / RECORD, {name: record[name] for name in KEPT} | names)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a comparison.

    Raises:
      InputError: where there is none.
    """
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} has no {RECORD}: name the folder that compare_looks.py has written"
        )
    return json.loads((folder / RECORD).read_text("utf-8"))


def draw_looks(folder: Path) -> np.ndarray:
    """The section's sheet, ``[H, W, 3]``: a row for each of some pairs.

    Raises:
      InputError: where the comparison lacks one of them.
    """
    record = read_record(folder)
    found = {
        (one["content"], one["style_image"], one["setting"]): one
        for one in record["results"]
        if one["network"] == NETWORK
    }
    keys = [(*pair, label) for pair in PAIRS for label in SHOWN]
    for key in keys:
        if key not in found:
            what = f"{', '.join(key)} by the {NETWORK} network"
            raise InputError(f"{folder} has no image of {what}: compare that too")
    width = min(record["size"], WIDEST // (2 + len(SHOWN)))

    def image(path: Path) -> np.ndarray:
        whole = load_image(path)
        return resize_to(whole, shape=(round(width * whole.shape[0] / whole.shape[1]), width))

    inputs = {
        name: image(next((folder / "inputs").glob(f"{name}.*"))) for pair in PAIRS for name in pair
    }
    results = {key: image(folder / found[key]["image"]) for key in keys}
    captions = {key: caption(found[key]) for key in keys}
    return sheet(PAIRS, inputs, results, captions, settings=SHOWN)
