"""Two measures of a result that no setting optimises: how near the style, how much of the content.

Contract: features are NumPy arrays ``[h, w, C]``, of any network; all is computed on the host.
"""

from collections.abc import Mapping, Sequence

import numpy as np

DIRECTIONS = 128  # random projections of each layer
GRID = 24  # positions along each side


def directions(channels: int, *, count: int = DIRECTIONS, seed: int = 0) -> np.ndarray:
    """Random unit vectors, ``[channels, count]``; the same for the same arguments."""
    found = np.random.default_rng(seed).normal(size=(channels, count))
    return found / np.linalg.norm(found, axis=0)


def sliced_wasserstein(features: np.ndarray, others: np.ndarray, vectors: np.ndarray) -> float:
    """Sliced Wasserstein distance of two sets of features, whatever their positions.

    With the quantile functions Q of the features' projections on K vectors,

        sqrt(1/K sum_k integral_0^1 (Q_k(t) - Q'_k(t))^2 dt),

    exact for sets of different sizes (Bonneel et al. 2015, "Sliced and Radon Wasserstein
    Barycenters of Measures"; as a style loss Heitz et al. 2021, arXiv:2006.07229).

    Args:
      features, others: ``[..., C]``.
      vectors: of length 1, ``[C, K]``.

    Returns:
      The distance, in units of the features.

    >>> line = np.arange(6.0).reshape(2, 3, 1)
    >>> round(sliced_wasserstein(line, line[::-1] + 2, np.ones((1, 1))), 6)
    2.0
    """
    first, second = (
        np.sort(part.reshape(-1, part.shape[-1]).astype(float) @ vectors, axis=0)
        for part in (features, others)
    )
    n, m = len(first), len(second)
    # Q is a step function: in units of 1 / (n m), both are constant between these levels.
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    share = np.diff(levels) / (n * m)
    difference = first[levels[:-1] // m] - second[levels[:-1] // n]
    return float(np.sqrt((share @ difference**2).mean()))


def style_distance(
    result: Mapping[str, np.ndarray],
    style: Mapping[str, np.ndarray],
    content: Mapping[str, np.ndarray],
) -> float:
    """How far a result is from the style, where the content itself is at 1.

    The mean over layers of SW(result, style) / SW(content, style).

    Args:
      result, style, content: layer -> ``[h, w, C]``; the images may have different sizes, and
        content and style must not be the same.
    """
    ratios = []
    for layer, features in style.items():
        vectors = directions(features.shape[-1])
        distance = sliced_wasserstein(result[layer], features, vectors)
        ratios.append(distance / sliced_wasserstein(content[layer], features, vectors))
    return float(np.mean(ratios))


def sample_grid(features: np.ndarray, *, grid: int = GRID) -> np.ndarray:
    """Features at the middles of ``grid`` x ``grid`` equal parts of the image, ``[grid^2, C]``.

    Between features they are bilinear. A feature sits in the middle of the pixels that it stands
    for, so that positions are the same in each layer.

    >>> sample_grid(np.arange(4.0).reshape(1, 4, 1), grid=2)[:2, 0].tolist()
    [0.5, 2.5]
    """
    for axis in (0, 1):
        length = features.shape[axis]
        at = ((np.arange(grid) + 0.5) / grid * length - 0.5).clip(0, length - 1)
        low = np.minimum(at.astype(int), max(length - 2, 0))
        high = np.minimum(low + 1, length - 1)
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        features = features.take(low, axis) * (1 - part) + features.take(high, axis) * part
    return features.reshape(grid * grid, -1)


def self_similarity(layers: Sequence[np.ndarray], *, grid: int = GRID) -> np.ndarray:
    """Cosine distances between places of an image, each column divided by its sum.

    D_ij = 1 - cos(f_i, f_j), D_ij / sum_i D_ij, of hypercolumns f: the features of all layers at
    a place, one after the other (Kolkin, Salavon and Shakhnarovich 2019, "Style Transfer by Relaxed
    Optimal Transport and Self-Similarity", arXiv:1904.12785, the content loss).

    Args:
      layers: ``[h, w, C]`` each, of one image.
      grid: places along each side.

    Returns:
      ``[grid^2, grid^2]``.
    """
    columns = np.concatenate([sample_grid(one.astype(float), grid=grid) for one in layers], axis=1)
    columns /= np.linalg.norm(columns, axis=1, keepdims=True) + 1e-12
    distance = np.clip(1 - columns @ columns.T, 0, None)
    np.fill_diagonal(distance, 0)  # not its rounding
    return distance / (distance.sum(axis=0) + 1e-12)


def content_change(
    result: Sequence[np.ndarray], content: Sequence[np.ndarray], other: Sequence[np.ndarray]
) -> float:
    """How much of the content's self-similarity a result has lost, where another image is at 1.

    S(result, content) / S(other, content), S the mean absolute difference of the two images'
    ``self_similarity``, which is the content loss of Kolkin et al. (2019).

    Args:
      result, content, other: ``[h, w, C]`` of each layer; the other image is the style's, say.
    """
    kept = self_similarity(content)
    lost, all_ = (np.abs(self_similarity(one) - kept).mean() for one in (result, other))
    return float(lost / all_)
