"""The losses in NumPy and SciPy, from their published formulas."""

import numpy as np
from scipy import ndimage

from nst_jax.losses.histogram import BINS, QUANTILES

LEVELS = np.linspace(0, 1, QUANTILES + 1)


def square_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def moment_losses(found, target, *, eps=1e-4):
    """``{loss: value}`` of all losses of moments, from two pairs of means and second moments."""
    (mean, gram), (target_mean, target_gram) = found, target
    first, second = (g - np.outer(m, m) for m, g in (found, target))
    sigma, target_sigma = (np.sqrt(np.diag(s).clip(0) + 1e-5) for s in (first, second))
    means = np.mean((mean - target_mean) ** 2)
    a, b = (s + eps * np.eye(len(mean)) for s in (first, second))
    # tr (B^(1/2) A B^(1/2))^(1/2) is the sum of the singular values of A^(1/2) B^(1/2).
    cross = np.linalg.svd(square_root(a) @ square_root(b), compute_uv=False).sum()
    return {
        "gram": np.mean((gram - target_gram) ** 2),
        "covariance": np.mean((first - second) ** 2),
        "mean-std": means + np.mean((sigma - target_sigma) ** 2),
        "wasserstein": means + (np.trace(a + b) - 2 * cross) / len(mean),
    }


def counts(values, mask, low, high):
    """Histogram of one channel; values outside the bounds count in the first or last bin."""
    position = np.clip((values - low) / max(high - low, 1e-300), 0, 1) * BINS
    return np.bincount(np.minimum(position.astype(int), BINS - 1), weights=mask, minlength=BINS)


def cumulative(values, mask, low, high):
    found = counts(values, mask, low, high)
    return np.concatenate([[0], np.cumsum(found)]) / found.sum()


def quantiles(values, mask=None):
    """Quantiles of one channel ``[n]``, ``[K + 1]``."""
    mask = np.ones(len(values)) if mask is None else mask
    low, high = (reduce(values[mask > 0]) for reduce in (np.min, np.max))
    return np.interp(LEVELS, cumulative(values, mask, low, high), np.linspace(low, high, BINS + 1))


def matched(values, mask, table, low, high):
    """Values of one channel matched to quantiles, by a histogram between two bounds."""
    at_edges = np.interp(cumulative(values, mask, low, high), LEVELS, table)
    return np.interp(values, np.linspace(low, high, BINS + 1), at_edges)


def similarity(features):
    """Cosine distances of features ``[n, C]``, each column divided by its sum."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.where(lengths > 0, lengths, 1)
    distances = 1 - directions @ directions.T
    distances[distances < 1e-14] = 0
    return distances / distances.sum(0, keepdims=True)


def laplacian(image, pool, mode="nearest"):
    """SciPy's Laplacian of an image averaged over squares, summed over colours."""
    height, width = image.shape[0] // pool, image.shape[1] // pool
    small = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            square = image[y * pool : (y + 1) * pool, x * pool : (x + 1) * pool]
            small[y, x] = square.mean((0, 1))
    return sum(ndimage.laplace(small[..., colour], mode=mode) for colour in range(3))
