"""Writing images: PNG, JPEG, WebP and TIFF in sRGB, with what is known of their making.

A PNG has each text of its making in a chunk of its own. In the other formats the text "Software" is
the EXIF (TIFF) tag of that name, and all others are a JSON object in the tag ImageDescription. The
path ``-`` is standard output, to which a PNG is written.
"""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from nst_jax.errors import InputError
from nst_jax.images.profiles import srgb_profile
from nst_jax.system.files import atomic_write
from nst_jax.system.streams import STANDARD, check_standard_output, write_standard_output

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

_DEEP = ("PNG", "TIFF")

_LOSSY = ("JPEG", "WEBP")

# Pixels that a side may have; PNG and TIFF hold more than any device computes.
_LARGEST_SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}

_SOFTWARE = "Software"

_JPEG_SEGMENT = 65_533  # bytes that a JPEG's EXIF data may have

_AFTER_HEADER = 33  # a PNG's signature and its first chunk


def to_uint8(image) -> np.ndarray:
    """Clip to [0, 1] and round to 0-255; NaN, as in a diverging run's preview, becomes 0.

    >>> to_uint8(np.array([-1.0, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    numbers = np.nan_to_num(np.asarray(image, np.float32))
    return (np.clip(numbers, 0, 1) * 255 + 0.5).astype(np.uint8)


def to_uint16(image) -> np.ndarray:
    """Clip to [0, 1] and round to 0-65535; NaN becomes 0.

    >>> to_uint16(np.array([-1.0, 0.5, 2.0])).tolist()
    [0, 32768, 65535]
    """
    numbers = np.nan_to_num(np.asarray(image, np.float64))
    return (np.clip(numbers, 0, 1) * 65535 + 0.5).astype(np.uint16)


def check_output(
    path: str | Path, *, alpha: bool = False, bit_depth: int = 8, quality: int | None = None
) -> None:
    """Check that an image can be written as it is asked for.

    Raises:
      InputError: for an unknown suffix, what its format cannot hold or has no use for, and standard
        output where it is closed or a terminal.
    """
    path = Path(path)
    if path == STANDARD:
        check_standard_output()
    elif path.suffix.lower() not in FORMATS:
        raise InputError(
            f"{path} has no suffix of a known image format: expected one of {' '.join(FORMATS)}"
        )
    format = _format(path)
    if alpha and format == "JPEG":
        raise InputError(
            f"the content image is partly transparent, which JPEG cannot hold: name {path.name} "
            ".png, .webp or .tif"
        )
    if bit_depth not in (8, 16):
        raise InputError(f"bit_depth is {bit_depth}: expected 8 or 16")
    if bit_depth == 16 and format not in _DEEP:
        raise InputError(
            f"bit_depth 16 is more than {format} can hold: name {path.name} .png or .tif"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}: expected 1 to 100")
    if quality is not None and format not in _LOSSY:
        raise InputError(
            f"quality has no meaning for {format}, which loses nothing: leave it out, or name "
            f"{path.name} .jpg or .webp"
        )


def check_output_sides(path: str | Path, shape: Sequence[int]) -> None:
    """Check that the format of a name, which may be an animation's, can hold so many pixels.

    Args:
      path: where to.
      shape: height and width.

    Raises:
      InputError: where it cannot.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    most = _LARGEST_SIDES.get(suffix)
    if most is not None and max(shape[:2]) > most:
        advice = f"name {path.name} .png or .tif" if suffix in FORMATS else "leave it out"
        raise InputError(
            f"{path} would be {shape[1]}x{shape[0]} px, and a side of a {suffix} has at most "
            f"{most}: {advice}, or choose a smaller size"
        )


