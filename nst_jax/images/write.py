"""Write images as PNG, JPEG, WebP or TIFF in sRGB, with metadata texts.

A PNG stores each text in an iTXt chunk. The other formats store the text "Software" in the EXIF
(TIFF) tag of that name, and all other texts as a JSON object in the tag ImageDescription. The path
``-`` is standard output, to which a PNG is written.
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

_WITH_16_BITS = ("PNG", "TIFF")

_LOSSY = ("JPEG", "WEBP")

# Largest side in pixels: of libjpeg, of WebP's 14 bits and of GIF's 16 bits. PNG and TIFF can hold
# larger images than any device computes.
_LARGEST_SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}

_SOFTWARE = "Software"

_JPEG_SEGMENT = 65_533  # bytes of EXIF data: a segment's 16-bit length counts its own 2 bytes

_PNG_HEADER = 33  # bytes: the signature (8) and the chunk IHDR (25)


def to_uint8(image) -> np.ndarray:
    """Clip to [0, 1] and round to 0-255; NaN, as in previews of a diverging run, becomes 0.

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
    """Check that an image can be written with these options.

    Args:
      path: as for ``save_image``.
      alpha: whether the image has an alpha channel.
      bit_depth, quality: as for ``save_image``.

    Raises:
      InputError: if the suffix is unknown, the format does not support an option, or standard
        output is closed or a terminal.
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
            "the content image is partly transparent, which JPEG does not support: write "
            f"{path.name} as .png, .webp or .tif"
        )
    if bit_depth not in (8, 16):
        raise InputError(f"bit_depth is {bit_depth}: expected 8 or 16")
    if bit_depth == 16 and format not in _WITH_16_BITS:
        raise InputError(
            f"{format} does not support bit_depth 16: write {path.name} as .png or .tif"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}: expected 1 to 100")
    if quality is not None and format not in _LOSSY:
        raise InputError(
            f"quality has no meaning for {format}, which is lossless: leave it out, or write "
            f"{path.name} as .jpg or .webp"
        )


def check_output_sides(path: str | Path, shape: Sequence[int]) -> None:
    """Check that the format of an image or animation supports sides of this length.

    Args:
      path: the file to write.
      shape: height and width.

    Raises:
      InputError: if a side is too long.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    most = _LARGEST_SIDES.get(suffix)
    if most is not None and max(shape[:2]) > most:
        advice = f"write {path.name} as .png or .tif" if suffix in FORMATS else "leave it out"
        raise InputError(
            f"{path} would be {shape[1]}x{shape[0]} px: expected at most {most} px a side for "
            f"{suffix}; {advice}, or choose a smaller size"
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
    """Write an image atomically, with the sRGB colour profile.

    Args:
      path: the file to write, whose suffix chooses PNG, JPEG (without chroma subsampling), WebP or
        TIFF. ``-`` writes a PNG to standard output.
      image: ``[H, W, 3]``; values are clipped to [0, 1] and rounded to the nearest level.
      alpha: ``[H, W]`` in [0, 1].
      metadata: texts by name, for ``read_texts``. A JPEG has room for less than 64 KB; if they are
        longer, it gets only the text Software.
      bit_depth: bits per channel: 8, or 16 for PNG and TIFF.
      quality: 1 to 100, for JPEG (default 95) and WebP (default lossless).

    Raises:
      InputError: as ``check_output`` and ``check_output_sides``.
      OSError: if the file cannot be written.
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
    """Encode an image file with the sRGB profile and texts.

    Args:
      pixels: ``[H, W, 3 or 4]`` uint8, or uint16 for PNG and TIFF.
      format: PNG, JPEG, WEBP or TIFF.
      texts: as ``metadata`` of ``save_image``.
      quality: as for ``save_image``.

    Returns:
      The bytes of the file.
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
        tags = {"software": software, "description": description}
        options = {name: text for name, text in tags.items() if text is not None}
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
    """Return the texts for the tags Software and ImageDescription."""
    others = {key: text for key, text in texts.items() if key != _SOFTWARE}
    return texts.get(_SOFTWARE), json.dumps(others) if others else None


def _exif(texts: Mapping[str, str], *, most: int | None = None) -> bytes:
    """Return EXIF data with the texts, without ImageDescription if they exceed ``most`` bytes."""
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
    # imagecodecs cannot write a profile or texts. iCCP must precede IDAT (W3C PNG, 5.6): its data
    # are a name, a zero byte, the compression method 0 and the compressed profile.
    chunks = _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(srgb_profile()))
    for key, text in texts.items():
        # A keyword, a zero byte, two zeros for "not compressed", empty language and translation.
        chunks += _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode())
    return b"".join([data[:_PNG_HEADER], chunks, data[_PNG_HEADER:]])


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
        software=software or False,  # None would write "tifffile.py"
        metadata=None,
    )
    return buffer.getvalue()


def read_texts(path: str | Path) -> dict[str, str]:
    """Read the metadata texts that ``save_image`` wrote, without decoding the pixels.

    Args:
      path: a PNG, JPEG, WebP or TIFF file.

    Returns:
      The texts by name.

    Raises:
      OSError, ValueError and others: if the file is damaged or not an image.
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
