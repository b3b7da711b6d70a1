"""Masks from files. Expected values are NumPy's and SciPy's."""

import numpy as np
import pytest
from helpers.image_files import STORED, orientation, triangle_weights
from PIL import Image

from nst_jax.errors import InputError
from nst_jax.images import load_labels, load_mask
from nst_jax.images.masks import MAX_REGIONS, feather, mask_aspect_note, soft_edges_note

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def save(path, pixels, **options):
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(path, **options)
    return path


def scaled(mask, shape):
    """The antialiased linear filter by matrices."""
    rows, columns = (triangle_weights(old, new) for old, new in zip(mask.shape, shape, strict=True))
    return rows @ mask @ columns.T


def one_line(caught, *texts):
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and all(text in message for text in texts)


class TestMask:
    def test_grey_is_a_soft_edge(self, tmp_path):
        grey = np.arange(24).reshape(4, 6) * 11
        mask = load_mask(save(tmp_path / "a.png", grey), shape=(4, 6))
        assert mask.dtype == np.float32 and 0 <= mask.min() and mask.max() <= 1
        np.testing.assert_allclose(mask, grey / 255, atol=1e-6)

    def test_colour_is_its_luminance(self, tmp_path):
        pixels = np.array([[RED, GREEN, BLUE, (255, 255, 255), (10, 100, 200)]])
        mask = load_mask(save(tmp_path / "a.png", pixels), shape=(1, 5))
        last = (0.299 * 10 + 0.587 * 100 + 0.114 * 200) / 255
        np.testing.assert_allclose(mask, [[0.299, 0.587, 0.114, 1, last]], atol=1e-6)
        assert mask.max() <= 1

    def test_16_bit(self, tmp_path):
        values = np.array([[0, 1000], [40000, 65535]], np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        mask = load_mask(tmp_path / "a.png", shape=(2, 2))
        np.testing.assert_allclose(mask, values / 65535, atol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 4), (3, 9)])
    def test_transparent_is_outside(self, tmp_path, shape):
        """Also at the edges of a resized one."""
        pixels = np.full((1, 4, 4), 255)
        pixels[..., 3] = [255, 102, 0, 0]
        mask = load_mask(save(tmp_path / "a.png", pixels), shape=shape)
        np.testing.assert_allclose(mask, scaled(np.array([[1, 0.4, 0, 0]]), shape), atol=1e-6)

    @pytest.mark.parametrize("shape", [(7, 5), (40, 9), (3, 100), (1, 1), (20, 31)])
    def test_is_resized_to_the_shape(self, tmp_path, shape):
        grey = np.random.default_rng(0).integers(0, 256, (20, 31))
        mask = load_mask(save(tmp_path / "a.png", grey), shape=shape)
        assert mask.shape == shape and mask.dtype == np.float32
        np.testing.assert_allclose(mask, scaled(grey / 255, shape), atol=2e-6)

    @pytest.mark.parametrize("pixels", [np.zeros((4, 4)), [[[255, 255, 255, 0]]]])
    def test_a_black_one_is_refused(self, tmp_path, pixels):
        path = save(tmp_path / "a.png", pixels)
        with pytest.raises(InputError) as caught:
            load_mask(path, shape=(4, 4))
        one_line(caught, str(path), "marks nothing", "white")

    def test_a_missing_one(self, tmp_path):
        with pytest.raises(InputError, match="a.png does not exist"):
            load_mask(tmp_path / "a.png", shape=(4, 4))


LABELS = np.array([RED, BLACK, BLUE, (0, 1, 0)])
INDICES = np.random.default_rng(0).integers(0, 4, (12, 17))


