"""The labelled grid of images. Where the images lie is found by searching for their pixels."""

import numpy as np
import pytest
from PIL import Image

from nst_jax.images import contact_sheet, load_image, save_image

LONG = "iteration 100, style weight 1e3, content weight 5, total variation 0.01 " * 3


def images(count, height, width):
    """Random ones without a white or a grey pixel."""
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


def without(sheet, shown):
    """The sheet with its images painted white: what is left is text."""
    text = sheet.copy()
    for image in shown:
        top, left = place(sheet, image)
        text[top : top + image.shape[0], left : left + image.shape[1]] = 1
    return text


def extent(text):
    """Top, bottom, left, right (the ends excluded) of what is not white."""
    rows, columns = (np.flatnonzero((text < 1).any((axis, 2))) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


class TestGeometry:
    @pytest.mark.parametrize("count, columns", [(1, 1), (1, 4), (6, 3), (5, 3), (4, 1), (2, 5)])
    @pytest.mark.parametrize("height, width", [(90, 120), (8, 8), (30, 500), (70, 1)])
    @pytest.mark.parametrize("title", [None, "A title"])
    def test_grid(self, count, columns, height, width, title):
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
        # Steps from one to the next are even, and cells are as wide as their images or wider.
        assert len(set(np.diff(lefts[:used]))) <= 1 and len(set(np.diff(tops[::used]))) <= 1
        step = lefts[1] - lefts[0] if used > 1 else sheet.shape[1] - margin
        assert step >= width + margin
        assert step == width + margin or width < 100
        assert sheet.shape[1] == margin + used * step
        assert (tops[0] == margin) == (title is None)
        # A label's line fits in between rows, and below the last one.
        if count > used:
            assert tops[used] - tops[0] > height + margin + 10
        assert sheet.shape[0] > tops[-1] + height + margin + 10
        text = without(sheet, shown)
        top, bottom, left, right = extent(text)
        assert top >= margin and bottom <= sheet.shape[0] - margin
        assert left >= margin - 1 and right <= sheet.shape[1] - margin

    def test_no_texts_take_no_room(self):
        shown = images(4, 20, 100)
        sheet = contact_sheet(shown, labels=[""] * 4, columns=2)
        (top, left), (below, _) = place(sheet, shown[0]), place(sheet, shown[2])
        assert below - top == 20 + left and sheet.shape == (40 + 3 * left, 200 + 3 * left, 3)
        assert (without(sheet, shown) == 1).all()

    def test_a_row_is_as_high_as_its_longest_label(self):
        shown = images(6, 40, 120)
        labels = ["a\nb\nc\nd", "a", "a", "a", "a", "a"]
        sheet = contact_sheet(shown, labels=labels, columns=2)
        tops = [place(sheet, image)[0] for image in shown]
        assert tops[1] == tops[0] and tops[2] - tops[0] > tops[4] - tops[2] + 30

    def test_colours_are_clipped(self):
        wild = np.array([[[-1, 0.5, 2], [np.nan, np.inf, -np.inf]]], np.float32)
        tame = np.array([[[0, 0.5, 1], [0, 1, 0]]], np.float32)
        assert place(contact_sheet([wild], labels=["wild"], columns=1), tame)

    def test_is_written(self, tmp_path):
        shown = [np.rint(image * 255) / np.float32(255) for image in images(3, 30, 40)]
        sheet = contact_sheet(shown, labels=["a", "b", "c"], columns=2, title="Three")
        save_image(tmp_path / "sheet.png", sheet)
        written = load_image(tmp_path / "sheet.png")
        np.testing.assert_allclose(written, sheet, atol=1e-6)
        assert [place(written, image) for image in shown]


class TestTexts:
    def test_each_label_is_beneath_its_image(self):
        shown = images(4, 50, 130)
        blank = contact_sheet(shown, labels=["x", "", "x", ""], columns=2)
        labelled = contact_sheet(shown, labels=["x", "second", "x", ""], columns=2)
        top, left = place(labelled, shown[1])
        changed = (blank != labelled).any(-1)
        rows, columns = np.nonzero(changed)
        assert changed.any() and rows.min() >= top + 50 and columns.min() >= left - 1
        assert rows.max() < place(labelled, shown[3])[0] and columns.max() < left + 130

    def test_texts_differ(self):
        shown = images(1, 50, 130)
        one, two = (contact_sheet(shown, labels=[text], columns=1) for text in ("1e3", "1e4"))
        assert one.shape == two.shape and (one != two).any()
        one, two = (
            contact_sheet(shown, labels=["a"], columns=1, title=text) for text in ("One", "Two")
        )
        assert one.shape == two.shape and (one != two).any()

    def test_are_dark_grey(self):
        shown = images(1, 50, 600)
        text = without(contact_sheet(shown, labels=["HHH"], columns=1), shown)
        assert 0.2 < text.min() < 0.35 and (text == text[..., :1]).all()

    @pytest.mark.parametrize("width, least, most", [(8, 7, 9), (300, 8, 12), (5000, 17, 23)])
    def test_size_follows_the_width(self, width, least, most):
        """A capital is about 0.7 of the size, which is from 11 to 28."""
        shown = images(1, 4, width)
        top, bottom, _, _ = extent(without(contact_sheet(shown, labels=["H"], columns=1), shown))
        assert least <= bottom - top <= most

    @pytest.mark.parametrize("height, width", [(40, 120), (8, 8), (40, 700)])
    @pytest.mark.parametrize("text", [LONG, "overlong" * 40, "W" * 200, "/a/b" * 60, "jÅ|ß_" * 50])
    def test_long_ones_are_wrapped(self, height, width, text):
        shown = images(2, height, width)
        short = contact_sheet(shown, labels=["a", "a"], columns=2)
        sheet = contact_sheet(shown, labels=[text, ""], columns=2)
        assert sheet.shape[1] == short.shape[1] and sheet.shape[0] > short.shape[0]
        margin, (_, second) = place(sheet, shown[0])[1], place(sheet, shown[1])
        _, bottom, left, right = extent(without(sheet, shown))
        assert left >= margin - 1 and right <= second - margin
        assert sheet.shape[0] - margin - 12 < bottom <= sheet.shape[0] - margin
        titled = contact_sheet(shown, labels=["", ""], columns=2, title=text)
        top, bottom, left, right = extent(without(titled, shown))
        assert top >= margin and bottom <= place(titled, shown[0])[0]
        assert left >= margin - 1 and right <= titled.shape[1] - margin

    def test_nothing_of_a_long_one_is_lost(self):
        """Wrapped, it has as much ink as on one line."""
        ink = []
        for width in (100, 230):
            shown = images(1, 10, width)  # both have text of 11 pixels
            text = without(
                contact_sheet(shown, labels=["one two three four " * 2], columns=1), shown
            )
            ink.append((1 - text).sum())
        shown = images(1, 10, 100)
        text = without(contact_sheet(shown, labels=["onetwothreefour" * 2], columns=1), shown)
        assert ink[0] == pytest.approx(ink[1], rel=0.02)
        assert (1 - text).sum() == pytest.approx(ink[0], rel=0.05)

    def test_pillows_limit_of_files_does_not_hold(self):
        shown, options = images(2, 20, 30), {"labels": ["one", "two"], "columns": 2}
        expected = contact_sheet(shown, title=LONG, **options)
        for limit in (10, None):
            Image.MAX_IMAGE_PIXELS = limit
            np.testing.assert_array_equal(contact_sheet(shown, title=LONG, **options), expected)
            assert Image.MAX_IMAGE_PIXELS == limit

    def test_lines_are_kept(self):
        shown = images(1, 10, 200)
        sheets = [
            contact_sheet(shown, labels=[text], columns=1) for text in ("a", "a\nb", "a\n\nb")
        ]
        heights = [sheet.shape[0] for sheet in sheets]
        assert heights[1] - heights[0] == heights[2] - heights[1] > 10

    @pytest.mark.parametrize("text", ["\udc80.png", "a\0b", "日本", "\t", "\r\n", "\u0301"])
    def test_odd_ones(self, text):
        assert len(contact_sheet(images(1, 8, 8), labels=[text], columns=1, title=text))


@pytest.mark.parametrize(
    "shown, labels, columns, message",
    [
        ([], [], 1, "0 images"),
        (images(2, 4, 4), ["a"], 1, "2 images, 1 labels"),
        (images(1, 4, 4), ["a", "b"], 1, "1 images, 2 labels"),
        (images(1, 4, 4), ["a"], 0, "0 columns"),
        (images(1, 4, 4) + images(1, 4, 5), ["a", "b"], 1, "one shape"),
        ([np.zeros((4, 4))], ["a"], 1, "one shape"),
        ([np.zeros((4, 4, 4))], ["a"], 1, "one shape"),
    ],
)
def test_wrong_calls(shown, labels, columns, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(shown, labels=labels, columns=columns)
