"""Draw a street of old houses that runs towards a church tower, on a clear afternoon.

It comes from this script and a fixed seed alone: no photograph went into it. It may be used freely,
under the repository's MIT licence.

Every pixel's ray meets the left or the right row of houses, the ground or the sky; what it shows is
looked up there in metres: ``along`` the street and ``up`` from the ground.
"""

import numpy as np
from demo_drawing import (
    H,
    W,
    X,
    Y,
    box,
    cut_outs,
    fractal_noise,
    over,
    ramp,
    rgb,
    sample,
    shapes,
    smoothstep,
    to_image,
)
from PIL import ImageFilter

VANISHING, FOCAL, EYE = (700, 600), 900, 1.7  # pixels, pixels, metres
LEFT, RIGHT = -4.2, 5.0  # where the rows of houses stand, metres
FAR = 75.0
COAT = ((-0.14, 0.82), (0.14, 0.82), (0.10, 0.4), (-0.10, 0.4))
LEG = ((0.0, 0.42), (0.11, 0.42), (0.07, 0.0))
WALLS = "d8b48a c9785a e9ddc0 b9a58f dc9a4a c7c0b0 b86a52 9fb0a8".split()
SHUTTERS = "3f6b5c 2f4f7a 6b3a2e 4a6a3a 7a7f86".split()


def rows_of_houses(rng):
    """Where each house of a row ends, and its height, in metres."""
    ends = np.cumsum(rng.uniform(5.5, 9.5, 16)) + 1
    return ends, rng.uniform(7.5, 12.5, 16)


def window(along, up, tall):
    """Masks of a window's parts in its own coordinates, metres from the middle of its foot."""
    x, y = np.abs(along), up
    inside = (x < 0.5) & (y > 0) & (y < tall)
    frame = inside & ((x > 0.43) | (x < 0.035) | (y < 0.07) | (y > tall - 0.07))
    frame |= inside & (np.abs(y - 0.62 * tall) < 0.035)
    stone = (x < 0.66) & (y > -0.16) & (y < tall + 0.2) & ~inside
    shutter = (x > 0.52) & (x < 1.02) & (y > 0) & (y < tall)
    return inside, frame, stone & ~shutter, shutter


def facade(rng, along, up, sunny, noise):
    """Colours of a row of houses, and where the row ends against the sky."""
    ends, heights = rows_of_houses(rng)
    number = np.searchsorted(ends, along).clip(0, 15)
    start = np.concatenate([[1 - 8.0], ends])[number]
    width = np.diff(np.concatenate([[1 - 8.0], ends]))[number]
    wall = np.array([rgb(code) for code in rng.permutation(WALLS * 2)])[number]
    shutters = np.array([rgb(code) for code in rng.choice(SHUTTERS, 16)])[number]
    plaster = sample(noise, along * 55, up * 55)
    streaks = sample(noise, along * 90 + 300, up * 9 + 200)
    stain = 0.07 * plaster + 0.05 * streaks - 0.25 * smoothstep(1.1, 0, up)
    colour = wall * (1 + stain)[..., None]
    # Storeys of three metres, axes of windows between the walls of each house.
    axes = np.maximum(np.round(width / 2.5), 1)
    cell = (along - start) / width * axes
    x = (cell - np.floor(cell) - 0.5) * width / axes
    storey = np.floor(up / 3.0)
    y, tall = up - 3.0 * storey - 0.85, 1.55
    height = heights[number]
    there = (storey >= 1) & (3.0 * storey + 2.7 < height)
    inside, frame, stone, shutter = (part & there for part in window(x, y, tall))
    slats = 0.85 + 0.15 * np.sign(np.sin(y * 2 * np.pi / 0.11))
    colour = over(colour, rgb("d9d0bd"), stone * 0.9)
    colour = over(colour, shutters * slats[..., None], shutter * 1.0)
    dice = sample(rng.uniform(0, 1, (16, 200)), np.floor(cell) + 7 * number, storey)
    sky_in_it = ramp(y / tall + 0.25 * plaster, (0, 0.6, 1.1), "10161d 2c3d4d 9db4c4")
    glass = over(sky_in_it, rgb("e9c27a"), 0.75 * (dice > 0.8))
    colour = over(colour, glass, inside * 1.0)
    colour = over(colour, rgb("efe8da"), frame * 1.0)
    # A door or a shop window on the ground floor, by axis.
    low, ground = np.abs(x), up < 2.9
    shop = np.floor(cell + 3 * number) % 3 == 0
    door = ground & ~shop & (low < 0.55) & (up < 2.25)
    panel = (np.abs(low - 0.27) < 0.17) & (np.abs(up % 1.05 - 0.55) < 0.36)
    colour = over(colour, shutters * np.where(panel, 0.75, 1.0)[..., None], door * 1.0)
    post = ground & ~shop & ~door & (low < 0.72) & (up < 2.42)
    colour = over(colour, rgb("cfc6b3"), post * 1.0)
    pane = ground & shop & (low < 1.0) & (up > 0.6) & (up < 2.4)
    colour = over(colour, over(glass, rgb("f0c878"), smoothstep(2.6, 0.8, up) * 0.6), pane * 1.0)
    sign = ground & shop & (low < 1.1) & (up > 2.4) & (up < 2.85)
    colour = over(colour, shutters, sign * 1.0)
    awning = ground & shop & (low < 1.15) & (up > 2.0) & (up < 2.4)
    stripes = np.where(np.sin(x * 2 * np.pi / 0.3) > 0, 1.0, 0.0)
    colour = over(colour, over(rgb("b03a2e"), rgb("f2e8d8"), stripes), awning * 1.0)
    cornice = (up > height - 0.45) | (np.abs(up - 2.95) < 0.09)
    colour = over(colour, rgb("cdbfa6"), cornice * 0.8)
    # Light falls steeply along the sunny row; what stands out throws its shadow down and on.
    shade = 0.75 * ((up > height - 0.95) & ~cornice)
    recess = inside & ((tall - y < 0.22) | (x < -0.34))
    shade = np.maximum(shade, 0.5 * recess)
    seam = smoothstep(0.09, 0.03, np.minimum(along - start, ends[number] - along))
    colour = colour * (1 - 0.45 * np.maximum(shade, 0.6 * seam))[..., None]
    if sunny:
        colour = colour * np.array([1.16, 1.06, 0.90])
    else:
        colour = colour * np.array([0.50, 0.55, 0.68])
    return colour, up < height


