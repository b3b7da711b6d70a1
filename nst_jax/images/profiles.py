"""Embedded colour profiles (ICC): from a file's colour space to sRGB, and sRGB's own for outputs.

LittleCMS converts, for 8-bit samples through Pillow and for deeper ones through imagecodecs, in
float32. The intent is relative colorimetric with black point compensation, so that white is white.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC

_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION

_SPACES = {b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk"}

_MODES = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}

_MADE = (2025, 1, 1, 0, 0, 0)  # a fixed date, so that equal runs write equal files

_STRIP = 2**22  # samples that are converted at once

_SRGB_GAMMA = 0.45455

_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white first


@lru_cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, the same bytes at each call of any process."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = np.array(_MADE, ">u2").tobytes()
    return bytes(profile)


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of a file, or one of a PNG's chunks gAMA and cHRM (W3C PNG, 11.3.2)."""
    info = image.info
    if info.get("icc_profile") or image.format != "PNG" or "srgb" in info or "gamma" not in info:
        return info.get("icc_profile")
    gamma, chromaticities = info["gamma"], info.get("chromaticity", _SRGB_CHROMATICITIES)
    off = np.abs(np.subtract(chromaticities, _SRGB_CHROMATICITIES)).max()
    if abs(gamma - _SRGB_GAMMA) < 0.001 and off < 0.002:  # which is how sRGB itself is told
        return None
    import imagecodecs  # only now: few images need it

    white, primaries = list(chromaticities[:2]), list(chromaticities[2:])
    try:
        return imagecodecs.cms_profile(
            "rgb", whitepoint=white, primaries=primaries, gamma=1 / gamma
        )
    except Exception:  # of numbers that are none
        return b"damaged"


def to_srgb(
    values: np.ndarray, *, space: str, profile: bytes | None
) -> tuple[np.ndarray, str | None]:
    """Colours as sRGB's.

    Without a profile grey and RGB are sRGB's, and CMYK is (1 - ink)(1 - black). A profile within a
    255th of sRGB counts as sRGB: the values stay exactly what they are.

    Args:
      values: ``[H, W, C]`` uint8, or float32 in [0, 1].
      space: what the C channels are: grey (1), rgb (3) or cmyk (4, full ink is 1).
      profile: the ICC profile of the values, or None.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1], and a line for the person where the profile cannot be used.
    """
    if profile is None:
        return _plain(values, space), None
    described = _SPACES.get(profile[16:20])
    if described == "rgb" and space == "grey":  # as of a grey JPEG from a colour camera
        values, space = np.repeat(values, 3, axis=-1), "rgb"
    unusable = "its colour profile is damaged, or of other colours, and left out: read as sRGB"
    if described != space:
        return _plain(values, space), unusable
    try:
        if space != "cmyk" and is_srgb(profile, space):
            return _plain(values, space), None
        return _converted(values, profile, space), None
    except Exception:  # LittleCMS's errors are of many kinds
        return _plain(values, space), unusable


@lru_cache(maxsize=16)
def is_srgb(profile: bytes, space: str) -> bool:
    """Whether a profile of rgb or grey moves no colour of a grid by more than a 255th.

    Raises:
      OSError, ImageCms.PyCMSError: for a profile that cannot be read.
    """
    levels = np.arange(256, dtype=np.uint8)
    if space == "grey":
        grid = levels.reshape(1, 256, 1)
    else:
        grid = np.stack(np.meshgrid(*[levels[::15]] * 3), axis=-1).reshape(1, -1, 3)
        grid = np.concatenate([grid, np.repeat(levels.reshape(1, 256, 1), 3, axis=-1)], axis=1)
    moved = _converted(grid, profile, space) - _plain(grid, space)
    return bool(np.abs(moved).max() < 1.01 / 255)


def _plain(values: np.ndarray, space: str) -> np.ndarray:
    values = values / np.float32(255) if values.dtype == np.uint8 else values
    if space == "cmyk":
        return (1 - values[..., :3]) * (1 - values[..., 3:])
    return np.repeat(values, 3, axis=-1) if space == "grey" else values


def _converted(values: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    if space == "grey" and values.dtype == np.uint8:
        levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
        return _converted_8_bit(levels, profile, space)[0][values[..., 0]]
    convert = _converted_8_bit if values.dtype == np.uint8 else _converted_floats
    rows = max(1, _STRIP // values[0].size)
    strips = [values[start : start + rows] for start in range(0, len(values), rows)]
    return np.concatenate([convert(strip, profile, space) for strip in strips])


def _converted_8_bit(values: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    mode = _MODES[space]
    image = Image.fromarray(values[..., 0]) if mode == "L" else _from_bytes(values, mode)
    converted = ImageCms.applyTransform(image, _transform(profile, mode))
    assert converted is not None  # not in place
    return np.asarray(converted) / np.float32(255)


def _from_bytes(values: np.ndarray, mode: str) -> Image.Image:
    return Image.frombytes(mode, values.shape[1::-1], np.ascontiguousarray(values).tobytes())


@lru_cache(maxsize=4)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    # LittleCMS's short cuts are exact to a 255th for matrices, but not for tables and dark greys.
    matrix = mode == "RGB" and b"A2B0" not in profile[:2048]
    flags = _FLAGS if matrix else _FLAGS | ImageCms.Flags.NOOPTIMIZE
    return ImageCms.buildTransform(source, target, mode, "RGB", _INTENT, flags)


def _converted_floats(values: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    import imagecodecs  # only now: few images need it

    values = values[..., 0] if space == "grey" else values
    values = 100 * values if space == "cmyk" else values  # LittleCMS takes ink in per cent
    converted = imagecodecs.cms_transform(
        np.ascontiguousarray(values),
        profile,
        srgb_profile(),
        colorspace="gray" if space == "grey" else space,
        outcolorspace="rgb",
        outdtype="float32",
        intent=int(_INTENT),
        flags=int(_FLAGS),
    )
    return np.clip(np.nan_to_num(converted), 0, 1)
