"""Masks and label images from files; expected values come from NumPy."""

import numpy as np
import pytest
from helpers.image_files import triangle_weights
from PIL import Image

from nst_jax.errors import InputError
from nst_jax.images import load_labels, load_mask
from nst_jax.images.masks import MAX_REGIONS, feather, mask_aspect_note, soft_edges_note

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def save(path, pixels, **options):
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(path, **options)
    return path


def resized(mask, shape):
    """The antialiased bilinear filter as two matrices."""
    rows, columns = (triangle_weights(old, new) for old, new in zip(mask.shape, shape, strict=True))
    return rows @ mask @ columns.T


class TestMask:
    def test_colour_becomes_luma(self, tmp_path):
        pixels = np.array([[RED, GREEN, BLUE, (255, 255, 255), (10, 100, 200)]])
        mask = load_mask(save(tmp_path / "a.png", pixels), shape=(1, 5))
        last = (0.299 * 10 + 0.587 * 100 + 0.114 * 200) / 255
        np.testing.assert_allclose(mask, [[0.299, 0.587, 0.114, 1, last]], atol=1e-6)
        assert mask.max() <= 1

    @pytest.mark.parametrize("shape", [(1, 4), (3, 9)])
    def test_transparent_is_outside(self, tmp_path, shape):
        pixels = np.full((1, 4, 4), 255)
        pixels[..., 3] = [255, 102, 0, 0]
        mask = load_mask(save(tmp_path / "a.png", pixels), shape=shape)
        np.testing.assert_allclose(mask, resized(np.array([[1, 0.4, 0, 0]]), shape), atol=1e-6)

    @pytest.mark.parametrize("shape", [(20, 31), (7, 5), (40, 9), (1, 1)])
    def test_grey_is_a_soft_edge_and_is_resized(self, tmp_path, shape):
        grey = np.random.default_rng(0).integers(0, 256, (20, 31))
        mask = load_mask(save(tmp_path / "a.png", grey), shape=shape)
        assert (
            mask.shape == shape and mask.dtype == np.float32 and 0 <= mask.min() <= mask.max() <= 1
        )
        np.testing.assert_allclose(mask, resized(grey / 255, shape), atol=2e-6)

    @pytest.mark.parametrize(
        "pixels, message",
        [
            (np.zeros((4, 4)), "is black everywhere: expected white inside its region"),
            ([[[255, 255, 255, 0]]], "is black everywhere"),
            # 0 and 1 instead of 0 and 255.
            (np.eye(4), "the brightest pixel of .* is 0.0039, where 1 is white: expected"),
        ],
    )
    def test_black_mask_is_refused(self, tmp_path, pixels, message):
        path = save(tmp_path / "a.png", pixels)
        with pytest.raises(InputError, match=message) as caught:
            load_mask(path, shape=(4, 4))
        assert f"the mask {path} " in str(caught.value)


LABELS = np.array([RED, BLACK, BLUE, (0, 1, 0)])
INDICES = np.random.default_rng(0).integers(0, 4, (12, 17))
ASCENDING = [BLACK, BLUE, (0, 1, 0), RED]
MASKS = np.array([INDICES == index for index in (1, 2, 3, 0)])


