"""Decode image files to samples in the file's own colour space.

Pillow decodes most formats. It would reduce the depth of 16-bit PNGs and PPMs and of TIFFs that do
not have 8 bits, so imagecodecs and tifffile decode these; both are imported only when needed. A
TIFF header may claim any size, so the memory that decoding would take is bounded beforehand.

Contract: 8-bit samples stay uint8; deeper samples become float32 in [0, 1].
"""

import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from nst_jax.images.profiles import profile_of

# Pillow delegates its other formats to external programs, or reads them only partly or wrongly.
_PILLOW_FORMATS = (
    *("AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"),
)

# Formats of animations and pages: reading the first image drops the others. In icons and layered
# files the first image is the whole image.
_SERIES = ("AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP")

_RAW = "a camera's raw format"

# First bytes of unsupported files from which Pillow would read something, such as a preview.
_UNSUPPORTED = (
    (rb"(?s)II\*\0.{4}CR|IIRO|IIRS|IIU\0|FUJIFILMCCD-RAW|.{4}ftypcrx ", _RAW),
    (rb"P[Ff]\s", "a PFM"),
)

# First bytes of unsupported files that Pillow does not recognise; the name is for the message.
_UNRECOGNISED = (
    (rb"(?s).{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"%PDF-", "PDF"),
    (rb"(?s)\s*<.*<svg|\s*<svg", "SVG"),
    (rb"(%!PS|\xc5\xd0\xd3\xc6)", "PostScript"),
    (rb"8BPS", "a PSD of more than 8 bits or of other colours than RGB"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL )", "JPEG XL"),
)

# EXIF orientations (tag 274; TIFF 6.0, section 8) in which rows of the file are columns of the
# upright image: row 0 is the left or right side.
_TRANSPOSED = (5, 6, 7, 8)

# TIFF tags.
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _COMPRESSION, _ORIENTATION = 254, 258, 259, 274
_PLANAR_CONFIGURATION, _SUB_IFDS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 284, 330, 338, 339
_XMP, _ICC_PROFILE, _DNG_VERSION = 700, 34675, 50706


class UnsupportedImage(ValueError):
    """An image of an unsupported kind; the message names the kind, such as "HEIC"."""


class Samples(NamedTuple):
    """A decoded image in its file's own colour space.

    Attributes:
      values: ``[H, W, C]`` uint8 or float32; not premultiplied by alpha.
      space: the meaning of the C channels: grey (1), rgb (3) or cmyk (4; 1 is full ink).
      alpha: ``[H, W]`` float32 in [0, 1], or None.
      profile: the ICC profile of the values, or None.
    """

    values: np.ndarray
    space: Literal["grey", "rgb", "cmyk"]
    alpha: np.ndarray | None = None
    profile: bytes | None = None


class Header(NamedTuple):
    """The header of an image file whose pixels are not decoded yet.

    Attributes:
      stored_shape: height and width of the samples from ``read``.
      orientation: the EXIF orientation of these samples.
      is_series: whether the file holds further images after the first.
      read: decodes the samples of the first image.
    """

    stored_shape: tuple[int, int]
    orientation: int
    is_series: bool
    read: Callable[[], Samples]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, upright."""
        height, width = self.stored_shape
        return (width, height) if self.orientation in _TRANSPOSED else (height, width)

    def decode(self) -> Samples:
        """Decode the samples and turn them upright.

        Raises:
          UnsupportedImage: if the samples are floats outside [0, 1].
          Exception: of almost any type, if the file is damaged.
        """
        samples = self.read()
        alpha = None if samples.alpha is None else upright(samples.alpha, self.orientation)
        return samples._replace(values=upright(samples.values, self.orientation), alpha=alpha)


def identify(file: BinaryIO) -> Header:
    """Read the header of an image file, which must stay open until it is decoded.

    Raises:
      UnsupportedImage: if the format is known but not supported.
      PIL.UnidentifiedImageError: if the format is unknown.
      PIL.Image.DecompressionBombError: for some formats, if the image has over twice Pillow's
        limit of pixels.
      Exception: of almost any type, if the file is damaged.
    """
    head = file.read(4096)
    file.seek(0)
    _check_supported(head, _UNSUPPORTED)
    if (deep := _deep_ppm(file, head)) is not None:
        return deep
    try:
        image = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        if head[:4] in _TIFF_HEADS:  # a combination of tags that Pillow does not know
            return _deep_tiff(file)
        _check_supported(head, _UNRECOGNISED)
        raise
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff(file, image)
    return _other(file, image, head)


def _check_supported(head: bytes, kinds: tuple[tuple[bytes, str], ...]) -> None:
    for pattern, kind in kinds:
        if re.match(pattern, head):
            raise UnsupportedImage(kind)


@lru_cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn ``[H, W, ...]`` upright by its EXIF orientation, 1 to 8; ignore any other number.

    >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    array = array.swapaxes(0, 1) if orientation in _TRANSPOSED else array
    array = array[::-1] if orientation in (3, 4, 7, 8) else array
    array = array[:, ::-1] if orientation in (2, 3, 6, 7) else array
    return np.ascontiguousarray(array)


def _floats(values: np.ndarray) -> np.ndarray:
    """Convert floats to float32; outside [0, 1] the value of white is unknown."""
    values = values.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise UnsupportedImage("an image with float values outside 0 to 1")
    return values


# Files that Pillow decodes.


def _other(file: BinaryIO, image: Image.Image, head: bytes) -> Header:
    """Read the header of a file of any format except TIFF."""
    if image.mode == "LAB":
        raise UnsupportedImage("an image in CIE Lab colours")
    colors = Image.getmodebands(image.mode.removesuffix("A"))
    # Bytes 12 and 13 of a PSD count its channels (Photoshop File Formats, "File Header Section").
    if image.format == "PSD" and int.from_bytes(head[12:14]) > colors:
        raise UnsupportedImage("a PSD with an alpha channel or a saved selection")
    read = partial(_pillow_samples, image)
    if isinstance(image, PngImagePlugin.PngImageFile):
        # Byte 24 is the bit depth in IHDR. At 1, 2 and 4 bits Pillow makes the wrong grey level
        # transparent; tRNS states the level at the image's depth (W3C PNG, 11.3.1.1).
        transparent_grey = head[24] < 8 and image.mode != "P" and "transparency" in image.info
        if transparent_grey or head[24] == 16:
            read = partial(_png_samples, file, image)
    return Header((image.height, image.width), _orientation(image), _is_series(image), read)


def _tiff(file: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> Header:
    tags = image.tag_v2
    # Cameras store a reduced-resolution preview (bit 0 of NewSubfileType) as the first image and
    # the sensor's data in a SubIFD (TIFF Technical Note 1); DNG files name their version.
    is_preview = tags.get(_NEW_SUBFILE_TYPE, 0) & 1 and _SUB_IFDS in tags
    if is_preview or _DNG_VERSION in tags:
        raise UnsupportedImage(_RAW)
    deep = np.atleast_1d(tags.get(_BITS_PER_SAMPLE, 1)).max() > 8
    # SampleFormat 1 is unsigned integers (TIFF 6.0, section 19).
    integers = set(np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)).tolist()) == {1}
    # Pillow mixes up the planes of images with alpha that are stored plane by plane.
    planar = tags.get(_PLANAR_CONFIGURATION) == 2 and _EXTRA_SAMPLES in tags
    if deep or not integers or (planar and tags.get(_COMPRESSION, 1) in _COMPRESSIONS):
        return _deep_tiff(file)
    if image.mode == "LAB":
        raise UnsupportedImage("a TIFF in CIE Lab colours")
    # Pillow turns the pixels itself. It has already swapped width and height if the tag says so,
    # but not if only the XMP data does.
    swapped = ExifTags.Base.Orientation not in tags and _orientation(image) in _TRANSPOSED
    shape = image.size if swapped else (image.height, image.width)
    return Header(shape, 1, _is_series(image), partial(_pillow_samples, image))


def _pillow_samples(image: Image.Image) -> Samples:
    profile = profile_of(image)
    image.load()
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey
        return Samples(
            _floats(np.asarray(image, np.float32) / 65535)[..., None], "grey", profile=profile
        )
    if image.mode == "CMYK":
        return Samples(np.asarray(image), "cmyk", profile=profile)
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if grey else "RGB"))
        values = values[..., None] if grey else values
        return Samples(values, "grey" if grey else "rgb", profile=profile)
    image = image.convert("LA") if image.mode == "La" else image
    rgba = np.asarray(image.convert("RGBA"))
    values = rgba[..., :1] if grey else rgba[..., :3]
    alpha = rgba[..., 3] / np.float32(255)
    return Samples(values, "grey" if grey else "rgb", alpha, profile)


def _is_series(image: Image.Image) -> bool:
    try:
        return image.format in _SERIES and getattr(image, "is_animated", False)
    except Exception:  # damaged after the first image
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image whose pixels are not decoded."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        _read_png_tail(image)
    # PngImageFile.getexif would decode the pixels first.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _read_png_tail(image: PngImagePlugin.PngImageFile) -> None:
    """Add the texts and EXIF data after a PNG's pixels to ``image.info``.

    eXIf, tEXt, zTXt and iTXt may stand before or after IDAT (W3C PNG, 5.6), and Pillow reads those
    after it only when it decodes the pixels.
    """
    stream, file = image.png, image.fp
    assert stream is not None and file is not None  # Pillow drops both once it has decoded
    here = file.tell()
    file.seek(image.tile[0].offset - 8)
    try:
        while (chunk := stream.read())[0] != b"IEND":
            name, start, length = chunk
            if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                stream.call(name, start, length)
            file.seek(start + length + 4)  # 4 bytes of checksum
    except (struct.error, SyntaxError, UnicodeDecodeError):  # truncated or damaged: stop here
        pass
    file.seek(here)


# PPMs with more than 8 bits (Netpbm's ppm(5)): P6 holds two big-endian bytes per sample, P3 text.

_COMMENT = rb"#[^\n]*\n"

_DEEP_PPM = re.compile(rb"(P[36])" + 3 * (rb"(?:\s|" + _COMMENT + rb")+(\d+)") + rb"\s")


def _deep_ppm(file: BinaryIO, head: bytes) -> Header | None:
    """Read the header of a PPM with a maximum above 255; return None for any other file."""
    found = _DEEP_PPM.match(head)
    if found is None or not 255 < int(found[4]) < 65536:
        return None
    width, height, top = (int(number) for number in found.groups()[1:])
    count = 3 * height * width

    def read() -> Samples:
        data = file.read()[found.end() :]
        if found[1] == b"P6":
            values = np.frombuffer(data, ">u2", min(count, len(data) // 2))
        else:
            words = re.finditer(rb"\S+", re.sub(_COMMENT, b"\n", data))
            values = np.fromiter((int(word[0]) for word in islice(words, count)), np.uint16)
        if not count or len(values) < count:
            raise ValueError("the file is truncated")
        values = np.minimum(values.reshape(height, width, 3) / np.float32(top), 1)
        return Samples(values, "rgb")

    return Header((height, width), 1, False, read)


# PNGs with 16 bits, or with a transparent grey level and fewer than 8 bits.


def _png_samples(file: BinaryIO, image: Image.Image) -> Samples:
    import imagecodecs

    file.seek(0)
    shape = (image.height, image.width)
    values = imagecodecs.png_decode(b"".join(_pixel_chunks(file.read(), shape=shape)))
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[:2] != shape:
        raise ValueError(f"expected {shape} pixels as in its header, got {values.shape[:2]}")
    channels = values.shape[-1]
    deep = values.dtype != np.uint8
    scaled = values / np.float32(65535 if deep else 255)
    alpha = scaled[..., -1] if channels in (2, 4) else None
    colors = (scaled if deep else values)[..., : 1 if channels < 3 else 3]
    return Samples(colors, "grey" if channels < 3 else "rgb", alpha, profile_of(image))


def _pixel_chunks(data: bytes, *, shape: tuple[int, int]) -> Iterator[bytes]:
    """Yield a PNG's signature and the chunks that its pixels depend on (W3C PNG, 5.3).

    libpng prints warnings about other chunks, such as a damaged profile, to standard error.
    """
    yield data[:8]
    start = 8
    while start < len(data):
        length, name = struct.unpack(">I4s", data[start : start + 8])
        if name == b"IHDR" and struct.unpack(">II", data[start + 8 : start + 16]) != shape[::-1]:
            raise ValueError("it has two different headers")
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            yield data[start : start + length + 12]  # length, name and checksum: 4 bytes each
        start += length + 12


# TIFFs with more than 8 bits, with floats, or with alpha in a plane of its own.

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # "*" is TIFF, "+" BigTIFF

# None, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard: tifffile bounds what these expand to.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)

# PhotometricInterpretation (TIFF 6.0, section 8; CMYK: section 16), and colour channels of each.
_WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK = 0, 1, 2, 5
_COLORS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _CMYK: 4}

# ExtraSamples (TIFF 6.0, section 18): alpha with which the colours are multiplied, or not.
_PREMULTIPLIED, _STRAIGHT = 1, 2

_MAX_SAMPLES = 16


def _deep_tiff(file: BinaryIO) -> Header:
    file.seek(0)
    data = file.read()
    with _page(data) as (page, pages):
        shape = (page.imagelength, page.imagewidth)
        return Header(shape, _tiff_orientation(page), pages > 1, partial(_tiff_samples, data))


@contextmanager
def _page(data: bytes) -> Iterator[tuple[Any, int]]:
    """Open a TIFF's first page and count the pages; raise if the page is not supported."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        _check_page(page)
        yield page, len(tiff.pages)


def _check_page(page: Any) -> None:
    colors = _COLORS.get(page.photometric)
    if colors is None:
        raise UnsupportedImage(f"a TIFF in {getattr(page.photometric, 'name', 'unknown colours')}")
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", "unknown")
        raise UnsupportedImage(f"a TIFF with more than 8 bits and {name} compression")
    if not colors <= page.samplesperpixel <= _MAX_SAMPLES or page.imagedepth != 1:
        raise ValueError(f"expected {colors} samples per pixel, got {page.samplesperpixel}")
    if not isinstance(page.bitspersample, int) or page.dtype is None:
        raise ValueError("its samples have different or unknown types")
    if page.dtype.kind != "f" and not (page.dtype.kind in "bu" and page.bitspersample <= 16):
        # Without a convention for white, the range of 32-bit or signed integers is unknown.
        raise UnsupportedImage(f"a TIFF with samples of type {page.dtype}")


def _tiff_orientation(page: Any) -> int:
    """Return a page's orientation from its tag, or from its XMP data if it has no tag."""
    tag = page.tags.valueof(_ORIENTATION)
    if tag is not None:
        return int(tag)
    xmp = page.tags.valueof(_XMP)
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', bytes(xmp or b""))
    return int(found[1]) if found else 1


def _tiff_samples(data: bytes) -> Samples:
    with _page(data) as (page, _):
        _check_segments(page, data)
        # [planes, depth, height, width, samples per plane] -> [height, width, samples]; the depth
        # is 1, and either planes or samples per plane is 1.
        values = page.asarray(squeeze=False, maxworkers=1)
        values = np.moveaxis(values[:, 0], 0, -2).reshape(*values.shape[2:4], -1)
        return _tiff_colors(page, values)


def _check_segments(page: Any, data: bytes) -> None:
    """Check that all strips or tiles are in the file and none expands beyond the image."""
    # Tiles are padded to their full size, so that one tile may hold more than a small image: 4 Mi
    # samples are more than any usual tile has.
    if math.prod(page.chunks) > 2 * math.prod(page.shaped) + 2**22:
        raise ValueError("its tiles are far larger than the image")
    offsets, counts = page.dataoffsets, page.databytecounts
    missing = len(offsets) != math.prod(page.chunked) or len(counts) != len(offsets)
    if missing or any(
        size <= 0 or start <= 0 or start + size > len(data)
        for start, size in zip(offsets, counts, strict=True)
    ):
        raise ValueError("part of its pixels is missing")


def _tiff_colors(page: Any, values: np.ndarray) -> Samples:
    colors = _COLORS[page.photometric]
    if values.dtype.kind == "f":
        values = _floats(values)
    else:
        values = values / np.float32(2**page.bitspersample - 1)
    if page.photometric == _WHITE_IS_0:
        values[..., 0] = 1 - values[..., 0]
    extra = tuple(page.extrasamples)
    if not extra and values.shape[-1] == colors + 1 and page.photometric in (_BLACK_IS_0, _RGB):
        extra = (_STRAIGHT,)  # unspecified: libtiff's RGBA reader assumes straight alpha too
    alpha = None
    if extra and extra[0] in (_PREMULTIPLIED, _STRAIGHT):
        alpha = values[..., colors]
    colored = values[..., :colors]
    if extra and extra[0] == _PREMULTIPLIED:
        assert alpha is not None
        colored = np.clip(colored / np.maximum(alpha, 1e-6)[..., None], 0, 1)
    profile = page.tags.valueof(_ICC_PROFILE)
    space = "grey" if colors == 1 else "rgb" if colors == 3 else "cmyk"
    return Samples(colored, space, alpha, bytes(profile) if profile else None)
