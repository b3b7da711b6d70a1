"""Guides of regions, computed in NumPy."""

import numpy as np

from nst_jax.config import CONVS, stride


def fields(tap, side, padding):
    """For each position of a layer along one axis, the pixels that it sees."""
    sides, steps = [side], []
    for name in CONVS[: CONVS.index(tap.replace("relu", "conv")) + 1]:
        if name.endswith("_1") and name != "conv1_1":
            steps.append("pool")
            sides.append(sides[-1] // 2)
        steps.append("conv")
        sides.append(sides[-1])
    found = []
    for position in range(sides[-1]):
        seen = {position}
        for step, below in zip(reversed(steps), reversed(sides[:-1]), strict=True):
            if step == "pool":
                seen = {2 * p + i for p in seen for i in (0, 1)}
                continue
            seen = {p + i for p in seen for i in (-1, 0, 1)}
            if padding == "circular":
                seen = {p % below for p in seen}
            elif padding == "reflect":
                seen = {below - 1 - abs(below - 1 - abs(p)) for p in seen}
            elif padding == "replicate":
                seen = {min(max(p, 0), below - 1) for p in seen}
            else:
                seen = {p for p in seen if 0 <= p < below}
        found.append(sorted(seen))
    return found


def numpy_guide(mask, tap, method, *, padding="zero"):
    mask = np.float64(mask)
    if method == "simple":
        step = stride(tap)
        height, width = (side // step for side in mask.shape)
        blocks = mask[: height * step, : width * step].reshape(height, step, width, step)
        return blocks.mean((1, 3))
    reduce = {"inside": np.min, "all": np.max}[method]
    rows, columns = (fields(tap, side, padding) for side in mask.shape)
    return np.array([[reduce(mask[np.ix_(ys, xs)]) for xs in columns] for ys in rows])
