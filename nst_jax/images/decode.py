"""The samples of image files, before their colours are those of sRGB.

Pillow reads most. Deep PPMs, deep PNGs, and TIFFs of other than 8 bits it would read as less than
they are: imagecodecs and tifffile decode these, and are imported only where they are needed. What
they would allocate is bounded before, for a TIFF's header may claim anything.

Contract: 8-bit samples stay uint8, all deeper ones are float32 in [0, 1].
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

# Pillow's others it hands to other programs, or reads in part or not as they are meant.
_READ = (
    *("AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"),
)

# Of whose images the first is a choice; an icon's or a layered file's first is the whole.
_SERIES = ("AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP")

_RAW = "a camera's raw format"

_REFUSED = (  # of which Pillow would read something
    (rb"(?s)II\*\0.{4}CR|IIRO|IIRS|IIU\0|FUJIFILMCCD-RAW|.{4}ftypcrx ", _RAW),
    (rb"P[Ff]\s", "a PFM"),
)

_FOREIGN = (
    (rb"(?s).{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"%PDF-", "PDF"),
    (rb"(?s)\s*<.*<svg|\s*<svg", "SVG"),
    (rb"(%!PS|\xc5\xd0\xd3\xc6)", "PostScript"),
    (rb"8BPS", "a PSD of more than 8 bits or of other colours than RGB"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL )", "JPEG XL"),
)

_SWAPPED = (5, 6, 7, 8)  # EXIF orientations of which a file's rows are columns


class Unread(ValueError):
    """A file of a kind that is not read, damaged or not; the text says of which kind it is."""


class Samples(NamedTuple):
    """A decoded image in its file's own colour space.

    Attributes:
      values: ``[H, W, C]`` uint8 or float32; not multiplied by alpha.
      space: what the C channels are: grey (1), rgb (3) or cmyk (4, full ink is 1).
      alpha: ``[H, W]`` float32 in [0, 1], or None.
      profile: the ICC profile of the values, or None.
    """

    values: np.ndarray
    space: Literal["grey", "rgb", "cmyk"]
    alpha: np.ndarray | None = None
    profile: bytes | None = None


class Header(NamedTuple):
    """An image of which only the header is read yet.

    Attributes:
      stored: height and width, as ``read`` gives them.
      orientation: how they are to be turned, a number of EXIF's.
      several: whether the file holds more images after the first, which is meant.
      read: reads the samples.
    """

    stored: tuple[int, int]
    orientation: int
    several: bool
    read: Callable[[], Samples]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, upright."""
        height, width = self.stored
        return (width, height) if self.orientation in _SWAPPED else (height, width)

    def decode(self) -> Samples:
        """The samples, upright.

        Raises:
          Unread: for floats outside of [0, 1].
          Exception: almost any, for a damaged file.
        """
        samples = self.read()
        alpha = None if samples.alpha is None else upright(samples.alpha, self.orientation)
        return samples._replace(values=upright(samples.values, self.orientation), alpha=alpha)


def identify(file: BinaryIO) -> Header:
    """Read the header of an image; the file is to stay open until it is decoded.

    Raises:
      Unread: for a kind that is known, but not read.
      PIL.UnidentifiedImageError: for one that is not known.
      PIL.Image.DecompressionBombError: for some that are far beyond Pillow's limit of pixels.
      Exception: almost any, for a damaged file.
    """
    head = file.read(4096)
    file.seek(0)
    _refuse(head, _REFUSED)
    if (deep := _deep_ppm(file, head)) is not None:
        return deep
    try:
        image = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        if head[:4] in _TIFF_HEADS:  # Pillow knows few kinds
            return _deep_tiff(file)
        _refuse(head, _FOREIGN)
        raise
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff(file, image)
    return _other(file, image, head)


def _refuse(head: bytes, kinds: tuple[tuple[bytes, str], ...]) -> None:
    for pattern, kind in kinds:
        if re.match(pattern, head):
            raise Unread(kind)


@lru_cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _READ if name in Image.OPEN)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn ``[H, W, ...]`` as its EXIF orientation says; what is none leaves it as it is.

    >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    array = array.swapaxes(0, 1) if orientation in _SWAPPED else array
    array = array[::-1] if orientation in (3, 4, 7, 8) else array
    array = array[:, ::-1] if orientation in (2, 3, 6, 7) else array
    return np.ascontiguousarray(array)


