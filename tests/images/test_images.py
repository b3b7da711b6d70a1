"""Read, resize and write images: transparency, sizes, refused files, limits, header-only reads.

Files are made by Pillow or by hand; expected values come from NumPy.
"""

import math
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from helpers.image_files import chunk, orientation, triangle_weights
from PIL import Image, features

from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image, to_uint8
from nst_jax.images.read import image_shape, limit_pixels, load_rgba, resize_longer

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # asymmetrical
ALPHA = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7)


class TestTransparency:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_load_rgba_keeps_alpha_and_load_image_composites_over_white(self, tmp_path, mode):
        image = Image.fromarray(np.dstack([PIXELS[..., :1].repeat(3, 2), ALPHA])).convert(mode)
        image.save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        opacity = ALPHA / 255
        np.testing.assert_array_equal(alpha, opacity.astype(np.float32))
        straight = np.where(opacity > 0, PIXELS[..., 0] / 255, 1)
        np.testing.assert_allclose(rgb, np.dstack([straight] * 3), atol=1e-6)
        over_white = opacity * PIXELS[..., 0] / 255 + (1 - opacity)
        shown = load_image(tmp_path / "a.png")
        np.testing.assert_allclose(shown, np.dstack([over_white] * 3), atol=1e-6)

    def test_round_trip_is_exact(self, tmp_path):
        """Partly transparent pixels are not mixed with white a second time."""
        pixels = np.dstack([PIXELS, ALPHA])
        Image.fromarray(pixels).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        save_image(tmp_path / "b.png", rgb, alpha=alpha)
        again = np.asarray(Image.open(tmp_path / "b.png"))
        np.testing.assert_array_equal(again[ALPHA > 0], pixels[ALPHA > 0])

    def test_hidden_colours_do_not_bleed_when_resized(self, tmp_path):
        """A red square beside invisible green ones stays red when it is shrunk."""
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[:, :4], pixels[:, 4:] = (255, 0, 0, 255), (0, 255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png", size=3)
        assert alpha[1, 0] == 1 and 0 < alpha[1, 1] < 1 and alpha[1, 2] == 0
        np.testing.assert_allclose(rgb[alpha > 0], [[1, 0, 0]] * 6, atol=1e-5)

    def test_opaque_alpha_is_none(self, tmp_path):
        opaque = np.full((5, 7), 255, np.uint8)
        Image.fromarray(np.dstack([PIXELS, opaque])).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        assert alpha is None
        np.testing.assert_array_equal(rgb, PIXELS / np.float32(255))


class TestSize:
    @pytest.mark.parametrize(
        "height, width, size",
        [(40, 31, 20), (31, 40, 100), (9, 64, 32), (64, 3, 10), (100, 1, 7)],
    )
    def test_resizing_is_an_antialiased_bilinear_filter(self, height, width, size):
        image = np.random.default_rng(1).random((height, width, 3), np.float32)
        resized = resize_longer(image, size=size)
        scale = size / max(height, width)
        assert resized.shape == (max(1, round(scale * height)), max(1, round(scale * width)), 3)
        assert max(resized.shape) == size and resized.dtype == np.float32
        rows = triangle_weights(height, resized.shape[0])
        columns = triangle_weights(width, resized.shape[1])
        expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns)
        np.testing.assert_allclose(resized, expected, atol=2e-6)

    def test_loading_resizes_to_the_longer_side(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        whole = PIXELS / np.float32(255)
        for size in (None, 7, 3, 21):
            expected = whole if size is None else resize_longer(whole, size=size)
            np.testing.assert_array_equal(load_image(tmp_path / "a.png", size=size), expected)
        for read in (load_image, image_shape):
            with pytest.raises(InputError, match="size is 0: expected at least 1 pixel"):
                read(tmp_path / "a.png", size=0)


class TestSaving:
    def test_values_are_clipped_and_rounded(self):
        values = [-np.inf, -1, 0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 1, 7, np.inf]
        assert to_uint8(values).tolist() == [0, 0, 0, 0, 1, 100, 101, 255, 255, 255]
        assert to_uint8(np.nan) == 0

    def test_unknown_suffix_is_refused(self, tmp_path):
        for name in ("a", "a.gif", ".png", "a.png.txt"):
            with pytest.raises(InputError, match="suffix.*one of .png .jpg .jpeg .webp .tif .tiff"):
                save_image(tmp_path / name, PIXELS / 255)
        assert os.listdir(tmp_path) == []

    def test_full_disk_leaves_the_old_file(self, tmp_path):
        save_image(tmp_path / "a.png", PIXELS / 255)
        old = (tmp_path / "a.png").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # fails as a full disk does
        try:
            with pytest.raises(OSError, match="File too large"):
                save_image(tmp_path / "a.png", np.random.default_rng(0).random((100, 100, 3)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


def png_of_size(width, height):
    """A PNG whose header claims a size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    )


def encoded(folder, kind):
    """The bytes of a 20 x 30 image file; kind "16" is a PNG with 16-bit grey."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    if kind == "16":
        pixels, kind = pixels[..., 0].astype(np.uint16) * 257, "png"
    path = folder / f"good.{kind}"
    Image.fromarray(pixels).save(path, **({} if kind == "gif" else {"exif": orientation(6)}))
    return path.read_bytes()


KINDS = ["png", "16", "jpg", "webp", "tif", "gif"] + ["avif"] * features.check("avif")


class TestRefusedFiles:
    @pytest.mark.parametrize(
        "data, message",
        [
            (None, "does not exist"),
            (b"", "is empty"),
            (b"a text, no image\n" * 9, "is not an image in a known format: expected PNG"),
            (bytes(500), "is not an image"),
            (png_of_size(0, 5), "is not an image"),
            (png_of_size(5, 5)[:20], "cannot read the image|is not an image"),
            (png_of_size(50_000, 50_000), "a.png has 2500 megapixels: .*max_megapixels to 2500"),
        ],
    )
    def test_one_line_says_why(self, tmp_path, data, message):
        path = tmp_path / "a.png"
        if data is not None:
            path.write_bytes(data)
        messages = []
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match=message) as caught:
                read(path)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        assert str(path) in messages[0] and len(messages[0].splitlines()) == 1

    def test_paths_that_are_not_regular_files(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        for path, message in (
            (tmp_path, "is a directory"),
            (tmp_path / "a.png" / "b.png", "does not exist"),
            (tmp_path / ("x" * 300), "does not exist"),
            ("/dev/zero", "/dev/zero is not a regular file: expected one, or - for standard"),
        ):
            for read in (load_rgba, image_shape):
                with pytest.raises(InputError, match=message):
                    read(path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_truncated_file(self, tmp_path, kind):
        data = encoded(tmp_path, kind)
        for fraction in (0.02, 0.3, 0.9):
            (tmp_path / "cut").write_bytes(data[: int(fraction * len(data))])
            with pytest.raises(InputError, match="cut"):
                load_rgba(tmp_path / "cut")


class TestPixelLimit:
    def test_is_checked_before_pixels_are_decoded(self, tmp_path):
        """The pixels of this file, which compresses well, cannot be decoded."""
        path = tmp_path / "a.png"
        Image.new("1", (10_000, 10_000)).save(path)
        data = path.read_bytes()
        assert len(data) < 50_000
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError) as caught:
            load_rgba(path)
        assert str(caught.value) == (
            f"{path} has 100 megapixels: expected at most 89.478485; to read it anyway, raise "
            "max_megapixels to 100, or raise PIL.Image.MAX_IMAGE_PIXELS in Python"
        )
        for limit in (10**8, None):
            Image.MAX_IMAGE_PIXELS = limit
            assert image_shape(path, size=20) == (20, 20)

    @pytest.mark.parametrize("kind", KINDS)
    def test_counts_the_pixels(self, tmp_path, kind):
        path = tmp_path / "image"
        path.write_bytes(encoded(tmp_path, kind))  # 600 pixels
        for megapixels in (0.0006, 1e300):
            limit_pixels(megapixels)
            assert image_shape(path) == load_rgba(path).rgb.shape[:2]
        for megapixels in (0.000599, 0.000299, 1e-9):  # Pillow itself raises below half
            limit_pixels(megapixels)
            for read in (image_shape, load_rgba):
                with pytest.raises(InputError, match="has 0.0006 megapixels: .*megapixels to 1"):
                    read(path)

    @pytest.mark.parametrize("kind", ["png", "bmp"])
    def test_applies_to_the_image_inside_an_icon(self, tmp_path, kind):
        """The size in an icon's directory may be wrong."""
        path = tmp_path / "a.ico"
        Image.new("RGB", (40, 30)).save(path, sizes=[(40, 30)], bitmap_format=kind)
        data = path.read_bytes()
        assert tuple(data[6:8]) == (40, 30)
        path.write_bytes(data[:6] + bytes([16, 16]) + data[8:])
        assert load_rgba(path).rgb.shape == (30, 40, 3)
        for megapixels in (0.0011, 0.0005):
            limit_pixels(megapixels)
            with pytest.raises(InputError, match="a.ico has .* megapixels: expected at most 0.00"):
                load_rgba(path)

    @pytest.mark.parametrize("megapixels", [0, -1, math.nan, math.inf, 1e308])
    def test_is_a_positive_number(self, megapixels):
        with pytest.raises(InputError, match="max_megapixels is .*: expected a number above 0"):
            limit_pixels(megapixels)
        assert Image.MAX_IMAGE_PIXELS == 89_478_485


class TestHeader:
    @pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
    @pytest.mark.parametrize("kind", ["exif", "profile", "xmp", "other"])
    def test_orientation_in_other_chunks_of_a_png(self, tmp_path, kind, place):
        """Some tools write it after the pixels, or as a text."""
        exif, xmp = orientation(6).tobytes(), b'<x tiff:Orientation="6"/>'
        profile = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
        added = {
            "exif": chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")),
            "profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
            "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
            "other": chunk(b"tEXt", b"Comment\0" + xmp),
        }[kind]
        path = tmp_path / "a.png"
        Image.new("RGB", (9, 4)).save(path)
        data = path.read_bytes()
        start = data.index(place) - 4
        path.write_bytes(data[:start] + added + data[start:])
        expected = (4, 9) if kind == "other" else (9, 4)
        assert image_shape(path) == load_rgba(path).rgb.shape[:2] == expected

    @pytest.mark.parametrize("kind", ["png", "jpg"])
    def test_pixels_are_not_decoded(self, tmp_path, kind):
        data = encoded(tmp_path, kind)
        (tmp_path / "cut").write_bytes(data[: int(0.9 * len(data))])
        with pytest.raises(InputError, match="truncated"):
            load_rgba(tmp_path / "cut")
        assert image_shape(tmp_path / "cut") == (30, 20)
        assert image_shape(tmp_path / "cut", size=60) == (60, 40)
