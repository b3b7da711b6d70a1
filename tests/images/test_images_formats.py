"""Images of every format, mode, depth and orientation, against what was written into them.

Files are made by hand, Pillow or tifffile; the expected values are the arrays they were made of, or
a second decoder's where the format loses something.
"""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.damage import sample_pixels
from helpers.image_files import STORED, chunk, orientation
from PIL import Image, ImageCms, features

from nst_jax.errors import InputError
from nst_jax.images import read_texts, save_image
from nst_jax.images.read import image_shape, load_rgba
from nst_jax.images.write import check_output_sides

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 65536, (5, 7))  # asymmetrical
RGB = RNG.integers(0, 65536, (5, 7, 3))
ALPHA = RNG.integers(1, 65536, (5, 7))
PALETTE = RNG.integers(0, 256, (256, 3))


def png(values, *, depth, kind, before=b"", exif=None, interlaced=False):
    """A PNG by hand: samples of a depth as they stand, of colour type ``kind``."""
    height, width = values.shape[:2]

    def packed(rows):
        lines = b""
        for row in rows:
            bits = "".join(format(int(value), f"0{depth}b") for value in row.ravel())
            bits += "0" * (-len(bits) % 8)
            lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
        return lines

    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [values[y::down, x::right] for y, x, down, right in passes]
        data = b"".join(packed(part) for part in parts if part.size)
    else:
        data = packed(values)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    exif_chunk = b"" if exif is None else chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), before, exif_chunk, chunk(b"IDAT", zlib.compress(data))]
        + [chunk(b"IEND", b"")]
    )


def colors_and_alpha(values, alpha=None):
    values = values if values.ndim == 3 else values[..., None]
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values, alpha


def png_case(name):
    """Samples, PNG's numbers for them, and the colours and alpha that they are."""
    mode, bits = name.split("-")
    bits, top = int(bits), 2 ** int(bits) - 1
    grey, rgb, alpha = (array >> (16 - bits) for array in (GREY, RGB, ALPHA))
    if mode == "grey":
        return grey, dict(depth=bits, kind=0), colors_and_alpha(grey / top)
    if mode == "rgb":
        return rgb, dict(depth=bits, kind=2), (rgb / top, None)
    if mode == "grey_alpha":
        values = np.stack([grey, alpha], -1)
        return values, dict(depth=bits, kind=4), colors_and_alpha(grey / top, alpha / top)
    if mode == "rgba":
        values = np.dstack([rgb, alpha])
        return values, dict(depth=bits, kind=6), (rgb / top, alpha / top)
    if mode == "grey_key":
        key = chunk(b"tRNS", struct.pack(">H", grey[2, 3]))
        seen = (grey != grey[2, 3]).astype(float)
        return grey, dict(depth=bits, kind=0, before=key), colors_and_alpha(grey / top, seen)
    if mode == "rgb_key":
        key = chunk(b"tRNS", struct.pack(">3H", *rgb[2, 3]))
        seen = (rgb != rgb[2, 3]).any(-1).astype(float)
        return rgb, dict(depth=bits, kind=2, before=key), (rgb / top, seen)
    palette = chunk(b"PLTE", PALETTE[: top + 1].astype(np.uint8).tobytes())
    colors = PALETTE[grey] / 255
    if mode == "palette":
        return grey, dict(depth=bits, kind=3, before=palette), (colors, None)
    assert mode == "palette_alpha"
    shares = np.linspace(0, 255, top + 1).astype(np.uint8)
    before = palette + chunk(b"tRNS", shares.tobytes())
    return grey, dict(depth=bits, kind=3, before=before), (colors, shares[grey] / 255)


PNG_CASES = [f"grey-{bits}" for bits in (1, 2, 4, 8, 16)]
PNG_CASES += [f"palette-{bits}" for bits in (1, 2, 4, 8)]
PNG_CASES += [f"palette_alpha-{bits}" for bits in (1, 2, 4, 8)]
PNG_CASES += [f"grey_key-{bits}" for bits in (1, 2, 4, 8, 16)]
PNG_CASES += [f"{mode}-8" for mode in ("rgb", "grey_alpha", "rgba", "rgb_key")]
PNG_CASES += [f"{mode}-16" for mode in ("rgb", "grey_alpha", "rgba", "rgb_key")]


