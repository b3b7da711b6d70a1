"""Pictures from and to files, on the host.

Contract: arrays are float32 RGB in [0, 1], ``[H, W, 3]``, NumPy; alpha is ``[H, W]``.
"""

import math
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin

from nst_jax.errors import InputError
from nst_jax.files import atomic_write

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


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

    The EXIF orientation is applied. Grey, palette, CMYK, 16-bit grey and pictures with
    transparency are converted.

    Args:
      path: a file in any format that Pillow reads.
      size: length of the longer side in pixels; the picture is shrunk or enlarged to it with its
        aspect ratio kept, by an antialiased bilinear filter as in neural-style's loaders. None
        keeps the size.

    Returns:
      A ``Picture``.

    Raises:
      InputError: for a missing, damaged or foreign file, one of more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or a size that is not positive.
    """
    with _opened(path, size=size) as image:
        image.load()
        rgb, alpha = _decode(ImageOps.exif_transpose(image))
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


def picture_shape(path: str | Path, *, size: int | None = None) -> tuple[int, int]:
    """Height and width of what ``load_picture`` gives, without decoding the pixels.

    Args:
      path, size: as for ``load_picture``.

    Raises:
      InputError: as ``load_picture``, but not for damage behind the header.
    """
    with _opened(path, size=size) as image:
        width, height = image.size
        if _is_turned(image):
            width, height = height, width
    return (height, width) if size is None else scaled_shape((height, width), size=size)


@contextmanager
def _opened(path: str | Path, *, size: int | None) -> Iterator[Image.Image]:
    """Open a picture of which only the header is read yet.

    Raises:
      InputError: for a missing, foreign or too large file or a size that is not positive; for any
        failure of the block that uses it, too, as of a damaged file.
    """
    path = Path(path)
    if size is not None and size < 1:
        raise InputError(f"size is {size}: expected at least 1 pixel")
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected a picture file")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: expected a picture file")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty: expected a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Not by its path: then Pillow maps raw TIFFs into memory, and scrambles turned ones.
            with open(path, "rb") as file, Image.open(file) as image:
                # Not left to the warning alone: other threads may have reset what it does.
                if Image.MAX_IMAGE_PIXELS and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
                    raise _too_large(path, math.prod(image.size))
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path, int(re.findall(r"\d+", str(error))[0])) from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{path} is no picture in a known format: expected PNG, JPEG or the like"
        ) from None
    except Exception as error:  # for damaged files Pillow's plugins raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the picture {path} ({reason}): get the file again") from None


def _too_large(path: Path, pixels: int) -> InputError:
    """The error of a picture beyond Pillow's limit."""
    most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return InputError(
        f"{path} has {pixels / 1e6:.10g} megapixels: expected at most {most:.10g}; if it is meant "
        f"to be so large, give --max-megapixels {math.ceil(pixels / 1e6)}, or in Python set "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps the height and the width that a header gives."""
    turning = (5, 6, 7, 8)
    tag = ExifTags.Base.Orientation
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(tag) in turning:
        return False  # here Pillow has swapped them
    if isinstance(image, PngImagePlugin.PngImageFile):
        _read_png_tail(image)
    # Not the PNG's own method, which decodes the pixels.
    return Image.Image.getexif(image).get(tag) in turning


def _read_png_tail(image: PngImagePlugin.PngImageFile) -> None:
    """Have the texts and EXIF data that stand behind a PNG's pixels in ``image.info``."""
    stream, file = image.png, image.fp
    assert stream is not None and file is not None  # until the pixels are decoded
    file.seek(image.tile[0].offset - 8)
    try:
        while (chunk := stream.read())[0] != b"IEND":
            name, start, length = chunk
            if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                stream.call(name, start, length)
            file.seek(start + length + 4)  # behind the checksum
    except (struct.error, SyntaxError, UnicodeDecodeError):  # cut off or damaged; Pillow stops, too
        pass


def _decode(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha of a Pillow image of any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float32)
        # Integer modes hold 16-bit grey; a float picture is one in [0, 1].
        values = values if image.mode == "F" else values / 65535
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("its values are outside of 0 to 65535 (floats: 0 to 1)")
        return np.repeat(values[..., None], 3, axis=-1), None
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"), np.float32) / 255, None
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    alpha = rgba[..., 3]
    if (alpha == 1).all():
        return rgba[..., :3], None
    return rgba[..., :3], alpha


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


def to_uint8(image) -> np.ndarray:
    """Clip to [0, 1] and round to 0-255; NaN, as in a diverging run's preview, becomes 0.

    >>> to_uint8(np.array([-1.0, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    numbers = np.nan_to_num(np.asarray(image, np.float32))
    return (np.clip(numbers, 0, 1) * 255 + 0.5).astype(np.uint8)


def check_output(path: str | Path, *, alpha: bool = False) -> None:
    """Check that a picture can be written in the format that the name asks for.

    Raises:
      InputError: for an unknown suffix, or one that cannot hold transparency where there is some.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"{path} has no suffix of a known picture format: expected one of {' '.join(FORMATS)}"
        )
    if alpha and FORMATS[path.suffix.lower()] == "JPEG":
        raise InputError(
            f"the content picture is partly transparent, which JPEG cannot hold: name {path.name} "
            ".png, .webp or .tif"
        )


def save_image(
    path: str | Path,
    image,
    *,
    alpha: np.ndarray | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a picture with 8 bits a channel, whole or not at all.

    Args:
      path: where to; the suffix chooses PNG, JPEG (quality 95, no chroma subsampling), WebP
        (lossless) or TIFF.
      image: ``[H, W, 3]``; values are clipped to [0, 1].
      alpha: ``[H, W]`` in [0, 1].
      metadata: texts for a PNG's text chunks; other formats leave them out.

    Raises:
      InputError: for an unsuitable name, see ``check_output``.
    """
    path = Path(path)
    check_output(path, alpha=alpha is not None)
    pixels = to_uint8(image)
    if alpha is not None:
        pixels = np.concatenate([pixels, to_uint8(alpha)[..., None]], axis=-1)
    options: dict = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
        "TIFF": {"compression": "tiff_lzw"},
    }[FORMATS[path.suffix.lower()]]
    if metadata and path.suffix.lower() == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in metadata.items():
            options["pnginfo"].add_itxt(key, text)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, **options)
