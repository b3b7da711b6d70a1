"""The images and masks that the gallery's commands read.

The content and the first style are the demo's; two more styles and all masks are drawn here, the
masks along the outlines of ``draw_demo_content.py`` and ``draw_demo_style.py``. All of it comes
from these scripts and fixed seeds alone, and may be used freely, under the repository's MIT
licence.
"""

import shutil
from pathlib import Path

import numpy as np
from demo_drawing import SIZE, H, W, X, Y, box, fractal_noise, ramp, rgb, shapes, to_image
from draw_demo_content import SHORE, draw_headland, draw_mountains, draw_sky
from PIL import Image
from scipy.spatial import KDTree

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
GLASS = "8c1c2e c2374a e8768a f3ddc0 f0a36b 0f6e6e 5fb3a8 3d2a5c"
LAKE, LAND, SKY = "0000c0", "00a040", "90d0ff"  # regions.png; sorted like this, lake first

# file -> what it is
INPUTS = {
    "lake.jpg": "lake.jpg: the content",
    "fields.jpg": "fields.jpg: strokes",
    "glass.jpg": "glass.jpg: flat cells",
    "ink.jpg": "ink.jpg: hatching",
    "sky.png": "sky.png: mask",
    "rest.png": "rest.png: its opposite",
    "tower.png": "tower.png: mask",
    "regions.png": "regions.png: labels of lake, land and sky",
    "swirls.png": "swirls.png: mask of fields.jpg",
    "furrows.png": "furrows.png: its opposite",
}


def glass_image(seed: int = 3) -> np.ndarray:
    """Stained glass: flat cells of a few colours between dark bars."""
    rng = np.random.default_rng(seed)
    seeds = rng.uniform((-40, -40), (W + 40, H + 40), (260, 2))
    bend = 16 * fractal_noise(rng, (H, W), (3, 4), 2)
    points = np.stack([X + bend, Y - bend], axis=-1)
    distance, nearest = map(np.asarray, KDTree(seeds).query(points, k=2))
    colours = np.array([rgb(code) for code in GLASS.split()])
    cells = colours[rng.integers(0, len(colours), len(seeds))]
    light = 1 + 0.05 * fractal_noise(rng, (H, W), (5, 7), 3)
    bars = distance[..., 1] - distance[..., 0] < 11
    return np.where(bars[..., None], rgb("15121c"), cells[nearest[..., 0]] * light[..., None])


def ink_image(seed: int = 8) -> np.ndarray:
    """An engraving: black lines on paper, crossed and thicker where it is darker."""
    rng = np.random.default_rng(seed)
    tone = fractal_noise(rng, (H, W), (3, 4), 3)
    wave = 10 * fractal_noise(rng, (H, W), (2, 3), 2)
    ink = np.zeros((H, W))
    for angle, level in ((0.6, -0.9), (2.2, 0.1), (1.4, 0.9)):
        line = 0.5 + 0.5 * np.cos((np.cos(angle) * X + np.sin(angle) * Y + wave) * 2 * np.pi / 13)
        ink = np.maximum(ink, line < np.clip(0.3 * (tone - level), 0, 0.55))
    return ramp(ink, (0, 1), "f4ead2 17131a")


def content_masks() -> dict[str, np.ndarray]:
    """Where the drawing of the content has sky, land and lake, and its lighthouse."""
    rng = np.random.default_rng(11)
    sky = draw_sky(rng)
    mountains = draw_mountains(rng, sky)
    headland = draw_headland(rng, mountains)
    x = 365
    tower = [(x - 24, 235), (x + 24, 235), (x + 38, 525), (x - 38, 525)]
    gallery, lantern = box(x - 37, 213, x + 37, 240), box(x - 20, 183, x + 20, 235)
    roof = [(x - 25, 183), (x - 2, 131), (x + 2, 131), (x + 25, 183)]
    lighthouse = shapes(tower, gallery, lantern, roof) > 0
    lake = Y >= SHORE
    land = ~lake & ((headland != sky).any(axis=-1) | lighthouse)
    return {"lake": lake, "land": land, "sky": ~lake & ~land, "tower": lighthouse}


def style_ground() -> np.ndarray:
    """Where the drawing of the style has ground: below the crest of its farthest hills."""
    t = X / W * 5.0 + 0.6
    return Y > H * (0.60 + 0.030 * np.sin(t) + 0.009 * np.sin(2.3 * t))


def write_inputs(folder: Path) -> None:
    """Write every file that the gallery's commands read."""
    shutil.copyfile(IMAGES / "demo_content.jpg", folder / "lake.jpg")
    shutil.copyfile(IMAGES / "demo_style.jpg", folder / "fields.jpg")
    for name, image in (("glass", glass_image()), ("ink", ink_image())):
        small = to_image(image).resize(SIZE, Image.Resampling.LANCZOS)
        small.save(folder / f"{name}.jpg", quality=92, subsampling=0)
    masks, ground = content_masks(), style_ground()
    hard = {"sky": masks["sky"], "rest": ~masks["sky"], "tower": masks["tower"]}
    for name, mask in (hard | {"swirls": ~ground, "furrows": ground}).items():
        # Every second pixel: no grey between black and white, which would be further labels.
        Image.fromarray(mask[::2, ::2]).convert("L").save(folder / f"{name}.png")
    labels = np.zeros((H, W, 3))
    for name, code in (("lake", LAKE), ("land", LAND), ("sky", SKY)):
        labels[masks[name]] = rgb(code)
    to_image(labels[::2, ::2]).save(folder / "regions.png")