def check(path, expected, *, atol=1e-6):
    """What is read is expected; where nothing is to be seen any colour is right."""
    colors, alpha = expected
    found = load_rgba(path)
    assert image_shape(path) == found.rgb.shape[:2] == colors.shape[:2]
    assert found.rgb.dtype == np.float32
    if alpha is None or (alpha == 1).all():
        assert found.alpha is None
        seen = np.ones(colors.shape[:2], bool)
    else:
        np.testing.assert_allclose(found.alpha, alpha, atol=atol)
        seen = alpha > 0
    np.testing.assert_allclose(found.rgb[seen], colors[seen], atol=atol)


class TestPng:
    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize("name", PNG_CASES)
    def test_every_kind_and_orientation(self, tmp_path, name, interlaced):
        values, numbers, expected = png_case(name)
        for number in STORED:
            stored = STORED[number](values)
            data = png(stored, **numbers, exif=orientation(number), interlaced=interlaced)
            (tmp_path / "a.png").write_bytes(data)
            check(tmp_path / "a.png", expected)

    def test_16_bits_are_not_8(self, tmp_path):
        values = np.full((2, 2, 3), 257 * 100 + 50)
        (tmp_path / "a.png").write_bytes(png(values, depth=16, kind=2))
        np.testing.assert_allclose(load_rgba(tmp_path / "a.png").rgb, values / 65535, atol=1e-7)

    def test_chunks_that_libpng_would_complain_of(self, tmp_path, capfd, caplog):
        bad = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200)))
        (tmp_path / "a.png").write_bytes(png(RGB, depth=16, kind=2, before=bad))
        check(tmp_path / "a.png", (RGB / 65535, None))
        assert len(caplog.records) == 1 and "profile" in caplog.text
        assert capfd.readouterr().err == ""

    def test_an_interlaced_one_is_read_in_silence(self, tmp_path, caplog):
        (tmp_path / "a.png").write_bytes(png(RGB, depth=16, kind=2, interlaced=True))
        check(tmp_path / "a.png", (RGB / 65535, None))
        assert not caplog.records  # which are printed where nothing handles them


def tiff(path, values, *, number=1, **options):
    extra = [(274, "H", 1, number, True)]
    tifffile.imwrite(path, values, extratags=extra, metadata=None, **options)


