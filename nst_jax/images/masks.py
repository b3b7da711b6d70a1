"""Masks for regions of images, from files, on the host.

Contract: a mask is float32 ``[H, W]`` in [0, 1], 1 inside; several are ``[R, H, W]``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nst_jax.errors import InputError
from nst_jax.images.read import image_shape, load_numbers, resize_to

MAX_REGIONS = 32

FAINT = 0.3  # of white

SMALL_REGION = 0.01  # of an image

RGB = tuple[int, int, int]


def load_mask(path: str | Path, *, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask: white is inside, black and transparent outside, grey a soft edge.

    Args:
      path: an image file; colours are read as their luminance, without their profile.
      shape: height and width to resize it to; see ``mask_aspect_note``.

    Returns:
      ``[H, W]`` float32 in [0, 1].

    Raises:
      InputError: for a file that cannot be read, or a mask that is black everywhere.
    """
    rgb, alpha = load_numbers(path)
    mask = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    mask = _resize(mask if alpha is None else mask * alpha, shape=shape)
    if not mask.any():
        raise InputError(f"the mask {path} marks nothing: expected white where its region is")
    if mask.max() < FAINT:  # such as a file of 0 and 1 in place of 0 and 255
        raise InputError(
            f"the mask {path} has no brighter pixel than {mask.max():.2g} of white: expected white "
            "where its region is"
        )
    return mask


def load_labels(
    path: str | Path, *, shape: tuple[int, int], colors: Sequence[RGB] | None = None
) -> tuple[list[RGB], np.ndarray]:
    """Read a label image, of which each colour is a region.

    Args:
      path: an image file of few colours; two are the same if their 8 bits a channel are.
        Transparency is ignored.
      shape: height and width to resize the masks to.
      colors: the regions' colours, (red, green, blue); None takes those of the file, ascending.

    Returns:
      The colours, and a mask for each, ``[R, H, W]`` float32. The masks of all colours of the
      file add up to 1 at each pixel.

    Raises:
      InputError: for a file that cannot be read, one of a single colour or of more than
        ``MAX_REGIONS``, or one that lacks a colour of ``colors``.
    """
    pixels = np.rint(load_numbers(path).rgb * 255).astype(np.int32)  # also where transparent
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    found = {(code >> 16, code >> 8 & 255, code & 255): code for code in np.unique(codes).tolist()}
    if len(found) > MAX_REGIONS:
        raise InputError(
            f"the label image {path} has {len(found)} colours: expected one for each region, at "
            f"most {MAX_REGIONS}; save it as PNG, with hard edges"
        )
    wanted = list(found) if colors is None else [(red, green, blue) for red, green, blue in colors]
    for color in wanted:
        if color not in found:
            raise InputError(
                f"the label image {path} has no pixel of the colour {_name(color)}: expected that "
                f"region in it; its colours are {' '.join(map(_name, found))}"
            )
    if len(found) == 1:
        raise InputError(
            f"the label image {path} has one colour only: expected a colour for each of two or "
            "more regions"
        )
    masks = [_resize((codes == found[color]).astype(np.float32), shape=shape) for color in wanted]
    return wanted, np.stack(masks)


def soft_edges_note(path: str | Path, masks: np.ndarray) -> str | None:
    """A line for the person where a label image looks as if its edges were soft.

    Args:
      path: the label image's file.
      masks: its masks, ``[R, H, W]``.
    """
    small = int((masks.mean(axis=(1, 2)) < SMALL_REGION).sum())
    if small < 2:
        return None
    return (
        f"{small} of the {len(masks)} colours of the label image {path} cover less than "
        f"{SMALL_REGION:.0%} of it: if its edges are soft, save it with hard ones"
    )


def feather(masks: np.ndarray, *, radius: float) -> np.ndarray:
    """Soften the edges of masks; masks that add up to 1 still do.

    Args:
      masks: ``[R, H, W]``.
      radius: standard deviation in pixels of the Gaussian that blurs them, which is cut off at
        three of them; 0 changes nothing. Beyond an image's border its edge pixels go on.

    Returns:
      ``[R, H, W]`` float32.

    Raises:
      InputError: for a negative radius, one wider than the image, or one that is no number.

    >>> (100 * feather(np.array([[[0, 0, 1, 1]]]), radius=0.5)).round().tolist()
    [[[0.0, 11.0, 89.0, 100.0]]]
    """
    masks = np.asarray(masks, np.float32)
    widest = max(masks.shape[1:])
    if not 0 <= radius <= widest:
        raise InputError(
            f"the feather radius is {radius}: expected 0 to the image's {widest} pixels"
        )
    if radius == 0:
        return masks
    from scipy.ndimage import gaussian_filter  # only now: few runs need it

    blurred = gaussian_filter(masks, (0, radius, radius), mode="nearest", truncate=3)
    return np.clip(blurred, 0, 1)


def mask_aspect_note(path: str | Path, *, shape: tuple[int, int]) -> str | None:
    """A line for the person where a mask's aspect ratio is not (within 5 %) its image's.

    Args:
      path: the mask's file, of which no more than needed is read.
      shape: height and width of the image.

    Raises:
      InputError: for a file that cannot be read.
    """
    height, width = image_shape(path)
    ratio = width * shape[0] / (height * shape[1])
    if max(ratio, 1 / ratio) <= 1.05:
        return None
    return (
        f"the mask {path} is {width}x{height} px, its image {shape[1]}x{shape[0]} px: "
        "it is stretched"
    )


def _resize(mask: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Scale ``[H, W]`` float32 to a shape by an antialiased bilinear filter, in float32."""
    return np.clip(resize_to(mask[..., None], shape=shape)[..., 0], 0, 1)


def _name(color: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