class TestLabels:
    def test_colours_ascend(self, tmp_path):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        colors, masks = load_labels(path, shape=(12, 17))
        assert colors == [BLACK, BLUE, (0, 1, 0), RED]
        assert all(type(channel) is int for color in colors for channel in color)
        assert masks.dtype == np.float32
        np.testing.assert_array_equal(masks, [INDICES == index for index in (1, 2, 3, 0)])

    @pytest.mark.parametrize("shape", [(5, 4), (40, 50), (24, 3), (1, 1)])
    def test_masks_are_resized_and_add_up(self, tmp_path, shape):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        _, masks = load_labels(path, shape=shape)
        expected = [scaled((INDICES == index).astype(float), shape) for index in (1, 2, 3, 0)]
        np.testing.assert_allclose(masks, expected, atol=1e-6)
        np.testing.assert_allclose(masks.sum(0), 1, atol=1e-6)

    def test_asked_for(self, tmp_path):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        colors, masks = load_labels(path, shape=(12, 17), colors=[RED, BLACK])
        assert colors == [RED, BLACK]
        np.testing.assert_array_equal(masks, [INDICES == 0, INDICES == 1])

    def test_a_missing_colour_is_named(self, tmp_path):
        path = save(tmp_path / "a.png", LABELS[INDICES])
        with pytest.raises(InputError) as caught:
            load_labels(path, shape=(12, 17), colors=[RED, (1, 171, 0)])
        one_line(caught, str(path), "no pixel of the colour #01ab00", "#000000 #0000ff #000100")
        with pytest.raises(InputError, match="no pixel of the colour"):  # no alias of (0, 1, 0)
            load_labels(path, shape=(12, 17), colors=[(0, 0, 256)])

    def test_number_of_colours(self, tmp_path):
        ramp = np.arange(MAX_REGIONS + 1)[None] * 7
        colors, masks = load_labels(save(tmp_path / "a.png", ramp[:, 1:]), shape=(3, 9))
        assert len(colors) == len(masks) == MAX_REGIONS
        path = save(tmp_path / "b.png", ramp)
        with pytest.raises(InputError) as caught:
            load_labels(path, shape=(3, 9))
        one_line(caught, str(path), "has 33 colours", "at most 32", "PNG", "hard edges")

    def test_one_colour(self, tmp_path):
        path = save(tmp_path / "a.png", np.full((4, 4), 90))
        with pytest.raises(InputError) as caught:
            load_labels(path, shape=(4, 4))
        one_line(caught, str(path), "one colour only", "two or more")

    def test_of_a_palette(self, tmp_path):
        image = Image.fromarray(INDICES.astype(np.uint8))
        image.putpalette(LABELS.astype(np.uint8).tobytes())
        image.save(tmp_path / "a.png")
        colors, masks = load_labels(tmp_path / "a.png", shape=(12, 17))
        assert colors == [BLACK, BLUE, (0, 1, 0), RED]
        np.testing.assert_array_equal(masks[3], INDICES == 0)

    def test_transparency_is_ignored(self, tmp_path):
        alpha = np.arange(12 * 17).reshape(12, 17)
        path = save(tmp_path / "a.png", np.dstack([LABELS[INDICES], alpha]))
        colors, masks = load_labels(path, shape=(12, 17))
        assert colors == [BLACK, BLUE, (0, 1, 0), RED]
        np.testing.assert_array_equal(masks, [INDICES == index for index in (1, 2, 3, 0)])
        image = Image.fromarray(INDICES.astype(np.uint8))
        image.putpalette(LABELS.astype(np.uint8).tobytes())
        image.save(tmp_path / "b.png", transparency=bytes([0, 50, 255, 0]))
        again, of_palette = load_labels(tmp_path / "b.png", shape=(12, 17))
        assert again == colors
        np.testing.assert_array_equal(of_palette, masks)

    @pytest.mark.parametrize("transparent", [False, True])
    def test_orientation(self, tmp_path, transparent):
        pixels = np.dstack([LABELS[INDICES], 0 * INDICES]) if transparent else LABELS[INDICES]
        save(tmp_path / "a.png", STORED[6](pixels), exif=orientation(6))
        _, masks = load_labels(tmp_path / "a.png", shape=(12, 17))
        np.testing.assert_array_equal(masks[3], INDICES == 0)


def parts(regions, height, width, *, seed=0):
    """Random masks that add up to 1."""
    masks = np.random.default_rng(seed).random((regions, height, width))
    return (masks / masks.sum(0)).astype(np.float32)


