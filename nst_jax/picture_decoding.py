"""The samples of Pillow's pictures of any mode."""

import numpy as np
from PIL import Image

from nst_jax.picture_lab import lab_to_rgb
from nst_jax.picture_samples import Samples, in_unit_range


def pillow_samples(image: Image.Image) -> Samples:
    """Samples of a loaded, upright picture.

    Raises:
      ValueError: for numbers of which it is not known what they mean.
    """
    profile = image.info.get("icc_profile") or None
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


def _deep_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, np.float32)
    # Integer modes hold 16-bit grey; a float picture is one in [0, 1].
    return in_unit_range(values if image.mode == "F" else values / 65535)[..., None]
