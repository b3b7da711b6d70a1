"""Read image files into NumPy arrays.

Contract: images are ``[H, W, 3]``, float32 sRGB in [0, 1]; alpha is ``[H, W]``. The path ``-`` is
standard input, which is read once and cached. A file that cannot be read correctly is refused with
a one-line `InputError`.
"""

import io
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from nst_jax.errors import InputError
from nst_jax.images.decode import Header, UnsupportedImage, identify
from nst_jax.images.profiles import to_srgb
from nst_jax.system.streams import STANDARD, standard_input

_log = logging.getLogger(__name__)


class RGBA(NamedTuple):
    """A decoded image.

    Attributes:
      rgb: ``[H, W, 3]``; not premultiplied by alpha. ``load_rgba`` makes it white where alpha
        is 0.
      alpha: ``[H, W]`` in [0, 1], or None for an opaque image.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None


def limit_pixels(max_megapixels: float) -> None:
    """Set how large an image file may be to be read, for the whole process.

    This sets ``PIL.Image.MAX_IMAGE_PIXELS``, which Pillow also applies to the parts of icons and
    tiled files.

    Args:
      max_megapixels: width times height, in millions.

    Raises:
      InputError: if the number is not positive and finite.
    """
    if not 0 < 1e6 * max_megapixels < math.inf:
        raise InputError(
            f"max_megapixels is {max_megapixels}: expected a number above 0, in millions of pixels"
        )
    Image.MAX_IMAGE_PIXELS = round(1e6 * max_megapixels)


def load_rgba(path: str | Path, *, size: int | None = None) -> RGBA:
    """Read an image in sRGB, upright.

    Applies the EXIF orientation and converts an embedded colour profile, grey, palettes and CMYK
    to sRGB. PNGs, TIFFs and PPMs keep their depth of up to 16 bits or floats; other formats are
    read with 8 bits per channel. Logs a warning if the file holds several images, of which the
    first is read, or if its colour profile cannot be used.

    Args:
      path: a file in a supported format, whatever its suffix; ``-`` is standard input.
      size: length of the longer side in pixels, to which the image is resized with its aspect
        ratio, by an antialiased bilinear filter as in neural-style. None keeps the size.

    Returns:
      A ``RGBA``.

    Raises:
      InputError: if the file is missing, damaged or not supported, has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or if ``size`` is not positive.
    """
    rgb, alpha = _read(path, size=size)
    if alpha is None:
        return RGBA(rgb if size is None else resize_longer(rgb, size=size), None)
    # Resize premultiplied colours, so that hidden colours do not bleed into visible ones.
    premultiplied = np.concatenate([rgb * alpha[..., None], alpha[..., None]], axis=-1)
    if size is not None:
        premultiplied = resize_longer(premultiplied, size=size)
    rgb, alpha = premultiplied[..., :3], premultiplied[..., 3:]
    rgb = np.where(alpha > 0, rgb / np.maximum(alpha, 1e-6), 1).astype(np.float32)
    return RGBA(np.clip(rgb, 0, 1), alpha[..., 0])


def load_image(path: str | Path, *, size: int | None = None) -> np.ndarray:
    """Read an image, composited over white where it is transparent; see ``load_rgba``.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1].
    """
    rgb, alpha = load_rgba(path, size=size)
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def load_values(path: str | Path) -> RGBA:
    """Read an image whose values are data rather than colours, such as a mask or labels.

    As ``load_rgba``, but ignores colour profiles and keeps the values of transparent pixels.
    """
    return _read(path, size=None, convert_profile=False)


def image_shape(path: str | Path, *, size: int | None = None) -> tuple[int, int]:
    """Return the height and width of the image from ``load_rgba`` without decoding its pixels.

    Args:
      path, size: as for ``load_rgba``.

    Raises:
      InputError: as for ``load_rgba``, except that damage after the header goes unnoticed.
    """
    _check_size(size)
    with _open_header(Path(path)) as header:
        shape = header.shape
    return shape if size is None else scaled_shape(shape, size=size)


def _read(path: str | Path, *, size: int | None, convert_profile: bool = True) -> RGBA:
    path = Path(path)
    _check_size(size)
    with _open_header(path) as header:
        samples = header.decode()
        _check_pixels(samples.values.shape, name=_display_name(path))  # an icon's directory may lie
        profile = samples.profile if convert_profile else None
        rgb, note = to_srgb(samples.values, space=samples.space, profile=profile)
    if note:
        _log.warning("%s: %s", _display_name(path), note)
    if header.is_series:
        _log.warning("%s holds several images: only the first is read", _display_name(path))
    alpha = samples.alpha
    return RGBA(rgb, None if alpha is None or (alpha == 1).all() else alpha)


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise InputError(f"size is {size}: expected at least 1 pixel")


@contextmanager
def _open_header(path: Path) -> Iterator[Header]:
    """Open an image file and read its header; the block may decode the pixels.

    Raises:
      InputError: if the file is missing, not supported or too large, or if the block raises any
        exception, as decoders do for damaged files.
    """
    name = _display_name(path)
    try:
        with warnings.catch_warnings(), _open_file(path) as file, _decoders_silenced():
            warnings.simplefilter("ignore")
            header = identify(file)
            _check_pixels(header.shape, name=name)
            yield header
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, int(re.findall(r"\d+", str(error))[0])) from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{name} is not an image in a known format: expected PNG, JPEG or similar"
        ) from None
    except UnsupportedImage as error:
        raise InputError(
            f"{name} is {error}, which is not supported: export it as PNG, JPEG, or a grey or RGB "
            "TIFF with 8 or 16 bits"
        ) from None
    except Exception as error:  # decoders raise almost any type for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the image {name} ({reason}): get the file again") from None


def _display_name(path: Path) -> str:
    return "standard input" if path == STANDARD else str(path)


@contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield io.BytesIO(standard_input())
        return
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected an image file")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: expected an image file")
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file: expected one, or - for standard input")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty: expected an image file")
    # Pillow gets a file, not a path: given a path it maps uncompressed TIFFs into memory, and then
    # scrambles those that it has to turn.
    with open(path, "rb") as file:
        yield file


@contextmanager
def _decoders_silenced() -> Iterator[None]:
    """Drop what decoders log in this thread.

    The InputError says what is wrong with a damaged file, and libpng also warns of interlaced
    files, which are read correctly.
    """
    thread = threading.get_ident()

    def is_other_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    names = ("PIL.TiffImagePlugin", "tifffile", "imagecodecs")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_other_thread)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other_thread)


def _check_pixels(shape: tuple[int, ...], *, name: str) -> None:
    if Image.MAX_IMAGE_PIXELS and math.prod(shape[:2]) > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, math.prod(shape[:2]))


def _too_large(name: str, pixels: int) -> InputError:
    """Return the error for an image with more pixels than Pillow's limit."""
    limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return InputError(
        f"{name} has {pixels / 1e6:.10g} megapixels: expected at most {limit:.10g}; to read it "
        f"anyway, raise max_megapixels to {math.ceil(pixels / 1e6)}, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS in Python"
    )


def resize_longer(image: np.ndarray, *, size: int) -> np.ndarray:
    """Resize so that the longer side has ``size`` pixels; see ``resize_to``.

    Args:
      image: ``[H, W, C]`` float32.
      size: length of the longer side in pixels; the shorter side is rounded, to at least 1.

    Returns:
      ``[H', W', C]``.
    """
    height, width, _ = image.shape
    return resize_to(image, shape=scaled_shape((height, width), size=size))


def scaled_shape(shape: tuple[int, int], *, size: int) -> tuple[int, int]:
    """Return the height and width after ``resize_longer``.

    >>> scaled_shape((480, 640), size=100)
    (75, 100)
    """
    height, width = shape
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_to(image: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Resize to a height and width with an antialiased bilinear filter, in float32.

    Args:
      image: ``[H, W, C]`` float32.
      shape: the new height and width.

    Returns:
      ``[H', W', C]``.
    """
    height, width, channels = image.shape
    if shape == (height, width):
        return image
    # Pillow resizes single-channel float images (mode F) without rounding to 8 bits.
    scaled = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
                (shape[1], shape[0]), Image.Resampling.BILINEAR
            )
        )
        for channel in range(channels)
    ]
    return np.stack(scaled, axis=-1)
