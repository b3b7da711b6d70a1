"""The bytes of pictures in each format, and the texts within them.

A PNG has each text in a chunk of its own. In the other formats the text "Software" is the EXIF
(TIFF) tag of that name, and all others are a JSON object in the tag ImageDescription.
"""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from nst_jax.color_profiles import srgb_profile

_SOFTWARE = "Software"
_JPEG_SEGMENT = 65_533  # bytes that a JPEG's EXIF data may have
_AFTER_HEADER = 33  # a PNG's signature and its first chunk


def encode(
    target: Path | io.BytesIO,
    pixels: np.ndarray,
    *,
    format: str,
    texts: dict[str, str],
    quality: int | None,
) -> None:
    """Write pixels with the profile of sRGB and texts.

    Args:
      target: a file or buffer.
      pixels: ``[H, W, 3 or 4]`` uint8, or uint16 for PNG and TIFF.
      format: PNG, JPEG, WEBP or TIFF.
      texts: see ``read_texts``.
      quality: of JPEG and WebP, or None.
    """
    options: dict[str, Any] = {"icc_profile": srgb_profile()}
    if format == "PNG" and pixels.dtype == np.uint16:
        _write_deep_png(target, pixels, texts=texts)
        return
    if format == "TIFF" and pixels.dtype == np.uint16:
        _write_deep_tiff(target, pixels, texts=texts)
        return
    if format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            options["pnginfo"].add_itxt(key, text)
    elif format == "TIFF":
        software, description = _split(texts)
        options |= {"compression": "tiff_lzw"} | _given(software=software, description=description)
    else:
        options |= {"exif": _exif(texts, most=_JPEG_SEGMENT if format == "JPEG" else None)}
        if format == "JPEG":
            options |= {"quality": 95 if quality is None else quality, "subsampling": 0}
        else:
            options |= {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(pixels).save(target, format=format, **options)


def _split(texts: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The text of the tag Software, and that of ImageDescription for all others."""
    others = {key: text for key, text in texts.items() if key != _SOFTWARE}
    return texts.get(_SOFTWARE), json.dumps(others) if others else None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _exif(texts: Mapping[str, str], *, most: int | None) -> bytes:
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


def _write_deep_png(
    target: Path | io.BytesIO, pixels: np.ndarray, *, texts: dict[str, str]
) -> None:
    import imagecodecs

    data = imagecodecs.png_encode(np.ascontiguousarray(pixels))
    # It has no option for profile and texts, whose chunks come before the pixels.
    chunks = _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(srgb_profile()))
    for key, text in texts.items():
        chunks += _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode())
    data = data[:_AFTER_HEADER] + chunks + data[_AFTER_HEADER:]
    target.write(data) if isinstance(target, io.BytesIO) else target.write_bytes(data)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _write_deep_tiff(
    target: Path | io.BytesIO, pixels: np.ndarray, *, texts: dict[str, str]
) -> None:
    import tifffile

    software, description = _split(texts)
    tifffile.imwrite(
        target,
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


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts that ``save_image`` has written with a picture; its pixels are not decoded.

    Raises:
      OSError, ValueError and others: for a file that is no picture, or damaged.
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