def _floats(values: np.ndarray) -> np.ndarray:
    """Floats as float32, checked: of what is outside of [0, 1] it is not known what it means."""
    values = values.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise Unread("an image of floats outside of 0 to 1")
    return values


# What Pillow reads.


def _other(file: BinaryIO, image: Image.Image, head: bytes) -> Header:
    """The header of anything but a TIFF."""
    if image.mode == "LAB":
        raise Unread("an image in Lab")
    colors = Image.getmodebands(image.mode.removesuffix("A"))
    if image.format == "PSD" and int.from_bytes(head[12:14]) > colors:
        raise Unread("a PSD with an alpha channel or a saved selection")
    read = partial(_pillow_samples, image)
    if isinstance(image, PngImagePlugin.PngImageFile):
        # Of few bits Pillow takes transparent grey for another.
        few = head[24] < 8 and image.mode != "P" and "transparency" in image.info
        read = partial(_png_samples, file, image) if few or head[24] == 16 else read
    return Header((image.height, image.width), _orientation(image), _is_series(image), read)


def _tiff(file: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> Header:
    tags = image.tag_v2
    # The first image is a preview of what the sensor saw: subfile type, SubIFDs; DNG.
    if (tags.get(254, 0) & 1 and 330 in tags) or 50706 in tags:
        raise Unread(_RAW)
    many = np.atleast_1d(tags.get(258, 1)).max() > 8
    formats = set(np.atleast_1d(tags.get(339, 1)).tolist())
    # Alpha that stands apart Pillow confuses.
    apart = tags.get(284) == 2 and 338 in tags and tags.get(259, 1) in _COMPRESSIONS
    if many or apart or formats != {1}:
        return _deep_tiff(file)
    if image.mode == "LAB":
        raise Unread("a TIFF in Lab")
    # Pillow turns the pixels itself, and has swapped the size if a tag asks for it, not XMP data.
    swapped = ExifTags.Base.Orientation not in tags and _orientation(image) in _SWAPPED
    shape = image.size if swapped else (image.height, image.width)
    return Header(shape, 1, _is_series(image), partial(_pillow_samples, image))


def _pillow_samples(image: Image.Image) -> Samples:
    profile = profile_of(image)
    image.load()
    if image.mode == "I" or image.mode.startswith("I;16"):  # both hold 16 bits
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
    except Exception:  # damaged behind the first image
        return False


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image of which only the header is read."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        _read_png_tail(image)
    # Not the PNG's own method, which decodes the pixels.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _read_png_tail(image: PngImagePlugin.PngImageFile) -> None:
    """Have the texts and EXIF data that stand behind a PNG's pixels in ``image.info``."""
    stream, file = image.png, image.fp
    assert stream is not None and file is not None  # until the pixels are decoded
    here = file.tell()
    file.seek(image.tile[0].offset - 8)
    try:
        while (chunk := stream.read())[0] != b"IEND":
            name, start, length = chunk
            if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                stream.call(name, start, length)
            file.seek(start + length + 4)  # behind the checksum
    except (struct.error, SyntaxError, UnicodeDecodeError):  # cut off or damaged; Pillow stops, too
        pass
    file.seek(here)


# PPMs of more than 8 bits.

_COMMENT = rb"#[^\n]*\n"  # it goes on to its line's end

_DEEP_PPM = re.compile(rb"(P[36])" + 3 * (rb"(?:\s|" + _COMMENT + rb")+(\d+)") + rb"\s")


def _deep_ppm(file: BinaryIO, head: bytes) -> Header | None:
    """The header of a PPM of numbers from 0 to 256 or more, or None for any other file."""
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
            raise ValueError("it is cut off")
        values = np.minimum(values.reshape(height, width, 3) / np.float32(top), 1)
        return Samples(values, "rgb")

    return Header((height, width), 1, False, read)


# PNGs of 16 bits, or of transparent grey of few.


def _png_samples(file: BinaryIO, image: Image.Image) -> Samples:
    import imagecodecs

    file.seek(0)
    shape = (image.height, image.width)
    values = imagecodecs.png_decode(b"".join(_pixel_chunks(file.read(), shape=shape)))
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[:2] != shape:
        raise ValueError("its size is not that of its header")
    channels = values.shape[-1]
    deep = values.dtype != np.uint8
    scaled = values / np.float32(65535 if deep else 255)
    alpha = scaled[..., -1] if channels in (2, 4) else None
    colors = (scaled if deep else values)[..., : 1 if channels < 3 else 3]
    return Samples(colors, "grey" if channels < 3 else "rgb", alpha, profile_of(image))


def _pixel_chunks(data: bytes, *, shape: tuple[int, int]) -> Iterator[bytes]:
    """A PNG without all that says nothing of its pixels, of which libpng might complain aloud."""
    yield data[:8]
    start = 8
    while start < len(data):
        length, name = struct.unpack(">I4s", data[start : start + 8])
        if name == b"IHDR" and struct.unpack(">II", data[start + 8 : start + 16]) != shape[::-1]:
            raise ValueError("it has two headers")
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            yield data[start : start + length + 12]
        start += length + 12


# TIFFs of more than 8 bits, of floats, or with alpha that stands apart.

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# None, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard: of which tifffile bounds the output.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)

_WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK = 0, 1, 2, 5  # photometric interpretations

_COLORS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _CMYK: 4}

