"""Image files in ten formats, as bytes, and ways to damage them."""

import io
import struct

import numpy as np
from PIL import Image

FORMATS = ("PNG", "PNG16", "JPEG", "WEBP", "TIFF", "TIFF16", "GIF", "BMP", "AVIF", "PPM")
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\x24\0\0\0WEBPVP8L",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"GIF89a",
    b"BM",
    b"\0\0\0\x1cftypavif",
    b"P6\n9 9\n255\n",
    b"\0\0\1\0\1\0",
    b"8BPS\0\1",
    b"DDS |\0\0\0",
)


def sample_pixels(*, height: int = 20, width: int = 30, channels: int = 3, seed: int = 1):
    """Smooth colours with a little noise, ``[height, width, channels]`` uint8."""
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, channels))
    ramp = np.mgrid[:height, :width].sum(axis=0)[..., None] * np.arange(1, channels + 1)
    return ((ramp * 3 + noise) % 256).astype(np.uint8)


def image_bytes(format: str, *, seed: int = 1, profile: bytes | None = None) -> bytes:
    """An undamaged file of 30 x 20 pixels.

    Args:
      format: one of ``FORMATS``; PNG16 and TIFF16 have 16 bits per channel and alpha.
      seed: the seed of the pixels.
      profile: an ICC profile to embed if the format supports one.
    """
    pixels = sample_pixels(seed=seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    carried = {} if profile is None else {"icc_profile": profile}
    if format in ("PNG16", "TIFF16"):
        import imagecodecs
        import tifffile

        deep = sample_pixels(channels=4, seed=seed).astype(np.uint16) * 257
        if format == "PNG16":
            return imagecodecs.png_encode(deep)
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            deep,
            photometric="rgb",
            extrasamples=["unassalpha"],
            compression="zlib",
            predictor=True,
            rowsperstrip=7,
            iccprofile=profile,
        )
        return buffer.getvalue()
    options: dict = {
        "PNG": {"exif": exif} | carried,
        "JPEG": {"exif": exif} | carried,
        "WEBP": {"exif": exif} | carried,
        "TIFF": {"exif": exif, "compression": "tiff_lzw"} | carried,
        "AVIF": {"exif": exif} | carried,
    }.get(format, {})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def damaged(data: bytes, *, seed: int) -> bytes:
    """Damage a file; equal seeds do equal damage.

    Flips some bits (half of the time within the first 100 bytes), truncates the file, removes,
    doubles or zeroes a run of bytes, puts another format's signature, or overwrites 2 or 4 bytes by
    an extreme number in either byte order, such as a length or a size may be.
    """
    random = np.random.default_rng(seed)
    kind = random.integers(6)
    changed = bytearray(data)

    def place() -> int:
        within = len(data) if random.random() < 0.5 else min(100, len(data))
        return int(random.integers(within))

    if kind == 0:
        for _ in range(random.integers(1, 9)):
            changed[place()] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del changed[int(random.integers(len(data))) :]
    elif kind == 2:
        start, length = place(), int(random.integers(1, 40))
        del changed[start : start + length]
    elif kind == 3:
        start, length = place(), int(random.integers(1, 40))
        run = changed[start : start + length]
        changed[start : start + length] = bytes(len(run)) if random.random() < 0.5 else run * 2
    elif kind == 4:
        head = _SIGNATURES[int(random.integers(len(_SIGNATURES)))]
        changed[: len(head)] = head
    else:
        form = str(random.choice([">H", "<H", ">I", "<I"]))
        most = 2 ** (8 * struct.calcsize(form)) - 1
        number = int(random.choice([0, 1, most, most // 2, most // 2 + 1, 65535, most - 7]))
        start = min(place(), max(0, len(data) - 4))
        changed[start : start + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(changed)
