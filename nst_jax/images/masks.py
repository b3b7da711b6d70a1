"""Read masks and label images from files into NumPy arrays.

Contract: a mask is float32 ``[H, W]`` in [0, 1], 1 inside its region; R masks are ``[R, H, W]``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nst_jax.errors import InputError
from nst_jax.images.read import image_shape, load_values, resize_to

MAX_REGIONS = 32

FAINT = 0.3  # a mask whose maximum is below this is refused

SMALL_REGION = 0.01  # fraction of an image's area; edges smoothed by a resize make such regions

RGB = tuple[int, int, int]


def load_mask(path: str | Path, *, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask: white is inside, black and transparent are outside, grey is a soft edge.

    A colour image is reduced to luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). Colour profiles
    are ignored.

    Args:
      path: an image file.
      shape: height and width to resize the mask to; see ``mask_aspect_note``.

    Returns:
      ``[H, W]`` float32 in [0, 1].

    Raises:
      InputError: if the file cannot be read, or the mask is black or almost black everywhere.
    """
    rgb, alpha = load_values(path)
    mask = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    mask = _resize(mask if alpha is None else mask * alpha, shape=shape)
    if not mask.any():
        raise InputError(f"the mask {path} is black everywhere: expected white inside its region")
    if mask.max() < FAINT:  # for example a file that holds 0 and 1 instead of 0 and 255
        raise InputError(
            f"the brightest pixel of the mask {path} is {mask.max():.2g}, where 1 is white: "
            "expected white inside its region"
        )
    return mask


def load_labels(
    path: str | Path, *, shape: tuple[int, int], colors: Sequence[RGB] | None = None
) -> tuple[list[RGB], np.ndarray]:
    """Read a label image, in which each colour is a region.

    Args:
      path: an image file with few colours, which are compared with 8 bits per channel.
        Transparency and colour profiles are ignored.
      shape: height and width to resize the masks to.
      colors: the (red, green, blue) of each wanted region; None takes all colours of the file in
        ascending order.

    Returns:
      The colours, and a mask for each, ``[R, H, W]`` float32. The masks of all colours of the
      file add up to 1 at each pixel.

    Raises:
      InputError: if the file cannot be read, has a single colour or more than ``MAX_REGIONS``, or
        lacks one of ``colors``.
    """
    pixels = np.rint(load_values(path).rgb * 255).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    found = {(code >> 16, code >> 8 & 255, code & 255): code for code in np.unique(codes).tolist()}
    if len(found) > MAX_REGIONS:
        raise InputError(
            f"the label image {path} has {len(found)} colours: expected at most {MAX_REGIONS}, one "
            "for each region; save it as PNG, with hard edges"
        )
    wanted = list(found) if colors is None else [(red, green, blue) for red, green, blue in colors]
    for color in wanted:
        if color not in found:
            raise InputError(
                f"the label image {path} has no pixel of the colour {_name(color)}: expected one "
                f"of its colours, {' '.join(map(_name, found))}"
            )
    if len(found) == 1:
        raise InputError(
            f"the label image {path} has only one colour: expected two or more, one for each region"
        )
    masks = [_resize((codes == found[color]).astype(np.float32), shape=shape) for color in wanted]
    return wanted, np.stack(masks)


def soft_edges_note(path: str | Path, masks: np.ndarray) -> str | None:
    """Return a note if a label image seems to have soft edges, else None.

    Args:
      path: the label image's file.
      masks: the masks of its colours, ``[R, H, W]``.
    """
    small = int((masks.mean(axis=(1, 2)) < SMALL_REGION).sum())
    if small < 2:
        return None
    return (
        f"{small} of the {len(masks)} colours of the label image {path} each cover less than "
        f"{SMALL_REGION:.0%} of it: if its edges are soft, save it with hard edges"
    )


def feather(masks: np.ndarray, *, radius: float) -> np.ndarray:
    """Soften the edges of masks with a Gaussian blur; masks that add up to 1 still do.

    The Gaussian is truncated at three standard deviations, and pixels beyond the border repeat
    those at the border.

    Args:
      masks: ``[R, H, W]``.
      radius: standard deviation of the Gaussian in pixels, from 0 (no blur) to the longer side.

    Returns:
      ``[R, H, W]`` float32.

    Raises:
      InputError: if the radius is out of range or not a number.

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
    from scipy.ndimage import gaussian_filter  # a slow import that few runs need

    blurred = gaussian_filter(masks, (0, radius, radius), mode="nearest", truncate=3)
    return np.clip(blurred, 0, 1)


def mask_aspect_note(path: str | Path, *, shape: tuple[int, int]) -> str | None:
    """Return a note if the aspect ratios of a mask and its image differ by over 5 %, else None.

    Args:
      path: the mask's file, of which only the header is read.
      shape: height and width of the image.

    Raises:
      InputError: if the file cannot be read.
    """
    height, width = image_shape(path)
    ratio = width * shape[0] / (height * shape[1])
    if max(ratio, 1 / ratio) <= 1.05:
        return None
    return (
        f"the mask {path} is {width}x{height} px and its image {shape[1]}x{shape[0]} px: "
        "the mask is stretched"
    )


def _resize(mask: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Resize ``[H, W]`` float32 with an antialiased bilinear filter."""
    return np.clip(resize_to(mask[..., None], shape=shape)[..., 0], 0, 1)


def _name(color: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
