"""Contact sheets. The positions of images are found by searching for their pixels."""

import numpy as np
import pytest
from PIL import Image

from nst_jax.images import contact_sheet

LONG = "iteration 100, style weight 1e3, content weight 5, total variation 0.01 " * 3


def images(count, height, width):
    """Random images without white or grey pixels."""
    values = np.random.default_rng(0).random((count, height, width, 3), np.float32)
    return list(values * np.float32([0.2, 0.5, 0.8]) + np.float32([0, 0.2, 0]))


def place(sheet, image):
    """Top and left of the only place where a sheet shows an image, unchanged."""
    height, width, _ = image.shape
    corners = np.argwhere((sheet == image[0, 0]).all(-1))
    found = [
        (top, left)
        for top, left in corners.tolist()
        if np.array_equal(sheet[top : top + height, left : left + width], image)
    ]
    assert len(found) == 1
    return found[0]


def text_of(sheet, shown):
    """The sheet with its images painted white, which leaves the text."""
    text = sheet.copy()
    for image in shown:
        top, left = place(sheet, image)
        text[top : top + image.shape[0], left : left + image.shape[1]] = 1
    return text


def extent(text):
    """Top, bottom, left, right (ends excluded) of what is not white."""
    rows, columns = (np.flatnonzero((text < 1).any((axis, 2))) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


class TestLayout:
    @pytest.mark.parametrize("count, columns", [(1, 4), (5, 3), (4, 1)])
    @pytest.mark.parametrize("height, width", [(90, 120), (8, 8), (70, 1)])
    @pytest.mark.parametrize("title", [None, "A title"])
    def test_images_are_on_a_grid(self, count, columns, height, width, title):
        shown = images(count, height, width)
        labels = [f"number {index}" for index in range(count)]
        sheet = contact_sheet(shown, labels=labels, columns=columns, title=title)
        assert sheet.dtype == np.float32 and sheet.min() >= 0 and sheet.max() == 1
        places = [place(sheet, image) for image in shown]
        used = min(columns, count)
        tops, lefts = [top for top, _ in places], [left for _, left in places]
        margin = lefts[0]
        assert margin >= 8
        for index, (top, left) in enumerate(places):
            assert top == tops[index // used * used] and left == lefts[index % used]
        # Distances between cells are equal, and cells are at least as wide as their images.
        assert len(set(np.diff(lefts[:used]))) <= 1 and len(set(np.diff(tops[::used]))) <= 1
        step = lefts[1] - lefts[0] if used > 1 else sheet.shape[1] - margin
        assert step == width + margin if width >= 100 else step >= width + margin
        assert sheet.shape[1] == margin + used * step
        assert (tops[0] == margin) == (title is None)
        # One line of a label fits between rows, and below the last one.
        if count > used:
            assert tops[used] - tops[0] > height + margin + 10
        assert sheet.shape[0] > tops[-1] + height + margin + 10
        top, bottom, left, right = extent(text_of(sheet, shown))
        assert top >= margin and bottom <= sheet.shape[0] - margin
        assert left >= margin - 1 and right <= sheet.shape[1] - margin

    def test_rows_are_as_high_as_their_longest_label(self):
        shown = images(6, 40, 120)
        labels = ["a\nb\nc\nd", "a", "", "", "a", "a"]
        sheet = contact_sheet(shown, labels=labels, columns=2)
        (top, margin), tops = place(sheet, shown[0]), [place(sheet, image)[0] for image in shown]
        assert tops[1] == top and tops[2] - top > 40 + margin + 30
        assert tops[4] - tops[2] == 40 + margin  # no label, no room for one

    def test_colours_are_clipped(self):
        wild = np.array([[[-1, 0.5, 2], [np.nan, np.inf, -np.inf]]], np.float32)
        tame = np.array([[[0, 0.5, 1], [0, 1, 0]]], np.float32)
        assert place(contact_sheet([wild], labels=["wild"], columns=1), tame)


class TestText:
    def test_label_is_below_its_image(self):
        shown = images(4, 50, 130)
        blank = contact_sheet(shown, labels=["x", "", "x", ""], columns=2)
        labelled = contact_sheet(shown, labels=["x", "second", "x", ""], columns=2)
        top, left = place(labelled, shown[1])
        rows, columns = np.nonzero((blank != labelled).any(-1))
        assert len(rows) and rows.min() >= top + 50 and columns.min() >= left - 1
        assert rows.max() < place(labelled, shown[3])[0] and columns.max() < left + 130

    @pytest.mark.parametrize("width, least, most", [(8, 7, 9), (300, 8, 12), (5000, 17, 23)])
    def test_is_dark_grey_and_grows_with_the_width(self, width, least, most):
        """The font size is 11 to 28, and a capital is about 0.7 of it."""
        shown = images(1, 4, width)
        text = text_of(contact_sheet(shown, labels=["H"], columns=1), shown)
        top, bottom, _, _ = extent(text)
        assert least <= bottom - top <= most
        assert 0.2 < text.min() < 0.35 and (text == text[..., :1]).all()

    @pytest.mark.parametrize("height, width", [(8, 8), (40, 700)])
    @pytest.mark.parametrize("text", [LONG, "W" * 200, "jÅ|ß_" * 50])
    def test_long_text_is_wrapped(self, height, width, text):
        shown = images(2, height, width)
        short = contact_sheet(shown, labels=["a", "a"], columns=2)
        sheet = contact_sheet(shown, labels=[text, ""], columns=2)
        assert sheet.shape[1] == short.shape[1] and sheet.shape[0] > short.shape[0]
        margin, (_, second) = place(sheet, shown[0])[1], place(sheet, shown[1])
        _, bottom, left, right = extent(text_of(sheet, shown))
        assert left >= margin - 1 and right <= second - margin
        assert sheet.shape[0] - margin - 12 < bottom <= sheet.shape[0] - margin
        titled = contact_sheet(shown, labels=["", ""], columns=2, title=text)
        top, bottom, left, right = extent(text_of(titled, shown))
        assert top >= margin and bottom <= place(titled, shown[0])[0]
        assert left >= margin - 1 and right <= titled.shape[1] - margin

    def test_wrapping_loses_no_text(self):
        """Wrapped text, also within a word, has as much ink as on one line."""
        ink = []
        for width, word in ((230, "one two three four "), (100, "one two three four ")):
            shown = images(1, 10, width)  # both widths have text of 11 pixels
            sheet = contact_sheet(shown, labels=[word * 2], columns=1)
            ink.append((1 - text_of(sheet, shown)).sum())
        assert ink[1] == pytest.approx(ink[0], rel=0.02)
        sheet = contact_sheet(shown, labels=["onetwothreefour" * 2], columns=1)
        assert (1 - text_of(sheet, shown)).sum() == pytest.approx(ink[0], rel=0.05)

    def test_pixel_limit_of_files_does_not_apply(self):
        shown, options = images(2, 20, 30), {"labels": ["one", "two"], "columns": 2}
        expected = contact_sheet(shown, title=LONG, **options)
        for limit in (10, None):
            Image.MAX_IMAGE_PIXELS = limit
            np.testing.assert_array_equal(contact_sheet(shown, title=LONG, **options), expected)
            assert Image.MAX_IMAGE_PIXELS == limit

    @pytest.mark.parametrize("text", ["\udc80.png", "a\0b", "日本", "\t", "\r\n", "\u0301"])
    def test_unusual_characters(self, text):
        assert len(contact_sheet(images(1, 8, 8), labels=[text], columns=1, title=text))


@pytest.mark.parametrize(
    "shown, labels, columns, message",
    [
        ([], [], 1, "got 0 images"),
        (images(2, 4, 4), ["a"], 1, "got 2 images, 1 labels"),
        (images(1, 4, 4), ["a"], 0, "0 columns"),
        (images(1, 4, 4) + images(1, 4, 5), ["a", "b"], 1, "expected images of one shape"),
        ([np.zeros((4, 4))], ["a"], 1, "expected images of one shape"),
    ],
)
def test_wrong_arguments(shown, labels, columns, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(shown, labels=labels, columns=columns)
