"""Convert embedded ICC colour profiles to sRGB, and provide the sRGB profile for outputs.

LittleCMS converts 8-bit samples through Pillow, and deeper samples in float32 through imagecodecs.
The intent is relative colorimetric with black point compensation, so that the white and the black
of a file become white and black in sRGB (IEC 61966-2-1).
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC

_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION

# The data colour space signature, bytes 16 to 19 of a profile's header (ICC.1, 7.2.6).
_SPACES = {b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk"}

_MODES = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}

_CREATION_DATE = (2025, 1, 1, 0, 0, 0)  # fixed, so that equal runs write equal files

_STRIP_SAMPLES = 2**22  # samples to convert at once, which bounds the memory needed

# What a PNG's gAMA and cHRM say for sRGB (W3C PNG, 11.3.2): the encoding gamma, then x and y of
# white, red, green and blue.
_SRGB_GAMMA = 0.45455
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


@lru_cache
def srgb_profile() -> bytes:
    """Return the ICC profile of sRGB, the same bytes in every process."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # LittleCMS writes the current time as the creation date (ICC.1, 7.2.8).
    profile[24:36] = np.array(_CREATION_DATE, ">u2").tobytes()
    return bytes(profile)


def profile_of(image: Image.Image) -> bytes | None:
    """Return a file's ICC profile, or build one from a PNG's gAMA and cHRM chunks, or None.

    The precedence is that of W3C PNG, 11.3.2: iCCP, then sRGB, then gAMA with cHRM.
    """
    info = image.info
    if info.get("icc_profile") or image.format != "PNG" or "srgb" in info or "gamma" not in info:
        return info.get("icc_profile")
    gamma, chromaticities = info["gamma"], info.get("chromaticity", _SRGB_CHROMATICITIES)
    error = np.abs(np.subtract(chromaticities, _SRGB_CHROMATICITIES)).max()
    if abs(gamma - _SRGB_GAMMA) < 0.001 and error < 0.002:  # sRGB, rounded
        return None
    import imagecodecs  # a slow import that few images need

    white, primaries = list(chromaticities[:2]), list(chromaticities[2:])
    try:
        return imagecodecs.cms_profile(
            "rgb", whitepoint=white, primaries=primaries, gamma=1 / gamma
        )
    except Exception:  # impossible numbers, such as a gamma of 0
        return b"damaged"  # not a profile: `to_srgb` ignores it with a note


def to_srgb(
    values: np.ndarray, *, space: str, profile: bytes | None
) -> tuple[np.ndarray, str | None]:
    """Convert colours to sRGB.

    Without a profile, grey and RGB count as sRGB, and CMYK is converted by (1 - ink)(1 - black). A
    profile within 1/255 of sRGB counts as sRGB, and the values are returned unchanged.

    Args:
      values: ``[H, W, C]`` uint8, or float32 in [0, 1].
      space: the meaning of the C channels: grey (1), rgb (3) or cmyk (4; 1 is full ink).
      profile: the ICC profile of the values, or None.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1], and a note if the profile had to be ignored, else None.
    """
    if profile is None:
        return _plain(values, space), None
    profile_space = _SPACES.get(profile[16:20])
    if profile_space == "rgb" and space == "grey":  # for example a grey JPEG from a camera
        values, space = np.repeat(values, 3, axis=-1), "rgb"
    ignored = "its colour profile is damaged or for other colours, and is ignored: read as sRGB"
    if profile_space != space:
        return _plain(values, space), ignored
    try:
        if space != "cmyk" and is_srgb(profile, space):
            return _plain(values, space), None
        return _converted(values, profile, space), None
    except Exception:  # both libraries raise many types for damaged profiles
        return _plain(values, space), ignored


@lru_cache(maxsize=16)
def is_srgb(profile: bytes, space: str) -> bool:
    """Whether an rgb or grey profile moves no colour of a test grid by more than 1/255.

    Profiles of sRGB differ in their bytes between programs, and their conversion to sRGB rounds:
    without this check, reading and writing an image again would change its values.

    Raises:
      OSError, ImageCms.PyCMSError: if the profile cannot be read.
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
    if space == "grey" and values.dtype == np.uint8:  # a look-up table of all 256 levels
        levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
        return _converted_8_bit(levels, profile, space)[0][values[..., 0]]
    convert = _converted_8_bit if values.dtype == np.uint8 else _converted_floats
    rows = max(1, _STRIP_SAMPLES // values[0].size)
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
    # LittleCMS precomputes 8-bit transforms. The result is exact to 1/255 for matrix profiles, but
    # not in the dark for profiles with look-up tables (tag A2B0) and for grey ones.
    matrix = mode == "RGB" and b"A2B0" not in profile[:2048]
    flags = _FLAGS if matrix else _FLAGS | ImageCms.Flags.NOOPTIMIZE
    return ImageCms.buildTransform(source, target, mode, "RGB", _INTENT, flags)


def _converted_floats(values: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    import imagecodecs  # a slow import that few images need

    values = values[..., 0] if space == "grey" else values
    values = 100 * values if space == "cmyk" else values  # LittleCMS's float inks are per cent
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
