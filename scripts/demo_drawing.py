"""What the scripts that draw the demo's images share.

Colours are arrays in 0..1, masks are ``(H, W)`` arrays in 0..1. Everything is drawn at twice the
final size and reduced at the end.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (640, 480)
W, H = 2 * SIZE[0], 2 * SIZE[1]
X, Y = np.meshgrid(np.arange(W, dtype=float), np.arange(H, dtype=float))
MAX_BYTES = 250_000


def fractal_noise(rng, shape, cells, octaves=7, gain=0.5):
    """Smooth noise with detail at every scale, mean 0 and standard deviation 1."""
    total = np.zeros(shape)
    for k in range(octaves):
        grid = rng.standard_normal((cells[0] * 2**k + 1, cells[1] * 2**k + 1))
        layer = Image.fromarray(grid.astype(np.float32)).resize(
            shape[::-1], Image.Resampling.BICUBIC
        )
        total += gain**k * np.asarray(layer)
    return (total - total.mean()) / total.std()


def smoothstep(low, high, value):
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rgb(code):
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255


def ramp(t, at, codes):
    """Colour for each value of t: linear between the hex codes, which sit at the values ``at``."""
    colours = np.array([rgb(code) for code in codes.split()])
    return np.stack([np.interp(t, at, colours[:, c]) for c in range(3)], axis=-1)


def over(image, colour, mask):
    """Lay a colour (one for all, or one per pixel) over the image where the mask is set."""
    return image + (colour - image) * mask[..., None]


def shapes(*polygons, blur=0.0):
    """Mask of the union of polygons; a polygon of two corners is the ellipse in that box."""
    mask = Image.new("L", (W, H))
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        corners = [(float(x), float(y)) for x, y in polygon]
        (draw.ellipse if len(corners) == 2 else draw.polygon)(corners, fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), float) / 255


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def cut_outs(image, *parts):
    """Lay flat shapes over the image; a part is a hex colour followed by its polygons."""
    for colour, *polygons in parts:
        image = over(image, rgb(colour), shapes(*polygons))
    return image


def sample(field, x, y):
    """Bilinear lookup; coordinates beyond the edge are mirrored back, so there is no seam."""
    rows, cols = field.shape[:2]
    x = np.abs((x + cols - 1) % (2 * cols - 2) - (cols - 1))
    y = np.abs((y + rows - 1) % (2 * rows - 2) - (rows - 1))
    i, j = np.minimum(y.astype(int), rows - 2), np.minimum(x.astype(int), cols - 2)
    extra = (1,) * (field.ndim - 2)
    fy, fx = (y - i).reshape(y.shape + extra), (x - j).reshape(x.shape + extra)
    top = field[i, j] * (1 - fx) + field[i, j + 1] * fx
    return top * (1 - fy) + (field[i + 1, j] * (1 - fx) + field[i + 1, j + 1] * fx) * fy


def to_image(image):
    return Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def save(image, path):
    """Reduce to the final size and write the best JPEG that stays under the size limit."""
    image = to_image(image).resize(SIZE, Image.Resampling.LANCZOS)
    for quality in range(92, 60, -1):
        image.save(path, quality=quality, subsampling=0, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            break
    print(f"{path}: {path.stat().st_size} bytes, quality {quality}")


def output_path(name):
    """Where to write: into the folder that the command line names, or docs/images."""
    default = Path(__file__).resolve().parent.parent / "docs" / "images"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