class TestLabels:
    def test_colours_are_in_ascending_order(self, tmp_path):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        colors, masks = load_labels(path, shape=(12, 17))
        assert colors == ASCENDING
        assert all(type(channel) is int for color in colors for channel in color)
        assert masks.dtype == np.float32
        np.testing.assert_array_equal(masks, MASKS)

    @pytest.mark.parametrize("shape", [(5, 4), (24, 3), (1, 1)])
    def test_masks_are_resized_and_add_up(self, tmp_path, shape):
        _, masks = load_labels(save(tmp_path / "a.png", LABELS[INDICES]), shape=shape)
        expected = [resized(mask.astype(float), shape) for mask in MASKS]
        np.testing.assert_allclose(masks, expected, atol=1e-6)
        np.testing.assert_allclose(masks.sum(0), 1, atol=1e-6)

    def test_chosen_colours(self, tmp_path):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        colors, masks = load_labels(path, shape=(12, 17), colors=[RED, BLACK])
        assert colors == [RED, BLACK]
        np.testing.assert_array_equal(masks, MASKS[[3, 0]])
        for color, name in (((1, 171, 0), "#01ab00"), ((0, 0, 256), "#0000100")):
            match = f"{path} has no pixel of the colour {name}: .*#000000 #0000ff #000100"
            with pytest.raises(InputError, match=match):
                load_labels(path, shape=(12, 17), colors=[RED, color])

    def test_number_of_colours(self, tmp_path):
        ramp = np.arange(MAX_REGIONS + 1)[None] * 7
        colors, masks = load_labels(save(tmp_path / "a.png", ramp[:, 1:]), shape=(3, 9))
        assert len(colors) == len(masks) == MAX_REGIONS
        for pixels, match in (
            (ramp, "has 33 colours: expected at most 32, .* save it as PNG, with hard edges"),
            (ramp[:, :1], "has only one colour: expected two or more"),
        ):
            with pytest.raises(InputError, match=match):
                load_labels(save(tmp_path / "b.png", pixels), shape=(3, 9))

    def test_palette_and_transparency(self, tmp_path):
        """Labels may be a palette; their transparency is ignored."""
        alpha = np.arange(12 * 17).reshape(12, 17)
        save(tmp_path / "a.png", np.dstack([LABELS[INDICES], alpha]))
        image = Image.fromarray(INDICES.astype(np.uint8))
        image.putpalette(LABELS.astype(np.uint8).tobytes())
        image.save(tmp_path / "b.png")
        image.save(tmp_path / "c.png", transparency=bytes([0, 50, 255, 0]))
        for path in tmp_path.iterdir():
            colors, masks = load_labels(path, shape=(12, 17))
            assert colors == ASCENDING
            np.testing.assert_array_equal(masks, MASKS)

    def test_soft_edges_are_noted(self, tmp_path):
        hard = np.zeros((40, 60), np.uint8)
        hard[10:30, 10:40] = 200
        soft = hard.copy()
        soft[10, 10:13], soft[10, 13:16] = 50, 120  # two more colours of a few pixels
        path = save(tmp_path / "a.png", hard)
        assert soft_edges_note(path, load_labels(path, shape=(40, 60))[1]) is None
        note = soft_edges_note(path, load_labels(save(path, soft), shape=(40, 60))[1])
        assert note.startswith("2 of the 4 colours of the label image") and "hard edges" in note


def partition(regions, height, width):
    """Random masks that add up to 1."""
    masks = np.random.default_rng(0).random((regions, height, width))
    return (masks / masks.sum(0)).astype(np.float32)


class TestFeather:
    @pytest.mark.parametrize("height, width", [(30, 41), (1, 5), (1, 1)])
    @pytest.mark.parametrize("radius", [0.1, 1, 12])
    def test_agrees_with_a_direct_convolution(self, height, width, radius):
        radius = min(radius, width)
        masks = partition(2, height, width)
        reach = int(3 * radius + 0.5)
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
        taps /= taps.sum()

        def blur(line):
            return np.convolve(np.pad(line, reach, mode="edge"), taps, mode="valid")

        expected = np.apply_along_axis(blur, 2, np.apply_along_axis(blur, 1, np.float64(masks)))
        found = feather(masks, radius=radius)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)

    @pytest.mark.parametrize("radius", [0, 5e-324, 3, 33])
    def test_masks_still_add_up(self, radius):
        masks = partition(3, 20, 33)
        found = feather(masks, radius=radius)
        np.testing.assert_allclose(found.sum(0), 1, atol=3e-6)
        assert found.min() >= 0 and found.max() <= 1
        if radius == 0:
            np.testing.assert_array_equal(found, masks)

    @pytest.mark.parametrize("radius", [-1e-9, 7, np.nan, np.inf])
    def test_radius_out_of_range(self, radius):
        match = f"feather radius is {radius}: expected 0 to the image's 6 pixels"
        with pytest.raises(InputError, match=match):
            feather(partition(2, 5, 6), radius=radius)


def test_aspect_ratios_over_5_percent_apart_are_noted(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((40, 60)))
    for shape in ((40, 60), (400, 600), (100, 156), (100, 144), (2, 3)):
        assert mask_aspect_note(path, shape=shape) is None
    for height, width in ((60, 40), (100, 159), (100, 142)):
        assert mask_aspect_note(path, shape=(height, width)) == (
            f"the mask {path} is 60x40 px and its image {width}x{height} px: the mask is stretched"
        )
