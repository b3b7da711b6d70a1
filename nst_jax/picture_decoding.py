"""The samples of Pillow's pictures of any mode."""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from nst_jax.picture_lab import lab_to_rgb
from nst_jax.picture_samples import Samples, in_unit_range

_SRGB_GAMMA = 0.45455
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white first


def pillow_samples(image: Image.Image, *, profile: bytes | None) -> Samples:
    """Samples of a loaded, upright picture with this ICC profile.

    Raises:
      ValueError: for numbers of which it is not known what they mean.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Samples(_deep_grey(image), "grey", profile=profile)
    if image.mode == "LAB":
        lab = np.asarray(image, np.float32) - np.array([0, 128, 128], np.float32)
        return Samples(lab_to_rgb(lab * np.array([100 / 255, 1, 1], np.float32)), "rgb")
    if image.mode == "CMYK":
        return Samples(np.asarray(image), "cmyk", profile=profile)
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if grey else "RGB"))
        values = values[..., None] if grey else values
        return Samples(values, "grey" if grey else "rgb", profile=profile)
    image = image.convert("LA") if image.mode == "La" else image
    rgba = np.asarray(image.convert("RGBA"))
    values = rgba[..., :1] if grey else rgba[..., :3]
    alpha = rgba[..., 3] / np.float32(255)
    return Samples(values, "grey" if grey else "rgb", alpha, profile)


def is_psd_transparent(file: BinaryIO) -> bool:
    """Whether a PSD's channel after its colours is the transparency, and no saved selection.

    Then the number of its layers is written as a negative one (Adobe Photoshop File Formats).
    """
    file.seek(26)  # behind the header
    for _ in ("palette", "resources"):
        file.seek(int.from_bytes(file.read(4)), os.SEEK_CUR)
    layers = file.read(10)[4:]  # in this section the first: its length, and their number
    return any(layers[:4]) and int.from_bytes(layers[4:], signed=True) < 0


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of an image as it was opened, or one of a PNG's chunks gAMA and cHRM.

    A gamma of 1 / 2.2 with sRGB's primaries is how sRGB itself is told (W3C PNG, 11.3.2.5).
    """
    if image.info.get("icc_profile"):
        return image.info["icc_profile"]
    gamma = image.info.get("gamma")
    if image.format != "PNG" or "srgb" in image.info or gamma is None:
        return None
    chromaticities = image.info.get("chromaticity", _SRGB_CHROMATICITIES)
    off = np.abs(np.subtract(chromaticities, _SRGB_CHROMATICITIES)).max()
    if abs(gamma - _SRGB_GAMMA) < 0.001 and off < 0.002:
        return None
    import imagecodecs  # only now: few pictures need it

    white_x, white_y, *primaries = chromaticities
    try:
        return imagecodecs.cms_profile(
            "rgb", whitepoint=[white_x, white_y], primaries=primaries, gamma=1 / gamma
        )
    except Exception:  # of numbers that are none
        return b"damaged"


def _deep_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, np.float32)
    # Integer modes hold 16-bit grey; a float picture is one in [0, 1].
    return in_unit_range(values if image.mode == "F" else values / 65535)[..., None]
