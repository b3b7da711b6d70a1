"""Reading, scaling and writing images. Files are made by Pillow or by hand, expected values by
NumPy."""

import math
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from helpers.image_files import STORED, chunk, orientation, triangle_weights
from PIL import Image, features

from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image, to_uint8
from nst_jax.images.read import image_shape, limit_pixels, load_rgba, resize_longer

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # asymmetrical
ALPHA = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7)
LOSSLESS = [".png", ".webp", ".tif", ".tiff"]


class TestDecoding:
    @pytest.mark.parametrize("number", STORED)
    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    def test_orientation_of_a_grey_tiff(self, tmp_path, number, compression):
        stored = Image.fromarray(np.ascontiguousarray(STORED[number](ALPHA)))
        stored.save(tmp_path / "a.tif", exif=orientation(number), compression=compression)
        found = load_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(found[..., 0], ALPHA / np.float32(255))

    @pytest.mark.parametrize("value", [np.nan, -0.1, 255])
    def test_floats_of_an_unknown_range_are_refused(self, tmp_path, value):
        Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match="a.tif is an image of floats outside of 0 to 1"):
            load_image(tmp_path / "a.tif")


class TestTransparency:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_is_shown_over_white_and_kept(self, tmp_path, mode):
        image = Image.fromarray(np.dstack([PIXELS[..., :1].repeat(3, 2), ALPHA])).convert(mode)
        image.save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        share = ALPHA / 255
        np.testing.assert_array_equal(alpha, share.astype(np.float32))
        straight = np.where(share > 0, PIXELS[..., 0] / 255, 1)
        np.testing.assert_allclose(rgb, np.dstack([straight] * 3), atol=1e-6)
        over_white = share * PIXELS[..., 0] / 255 + (1 - share)
        shown = load_image(tmp_path / "a.png")
        np.testing.assert_allclose(shown, np.dstack([over_white] * 3), atol=1e-6)

    def test_round_trip_is_exact(self, tmp_path):
        """What is partly transparent is not mixed with white a second time."""
        pixels = np.dstack([PIXELS, ALPHA])
        Image.fromarray(pixels).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        save_image(tmp_path / "b.png", rgb, alpha=alpha)
        again = np.asarray(Image.open(tmp_path / "b.png"))
        np.testing.assert_array_equal(again[ALPHA > 0], pixels[ALPHA > 0])

    def test_hidden_colours_do_not_bleed(self, tmp_path):
        """A red square beside invisible green ones stays red when it is shrunk."""
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[:, :4], pixels[:, 4:] = (255, 0, 0, 255), (0, 255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png", size=3)
        assert 0 < alpha[1, 1] < 1
        np.testing.assert_allclose(rgb[alpha > 0], [[1, 0, 0]] * 6, atol=1e-5)

    def test_a_full_channel_is_none(self, tmp_path):
        opaque = np.full((5, 7), 255, np.uint8)
        Image.fromarray(np.dstack([PIXELS, opaque])).save(tmp_path / "a.png")
        rgb, alpha = load_rgba(tmp_path / "a.png")
        assert alpha is None
        np.testing.assert_array_equal(rgb, PIXELS / np.float32(255))

    def test_is_scaled_with_the_image(self, tmp_path):
        alpha = np.repeat([[0, 255]], [3, 3], axis=1).repeat(4, axis=0).astype(np.uint8)
        Image.fromarray(np.dstack([np.zeros((4, 6, 3), np.uint8), alpha])).save(tmp_path / "a.png")
        rgb, scaled = load_rgba(tmp_path / "a.png", size=12)
        assert rgb.shape == (8, 12, 3) and scaled.shape == (8, 12)
        assert (scaled[:, :5] == 0).all() and (scaled[:, -5:] == 1).all()

    def test_jpeg_cannot_hold_it(self, tmp_path):
        with pytest.raises(InputError, match="transparent.*JPEG.*a.jpg .png"):
            save_image(tmp_path / "a.jpg", PIXELS / 255, alpha=ALPHA / 255)
        assert os.listdir(tmp_path) == []


SIZES = [(40, 31, 20), (40, 31, 13), (31, 40, 100), (9, 64, 32), (64, 3, 10), (100, 1, 7)]


class TestSize:
    @pytest.mark.parametrize("height, width, size", SIZES)
    def test_filter(self, height, width, size):
        image = np.random.default_rng(1).random((height, width, 3), np.float32)
        scaled = resize_longer(image, size=size)
        scale = size / max(height, width)
        assert scaled.shape == (max(1, round(scale * height)), max(1, round(scale * width)), 3)
        assert max(scaled.shape) == size and scaled.dtype == np.float32
        rows = triangle_weights(height, scaled.shape[0])
        columns = triangle_weights(width, scaled.shape[1])
        expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns)
        np.testing.assert_allclose(scaled, expected, atol=2e-6)

    @pytest.mark.parametrize("size", [3, 5, 21])
    def test_agrees_with_pillow(self, tmp_path, size):
        image = Image.fromarray(PIXELS)
        image.save(tmp_path / "a.png")
        scaled = load_image(tmp_path / "a.png", size=size)
        expected = image.resize((size, round(size * 5 / 7)), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(scaled * 255, np.asarray(expected), atol=1.01)

    def test_its_own_and_none_change_nothing(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        for size in (None, 7):
            found = load_image(tmp_path / "a.png", size=size)
            np.testing.assert_array_equal(found, PIXELS / np.float32(255))

    @pytest.mark.parametrize("size", [0, -5])
    def test_is_positive(self, tmp_path, size):
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        with pytest.raises(InputError, match=f"size is {size}"):
            load_image(tmp_path / "a.png", size=size)


class TestSaving:
    def test_rounds_and_clips(self):
        values = [-np.inf, -1, 0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 1, 7, np.inf]
        assert to_uint8(values).tolist() == [0, 0, 0, 0, 1, 100, 101, 255, 255, 255]
        assert to_uint8(np.nan) == 0

    @pytest.mark.parametrize("suffix", [*LOSSLESS, ".PNG"])
    def test_round_trip_is_exact(self, tmp_path, suffix):
        every = np.arange(256, dtype=np.uint8).reshape(16, 16)
        pixels = np.dstack([every, every[::-1], every.T])
        path = tmp_path / f"a{suffix}"
        save_image(path, pixels / np.float32(255))
        np.testing.assert_array_equal(load_image(path), pixels / np.float32(255))

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
    def test_jpeg_is_close(self, tmp_path, suffix):
        pixels = np.kron([[0, 1], [0.7, 0.3]], np.ones((16, 16)))[..., None] * [1, 0.5, 0]
        save_image(tmp_path / f"a{suffix}", pixels)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.format == "JPEG"
        np.testing.assert_allclose(load_image(tmp_path / f"a{suffix}"), pixels, atol=0.03)

    @pytest.mark.parametrize("name", ["a", "a.gif", "a.bmp", ".png", "a.png.txt"])
    def test_unknown_suffix(self, tmp_path, name):
        with pytest.raises(InputError, match="suffix.*one of .png .jpg .jpeg .webp .tif .tiff"):
            save_image(tmp_path / name, PIXELS / 255)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("bits", [8, 16])
    def test_failure_leaves_the_old_file(self, tmp_path, bits):
        save_image(tmp_path / "a.png", PIXELS / 255)
        old = (tmp_path / "a.png").read_bytes()
        larger = np.random.default_rng(0).random((100, 100, 3))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as of a disk that is full
        try:
            with pytest.raises(OSError, match="File too large"):
                save_image(tmp_path / "a.png", larger, bit_depth=bits)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


def png_of_size(width, height):
    """A PNG whose header names a size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    )


def encoded(folder, kind):
    """A sound image file, as bytes; "16" is a PNG of 16-bit grey."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    if kind == "16":
        pixels, kind = pixels[..., 0].astype(np.uint16) * 257, "png"
    path = folder / f"good.{kind}"
    Image.fromarray(pixels).save(path, **({} if kind == "gif" else {"exif": orientation(6)}))
    return path.read_bytes()


KINDS = ["png", "16", "jpg", "webp", "tif", "gif"] + ["avif"] * features.check("avif")


class TestBadFiles:
    @pytest.mark.parametrize(
        "data, message",
        [
            (None, "does not exist"),
            (b"", "is empty"),
            (b"a text, no image\n" * 9, "is no image"),
            (bytes(500), "is no image"),
            (png_of_size(0, 5), "is no image"),
            (png_of_size(5, 5), "cannot read the image .* truncated"),
            (png_of_size(50_000, 50_000), "a.png has 2500 megapixels: .*max_megapixels to 2500"),
        ],
    )
    def test_one_line_says_why(self, tmp_path, data, message):
        path = tmp_path / "a.png"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            load_rgba(path)
        assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1

    def test_a_directory(self, tmp_path):
        with pytest.raises(InputError, match="is a directory"):
            load_rgba(tmp_path)

    @pytest.mark.parametrize("name", ["a.png/b.png", "x" * 300])
    def test_a_path_that_cannot_be(self, tmp_path, name):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(InputError, match="does not exist"):
            load_rgba(tmp_path / name)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
    def test_truncated(self, tmp_path, kind, share):
        data = encoded(tmp_path, kind)
        (tmp_path / "cut").write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match="cut"):
            load_rgba(tmp_path / "cut")


class TestLimit:
    def test_image_that_compresses_well(self, tmp_path):
        """A small file of many pixels is refused before they are decoded: these cannot be."""
        path = tmp_path / "a.png"
        Image.new("1", (10_000, 10_000)).save(path)
        data = path.read_bytes()
        assert len(data) < 50_000
        path.write_bytes(data[: len(data) // 2])
        for read in (load_rgba, load_image, image_shape):
            with pytest.raises(InputError) as caught:
                read(path)
            assert str(caught.value) == (
                f"{path} has 100 megapixels: expected at most 89.478485; if it is meant to be "
                "so large, raise max_megapixels to 100, or in Python PIL.Image.MAX_IMAGE_PIXELS"
            )
        for limit in (10**8, None):
            Image.MAX_IMAGE_PIXELS = limit
            assert image_shape(path, size=20) == (20, 20)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_of_the_pixels(self, tmp_path, kind):
        path = tmp_path / "image"
        path.write_bytes(encoded(tmp_path, kind))  # 600 pixels
        expected = image_shape(path)
        for megapixels in (0.0006, 0.0007, 89.5, 1e6, 1e300):
            limit_pixels(megapixels)
            assert image_shape(path) == load_rgba(path).rgb.shape[:2] == expected
        for megapixels in (0.000599, 0.0003, 0.000299, 0.0001, 1e-9):
            limit_pixels(megapixels)
            for read in (image_shape, load_rgba):
                with pytest.raises(InputError, match="has 0.0006 megapixels: .*megapixels to 1"):
                    read(path)

    @pytest.mark.parametrize("kind", ["png", "bmp"])
    @pytest.mark.parametrize("megapixels", [0.0011, 0.0005])
    def test_holds_for_what_an_icon_holds(self, tmp_path, kind, megapixels):
        """Not for the size that its directory tells."""
        path = tmp_path / "a.ico"
        Image.new("RGB", (40, 30)).save(path, sizes=[(40, 30)], bitmap_format=kind)
        data = bytearray(path.read_bytes())
        assert tuple(data[6:8]) == (40, 30)
        data[6:8] = (16, 16)
        path.write_bytes(data)
        assert load_rgba(path).rgb.shape == (30, 40, 3)
        limit_pixels(megapixels)
        with pytest.raises(InputError, match="a.ico has .* megapixels: expected at most 0.00"):
            load_rgba(path)

    @pytest.mark.parametrize("megapixels", [0, -1, math.nan, math.inf, -math.inf, 1e308])
    def test_is_a_positive_number(self, megapixels):
        with pytest.raises(InputError, match="max_megapixels is .*: expected a number above 0"):
            limit_pixels(megapixels)
        assert Image.MAX_IMAGE_PIXELS == 89_478_485


HEADERS = ["png", "jpg", "webp", "tif", "gif", "bmp", "ppm", "tga", "pcx", "ico", "icns"] + [
    kind for kind, feature in (("jp2", "jpg_2000"), ("avif", "avif")) if features.check(feature)
]
ORIENTED = {"png", "jpg", "webp", "tif", "avif"}


class TestShape:
    @pytest.mark.parametrize("kind", HEADERS)
    @pytest.mark.parametrize("height, width", [(20, 31), (64, 3), (1, 50), (33, 33)])
    def test_is_that_of_the_image(self, tmp_path, kind, height, width):
        path = tmp_path / f"a.{kind}"
        for number in STORED if kind in ORIENTED else [None]:
            options = {} if number is None else {"exif": orientation(number)}
            Image.new("RGB", (width, height)).save(path, **options)
            for size in (None, 1, 7, 20, 31, 100):
                expected = load_rgba(path, size=size).rgb.shape[:2]
                assert image_shape(path, size=size) == expected, (number, size)

    @pytest.mark.parametrize("height, width, size", SIZES)
    def test_is_rounded_as_in_resize(self, tmp_path, height, width, size):
        Image.new("L", (width, height)).save(tmp_path / "a.png")
        scaled = resize_longer(np.zeros((height, width, 1), np.float32), size=size)
        assert image_shape(tmp_path / "a.png", size=size) == scaled.shape[:2]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F"])
    def test_of_any_mode(self, tmp_path, mode):
        path = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
        Image.new(mode, (9, 4)).save(path, exif=orientation(6))
        assert image_shape(path) == load_rgba(path).rgb.shape[:2] == (9, 4)

    @pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
    @pytest.mark.parametrize("number", [1, 6])
    @pytest.mark.parametrize("kind", ["exif", "profile", "xmp", "other"])
    def test_orientation_elsewhere_in_a_png(self, tmp_path, kind, number, place):
        """Some tools write it behind the pixels, or as a text."""
        exif, xmp = orientation(number).tobytes(), b'<x tiff:Orientation="%d"/>' % number
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
        expected = (4, 9) if number == 1 or kind == "other" else (9, 4)
        assert image_shape(path) == load_rgba(path).rgb.shape[:2] == expected

    @pytest.mark.parametrize("kind, number", [("png", 6), ("png", None), ("jpg", 6), ("jpg", None)])
    def test_pixels_are_not_decoded(self, tmp_path, kind, number):
        pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        options = {} if number is None else {"exif": orientation(number)}
        Image.fromarray(pixels).save(tmp_path / f"a.{kind}", **options)
        data = (tmp_path / f"a.{kind}").read_bytes()
        (tmp_path / "cut").write_bytes(data[: int(0.9 * len(data))])
        with pytest.raises(InputError, match="truncated"):
            load_rgba(tmp_path / "cut")
        expected = (20, 30) if number is None else (30, 20)
        for path in (tmp_path / "cut", tmp_path / f"a.{kind}"):
            assert image_shape(path) == expected
            assert image_shape(path, size=60) == (2 * expected[0], 2 * expected[1])

    @pytest.mark.parametrize(
        "data",
        [None, b"", b"a text, no image\n" * 9, png_of_size(0, 5), png_of_size(50_000, 50_000)]
        + [png_of_size(10_000, 10_000), png_of_size(5, 5)[:20]],
    )
    def test_is_refused_as_the_image_is(self, tmp_path, data):
        path = tmp_path / "a.png"
        if data is not None:
            path.write_bytes(data)
        messages = []
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError) as caught:
                read(path)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]

    def test_arguments(self, tmp_path):
        Image.new("L", (5, 4)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="size is 0"):
            image_shape(tmp_path / "a.png", size=0)
        with pytest.raises(InputError, match="is a directory"):
            image_shape(tmp_path)