def cobbles(rng, side, away, noise):
    """Paving: rows of stones, a gutter and pavements along the houses, half in shadow."""
    row = np.floor(away / 0.28)
    u, v = side / 0.32 + 0.5 * (row % 2) + 0.1 * sample(noise, side * 40, away * 40), away / 0.28
    bump = np.minimum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
    edge = np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
    tone = sample(rng.uniform(-1, 1, (64, 64)), np.floor(u) % 63, row % 63)
    fine = smoothstep(30, 12, away)  # farther off, stones are smaller than pixels
    tone = 0.5 + 0.30 * tone * fine + 0.1 * sample(noise, side * 20, away * 20)
    colour = ramp(tone, (0, 1), "6d655c b9ad9b")
    colour = colour * (1 - fine * (0.5 * smoothstep(0.38, 0.48, edge) - 0.1 * bump))[..., None]
    walk = (side < LEFT + 1.2) | (side > RIGHT - 1.3)
    slab = smoothstep(0.03, 0.01, np.abs((away / 0.9) % 1 - 0.5) - 0.47)
    wear = 0.06 * sample(noise, side * 50, away * 50) - 0.1 * slab
    pavement = rgb("b5aca0") * (1 + wear)[..., None]
    colour = over(colour, pavement, walk * 1.0)
    kerb = np.minimum(np.abs(side - LEFT - 1.2), np.abs(side - RIGHT + 1.3))
    colour = over(colour, rgb("4f4a45"), smoothstep(0.10, 0.05, kerb) * 0.8)
    roofs = 0.4 * np.sin(away * 0.42) + 0.7 * (np.sin(away * 0.9) > 0.3)
    lit = smoothstep(0.15, -0.15, side - 0.6 + roofs)
    warm, cool = np.array([1.15, 1.05, 0.90]), np.array([0.48, 0.52, 0.64])
    return colour * (cool + (warm - cool) * lit[..., None])


def draw_sky(rng):
    sky = ramp(Y / VANISHING[1], (0, 0.6, 1), "3f7cc0 8db8dd e6e4d6")
    noise = fractal_noise(rng, (H, W), (4, 4), 6, 0.55)
    return over(
        sky, rgb("fbf6ec"), 0.85 * smoothstep(0.1, 1.5, noise) * smoothstep(1, 0.2, Y / 700)
    )