def save_image(
    path: str | Path,
    image,
    *,
    alpha: np.ndarray | None = None,
    metadata: Mapping[str, str] | None = None,
    bit_depth: int = 8,
    quality: int | None = None,
) -> None:
    """Write an image whole or not at all, with the colour profile of sRGB.

    Args:
      path: where to; the suffix chooses PNG, JPEG (no chroma subsampling), WebP or TIFF. ``-``
        writes a PNG to standard output.
      image: ``[H, W, 3]``; values are clipped to [0, 1] and rounded to the nearest of the depth.
      alpha: ``[H, W]`` in [0, 1].
      metadata: texts, which ``read_texts`` reads again. A JPEG has room for less than 64 KB of
        them: of more, only Software is written.
      bit_depth: bits a channel, 8 or 16; 16 for PNG and TIFF.
      quality: 1 to 100, for JPEG (by default 95) and WebP (by default lossless).

    Raises:
      InputError: for what ``check_output`` and ``check_output_sides`` refuse.
    """
    path = Path(path)
    check_output(path, alpha=alpha is not None, bit_depth=bit_depth, quality=quality)
    check_output_sides(path, np.shape(image))
    to_integers = to_uint8 if bit_depth == 8 else to_uint16
    pixels = to_integers(image)
    if alpha is not None:
        pixels = np.concatenate([pixels, to_integers(alpha)[..., None]], axis=-1)
    data = encode(pixels, format=_format(path), texts=dict(metadata or {}), quality=quality)
    if path == STANDARD:
        write_standard_output(data)
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _format(path: Path) -> str:
    return "PNG" if path == STANDARD else FORMATS[path.suffix.lower()]


def encode(
    pixels: np.ndarray, *, format: str, texts: Mapping[str, str], quality: int | None = None
) -> bytes:
    """A file's bytes, with the profile of sRGB and texts.

    Args:
      pixels: ``[H, W, 3 or 4]`` uint8, or uint16 for PNG and TIFF.
      format: PNG, JPEG, WEBP or TIFF.
      texts: as ``save_image``'s metadata.
      quality: of JPEG and WebP, or None.
    """
    if pixels.dtype == np.uint16:
        return (_deep_png if format == "PNG" else _deep_tiff)(pixels, texts)
    options: dict[str, Any] = {}
    if format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            options["pnginfo"].add_itxt(key, text)
    elif format == "TIFF":
        software, description = _split(texts)
        given = {"software": software, "description": description}
        options = {name: text for name, text in given.items() if text is not None}
        options["compression"] = "tiff_lzw"
    elif format == "JPEG":
        options = {"exif": _exif(texts, most=_JPEG_SEGMENT), "subsampling": 0}
        options["quality"] = 95 if quality is None else quality
    else:
        options = {"lossless": True} if quality is None else {"quality": quality}
        options["exif"] = _exif(texts)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, format=format, icc_profile=srgb_profile(), **options)
    return buffer.getvalue()


def _split(texts: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The text of the tag Software, and that of ImageDescription for all others."""
    others = {key: text for key, text in texts.items() if key != _SOFTWARE}
    return texts.get(_SOFTWARE), json.dumps(others) if others else None


def _exif(texts: Mapping[str, str], *, most: int | None = None) -> bytes:
    """EXIF data of texts, without the long one where there is no room for it."""
    software, description = _split(texts)
    exif = Image.Exif()
    if software is not None:
        exif[ExifTags.Base.Software] = software
    if description is not None:
        exif[ExifTags.Base.ImageDescription] = description
        if most is not None and len(exif.tobytes()) > most:
            del exif[ExifTags.Base.ImageDescription]
    return exif.tobytes() if len(exif) else b""


def _deep_png(pixels: np.ndarray, texts: Mapping[str, str]) -> bytes:
    import imagecodecs

    data = imagecodecs.png_encode(np.ascontiguousarray(pixels))
    # It has no option for profile and texts, whose chunks come before the pixels.
    chunks = _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(srgb_profile()))
    for key, text in texts.items():
        chunks += _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode())
    return b"".join([data[:_AFTER_HEADER], chunks, data[_AFTER_HEADER:]])


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _deep_tiff(pixels: np.ndarray, texts: Mapping[str, str]) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    software, description = _split(texts)
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(pixels),
        photometric="rgb",
        planarconfig="contig",
        extrasamples=["unassalpha"] if pixels.shape[-1] == 4 else None,
        compression="adobe_deflate",
        predictor=True,
        iccprofile=srgb_profile(),
        description=description,
        software=software or False,
        metadata=None,
    )
    return buffer.getvalue()


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts that ``save_image`` has written with an image; its pixels are not decoded.

    Raises:
      OSError, ValueError and others: for a file that is no image, or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "TIFF")) as image:
            if image.format == "PNG":
                return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
            exif = Image.Image.getexif(image)
    texts = json.loads(exif.get(ExifTags.Base.ImageDescription, "{}"))
    software = exif.get(ExifTags.Base.Software)
    return texts | ({} if software is None else {_SOFTWARE: software})
