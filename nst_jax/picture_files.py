"""Opening picture files: whatever cannot be read as it is meant is refused in one line.

The path ``-`` is standard input, which is read once and kept.
"""

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin

from nst_jax.errors import InputError
from nst_jax.picture_decoding import is_psd_transparent, pillow_samples, profile_of
from nst_jax.picture_depth import (
    is_deep_png,
    is_deep_tiff,
    is_raw_tiff,
    is_tiff,
    png_samples,
    quiet,
    tiff_header,
    tiff_samples,
)
from nst_jax.picture_netpbm import netpbm_header, netpbm_samples
from nst_jax.picture_samples import Samples, is_turned, upright
from nst_jax.standard_streams import STANDARD, standard_input

# Pillow's others it hands to other programs, or reads in part or not as they are meant.
_READ = (
    *("AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"),
)
# Of whose pictures the first is a choice; an icon's or a layered file's first is the whole.
_SERIES = ("AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP")
_RAW = rb"(?s)II\*\0.{4}CR|IIRO|IIRS|IIU\0|FUJIFILMCCD-RAW|.{4}ftypcrx "
_FOREIGN = (
    (rb"(?s).{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"%PDF-", "PDF"),
    (rb"(?s)\s*<.*<svg|\s*<svg", "SVG"),
    (rb"(%!PS|\xc5\xd0\xd3\xc6)", "PostScript"),
    (rb"8BPS", "a PSD of more than 8 bits or of other colours than RGB"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL )", "JPEG XL"),
)


class Opened(NamedTuple):
    """A picture of which only the header is read yet.

    Attributes:
      shape: height and width, upright.
      several: whether the file holds more pictures after the first, which is meant.
      decode: reads the samples, upright.
    """

    shape: tuple[int, int]
    several: bool
    decode: Callable[[], Samples]


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a picture.

    Raises:
      InputError: for a missing, foreign or too large file; for any failure of the block that uses
        it, too, as of a damaged file.
    """
    name = named(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _stream(path) as file, quiet("PIL.TiffImagePlugin"):
                yield _identified(file, path=path)
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path, int(re.findall(r"\d+", str(error))[0])) from None
    except Image.UnidentifiedImageError:
        raise _foreign(path) from None
    except Exception as error:  # for damaged files Pillow's plugins raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the picture {name} ({reason}): get the file again") from None


def named(path: Path) -> str:
    """What to call a file in words."""
    return "standard input" if path == STANDARD else str(path)


@contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield io.BytesIO(standard_input())
        return
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected a picture file")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: expected a picture file")
    if not os.path.isfile(path):
        raise InputError(f"{path} is no regular file: expected one, or - for standard input")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty: expected a picture file")
    # Not by its path: then Pillow maps raw TIFFs into memory, and scrambles turned ones.
    with open(path, "rb") as file:
        yield file


def _identified(file: BinaryIO, *, path: Path) -> Opened:
    head = file.read(4096)
    file.seek(0)
    if re.match(_RAW, head):
        raise _unread(path, "a camera's raw format")
    deep = netpbm_header(head)
    if deep is not None:
        height, width = deep.shape
        _check_pixels((width, height), path=path)
        return Opened(deep.shape, False, lambda: netpbm_samples(file.read(), deep))
    try:
        image = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        if is_tiff(head):  # Pillow knows few kinds
            return _deep_tiff(file, path=path)
        raise
    # Not left to the warning alone: other threads may have reset what it does.
    _check_pixels(image.size, path=path)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if is_raw_tiff(image):
            raise _unread(path, "a camera's raw format")
        if is_deep_tiff(image):
            return _deep_tiff(file, path=path)
    width, height = image.size
    orientation = None if _is_swapped(image) else _orientation(image)

    def decode() -> Samples:
        profile = profile_of(image)
        if is_deep_png(image):
            file.seek(0)
            samples = png_samples(file.read(), shape=(height, width), profile=profile)
            return _turned(samples, orientation)
        image.load()
        whole = ImageOps.exif_transpose(image)
        if image.format == "PSD" and image.mode == "RGBA" and not is_psd_transparent(file):
            whole = whole.convert("RGB")
        return pillow_samples(whole, profile=profile)

    shape = (width, height) if is_turned(orientation) else (height, width)
    return Opened(shape, _is_series(image), decode)


def _is_series(image: Image.Image) -> bool:
    try:
        return image.format in _SERIES and getattr(image, "is_animated", False)
    except Exception:  # damaged behind the first picture
        return False


def _deep_tiff(file: BinaryIO, *, path: Path) -> Opened:
    file.seek(0)
    data = file.read()
    header = tiff_header(data)
    height, width = header.shape
    _check_pixels((width, height), path=path)
    shape = (width, height) if is_turned(header.orientation) else (height, width)
    return Opened(shape, header.pages > 1, lambda: _turned(tiff_samples(data), header.orientation))


def _turned(samples: Samples, orientation: int | None) -> Samples:
    alpha = None if samples.alpha is None else upright(samples.alpha, orientation)
    return samples._replace(values=upright(samples.values, orientation), alpha=alpha)


@lru_cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _READ if name in Image.OPEN)


def _check_pixels(size: tuple[int, int], *, path: Path) -> None:
    if Image.MAX_IMAGE_PIXELS and math.prod(size) > Image.MAX_IMAGE_PIXELS:
        raise _too_large(path, math.prod(size))


def _too_large(path: Path, pixels: int) -> InputError:
    """The error of a picture beyond Pillow's limit."""
    most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return InputError(
        f"{named(path)} has {pixels / 1e6:.10g} megapixels: expected at most {most:.10g}; if it is "
        f"meant to be so large, give --max-megapixels {math.ceil(pixels / 1e6)}, or in Python set "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _foreign(path: Path) -> InputError:
    """The error of a file that no reader knows, with the name of its format where it is known."""
    with _stream(path) as file:
        head = file.read(1000)
    for pattern, format in _FOREIGN:
        if re.match(pattern, head):
            return _unread(path, format)
    return InputError(
        f"{named(path)} is no picture in a known format: expected PNG, JPEG or the like"
    )


def _unread(path: Path, format: str) -> InputError:
    return InputError(
        f"{named(path)} is {format}, which is not read: export it as PNG, TIFF or JPEG first"
    )


def _is_swapped(image: Image.Image) -> bool:
    """Whether Pillow gives an image's size upright already."""
    tag = ExifTags.Base.Orientation
    return isinstance(image, TiffImagePlugin.TiffImageFile) and is_turned(image.tag_v2.get(tag))


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an image of which only the header is read."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        _read_png_tail(image)
    # Not the PNG's own method, which decodes the pixels.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation)


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
