"""Draw two styles: paper cut into flat shapes, and a dark painting of things by candlelight.

They come from this script and fixed seeds alone, and may be used freely, under the repository's MIT
licence.
"""

import numpy as np
from demo_drawing import H, W, X, Y, box, fractal_noise, over, ramp, rgb, shapes, smoothstep
from draw_demo_style import paint

FLAME = (470, 330)
TABLE = 690  # the row of the table's far edge
DABS = [(46, 120, 1500, 0), (26, 80, 4200, 0), (14, 48, 12000, 0.03), (8, 26, 20000, 0.12)]
DABS += [(6, 16, 26000, 0.3)]  # as BRUSHES of the demo: short and thick


def frond(x, y, size, turn, lobes, *, fat=0.5):
    """A leaf with rounded lobes on both sides of a bent stem, as scissors cut it."""
    t = np.linspace(0, 1, 140)
    width = np.sin(np.pi * t) ** 0.6 * (0.10 + fat * 0.32 * np.abs(np.sin(np.pi * lobes * t)))
    bend = 0.12 * np.sin(2 * t)
    u = np.concatenate([bend - width, (bend + width)[::-1]]) * size
    v = np.concatenate([t, t[::-1]]) * size
    c, s = np.cos(turn), np.sin(turn)
    return list(zip(x + c * u + s * v, y + s * u - c * v, strict=True))


def blob(rng, x, y, size):
    """A pebble: a circle that is a little out of round."""
    t = np.linspace(0, 2 * np.pi, 80)
    r = size * (1 + sum(rng.normal(0, 0.10 / k) * np.sin(k * t + k * x) for k in (1, 2, 3)))
    return list(zip(x + r * np.cos(t), y + r * np.sin(t), strict=True))


def star(x, y, size, points):
    t = np.arange(2 * points) * np.pi / points
    r = np.where(np.arange(2 * points) % 2, 0.45, 1.0) * size
    return list(zip(x + r * np.sin(t), y - r * np.cos(t), strict=True))