def tiff_case(mode, dtype):
    """Samples ``[5, 7, C]``, tifffile's words for them, and the colours and alpha they are."""
    float_type = np.dtype(dtype).kind == "f"
    top = 1 if float_type else np.iinfo(dtype).max

    def numbers(array):
        return (array / 65535).astype(dtype) if float_type else (array * top // 65535).astype(dtype)

    grey, rgb, alpha = numbers(GREY)[..., None], numbers(RGB), numbers(ALPHA)[..., None]
    values, share = {"grey": grey, "white": grey, "rgb": rgb}.get(mode, grey), None
    words = {"photometric": {"white": "miniswhite", "rgb": "rgb"}.get(mode, "minisblack")}
    if mode in ("grey_alpha", "rgba", "rgba_multiplied"):
        values, share = (
            (grey if mode == "grey_alpha" else rgb),
            alpha[..., 0].astype(np.float64) / top,
        )
        words["photometric"] = "minisblack" if mode == "grey_alpha" else "rgb"
        words["extrasamples"] = ["assocalpha" if mode == "rgba_multiplied" else "unassalpha"]
    if mode == "cmyk":
        values, words["photometric"] = np.concatenate([rgb, grey], axis=-1), "separated"
    expected = values.astype(np.float64) / top
    if mode == "white":
        expected = 1 - expected
    if mode == "cmyk":
        expected = (1 - expected[..., :3]) * (1 - expected[..., 3:])
    if mode == "rgba_multiplied":
        values = np.minimum(values, alpha)
        expected = values / np.maximum(alpha.astype(np.float64), 1e-9)
    if share is not None:
        values = np.concatenate([values, alpha], axis=-1)
    return values, words, colors_and_alpha(expected, share)


TIFF_MODES = ["grey", "white", "rgb", "grey_alpha", "rgba", "rgba_multiplied", "cmyk"]
LAYOUTS = {
    "plain": {},
    "planar": {"planarconfig": "separate"},
    "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 2},
    "deflate": {"compression": "zlib", "planarconfig": "separate", "rowsperstrip": 3},
    "tiles": {"compression": "zlib", "tile": (16, 16), "predictor": True},
    "bytes": {"byteorder": ">", "compression": "packbits"},
    "big": {"bigtiff": True},
}


class TestTiff:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
    @pytest.mark.parametrize("mode", TIFF_MODES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_kind(self, tmp_path, mode, dtype, layout):
        values, words, expected = tiff_case(mode, dtype)
        options = words | LAYOUTS[layout]
        if options.get("planarconfig") and values.shape[-1] > 1:
            values = np.moveaxis(values, -1, 0)
        else:
            options.pop("planarconfig", None)
            values = values[..., 0] if values.shape[-1] == 1 else values
            options |= {"planarconfig": "contig"} if values.ndim == 3 else {}
        if "predictor" in options and np.dtype(dtype).kind == "f":
            options["predictor"] = "floatingpoint"
        tiff(tmp_path / "a.tif", values, **options)
        atol = 2 / 255 if (mode, dtype) == ("rgba_multiplied", "uint8") else 1.01 / 255
        check(tmp_path / "a.tif", expected, atol=atol if dtype == "uint8" else 2e-6)

    @pytest.mark.parametrize("number", STORED)
    @pytest.mark.parametrize("mode", ["grey", "rgb", "rgba", "cmyk"])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_orientation(self, tmp_path, mode, dtype, number):
        values, words, expected = tiff_case(mode, dtype)
        stored = np.ascontiguousarray(STORED[number](values))
        stored = stored[..., 0] if mode == "grey" else stored
        more = {} if mode == "grey" else {"planarconfig": "contig"}
        tiff(tmp_path / "a.tif", stored, number=number, **words, **more)
        check(tmp_path / "a.tif", expected, atol=1.01 / 255 if dtype == "uint8" else 2e-6)

    @pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "complex64"])
    def test_numbers_of_an_unknown_range_are_refused(self, tmp_path, dtype):
        tiff(tmp_path / "a.tif", np.ones((4, 5), dtype), photometric="minisblack")
        with pytest.raises(InputError, match="a.tif .*of type.* is not read: export it as PNG"):
            load_rgba(tmp_path / "a.tif")

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_lab_is_refused(self, tmp_path, dtype):
        path = tmp_path / "a.tif"
        tiff(path, RGB.astype(dtype), photometric="cielab", planarconfig="contig")
        for read in (load_rgba, image_shape):
            with pytest.raises(
                InputError, match="in (CIE)?L(ab|AB), which is not read: .*PNG.*TIFF"
            ):
                read(path)

    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    @pytest.mark.parametrize("number", STORED)
    def test_orientation_by_xmp(self, tmp_path, number, compression):
        values = (RGB >> 8).astype(np.uint8)
        stored = Image.fromarray(np.ascontiguousarray(STORED[number](values)))
        xmp = b'<x tiff:Orientation="%d"/>' % number
        stored.save(tmp_path / "a.tif", tiffinfo={700: xmp}, compression=compression)
        check(tmp_path / "a.tif", (values / 255, None))

    def test_a_part_that_is_missing(self, tmp_path):
        values = RNG.integers(0, 65536, (40, 9, 3)).astype(np.uint16)
        tiff(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", rowsperstrip=4)
        data = (tmp_path / "a.tif").read_bytes()
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            counts = file.pages.first.tags[279]
        for change in (b"\0\0", b"\xff\xff"):  # of the last strip's number of bytes
            last = counts.valueoffset + (counts.valuebytecount - 2)
            (tmp_path / "b.tif").write_bytes(data[:last] + change + data[last + 2 :])
            with pytest.raises(InputError, match="a part of its pixels is missing"):
                load_rgba(tmp_path / "b.tif")

    def test_more_pixels_than_the_limit(self, tmp_path):
        """A small file that claims many is refused before anything is decoded."""
        small = np.zeros((4, 4, 3), np.uint16)
        tiff(tmp_path / "a.tif", small, photometric="rgb", compression="zlib")
        data = bytearray((tmp_path / "a.tif").read_bytes())
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            tags = file.pages.first.tags
            places = [tags[number].valueoffset for number in (256, 257)]
            codes = [tags[number].dtype for number in (256, 257)]
        for place, code in zip(places, codes, strict=True):
            size = 2 if int(code) == 3 else 4
            data[place : place + size] = (20_000).to_bytes(size, "little")
        (tmp_path / "a.tif").write_bytes(data)
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match="has 400 megapixels: expected at most 89"):
                read(tmp_path / "a.tif")

    def test_a_cameras_preview_is_not_the_image(self, tmp_path):
        tiff(tmp_path / "a.tif", RGB.astype(np.uint8), photometric="rgb", subfiletype=1)
        data = (tmp_path / "a.tif").read_bytes()
        assert load_rgba(tmp_path / "a.tif").rgb.shape == (5, 7, 3)
        sub = io.BytesIO()
        with tifffile.TiffWriter(sub) as writer:
            options = {"photometric": "rgb", "metadata": None}
            writer.write(RGB.astype(np.uint8), subfiletype=1, subifds=1, **options)
            writer.write(RGB.astype(np.uint16), **options)
        for data in (sub.getvalue(), b"II*\0\x10\0\0\0CR\2\0" + bytes(90)):
            (tmp_path / "a.tif").write_bytes(data)
            with pytest.raises(InputError, match="a camera's raw format, which is not read"):
                load_rgba(tmp_path / "a.tif")


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


