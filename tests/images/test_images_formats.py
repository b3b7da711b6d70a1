"""Images of every format, mode, depth and orientation are read and written correctly.

Files are made by hand, by Pillow or by tifffile. The expected values are the arrays that were
written, or those of a second decoder if the format is lossy.
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
from nst_jax.images.write import check_output, check_output_sides

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 65536, (5, 7))  # asymmetrical
RGB = RNG.integers(0, 65536, (5, 7, 3))
ALPHA = RNG.integers(1, 65536, (5, 7))
PALETTE = RNG.integers(0, 256, (256, 3))


def png(values, *, depth, kind, before=b"", exif=None, interlaced=False):
    """Build a PNG from samples with a bit depth and a colour type ``kind`` (W3C PNG, 11.2.1)."""
    height, width = values.shape[:2]

    def packed(rows):
        bits = rows.reshape(len(rows), -1, 1) >> np.arange(depth)[::-1] & 1
        lines = np.packbits(bits.reshape(len(rows), -1).astype(bool), axis=1)
        return b"".join(b"\0" + line.tobytes() for line in lines)  # filter type 0: none

    if interlaced:  # Adam7 (W3C PNG, 8.1)
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
    """Return samples, the arguments for ``png``, and the expected colours and alpha."""
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
        visible = (grey != grey[2, 3]).astype(float)
        return grey, dict(depth=bits, kind=0, before=key), colors_and_alpha(grey / top, visible)
    if mode == "rgb_key":
        key = chunk(b"tRNS", struct.pack(">3H", *rgb[2, 3]))
        visible = (rgb != rgb[2, 3]).any(-1).astype(float)
        return rgb, dict(depth=bits, kind=2, before=key), (rgb / top, visible)
    palette = chunk(b"PLTE", PALETTE[: top + 1].astype(np.uint8).tobytes())
    colors = PALETTE[grey] / 255
    if mode == "palette":
        return grey, dict(depth=bits, kind=3, before=palette), (colors, None)
    assert mode == "palette_alpha"
    opacity = np.linspace(0, 255, top + 1).astype(np.uint8)
    before = palette + chunk(b"tRNS", opacity.tobytes())
    return grey, dict(depth=bits, kind=3, before=before), (colors, opacity[grey] / 255)


PNG_CASES = [f"{mode}-{bits}" for mode in ("grey", "grey_key") for bits in (1, 2, 4, 8, 16)]
PNG_CASES += [f"{mode}-{bits}" for mode in ("palette", "palette_alpha") for bits in (1, 2, 4, 8)]
PNG_CASES += [f"{mode}-8" for mode in ("rgb", "grey_alpha", "rgba", "rgb_key")]
PNG_CASES += [f"{mode}-16" for mode in ("rgb", "grey_alpha", "rgba", "rgb_key")]


def check(path, expected, *, atol=1e-6):
    """Check what is read; the colours of fully transparent pixels do not matter."""
    colors, alpha = expected
    found = load_rgba(path)
    assert image_shape(path) == found.rgb.shape[:2] == colors.shape[:2]
    assert found.rgb.dtype == np.float32
    if alpha is None or (alpha == 1).all():
        assert found.alpha is None
        visible = np.ones(colors.shape[:2], bool)
    else:
        np.testing.assert_allclose(found.alpha, alpha, atol=atol)
        visible = alpha > 0
    np.testing.assert_allclose(found.rgb[visible], colors[visible], atol=atol)


class TestPng:
    @pytest.mark.parametrize("name", PNG_CASES)
    def test_every_kind_and_orientation(self, tmp_path, name):
        values, numbers, expected = png_case(name)
        for number in STORED:
            stored = STORED[number](values)
            data = png(stored, **numbers, exif=orientation(number), interlaced=number % 2 == 1)
            (tmp_path / "a.png").write_bytes(data)
            check(tmp_path / "a.png", expected)

    def test_libpng_prints_no_warnings(self, tmp_path, capfd, caplog):
        """Neither of an interlaced file nor of a damaged chunk; that profile is warned of once."""
        bad = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200)))
        for before, count in ((b"", 0), (bad, 1)):
            data = png(RGB, depth=16, kind=2, before=before, interlaced=True)
            (tmp_path / "a.png").write_bytes(data)
            check(tmp_path / "a.png", (RGB / 65535, None))
            assert len(caplog.records) == count and capfd.readouterr().err == ""


def tiff(path, values, *, number=1, **options):
    extra = [(274, "H", 1, number, True)]
    tifffile.imwrite(path, values, extratags=extra, metadata=None, **options)


def tiff_case(mode, dtype):
    """Return samples ``[5, 7, C]``, options for tifffile, and the expected colours and alpha."""
    float_type = np.dtype(dtype).kind == "f"
    top = 1 if float_type else np.iinfo(dtype).max

    def as_type(array):
        return (array / 65535).astype(dtype) if float_type else (array * top // 65535).astype(dtype)

    grey, rgb, alpha = as_type(GREY)[..., None], as_type(RGB), as_type(ALPHA)[..., None]
    values, opacity = {"grey": grey, "white": grey, "rgb": rgb}.get(mode, grey), None
    options = {"photometric": {"white": "miniswhite", "rgb": "rgb"}.get(mode, "minisblack")}
    if mode in ("grey_alpha", "rgba", "rgba_multiplied"):
        values = grey if mode == "grey_alpha" else rgb
        opacity = alpha[..., 0].astype(np.float64) / top
        options["photometric"] = "minisblack" if mode == "grey_alpha" else "rgb"
        options["extrasamples"] = ["assocalpha" if mode == "rgba_multiplied" else "unassalpha"]
    if mode == "cmyk":
        values, options["photometric"] = np.concatenate([rgb, grey], axis=-1), "separated"
    expected = values.astype(np.float64) / top
    if mode == "white":
        expected = 1 - expected
    if mode == "cmyk":
        expected = (1 - expected[..., :3]) * (1 - expected[..., 3:])
    if mode == "rgba_multiplied":
        values = np.minimum(values, alpha)
        expected = values / np.maximum(alpha.astype(np.float64), 1e-9)
    if opacity is not None:
        values = np.concatenate([values, alpha], axis=-1)
    return values, options, colors_and_alpha(expected, opacity)


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
        values, options, expected = tiff_case(mode, dtype)
        options |= LAYOUTS[layout]
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

    @pytest.mark.parametrize("mode", ["grey", "rgb", "rgba", "cmyk"])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_orientation(self, tmp_path, mode, dtype):
        values, options, expected = tiff_case(mode, dtype)
        options |= {} if mode == "grey" else {"planarconfig": "contig"}
        for number in STORED:
            stored = np.ascontiguousarray(STORED[number](values))
            stored = stored[..., 0] if mode == "grey" else stored
            tiff(tmp_path / "a.tif", stored, number=number, **options)
            check(tmp_path / "a.tif", expected, atol=1.01 / 255 if dtype == "uint8" else 2e-6)

    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    def test_orientation_in_xmp_data(self, tmp_path, compression):
        values = (RGB >> 8).astype(np.uint8)
        for number in STORED:
            stored = Image.fromarray(np.ascontiguousarray(STORED[number](values)))
            xmp = b'<x tiff:Orientation="%d"/>' % number
            stored.save(tmp_path / "a.tif", tiffinfo={700: xmp}, compression=compression)
            check(tmp_path / "a.tif", (values / 255, None))

    @pytest.mark.parametrize(
        "values, photometric, message",
        [
            (np.ones((4, 5), np.int16), "minisblack", "TIFF with samples of type int16, which"),
            (np.ones((4, 5), np.uint32), "minisblack", "TIFF with samples of type uint32, which"),
            (np.float32([[0, np.nan]]), "minisblack", "an image with float values outside 0 to 1"),
            (np.float32([[0, -0.1]]), "minisblack", "an image with float values outside 0 to 1"),
            (np.float32([[0, 255]]), "minisblack", "an image with float values outside 0 to 1"),
            (RGB.astype(np.uint8), "cielab", "a TIFF in CIE Lab colours"),
            (RGB.astype(np.uint16), "cielab", "a TIFF in CIELAB"),
        ],
    )
    def test_unknown_ranges_and_lab_are_refused(self, tmp_path, values, photometric, message):
        path = tmp_path / "a.tif"
        planar = {"planarconfig": "contig"} if values.ndim == 3 else {}
        tiff(path, values, photometric=photometric, **planar)
        with pytest.raises(InputError, match=f"{message}.* is not supported: export it as PNG"):
            load_rgba(path)

    def test_missing_strip_is_refused(self, tmp_path):
        values = RNG.integers(0, 65536, (40, 9, 3)).astype(np.uint16)
        tiff(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", rowsperstrip=4)
        data = (tmp_path / "a.tif").read_bytes()
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            counts = file.pages.first.tags[279]
        for change in (b"\0\0", b"\xff\xff"):  # the byte count of the last strip
            last = counts.valueoffset + (counts.valuebytecount - 2)
            (tmp_path / "b.tif").write_bytes(data[:last] + change + data[last + 2 :])
            with pytest.raises(InputError, match="part of its pixels is missing"):
                load_rgba(tmp_path / "b.tif")

    def test_preview_in_a_raw_file_is_refused(self, tmp_path):
        tiff(tmp_path / "a.tif", RGB.astype(np.uint8), photometric="rgb", subfiletype=1)
        assert load_rgba(tmp_path / "a.tif").rgb.shape == (5, 7, 3)
        sub = io.BytesIO()
        with tifffile.TiffWriter(sub) as writer:
            options = {"photometric": "rgb", "metadata": None}
            writer.write(RGB.astype(np.uint8), subfiletype=1, subifds=1, **options)
            writer.write(RGB.astype(np.uint16), **options)
        for data in (sub.getvalue(), b"II*\0\x10\0\0\0CR\2\0" + bytes(90)):
            (tmp_path / "a.tif").write_bytes(data)
            with pytest.raises(InputError, match="a camera's raw format, which is not supported"):
                load_rgba(tmp_path / "a.tif")


def needs(feature):
    return pytest.mark.skipif(not features.check(feature), reason=f"Pillow without {feature}")


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


MODES = ("L", "RGB", "RGBA", "1", "P")


class TestOthers:
    @pytest.mark.parametrize(
        "kind, mode",
        [
            *((kind, mode) for kind in ("BMP", "TGA", "TIFF", "ICO") for mode in MODES),
            *(("PCX", mode) for mode in MODES[:2] + MODES[3:]),
            *(("PPM", mode) for mode in MODES[:-1]),
            *((kind, mode) for kind in ("SGI", "DDS") for mode in MODES[:3]),
        ],
    )
    def test_lossless_formats(self, tmp_path, kind, mode):
        """The file name says PNG, which is ignored."""
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

    @pytest.mark.parametrize(
        "kind, decode",
        [
            ("JPEG", imagecodecs.jpeg_decode),
            ("WEBP", imagecodecs.webp_decode),
            pytest.param("AVIF", imagecodecs.avif_decode, marks=needs("avif")),
            pytest.param("JPEG2000", imagecodecs.jpeg2k_decode, marks=needs("jpg_2000")),
        ],
    )
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_lossy_formats_agree_with_another_decoder(self, tmp_path, kind, decode, mode):
        mode = "L" if kind == "JPEG" and mode == "RGBA" else mode
        values = np.squeeze(sample_pixels(channels=len(mode)))
        for number in [1] if kind == "JPEG2000" else [1, 6]:
            stored = np.ascontiguousarray(STORED[number](values))
            data = saved(Image.fromarray(stored), kind, exif=orientation(number))
            (tmp_path / "a").write_bytes(data)
            expected = STORED[{6: 8}.get(number, number)](decode(data) / 255)  # 8 inverts 6
            alpha = expected[..., 3] if mode == "RGBA" else None
            colors, _ = colors_and_alpha(expected[..., :3] if mode != "L" else expected)
            check(tmp_path / "a", (colors, alpha), atol=2.01 / 255)

    def test_cmyk_jpeg(self, tmp_path):
        """Pillow writes CMYK as Adobe does, inverted and with an APP14 marker."""
        values = np.kron(sample_pixels(height=3, width=4, channels=4), np.ones((8, 8, 1)))
        image = Image.frombytes("CMYK", values.shape[1::-1], values.astype(np.uint8).tobytes())
        data = saved(image, "JPEG", quality=100, subsampling=0)
        assert b"Adobe" in data
        (tmp_path / "a.jpg").write_bytes(data)
        expected = (1 - values[..., :3] / 255) * (1 - values[..., 3:] / 255)
        check(tmp_path / "a.jpg", (expected, None), atol=5 / 255)

    @pytest.mark.parametrize("top", [255, 256, 65535])
    def test_ppm(self, tmp_path, top):
        values, path = RGB * (top + 1) // 65536, tmp_path / "a.ppm"
        head = b"P6 # a comment 3 4\n7\n# another\n5 %d\n" % top
        data = values.astype(np.uint8 if top < 256 else ">u2").tobytes()
        path.write_bytes(head + data)
        check(path, (values / top, None))
        lines = [" ".join(map(str, row.ravel())) for row in values]
        path.write_text(f"P3\n7 5 # a comment\n{top} # another\n" + " # 1 2 3\n".join(lines))
        check(path, (values / top, None))
        for damaged in (
            head + data[:-1],
            b"P3 7 5 %d " % top + "\n".join(lines[:-1]).encode(),
            b"P3 7 5 %d " % top + b"1.5 " * 105,
            b"P3 7 5 %d " % top + b"-5 " * 105,
        ):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match="cannot read the image"):
                load_rgba(path)
        path.write_bytes(b"P6 20000 20000 65535\n" + bytes(99))
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match="has 400 megapixels"):
                read(path)

    @pytest.mark.parametrize("kind, channels", [(1, 1), (3, 3), (4, 4)])
    def test_psd(self, tmp_path, kind, channels):
        """Grey, RGB and CMYK, which is stored inverted; a further channel is refused."""
        pixels = sample_pixels(channels=channels + 1)
        height, width = pixels.shape[:2]
        for count in (channels, channels + 1):
            head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, count, height, width, 8, kind)
            data = np.moveaxis(pixels[..., :count], -1, 0).tobytes()
            (tmp_path / f"{count}.psd").write_bytes(head + bytes(12) + bytes(2) + data)
        expected = pixels[..., :channels] / 255
        if channels == 4:
            expected = expected[..., :3] * expected[..., 3:]
        check(tmp_path / f"{channels}.psd", colors_and_alpha(expected))
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError, match="psd is a PSD with an alpha channel .*PNG.*TIFF"):
                read(tmp_path / f"{channels + 1}.psd")

    def test_first_of_several_images_is_read_with_a_warning(self, tmp_path, caplog):
        frames = [Image.fromarray(np.roll(sample_pixels(), 5 * i, axis=1)) for i in range(2)]
        for name in ("a.gif", "a.png", "a.webp", "a.tif", "deep.tif"):
            path = tmp_path / name
            lossless = {"lossless": True} if name == "a.webp" else {}
            if name == "deep.tif":
                stack = np.stack([np.asarray(frame) for frame in frames]).astype(np.uint16) * 257
                tiff(path, stack, photometric="rgb")
            else:
                frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
            found = load_rgba(path).rgb
            atol = 0.2 if name == "a.gif" else 1e-6  # a GIF has 256 colours
            np.testing.assert_allclose(found, sample_pixels() / 255, atol=atol)
            assert caplog.messages == [f"{path} holds several images: only the first is read"]
            frames[0].save(path)
            caplog.clear()
            load_rgba(path)
            assert not caplog.records

    @pytest.mark.parametrize("shape", [(1, 1), (1, 16_000), (16_000, 1)])
    def test_extreme_shapes(self, tmp_path, shape):
        values = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
        (tmp_path / "deep").write_bytes(imagecodecs.png_encode(values.astype(np.uint16) * 257))
        for name in ("a.png", "a.tif", "a.webp", "a.jpg"):
            Image.fromarray(values).save(tmp_path / name)
        for path in tmp_path.iterdir():
            lossy = path.suffix in (".webp", ".jpg")
            check(path, (values / 255, None), atol=1 if lossy else 1e-6)
            size = [max(1, round(64 * side / max(shape))) for side in shape]
            assert load_rgba(path, size=64).rgb.shape == (*size, 3)

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
    def test_unsupported_formats_are_named(self, tmp_path, data, format):
        (tmp_path / "a.png").write_bytes(data)
        for read in (load_rgba, image_shape):
            with pytest.raises(InputError) as caught:
                read(tmp_path / "a.png")
            assert str(caught.value) == (
                f"{tmp_path / 'a.png'} is {format}, which is not supported: export it as PNG, "
                "JPEG, or a grey or RGB TIFF with 8 or 16 bits"
            )


TEXTS = {"Software": "nst_jax 1", "nst_jax": '{"a": "né \\u00e9", "n": [1, 2]}'}
EVERY = np.float32(RNG.random((5, 7, 3)))
EVERY[0, :2] = [[0, 0, 0], [1, 1, 1]]
OPACITY = np.float32(RNG.uniform(0.1, 1, (5, 7)))


DECODERS = {
    ".png": imagecodecs.png_decode,
    ".jpeg": imagecodecs.jpeg_decode,
    ".webp": imagecodecs.webp_decode,
    ".tif": lambda data: tifffile.imread(io.BytesIO(data)),
}


def second_reading(path):
    """Decode a file without the code under test."""
    return DECODERS[path.suffix](path.read_bytes())


every_output = pytest.mark.parametrize(
    "name, bits",
    [("a.png", 8), ("a.png", 16), ("a.tif", 8), ("a.tif", 16), ("a.jpg", 8), ("a.webp", 8)],
)


class TestOutputs:
    @pytest.mark.parametrize("alpha", [None, OPACITY])
    @pytest.mark.parametrize(
        "name, bits", [("a.png", 8), ("a.png", 16), ("a.tif", 8), ("a.tif", 16), ("a.webp", 8)]
    )
    def test_lossless_formats_are_exact(self, tmp_path, name, bits, alpha):
        path, top = tmp_path / name, 2**bits - 1
        save_image(path, EVERY, alpha=alpha, metadata=TEXTS, bit_depth=bits)
        samples = EVERY if alpha is None else np.dstack([EVERY, alpha])
        expected = np.round(samples * top)
        found = second_reading(path)
        assert found.dtype == f"uint{bits}"
        np.testing.assert_array_equal(found[..., : samples.shape[-1]], expected)
        check(path, (expected[..., :3] / top, None if alpha is None else expected[..., 3] / top))
        with Image.open(path) as image:
            if path.suffix == ".png":
                image.verify()
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_round_trip_of_every_level(self, tmp_path, bits):
        levels = np.arange(2**bits).reshape(-1, 2 ** (bits // 2), 1) / (2**bits - 1)
        levels = np.repeat(levels, 3, axis=-1).astype(np.float32)
        for name in ("a.png", "a.tif"):
            save_image(tmp_path / name, levels, bit_depth=bits)
            np.testing.assert_array_equal(load_rgba(tmp_path / name).rgb, levels)

    @every_output
    def test_texts_are_read_again_and_equal_images_are_equal_files(self, tmp_path, name, bits):
        for texts in ({"nst_jax": "{}"}, {"Software": "x"}, {}, TEXTS):
            save_image(tmp_path / name, EVERY, metadata=texts, bit_depth=bits)
            assert read_texts(tmp_path / name) == texts
        (tmp_path / "again").mkdir()
        save_image(tmp_path / "again" / name, EVERY, metadata=TEXTS, bit_depth=bits)
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()

    def test_jpeg_drops_texts_without_room(self, tmp_path):
        long = {"Software": "x", "nst_jax": "9" * 70_000}
        for name in ("a.png", "a.webp", "a.tif"):
            save_image(tmp_path / name, EVERY, metadata=long)
            assert read_texts(tmp_path / name) == long
        save_image(tmp_path / "a.jpg", EVERY, metadata=long)
        assert read_texts(tmp_path / "a.jpg") == {"Software": "x"}

    @pytest.mark.parametrize("name", ["a.jpeg", "a.webp"])
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
    def test_sides_beyond_the_format_are_refused(self, tmp_path, name, most):
        check_output_sides(tmp_path / name, (1, most))
        advice = "leave it out" if name == "a.gif" else f"write {name} as .png or .tif"
        match = f"would be 1x{most + 1} px: expected at most {most} px a side for .*; {advice}"
        with pytest.raises(InputError, match=match):
            check_output_sides(tmp_path / name, (most + 1, 1))
        if name != "a.gif":
            save_image(tmp_path / name, np.zeros((1, most, 3)))
            with pytest.raises(InputError, match=match):
                save_image(tmp_path / name, np.zeros((most + 1, 1, 3)))
        check_output_sides("a.png", (10**6, 1))

    def test_jpeg_has_no_chroma_subsampling(self, tmp_path):
        save_image(tmp_path / "a.jpg", EVERY, quality=50)
        with Image.open(tmp_path / "a.jpg") as image:
            assert {layer[1:3] for layer in image.layer} == {(1, 1)}

    @pytest.mark.parametrize(
        "name, options, message",
        [
            ("a.jpg", {"bit_depth": 16}, "JPEG does not support bit_depth 16: write a.jpg as .png"),
            ("a.webp", {"bit_depth": 16}, "WEBP does not support bit_depth 16"),
            ("a.png", {"bit_depth": 12}, "bit_depth is 12: expected 8 or 16"),
            ("a.png", {"quality": 90}, "quality has no meaning for PNG, which is lossless"),
            ("a.jpg", {"quality": 0}, "quality is 0: expected 1 to 100"),
            ("a.jpg", {"quality": 101}, "quality is 101: expected 1 to 100"),
            ("a.jpg", {"alpha": True}, "transparent, which JPEG does not support: write a.jpg as"),
        ],
    )
    def test_options_that_a_format_does_not_support(self, name, options, message):
        with pytest.raises(InputError, match=message):
            check_output(name, **options)
