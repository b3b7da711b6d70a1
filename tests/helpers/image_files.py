"""Parts of image files, and an oracle for resizing."""

import struct
import zlib

import numpy as np
from PIL import Image

# EXIF orientation -> how an upright image is stored. The comments name the sides of the image that
# row 0 and column 0 of the file are (TIFF 6.0, section 8).
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def triangle_weights(old, new):
    """Antialiased linear interpolation as a matrix ``[new, old]``.

    Each row is a triangle around the centre of a new pixel. It extends by the width of a new pixel,
    but at least of an old pixel, to each side.
    """
    width = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    distance = np.abs(np.arange(old)[None] + 0.5 - centres[:, None])
    weights = np.clip(1 - distance / width, 0, None)
    return weights / weights.sum(1, keepdims=True)


def chunk(name, data):
    """A chunk of a PNG: length, name, data and checksum (W3C PNG, 5.3)."""
    return struct.pack(">I", len(data)) + name + data + zlib.crc32(name + data).to_bytes(4)