HELD = ("L", "RGB", "RGBA", "1", "P")


class TestOthers:
    @pytest.mark.parametrize(
        "kind, mode",
        [
            *((kind, mode) for kind in ("BMP", "TGA", "TIFF", "ICO") for mode in HELD),
            *(("PCX", mode) for mode in HELD[:2] + HELD[3:]),
            *(("PPM", mode) for mode in HELD[:-1]),
            *((kind, mode) for kind in ("SGI", "DDS") for mode in HELD[:3]),
        ],
    )
    def test_lossless(self, tmp_path, kind, mode):
        """Whatever the name says."""
        pixels = sample_pixels(height=16, width=16, channels=4)
        pixels[..., 3] |= 1
        image = Image.fromarray(pixels).convert("RGB" if mode != "RGBA" else mode)
        image = image.convert(mode)
        data = saved(image, kind)
        (tmp_path / "a.png").write_bytes(data)
        rgba = np.asarray(image.convert("RGBA")) / 255
        with Image.open(io.BytesIO(data)) as image:
            opaque = not image.has_transparency_data
        check(tmp_path / "a.png", (rgba[..., :3], None if opaque else rgba[..., 3]))

    @pytest.mark.parametrize("number", STORED)
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_jpeg(self, tmp_path, mode, number):
        """Pillow writes CMYK as Adobe does, inverted and with a mark that says so."""
        pixels = np.kron(sample_pixels(height=3, width=4, channels=4), np.ones((8, 8, 1)))
        channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
        values = np.squeeze(pixels[..., :channels].astype(np.uint8))
        stored = np.ascontiguousarray(STORED[number](values))
        image = Image.frombytes(mode, stored.shape[1::-1], stored.tobytes())
        data = saved(image, "JPEG", exif=orientation(number), quality=100, subsampling=0)
        (tmp_path / "a.png").write_bytes(data)
        expected = values / 255
        if mode == "CMYK":
            assert b"Adobe" in data
            expected = (1 - expected[..., :3]) * (1 - expected[..., 3:])
        expected, _ = colors_and_alpha(expected)
        check(tmp_path / "a.png", (expected, None), atol=5 / 255)
        if mode != "CMYK" and number == 1:
            second = imagecodecs.jpeg_decode(data)
            check(tmp_path / "a.png", colors_and_alpha(second / 255), atol=1.01 / 255)

    @pytest.mark.parametrize("number", STORED)
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_webp(self, tmp_path, mode, number):
        values = sample_pixels(channels=len(mode))
        values[..., -1] |= 1
        stored = np.ascontiguousarray(STORED[number](values))
        data = saved(Image.fromarray(stored), "WEBP", exif=orientation(number), quality=90)
        (tmp_path / "a.webp").write_bytes(data)
        second = imagecodecs.webp_decode(data)[..., : len(mode)] / 255
        turned = {6: 8, 8: 6}.get(number, number)  # the inverse of storing
        upright = STORED[turned](second)
        alpha = upright[..., 3] if mode == "RGBA" else None
        check(tmp_path / "a.webp", (upright[..., :3], alpha), atol=1.01 / 255)

    @pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_avif_and_jpeg_2000(self, tmp_path, kind, mode):
        if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]):
            pytest.skip(f"Pillow has no {kind} here")
        values = sample_pixels(channels=len(mode))
        data = saved(Image.fromarray(values), kind)
        (tmp_path / "a").write_bytes(data)
        decode = imagecodecs.avif_decode if kind == "AVIF" else imagecodecs.jpeg2k_decode
        second = decode(data) / 255
        alpha = second[..., 3] if mode == "RGBA" else None
        check(tmp_path / "a", (second[..., :3], alpha), atol=2.01 / 255)

    @pytest.mark.parametrize("top", [256, 1023, 65535])
    def test_deep_ppm(self, tmp_path, top):
        values = RGB * (top + 1) // 65536
        head = b"P6 # a comment 3 4\n7\n# another\n5 %d\n" % top
        (tmp_path / "a.ppm").write_bytes(head + values.astype(">u2").tobytes())
        check(tmp_path / "a.ppm", (values / top, None))
        (tmp_path / "a.ppm").write_bytes(head + values.astype(">u2").tobytes()[:-1])
        with pytest.raises(InputError, match="it is cut off"):
            load_rgba(tmp_path / "a.ppm")
        (tmp_path / "a.ppm").write_bytes(b"P6 20000 20000 65535\n" + bytes(99))
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match="has 400 megapixels"):
                read(tmp_path / "a.ppm")

    @pytest.mark.parametrize("top", [255, 256, 1000, 65535])
    def test_ppm_as_text(self, tmp_path, top):
        values = RGB * (top + 1) // 65536
        head = f"P3\n7 5 # a comment\n{top} # another\n"
        lines = [" ".join(map(str, row.ravel())) for row in values]
        path = tmp_path / "a.ppm"
        path.write_text(head + " # 1 2 3\n".join(lines))
        check(path, (values / top, None))
        for text in (head + "\n".join(lines[:-1]), head + "1.5 " * 105, head + "-5 " * 105):
            path.write_text(text)
            with pytest.raises(InputError, match="cannot read the image"):
                load_rgba(path)

    @pytest.mark.parametrize("kind, channels", [(1, 1), (3, 3), (4, 4)])
    def test_psd(self, tmp_path, kind, channels):
        """Grey, RGB and CMYK, which it holds inverted; with a further channel it is refused."""
        pixels = sample_pixels(channels=channels + 1)
        height, width = pixels.shape[:2]
        for held in (channels, channels + 1):
            head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, held, height, width, 8, kind)
            data = np.moveaxis(pixels[..., :held], -1, 0).tobytes()
            (tmp_path / f"{held}.psd").write_bytes(head + bytes(12) + bytes(2) + data)
        expected = pixels[..., :channels] / 255
        if channels == 4:
            expected = expected[..., :3] * expected[..., 3:]
        check(tmp_path / f"{channels}.psd", colors_and_alpha(expected))
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match="psd is a PSD with an alpha channel .*PNG.*TIFF"):
                read(tmp_path / f"{channels + 1}.psd")

    def test_the_first_of_several_is_read_and_told(self, tmp_path, caplog):
        frames = [Image.fromarray(np.roll(sample_pixels(), 5 * i, axis=1)) for i in range(3)]
        for name in ("a.gif", "a.png", "a.webp", "a.tif", "deep.tif"):
            path = tmp_path / name
            lossless = {"lossless": True} if name == "a.webp" else {}
            if name == "deep.tif":
                stack = np.stack([np.asarray(frame) for frame in frames]).astype(np.uint16) * 257
                tiff(path, stack, photometric="rgb")
            else:
                frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
            found = load_rgba(path).rgb
            atol = 0.2 if name == "a.gif" else 1e-6  # which has 256 colours
            np.testing.assert_allclose(found, sample_pixels() / 255, atol=atol)
            assert caplog.messages == [f"{path} holds several images: the first is read"]
            frames[0].save(path)
            caplog.clear()
            load_rgba(path)
            assert not caplog.records

    @pytest.mark.parametrize("shape", [(1, 1), (1, 16_000), (16_000, 1)])
    @pytest.mark.parametrize("name", "a.png a.webp a.tif a.jpg a.gif a.bmp deep".split())
    def test_extreme_shapes(self, tmp_path, shape, name):
        values = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
        if name == "deep":
            (tmp_path / name).write_bytes(imagecodecs.png_encode(values.astype(np.uint16) * 257))
        else:
            Image.fromarray(values).save(tmp_path / name)
        assert load_rgba(tmp_path / name).rgb.shape[:2] == shape
        assert image_shape(tmp_path / name) == shape
        if name in ("a.png", "a.tif", "a.bmp", "deep"):
            check(tmp_path / name, (values / 255, None))
        scaled = load_rgba(tmp_path / name, size=64).rgb.shape
        assert scaled == (64 if shape[0] >= shape[1] else 1, 64 if shape[1] >= shape[0] else 1, 3)
        assert image_shape(tmp_path / name, size=64) == scaled[:2]

    @pytest.mark.parametrize(
        "data, format",
        [
            (b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(40), "HEIC"),
            (b"%PDF-1.7\n" + bytes(40), "PDF"),
            (b'<?xml version="1.0"?>\n<svg xmlns="x"/>' + bytes(40), "SVG"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
            (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
            (b"PF\n1 1\n-1.0\n" + bytes(12), "a PFM"),
            (b"Pf\n1 1\n-1.0\n" + bytes(4), "a PFM"),
        ],
    )
    def test_formats_that_are_known_by_name_only(self, tmp_path, data, format):
        (tmp_path / "a.png").write_bytes(data)
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError) as caught:
                read(tmp_path / "a.png")
            assert str(caught.value) == (
                f"{tmp_path / 'a.png'} is {format}, which is not read: export it as PNG, JPEG, or "
                "TIFF of grey or RGB with 8 or 16 bits"
            )


TEXTS = {"Software": "nst_jax 1", "nst_jax": '{"a": "né \\u00e9", "n": [1, 2]}'}
ASCII = {"Software": "nst_jax 1", "nst_jax": '{"a": [1, 2]}'}
EVERY = np.float32(RNG.random((5, 7, 3)))
EVERY[0, :2] = [[0, 0, 0], [1, 1, 1]]
SHARE = np.float32(RNG.uniform(0.1, 1, (5, 7)))


def second_reading(path):
    """Pixels by another library than the one that wrote them."""
    data = path.read_bytes()
    if path.suffix == ".png":
        return imagecodecs.png_decode(data)
    if path.suffix == ".webp":
        return imagecodecs.webp_decode(data)
    if path.suffix == ".jpg":
        return imagecodecs.jpeg_decode(data)
    return tifffile.imread(path)


class TestOutputs:
    @pytest.mark.parametrize("alpha", [None, SHARE])
    @pytest.mark.parametrize(
        "name, bits", [("a.png", 8), ("a.png", 16), ("a.tif", 8), ("a.tif", 16), ("a.webp", 8)]
    )
    def test_are_exact(self, tmp_path, name, bits, alpha):
        path, top = tmp_path / name, 2**bits - 1
        save_image(path, EVERY, alpha=alpha, metadata=TEXTS, bit_depth=bits)
        given = EVERY if alpha is None else np.dstack([EVERY, alpha])
        expected = np.round(given * top)
        found = second_reading(path)
        assert found.dtype == f"uint{bits}"
        np.testing.assert_array_equal(found[..., : given.shape[-1]], expected)
        check(path, (expected[..., :3] / top, None if alpha is None else expected[..., 3] / top))
        with Image.open(path) as image:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_round_trip_of_every_level(self, tmp_path, bits):
        levels = np.arange(2**bits).reshape(-1, 2 ** (bits // 2), 1) / (2**bits - 1)
        levels = np.repeat(levels, 3, axis=-1).astype(np.float32)
        for name in ("a.png", "a.tif"):
            save_image(tmp_path / name, levels, bit_depth=bits)
            np.testing.assert_array_equal(load_rgba(tmp_path / name).rgb, levels)

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
    @pytest.mark.parametrize("bits", [8, 16])
    def test_texts_are_read_again(self, tmp_path, name, bits):
        if bits == 16 and name in ("a.jpg", "a.webp"):
            return
        for texts in (TEXTS, {"nst_jax": "{}"}, {"Software": "x"}, {}):
            save_image(tmp_path / name, EVERY, metadata=texts, bit_depth=bits)
            assert read_texts(tmp_path / name) == texts
        exif = saved(Image.new("RGB", (2, 2)), "JPEG")
        (tmp_path / "b.jpg").write_bytes(exif)
        assert read_texts(tmp_path / "b.jpg") == {}

    def test_a_text_that_a_jpeg_has_no_room_for(self, tmp_path):
        long = {"Software": "x", "nst_jax": "9" * 70_000}
        for name in ("a.png", "a.webp", "a.tif"):
            save_image(tmp_path / name, EVERY, metadata=long)
            assert read_texts(tmp_path / name) == long
        save_image(tmp_path / "a.jpg", EVERY, metadata=long)
        assert read_texts(tmp_path / "a.jpg") == {"Software": "x"}

    @pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
    def test_quality(self, tmp_path, name):
        photo = sample_pixels(height=64, width=64) / 255
        sizes, errors = [], []
        for quality in (5, 60, 100):
            save_image(tmp_path / name, photo, quality=quality)
            sizes.append((tmp_path / name).stat().st_size)
            found = second_reading(tmp_path / name)[..., :3] / 255
            errors.append(np.abs(found - photo).mean())
        assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)

    @pytest.mark.parametrize("name, most", [("a.webp", 16383), ("a.JPG", 65500), ("a.gif", 65535)])
    def test_sides_that_a_format_cannot_have(self, tmp_path, name, most):
        check_output_sides(tmp_path / name, (1, most))
        if name != "a.gif":
            save_image(tmp_path / name, np.zeros((1, most, 3)))
            with pytest.raises(InputError, match=f"has at most {most}: name {name} .png or"):
                save_image(tmp_path / name, np.zeros((most + 1, 1, 3)))
        with pytest.raises(InputError, match=f"would be 1x{most + 1} px, .* has at most {most}: "):
            check_output_sides(tmp_path / name, (most + 1, 1))
        check_output_sides("a.png", (10**6, 1))

    def test_jpeg_has_no_chroma_subsampling(self, tmp_path):
        save_image(tmp_path / "a.jpg", EVERY, quality=50)
        with Image.open(tmp_path / "a.jpg") as image:
            assert {layer[1:3] for layer in image.layer} == {(1, 1)}

    @pytest.mark.parametrize(
        "name, options, message",
        [
            (
                "a.jpg",
                {"bit_depth": 16},
                "16 is more than JPEG can hold: name a.jpg .png",
            ),
            ("a.webp", {"bit_depth": 16}, "more than WEBP can hold"),
            ("a.png", {"bit_depth": 12}, "bit_depth is 12: expected 8 or 16"),
            ("a.png", {"quality": 90}, "quality has no meaning for PNG"),
            ("a.tif", {"quality": 90}, "quality has no meaning for TIFF"),
            ("a.jpg", {"quality": 0}, "quality is 0: expected 1 to 100"),
            ("a.jpg", {"quality": 101}, "quality is 101: expected 1 to 100"),
        ],
    )
    def test_what_a_format_cannot_do_is_refused(self, tmp_path, name, options, message):
        with pytest.raises(InputError, match=message):
            save_image(tmp_path / name, EVERY, **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
    def test_equal_images_are_equal_files(self, tmp_path, name, bits):
        if bits == 16 and name in ("a.jpg", "a.webp"):
            return
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            save_image(tmp_path / folder / name, EVERY, metadata=ASCII, bit_depth=bits)
        x, y = (tmp_path / folder / name for folder in ("x", "y"))
        assert x.read_bytes() == y.read_bytes()