def paper_image(seed: int = 41) -> np.ndarray:
    """Cut paper: sheets of a few strong colours with leaves, pebbles and suns glued on them."""
    rng = np.random.default_rng(seed)
    image = np.ones((H, W, 3)) * rgb("f4ecd8")
    columns, rows = (0, 300, 640, 930, W), (0, 330, 620, H)
    sheets = "1f4fa3 f4ecd8 e8472b f2b632 f2b632 0f7a5a f4ecd8 1b2a55 e58fa8 f2b632 1f4fa3 e8472b"
    cuts = "f4ecd8 e8472b 1b2a55 0f7a5a 1f4fa3 f2b632 e8472b e58fa8 1b2a55 e8472b f4ecd8 f2b632"
    for k, (sheet, cut) in enumerate(zip(sheets.split(), cuts.split(), strict=True)):
        x0, x1 = columns[k % 4], columns[k % 4 + 1]
        y0, y1 = rows[k // 4], rows[k // 4 + 1]
        lean = rng.uniform(-14, 14, 4)
        corners = [(x0, y0 + lean[0]), (x1 + lean[1], y0), (x1, y1 + lean[2]), (x0 + lean[3], y1)]
        image = over(image, rgb(sheet), shapes(corners))
        x, y, size = (x0 + x1) / 2, (y0 + y1) / 2, min(x1 - x0, y1 - y0)
        kind = k % 3
        if kind == 0:
            turn = rng.uniform(-0.4, 0.4)
            parts = [frond(x - 0.1 * size, y + 0.46 * size, 0.92 * size, turn, 5, fat=1.2)]
            parts += [frond(x + 0.32 * size, y + 0.4 * size, 0.5 * size, turn + 0.3, 3, fat=1.2)]
        elif kind == 1:
            spread = rng.uniform(-0.36, 0.36, (9, 2)) * (x1 - x0, y1 - y0)
            parts = [blob(rng, x + u, y + v, rng.uniform(0.06, 0.15) * size) for u, v in spread]
        else:
            parts = [star(x, y, 0.4 * size, int(rng.integers(7, 12)))]
        image = over(image, rgb(cut), shapes(*parts))
        if kind == 2:
            image = over(image, rgb(sheet), shapes(blob(rng, x, y, 0.13 * size)))
    wave = Y - 0.78 * H - 26 * np.sin(X / 70)
    image = over(image, rgb("1b2a55"), (np.abs(wave) < 16) * 1.0)
    image = over(image, rgb("f4ecd8"), (np.abs(wave - 60) < 9) * 1.0)
    fibre = fractal_noise(rng, (H, W), (90, 120), 3, 0.8)
    return image * (1 + 0.012 * fibre)[..., None]


def round_thing(colour, angle, outline, tints, *, middle, size, gloss=0.0):
    """Lay a body over the plan: turned to the flame it is light, away from it nearly black.

    Strokes go around its middle.
    """
    u, v = (X - middle[0]) / size[0], (Y - middle[1]) / size[1]
    z = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    way = np.array([FLAME[0] - middle[0], FLAME[1] - middle[1], 190.0])
    way /= np.linalg.norm(way)
    far = np.hypot(FLAME[0] - middle[0], FLAME[1] - middle[1])
    facing = (u * way[0] + v * way[1] + z * way[2]) * min(1, 330 / far) ** 0.5
    body = ramp(facing, (-0.1, 0.2, 0.55, 0.95), tints)
    body = over(body, rgb("fff2c8"), gloss * smoothstep(0.93, 0.985, facing))
    mask = shapes(outline)
    around = np.arctan2(v, u) + np.pi / 2
    return over(colour, body, mask), np.where(mask > 0.5, around, angle)


def profile(x, y, points):
    """An outline that is the same on both sides of x; points are (half width, height above y)."""
    side = [(x + w, y - h) for w, h in points]
    return side + [(2 * x - a, b) for a, b in side[::-1]]


def plan_things(rng):
    """Colours and directions of strokes: a wall, a table, a jug, fruit and a candle."""
    wall = fractal_noise(rng, (H, W), (4, 5), 5)
    far = np.hypot(X - FLAME[0], (Y - FLAME[1]) * 1.1)
    glow = np.exp(-far / 210) + 0.035 * wall
    colour = ramp(glow, (0, 0.12, 0.4, 0.8, 1), "0b0705 1d110a 56300f b8711f f0bc55")
    angle = np.arctan2(Y - FLAME[1], X - FLAME[0]) + np.pi / 2 + 0.4 * wall
    edge = TABLE + 6 * np.sin(X / 160)
    near = np.exp(-np.hypot(X - FLAME[0], (Y - TABLE - 60) * 2.2) / 330) + 0.03 * wall
    cloth = ramp(near, (0, 0.25, 0.6, 1), "100806 3d140f 8a2a1c d8783a")
    folds = np.sin((X + 0.5 * (Y - TABLE)) / 36 + 2 * wall)
    cloth = cloth * (1 + 0.30 * folds * smoothstep(TABLE + 60, H, Y))[..., None]
    down = Y > edge
    colour, angle = over(colour, cloth, down * 1.0), np.where(down, 0.15 * folds + 0.1, angle)
    for x, size in ((700, 190), (905, 120), (250, 110), (1065, 95), (140, 80)):  # shadows
        away = np.sign(x - FLAME[0])
        s = ((X - x - 0.7 * away * size) / (1.5 * size)) ** 2 + ((Y - TABLE - 85) / 34) ** 2
        colour = over(colour, rgb("080504"), 0.85 * smoothstep(1.3, 0.5, s))
    foot = TABLE + 80
    sides = [(62, 410), (70, 396), (40, 350), (46, 300), (128, 170), (118, 60), (70, 0)]
    jug = profile(720, foot, sides)
    green = "070806 1c2a1e 4f6a3c d8c878"
    colour, angle = round_thing(
        colour, angle, jug, green, middle=(720, foot - 170), size=(140, 260), gloss=0.9
    )
    t = np.linspace(-1.9, 1.7, 40)
    outer = [(790 + 92 * np.cos(k), foot - 250 + 96 * np.sin(k)) for k in t]
    inner = [(790 + 66 * np.cos(k), foot - 250 + 70 * np.sin(k)) for k in t[::-1]]
    handle = shapes(outer + inner)
    colour = over(colour, ramp(X, (790, 880), "3a4a2c 0d120c"), handle)
    fruits = [
        (905, foot + 8, 82, "0a0403 4a0f0a b02a18 f09a48"),
        (1050, foot - 2, 66, "080503 4a2a08 b8761a f6d070"),
        (985, foot + 44, 60, "0a0403 3c0d10 8a1e2a d8705a"),
        (270, foot + 6, 84, "090502 5a3208 cf8420 ffdc80"),
        (150, foot + 26, 66, "060604 2a3010 76802a e0d070"),
        (345, foot + 52, 52, "0a0403 4a0f0a b02a18 f09a48"),
    ]
    for x, y, r, tints in fruits:
        circle = [(x - r, y - r), (x + r, y + r * 0.94)]
        colour, angle = round_thing(
            colour, angle, circle, tints, middle=(x, y), size=(r, r), gloss=0.8
        )
        colour = over(colour, rgb("140a06"), shapes(box(x - 3, y - r - 16, x + 3, y - r + 14)))
    x, y = FLAME
    wax = ramp(Y, (y + 50, y + 120, foot), "fff0b8 f0c878 a8703a")
    wax = over(wax, rgb("5a3212"), 0.7 * smoothstep(6, 26, np.abs(X - x)))
    stick = shapes(profile(x, foot, [(26, 380), (24, 90), (24, 60)]))
    brass = profile(x, foot + 14, [(44, 90), (34, 70), (16, 56), (22, 36), (90, 14), (80, 0)])
    metal = ramp(X - x, (-90, -30, 0, 40, 90), "1c1006 b87a24 fbe08a 8a5414 120a04")
    for mask, tint in ((stick, wax), (shapes(brass), metal)):
        colour, angle = over(colour, tint, mask), np.where(mask > 0.5, np.pi / 2, angle)
    tongue = np.hypot((X - x) / (9 + 13 * smoothstep(y - 75, y + 25, Y)), (Y - y + 8) / 58)
    flame = ramp(tongue, (0, 0.45, 0.85, 1.1), "fffdf0 fff2b0 ffc850 e88a20")
    mask = smoothstep(1.15, 0.9, tongue)
    return over(colour, flame, mask).clip(0, 1), np.where(mask > 0.5, np.pi / 2, angle)


def candle_image(seed: int = 51) -> np.ndarray:
    """A dark painting: things on a table around a candle, in thick dabs."""
    rng = np.random.default_rng(seed)
    plan, angle = plan_things(rng)
    return paint(rng, plan, angle, brushes=DABS, ground=(26, 15, 9), scatter=0.012)