def draw_tower(image, x=715, foot=640, top=250):
    """A church tower at the end of the street, lit from the right, with its nave before it."""
    w = 46
    stone = ramp((X - x) / w, (-1, 0.05, 0.06, 1), "8d8790 9b939a e8d3ae dcc6a0")
    image = over(image, stone, shapes(box(x - w, top + 90, x + w, foot)))
    spire = [(x - w - 6, top + 92), (x, top - 90), (x + w + 6, top + 92)]
    slate = ramp((X - x) / w, (-1, 0.02, 0.04, 1), "3f4a5a 4b5768 7d8ba0 8997aa")
    image = over(image, slate, shapes(spire))
    parts = [box(x - w - 5, y, x + w + 5, y + 7) for y in (top + 88, top + 190, top + 290)]
    arches = [box(x + d - 7, top + 115, x + d + 7, top + 165) for d in (-23, 23)]
    arches += [[(x + d - 7, top + 105), (x + d + 7, top + 125)] for d in (-23, 23)]
    face = [(x - 17, top + 205), (x + 17, top + 239)]
    hands = [box(x - 1, top + 208, x + 1, top + 222), box(x, top + 221, x + 10, top + 223)]
    cross = [box(x - 1.5, top - 118, x + 1.5, top - 86), box(x - 8, top - 109, x + 8, top - 106)]
    return cut_outs(
        image,
        ("cbb994", *parts),
        ("262a33", *arches),
        ("f3ead2", face),
        ("20222a", *hands, *cross),
    )


def draw_people_and_lamps(image):
    """Small dark figures, and a lamp on the left, for the scale."""
    people = []
    for x, y, tall in ((610, 668, 62), (640, 660, 55), (835, 716, 100), (742, 640, 34)):
        people += [[(x - tall * 0.07, y - tall), (x + tall * 0.07, y - tall * 0.85)]]
        people += [[(x + u * tall, y - v * tall) for u, v in COAT]]
        people += [[(x + s * u * tall, y - v * tall) for u, v in LEG] for s in (-1, 1)]
    x, y = 330, 330
    lamp = [box(x - 4, y + 70, x + 4, 880), box(x - 34, y + 66, x + 4, y + 72)]
    lamp.append(box(x - 8, 840, x + 8, 880))
    lantern = [(x - 48, y + 78), (x - 18, y + 78), (x - 24, y + 128), (x - 42, y + 128)]
    cap = [(x - 52, y + 78), (x - 14, y + 78), (x - 33, y + 58)]
    image = cut_outs(image, ("2a2430", *people), ("f6e3a8", lantern))
    return cut_outs(image, ("17181c", *lamp, cap))


def draw_street(seed: int = 31) -> np.ndarray:
    """The street, ``[H, W, 3]``."""
    rng = np.random.default_rng(seed)
    noise = fractal_noise(rng, (1024, 1024), (16, 16), 6, 0.7)
    image = draw_tower(draw_sky(rng))
    x, y = (X - VANISHING[0]) / FOCAL, (VANISHING[1] - Y) / FOCAL
    haze = rgb("e2dccb")
    with np.errstate(divide="ignore", invalid="ignore"):
        for wall, sunny in ((LEFT, True), (RIGHT, False)):
            away = np.where(np.sign(x) == np.sign(wall), wall / np.where(x == 0, 1e-9, x), 1e9)
            away = away.clip(0, 1e3)
            up = EYE + y * away
            colour, below = facade(rng, away, up, sunny, noise)
            colour = over(colour, haze, 0.6 * smoothstep(8, 110, away))
            image = over(image, colour, (below & (up > 0) & (away < FAR)) * 1.0)
        away = np.where(y < 0, EYE / np.where(y < 0, -y, 1), 1e3)
    side = x * away
    street = (y < 0) & (side > LEFT) & (side < RIGHT) & (away < 200)
    ground = over(
        cobbles(rng, side, away.clip(0, 300), noise), haze, 0.6 * smoothstep(8, 110, away)
    )
    image = draw_people_and_lamps(over(image, ground, street * 1.0))
    soft = np.asarray(to_image(image).filter(ImageFilter.GaussianBlur(0.9)), float) / 255
    return soft + rng.normal(0, 0.014, (H, W, 1))