_PREMULTIPLIED, _STRAIGHT = 1, 2  # what an extra sample is

_MOST_SAMPLES = 16


def _deep_tiff(file: BinaryIO) -> Header:
    file.seek(0)
    data = file.read()
    with _page(data) as (page, pages):
        shape = (page.imagelength, page.imagewidth)
        return Header(shape, _tiff_orientation(page), pages > 1, partial(_tiff_samples, data))


@contextmanager
def _page(data: bytes) -> Iterator[tuple[Any, int]]:
    """A TIFF's first page, of a kind that can be read, and the number of pages."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        _check_kind(page)
        yield page, len(tiff.pages)


def _check_kind(page: Any) -> None:
    colors = _COLORS.get(page.photometric)
    if colors is None:
        raise Unread(f"a TIFF in {getattr(page.photometric, 'name', 'unknown colours')}")
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", "unknown")
        raise Unread(f"a TIFF of more than 8 bits with the compression {name}")
    if not colors <= page.samplesperpixel <= _MOST_SAMPLES or page.imagedepth != 1:
        raise ValueError(f"it has {page.samplesperpixel} samples a pixel: expected {colors}")
    if not isinstance(page.bitspersample, int) or page.dtype is None:
        raise ValueError("its samples are of different or unknown types")
    if page.dtype.kind != "f" and not (page.dtype.kind in "bu" and page.bitspersample <= 16):
        raise Unread(f"a TIFF of numbers of type {page.dtype}, whose range is not known")


def _tiff_orientation(page: Any) -> int:
    """A page's orientation by its tag, or else by its XMP data."""
    tag = page.tags.valueof(274)
    if tag is not None:
        return int(tag)
    xmp = page.tags.valueof(700)
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', bytes(xmp or b""))
    return int(found[1]) if found else 1


def _tiff_samples(data: bytes) -> Samples:
    with _page(data) as (page, _):
        _check_segments(page, data)
        # [planes, depth 1, height, width, samples of a plane]
        values = page.asarray(squeeze=False, maxworkers=1)
        values = np.moveaxis(values[:, 0], 0, -2).reshape(*values.shape[2:4], -1)
        return _tiff_colors(page, values)


def _check_segments(page: Any, data: bytes) -> None:
    """Check that all strips or tiles are there, and none is larger than it may be."""
    if math.prod(page.chunks) > 2 * math.prod(page.shaped) + 2**22:
        raise ValueError("its tiles are larger than the image")
    offsets, counts = page.dataoffsets, page.databytecounts
    missing = len(offsets) != math.prod(page.chunked) or len(counts) != len(offsets)
    if missing or any(
        size <= 0 or start <= 0 or start + size > len(data)
        for start, size in zip(offsets, counts, strict=True)
    ):
        raise ValueError("a part of its pixels is missing")


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
        extra = (_STRAIGHT,)  # it does not tell; as libtiff's readers take it
    alpha = None
    if extra and extra[0] in (_PREMULTIPLIED, _STRAIGHT):
        alpha = values[..., colors]
    colored = values[..., :colors]
    if extra and extra[0] == _PREMULTIPLIED:
        assert alpha is not None
        colored = np.clip(colored / np.maximum(alpha, 1e-6)[..., None], 0, 1)
    profile = page.tags.valueof(34675)
    space = "grey" if colors == 1 else "rgb" if colors == 3 else "cmyk"
    return Samples(colored, space, alpha, bytes(profile) if profile else None)
