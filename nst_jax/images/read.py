"""Images from files, on the host.

Contract: arrays are float32 sRGB in [0, 1], ``[H, W, 3]``, NumPy; alpha is ``[H, W]``. The path
``-`` is standard input, which is read once and kept. What cannot be read as it is meant is refused
in one line.
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
from nst_jax.images.decode import Header, Unread, identify
from nst_jax.images.profiles import to_srgb
from nst_jax.system.streams import STANDARD, standard_input

_log = logging.getLogger(__name__)


class RGBA(NamedTuple):
    """A decoded image.

    Attributes:
      rgb: ``[H, W, 3]``; not multiplied by alpha, and white where nothing is to be seen.
      alpha: ``[H, W]`` in [0, 1], or None for an opaque image.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None


def limit_pixels(max_megapixels: float) -> None:
    """Choose how large an image file may be to be read, for the whole process.

    Pillow's limit ``PIL.Image.MAX_IMAGE_PIXELS`` is set, which guards the parts of icons and tiled
    files, too.

    Args:
      max_megapixels: width times height, in millions.

    Raises:
      InputError: for what is not positive and finite.
    """
    if not 0 < 1e6 * max_megapixels < math.inf:
        raise InputError(
            f"max_megapixels is {max_megapixels}: expected a number above 0, in millions of pixels"
        )
    Image.MAX_IMAGE_PIXELS = round(1e6 * max_megapixels)


def load_rgba(path: str | Path, *, size: int | None = None) -> RGBA:
    """Read an image as it is meant to be seen.

    The EXIF orientation is applied, and an embedded colour profile: the colours are sRGB's. Grey,
    palette and CMYK are converted. PNGs, TIFFs and PPMs keep the depth that they have, up to 16
    bits or floats; other formats are read with 8 bits a channel. Of an animation, or of several
    pages, the first image is taken, of which a warning is logged, as of a profile that cannot be
    used.

    Args:
      path: a file in any format that Pillow reads by itself, whatever its name; ``-`` is standard
        input.
      size: length of the longer side in pixels; the image is shrunk or enlarged to it with its
        aspect ratio kept, by an antialiased bilinear filter as in neural-style's loaders. None
        keeps the size.

    Returns:
      A ``RGBA``.

    Raises:
      InputError: for a missing, damaged or foreign file, one of more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or a size that is not positive.
    """
    rgb, alpha = _read(path, size=size)
    if alpha is None:
        return RGBA(rgb if size is None else resize_longer(rgb, size=size), None)
    # Colours are averaged by how much of them is to be seen.
    seen = np.concatenate([rgb * alpha[..., None], alpha[..., None]], axis=-1)
    seen = seen if size is None else resize_longer(seen, size=size)
    alpha = seen[..., 3:]
    rgb = np.where(alpha > 0, seen[..., :3] / np.maximum(alpha, 1e-6), 1).astype(np.float32)
    return RGBA(np.clip(rgb, 0, 1), alpha[..., 0])


def load_image(path: str | Path, *, size: int | None = None) -> np.ndarray:
    """Read an image's colours, shown over white where it is transparent; see ``load_rgba``.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1].
    """
    rgb, alpha = load_rgba(path, size=size)
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def load_numbers(path: str | Path) -> RGBA:
    """Read an image whose colours are numbers, as of a mask or of labels.

    Colour profiles are left out, and colours stay where they are not to be seen; else as
    ``load_rgba``.
    """
    return _read(path, size=None, profiled=False)


def image_shape(path: str | Path, *, size: int | None = None) -> tuple[int, int]:
    """Height and width of what ``load_rgba`` gives, without decoding the pixels.

    Args:
      path, size: as for ``load_rgba``.

    Raises:
      InputError: as ``load_rgba``, but not for damage behind the header.
    """
    _check_size(size)
    with _opened(Path(path)) as header:
        shape = header.shape
    return shape if size is None else scaled_shape(shape, size=size)


