"""Contact sheets: labelled grids of images, as NumPy arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = 64  # grey level of text, from 0 for black to 255


def contact_sheet(
    images: Sequence[np.ndarray],
    *,
    labels: Sequence[str],
    columns: int,
    title: str | None = None,
) -> np.ndarray:
    """Lay out images in rows on white, with a label below each.

    The text size grows with the width of the images, and text is wrapped to that width. Images
    too narrow for text get wider cells.

    Args:
      images: images of one shape ``[H, W, 3]``; values are clipped to [0, 1], NaN becomes 0.
      labels: a text for each image, which may have several lines.
      columns: images per row; the last row may have fewer.
      title: a text above all images.

    Returns:
      ``[H', W', 3]`` float32 in [0, 1].

    Raises:
      ValueError: if there are no images, their shapes differ, the number of labels is not that of
        the images, or there is less than one column.

    >>> contact_sheet([np.zeros((150, 200, 3))] * 3, labels=["", "", ""], columns=2).shape
    (336, 436, 3)
    """
    if not len(images) or len(images) != len(labels) or columns < 1:
        raise ValueError(
            "expected images, a label for each and at least one column, got "
            f"{len(images)} images, {len(labels)} labels, {columns} columns"
        )
    shapes = {np.shape(image) for image in images}
    height, width, *channels = shapes.pop()
    if shapes or channels != [3]:
        raise ValueError("expected images of one shape [H, W, 3]")
    layout = _layout((height, width), labels=labels, columns=columns, title=title)
    canvas = Image.new("L", (layout.shape[1], layout.shape[0]), 255)
    draw = ImageDraw.Draw(canvas)
    with _no_pixel_limit():
        for x, top, line, face in layout.texts:
            draw.text((x, top), line, fill=INK, font=face)
    sheet = np.repeat(np.asarray(canvas, np.float32)[..., None] / 255, 3, axis=-1)
    for image, (x, top) in zip(images, layout.places, strict=True):
        pixels = np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)
        sheet[top : top + height, x : x + width] = pixels
    return sheet


def sheet_shape(
    shape: Sequence[int], *, labels: Sequence[str], columns: int, title: str | None = None
) -> tuple[int, int]:
    """Return the height and width of the ``contact_sheet`` of images of this height and width.

    >>> sheet_shape((150, 200), labels=["", "", ""], columns=2)
    (336, 436)
    """
    return _layout(shape, labels=labels, columns=columns, title=title).shape


class _Layout(NamedTuple):
    """The positions of images and text on a sheet.

    Attributes:
      shape: height and width of the sheet.
      places: left and top of each image.
      texts: left, top, text and font of each line.
    """

    shape: tuple[int, int]
    places: list[tuple[int, int]]
    texts: list[tuple[int, int, str, ImageFont.FreeTypeFont]]


def _layout(
    shape: Sequence[int], *, labels: Sequence[str], columns: int, title: str | None
) -> _Layout:
    height, width = shape[:2]
    columns = min(columns, len(labels))
    size = min(max(round(width / 22), 11), 28)
    gap, space = size + 1, size // 3  # between cells; between an image and its label
    cell = max(width, 6 * size)
    font, title_font = _font(size), _font(round(1.25 * size))
    sheet_width = columns * (cell + gap) + gap

    texts, places, y = [], [], gap
    for line in _wrap(title or "", font=title_font, width=sheet_width - 2 * gap):
        texts.append((gap, y, line, title_font))
        y += _line_height(title_font)
    y += gap if texts else 0
    for start in range(0, len(labels), columns):
        bottom = y + height
        for column, label in enumerate(labels[start : start + columns]):
            x, below = gap + column * (cell + gap), y + height + space
            places.append((x, y))
            for line in _wrap(label, font=font, width=cell):
                texts.append((x, below, line, font))
                below += _line_height(font)
                bottom = max(bottom, below)
        y = bottom + gap
    return _Layout((y, sheet_width), places, texts)


@contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which is meant for files but also applies to drawn text."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # load_default returns one if given a size
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _wrap(text: str, *, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; break words only if they do not fit."""

    def fits(line: str) -> bool:
        return font.getbbox(line)[2] <= width

    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and fits(f"{line} {word}"):
                line = f"{line} {word}"
                continue
            if line:
                lines.append(line)
            line = word
            while not fits(line):
                count = 1
                while fits(line[: count + 1]):
                    count += 1
                lines.append(line[:count])
                line = line[count:]
        lines.append(line)
    return lines
