"""Pictures from and to files, on the host.

Contract: arrays are float32 sRGB in [0, 1], ``[H, W, 3]``, NumPy; alpha is ``[H, W]``. The path
``-`` is standard input, or standard output for a PNG.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nst_jax.color_profiles import to_srgb
from nst_jax.errors import InputError
from nst_jax.picture_files import named, opened
from nst_jax.picture_output import check_output, check_output_sides, save_image, to_uint8

__all__ = [
    "Picture",
    "check_output",
    "check_output_sides",
    "limit_pixels",
    "load_image",
    "load_numbers",
    "load_picture",
    "picture_shape",
    "resize",
    "resize_to",
    "save_image",
    "scaled_shape",
    "to_uint8",
]


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
      rgb: ``[H, W, 3]``; not multiplied by alpha, and white where nothing is to be seen.
      alpha: ``[H, W]`` in [0, 1], or None for an opaque picture.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None


def limit_pixels(megapixels: float) -> None:
    """Choose how large a picture file may be to be read, for the whole process.

    Pillow's limit is set, which guards the parts of icons and tiled files, too. Only the command
    line calls this; in Python set ``PIL.Image.MAX_IMAGE_PIXELS``.

    Args:
      megapixels: width times height, in millions.

    Raises:
      InputError: for what is not positive and finite.
    """
    if not 0 < 1e6 * megapixels < math.inf:
        raise InputError(
            f"max_megapixels is {megapixels}: expected a number above 0, in millions of pixels"
        )
    Image.MAX_IMAGE_PIXELS = round(1e6 * megapixels)


def load_picture(path: str | Path, *, size: int | None = None) -> Picture:
    """Read a picture as it is meant to be seen.

    The EXIF orientation is applied, and an embedded colour profile: the colours are sRGB's. Grey,
    palette, CMYK and Lab are converted. PNGs and TIFFs keep the depth that they have, up to 16 bits
    or floats; other formats are read with 8 bits a channel. Of an animation, or of several pages,
    the first picture is taken, which is told on stderr, as is a profile that cannot be used.

    Args:
      path: a file in any format that Pillow reads by itself, whatever its name; ``-`` is standard
        input.
      size: length of the longer side in pixels; the picture is shrunk or enlarged to it with its
        aspect ratio kept, by an antialiased bilinear filter as in neural-style's loaders. None
        keeps the size.

    Returns:
      A ``Picture``.

    Raises:
      InputError: for a missing, damaged or foreign file, one of more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or a size that is not positive.
    """
    rgb, alpha = _read(path, size=size)
    if alpha is None:
        return Picture(rgb if size is None else resize(rgb, size=size), None)
    # Colours are averaged by how much of them is to be seen.
    seen = np.concatenate([rgb * alpha[..., None], alpha[..., None]], axis=-1)
    seen = seen if size is None else resize(seen, size=size)
    alpha = seen[..., 3:]
    rgb = np.where(alpha > 0, seen[..., :3] / np.maximum(alpha, 1e-6), 1).astype(np.float32)
    return Picture(np.clip(rgb, 0, 1), alpha[..., 0])


def load_image(path: str | Path, *, size: int | None = None) -> np.ndarray:
    """Read a picture's colours, shown over white where it is transparent; see ``load_picture``.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1].
    """
    rgb, alpha = load_picture(path, size=size)
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def load_numbers(path: str | Path) -> Picture:
    """Read a picture whose colours are numbers, as of a mask or of labels.

    Colour profiles are left out, and colours stay where they are not to be seen; else as
    ``load_picture``.
    """
    return _read(path, size=None, profiled=False)


def _read(path: str | Path, *, size: int | None, profiled: bool = True) -> Picture:
    path = Path(path)
    _check_size(size)
    with opened(path) as picture:
        samples = picture.decode()
        rgb, note = to_srgb(samples if profiled else samples._replace(profile=None))
        several = picture.several
    if note:
        print(f"nst-jax: {named(path)}: {note}", file=sys.stderr)
    if several:
        print(f"nst-jax: {named(path)} holds several pictures: the first is read", file=sys.stderr)
    alpha = samples.alpha
    return Picture(rgb, None if alpha is None or (alpha == 1).all() else alpha)


def picture_shape(path: str | Path, *, size: int | None = None) -> tuple[int, int]:
    """Height and width of what ``load_picture`` gives, without decoding the pixels.

    Args:
      path, size: as for ``load_picture``.

    Raises:
      InputError: as ``load_picture``, but not for damage behind the header.
    """
    _check_size(size)
    with opened(Path(path)) as picture:
        shape = picture.shape
    return shape if size is None else scaled_shape(shape, size=size)


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise InputError(f"size is {size}: expected at least 1 pixel")


def resize(image: np.ndarray, *, size: int) -> np.ndarray:
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
    """Height and width scaled to a longer side of ``size`` pixels, see ``resize``.

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