class TestFeather:
    @pytest.mark.parametrize("height, width", [(30, 41), (1, 5), (1, 1)])
    @pytest.mark.parametrize("radius", [0.1, 0.5, 1, 2.7, 12])
    def test_agrees_with_a_direct_convolution(self, height, width, radius):
        radius = min(radius, width)
        masks = parts(2, height, width)
        reach = int(3 * radius + 0.5)
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
        taps /= taps.sum()

        def blur(line):
            return np.convolve(np.pad(line, reach, mode="edge"), taps, mode="valid")

        expected = np.apply_along_axis(blur, 2, np.apply_along_axis(blur, 1, np.float64(masks)))
        found = feather(masks, radius=radius)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)

    @pytest.mark.parametrize("radius", [0, 5e-324, 0.3, 3, 33])
    def test_masks_still_add_up(self, radius):
        masks = parts(3, 20, 33)
        found = feather(masks, radius=radius)
        np.testing.assert_allclose(found.sum(0), 1, atol=3e-6)
        assert found.min() >= 0 and found.max() <= 1

    def test_zero_changes_nothing(self):
        masks = parts(2, 5, 6)
        np.testing.assert_array_equal(feather(masks, radius=0), masks)

    def test_what_is_far_from_an_edge_stays(self):
        masks = np.zeros((1, 40, 300), np.float32)
        masks[..., 150:] = 1
        found = feather(masks, radius=4)
        np.testing.assert_array_equal(found[..., :138], 0)
        np.testing.assert_allclose(found[..., 162:], 1, atol=1e-6)
        assert (np.diff(found[0, 0, 138:162]) > 0).all()

    @pytest.mark.parametrize("radius", [-1, -1e-9, 7, np.nan, np.inf])
    def test_wrong_radius(self, radius):
        with pytest.raises(InputError) as caught:
            feather(parts(2, 5, 6), radius=radius)
        one_line(caught, "feather radius", str(radius), "expected 0 to")


class TestAspect:
    @pytest.mark.parametrize("shape", [(40, 60), (400, 600), (100, 156), (100, 144), (2, 3)])
    def test_the_same_or_close(self, tmp_path, shape):
        path = save(tmp_path / "a.png", np.zeros((40, 60)))
        assert mask_aspect_note(path, shape=shape) is None

    @pytest.mark.parametrize("height, width", [(60, 40), (100, 159), (100, 142), (40, 40)])
    def test_another(self, tmp_path, height, width):
        path = save(tmp_path / "a.png", np.zeros((40, 60)))
        expected = f"the mask {path} is 60x40 px, its image {width}x{height} px: it is stretched"
        assert mask_aspect_note(path, shape=(height, width)) == expected

    @pytest.mark.parametrize("number", STORED)
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
    def test_of_the_upright_mask(self, tmp_path, number, suffix):
        stored = STORED[number](np.zeros((40, 60), np.uint8))
        path = save(tmp_path / f"a.{suffix}", stored, exif=orientation(number))
        assert mask_aspect_note(path, shape=(80, 120)) is None
        assert "60x40" in mask_aspect_note(path, shape=(120, 80))

    def test_jpeg_pixels_are_not_read(self, tmp_path):
        path = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (40, 60)))
        path.write_bytes(path.read_bytes()[:700])
        assert mask_aspect_note(path, shape=(40, 60)) is None

    @pytest.mark.parametrize("data", [None, b"", b"a text"])
    def test_no_image(self, tmp_path, data):
        if data is not None:
            (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(InputError) as caught:
            mask_aspect_note(tmp_path / "a.png", shape=(4, 4))
        one_line(caught, "a.png", "image")


def test_a_mask_of_zeros_and_ones_out_of_255_is_told(tmp_path):
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[5:15, 5:20] = 1
    path = tmp_path / "ones.png"
    Image.fromarray(mask).save(path)
    with pytest.raises(InputError, match="no brighter pixel than 0.0039 of white"):
        load_mask(path, shape=(20, 30))


def test_labels_with_soft_edges_are_told(tmp_path):
    hard = np.zeros((40, 60), np.uint8)
    hard[10:30, 10:40] = 200
    soft = hard.copy()
    soft[10, 10:13], soft[10, 13:16] = 50, 120  # two further colours of a few pixels
    for name, image, told in (("hard", hard, False), ("soft", soft, True)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.repeat(image[..., None], 3, -1)).save(path)
        _, masks = load_labels(path, shape=(40, 60))
        note = soft_edges_note(path, masks)
        assert bool(note) == told
    assert note is not None and note.startswith("2 of the 4 colours") and "hard ones" in note
