"""Pictures that Pillow reads as less than they are: deep PNGs, and TIFFs of other than 8 bits.

imagecodecs and tifffile decode them, and are imported only where they are needed. What they would
allocate is bounded before: a TIFF's header may claim anything.
"""

import logging
import math
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from nst_jax.picture_lab import D50, lab_to_rgb
from nst_jax.picture_samples import Samples, in_unit_range

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# None, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard: of which tifffile bounds the output.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK, _LAB = 0, 1, 2, 5, 8  # photometric interpretations
_COLORS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _CMYK: 4, _LAB: 3}
_PREMULTIPLIED, _STRAIGHT = 1, 2  # what an extra sample is
_MOST_SAMPLES = 16


def is_deep_png(image: Image.Image) -> bool:
    """Whether it is a PNG of 16 bits, or one whose transparent grey Pillow takes for another."""
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return False
    assert image.fp is not None and image.png is not None
    here = image.fp.tell()
    image.fp.seek(24)
    depth = image.fp.read(1)[0]
    image.fp.seek(here)
    return depth == 16 or (depth < 8 and image.mode != "P" and "transparency" in image.info)


def png_samples(data: bytes, *, shape: tuple[int, int], profile: bytes | None) -> Samples:
    """Samples of a PNG's bytes, with the depth that they have.

    Args:
      data: the file.
      shape: height and width, which have been checked.
      profile: its ICC profile.

    Raises:
      ValueError, RuntimeError: for a damaged file.
    """
    import imagecodecs

    with quiet("imagecodecs"):  # libpng warns of an interlaced one, which is read right
        values = imagecodecs.png_decode(b"".join(_pixel_chunks(data, shape=shape)))
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[:2] != shape:
        raise ValueError("its size is not that of its header")
    channels = values.shape[-1]
    deep = values.dtype != np.uint8
    scaled = values / np.float32(65535 if deep else 255)
    alpha = scaled[..., -1] if channels in (2, 4) else None
    colors = (scaled if deep else values)[..., : 1 if channels < 3 else 3]
    return Samples(colors, "grey" if channels < 3 else "rgb", alpha, profile)


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


class TiffHeader(NamedTuple):
    """What is known of a TIFF before its pixels are decoded.

    Attributes:
      shape: height and width of the first page as stored.
      orientation: the EXIF orientation.
      pages: how many there are.
    """

    shape: tuple[int, int]
    orientation: int
    pages: int


def is_tiff(head: bytes) -> bool:
    """Whether a file's first four bytes are a TIFF's."""
    return head[:4] in _TIFF_HEADS


def is_deep_tiff(image: Image.Image) -> bool:
    """Whether Pillow has opened a TIFF that it would not give whole or right.

    Such are those of more than 8 bits, of floats and of Lab; alpha that stands apart it confuses.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    many = np.atleast_1d(tags.get(258, 1)).max() > 8
    formats = set(np.atleast_1d(tags.get(339, 1)).tolist())
    apart = tags.get(284) == 2 and 338 in tags and tags.get(259, 1) in _COMPRESSIONS
    return bool(many or apart or tags.get(262) == _LAB or formats != {1})


def is_raw_tiff(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether its first picture is a preview of what a camera's sensor saw."""
    tags = image.tag_v2
    return (tags.get(254, 0) & 1 and 330 in tags) or 50706 in tags  # subfile type, SubIFDs; DNG


def tiff_header(data: bytes) -> TiffHeader:
    """The header of a TIFF's first page.

    Raises:
      ValueError and others: for a damaged file, and one of a kind that is not read.
    """
    with _page(data) as (page, pages):
        return TiffHeader((page.imagelength, page.imagewidth), _orientation(page), pages)


def tiff_samples(data: bytes) -> Samples:
    """Samples of a TIFF's first page, as stored; its number of pixels has been checked.

    Raises:
      ValueError and others: for a damaged file, and one of a kind that is not read.
    """
    with _page(data) as (page, _):
        _check_segments(page, data)
        # [planes, depth 1, height, width, samples of a plane]
        values = page.asarray(squeeze=False, maxworkers=1)
        values = np.moveaxis(values[:, 0], 0, -2).reshape(*values.shape[2:4], -1)
        return _tiff_colors(page, values)


@contextmanager
def _page(data: bytes) -> Iterator[tuple[Any, int]]:
    """A TIFF's first page, of a kind that can be read, and the number of pages."""
    import io

    import tifffile

    with quiet("tifffile"), tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        _check_kind(page)
        yield page, len(tiff.pages)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Drop what a logger is told by this thread: the error that follows says it."""
    thread = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger(name)
    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)


def _check_kind(page: Any) -> None:
    colors = _COLORS.get(page.photometric)
    if colors is None:
        raise ValueError(f"TIFFs of {_name(page.photometric)} are not read: save it as RGB")
    if page.compression not in _COMPRESSIONS:
        raise ValueError(
            f"TIFFs of this depth are not read with the compression {_name(page.compression)}: "
            "save it with LZW or none"
        )
    if not colors <= page.samplesperpixel <= _MOST_SAMPLES or page.imagedepth != 1:
        raise ValueError(f"it has {page.samplesperpixel} samples a pixel: expected {colors}")
    if not isinstance(page.bitspersample, int) or page.dtype is None:
        raise ValueError("its samples are of different or unknown types")
    kind, bits = page.dtype.kind, page.bitspersample
    if not (kind in "bu" and bits <= 16) and kind != "f":
        raise ValueError(
            f"it has numbers of type {page.dtype}, of a range that is not known: expected 8 or 16 "
            "bits, or floats from 0 to 1"
        )
    if page.photometric == _LAB and (kind, bits) not in (("u", 8), ("u", 16)):
        raise ValueError("of Lab only 8 and 16 bits are read: save it as RGB")


def _name(number: Any) -> str:
    return str(getattr(number, "name", number))


def _check_segments(page: Any, data: bytes) -> None:
    """Check that all strips or tiles are there, and none is larger than it may be."""
    if math.prod(page.chunks) > 2 * math.prod(page.shaped) + 2**22:
        raise ValueError("its tiles are larger than the picture")
    offsets, counts = page.dataoffsets, page.databytecounts
    missing = len(offsets) != math.prod(page.chunked) or len(counts) != len(offsets)
    if missing or any(
        size <= 0 or start <= 0 or start + size > len(data)
        for start, size in zip(offsets, counts, strict=True)
    ):
        raise ValueError("a part of its pixels is missing")


def _tiff_colors(page: Any, values: np.ndarray) -> Samples:
    colors = _COLORS[page.photometric]
    if page.photometric == _LAB:
        lightness = values[..., :1] * np.float32(100 / (2**page.bitspersample - 1))
        signed = np.dtype(f"i{values.itemsize}")
        ab = values[..., 1:3].copy().view(signed) / np.float32(2 ** (page.bitspersample - 8))
        white = page.tags.valueof(318)
        white = D50 if white is None else (white[0] / white[1], white[2] / white[3])
        return Samples(lab_to_rgb(np.concatenate([lightness, ab], axis=-1), white=white), "rgb")
    if values.dtype.kind == "f":
        values = in_unit_range(values)
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


def _orientation(page: Any) -> int:
    """A page's orientation by its tag, or else by its XMP data."""
    tag = page.tags.valueof(274)
    if tag is not None:
        return int(tag)
    xmp = page.tags.valueof(700)
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', bytes(xmp or b""))
    return int(found[1]) if found else 1