def _read(path: str | Path, *, size: int | None, profiled: bool = True) -> RGBA:
    path = Path(path)
    _check_size(size)
    with _opened(path) as header:
        samples = header.decode()
        _check_pixels(samples.values.shape, name=_named(path))  # of an icon its directory may lie
        profile = samples.profile if profiled else None
        rgb, note = to_srgb(samples.values, space=samples.space, profile=profile)
    if note:
        _log.warning("%s: %s", _named(path), note)
    if header.several:
        _log.warning("%s holds several images: the first is read", _named(path))
    alpha = samples.alpha
    return RGBA(rgb, None if alpha is None or (alpha == 1).all() else alpha)


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise InputError(f"size is {size}: expected at least 1 pixel")


@contextmanager
def _opened(path: Path) -> Iterator[Header]:
    """Open an image, of which only the header is read yet.

    Raises:
      InputError: for a missing, foreign or too large file; for any failure of the block that uses
        it, too, as of a damaged file.
    """
    name = _named(path)
    try:
        with warnings.catch_warnings(), _stream(path) as file, _quiet():
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
            f"{name} is no image in a known format: expected PNG, JPEG or the like"
        ) from None
    except Unread as error:
        raise InputError(
            f"{name} is {error}, which is not read: export it as PNG, JPEG, or TIFF of grey or RGB "
            "with 8 or 16 bits"
        ) from None
    except Exception as error:  # for damaged files Pillow's plugins raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the image {name} ({reason}): get the file again") from None


def _named(path: Path) -> str:
    return "standard input" if path == STANDARD else str(path)


@contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield io.BytesIO(standard_input())
        return
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected an image file")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: expected an image file")
    if not os.path.isfile(path):
        raise InputError(f"{path} is no regular file: expected one, or - for standard input")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty: expected an image file")
    # Not by its path: then Pillow maps raw TIFFs into memory, and scrambles turned ones.
    with open(path, "rb") as file:
        yield file


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what this thread's decoders log: the error that follows says it.

    libpng warns of interlaced files, too, which are read right.
    """
    thread = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    names = ("PIL.TiffImagePlugin", "tifffile", "imagecodecs")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(of_others)


def _check_pixels(shape: tuple[int, ...], *, name: str) -> None:
    if Image.MAX_IMAGE_PIXELS and math.prod(shape[:2]) > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, math.prod(shape[:2]))


def _too_large(name: str, pixels: int) -> InputError:
    """The error of an image beyond Pillow's limit."""
    most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return InputError(
        f"{name} has {pixels / 1e6:.10g} megapixels: expected at most {most:.10g}; if it is meant "
        f"to be so large, raise max_megapixels to {math.ceil(pixels / 1e6)}, or in Python "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def resize_longer(image: np.ndarray, *, size: int) -> np.ndarray:
    """Scale to a longer side of ``size`` pixels, in float32, with an antialiased bilinear filter.

    Args:
      image: ``[H, W, C]``.
      size: pixels of the longer side; the shorter one is rounded, and at least 1.

    Returns:
      ``[H', W', C]``.
    """
    height, width, _ = image.shape
    return resize_to(image, shape=scaled_shape((height, width), size=size))


def scaled_shape(shape: tuple[int, int], *, size: int) -> tuple[int, int]:
    """Height and width scaled to a longer side of ``size`` pixels, see ``resize_longer``.

    >>> scaled_shape((480, 640), size=100)
    (75, 100)
    """
    height, width = shape
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_to(image: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Scale to a height and width, in float32, with an antialiased bilinear filter.

    Args:
      image: ``[H, W, C]``.
      shape: height and width.

    Returns:
      ``[H', W', C]``.
    """
    height, width, channels = image.shape
    if shape == (height, width):
        return image
    scaled = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
                (shape[1], shape[0]), Image.Resampling.BILINEAR
            )
        )
        for channel in range(channels)
    ]
    return np.stack(scaled, axis=-1)
