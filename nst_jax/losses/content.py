"""What an image keeps of its content, other than features themselves.

Self-similarity (Kolkin, Salavon and Shakhnarovich 2019, "Style Transfer by Relaxed Optimal
Transport and Self-Similarity", eq. 7) compares how alike features are among each other:

    L = 1/n sum_ij | D_ij / sum_k D_kj - D'_ij / sum_k D'_kj |,    D_ij = 1 - cos(F_i, F_j)

at n positions of a regular grid. (The paper draws 1024 positions at random at each step, and joins
its layers to one long feature; here each layer is compared for itself. Its formula divides by n^2,
its code as here.)

The Laplacian (Li, Xu, Nie and Liu 2017, "Laplacian-Steered Neural Style Transfer", eq. 5) compares
edges in the image averaged over squares of p pixels:

    L = mean (D - D')^2,    D = sum over colours of the Laplacian of the averaged image

with the border repeated around it. (The paper sums over positions.)

Contract: features are ``[h, w, C]``, images ``[H, W, 3]``, unbatched.
"""

import jax.numpy as jnp
import numpy as np

from nst_jax.models.projection import Features, ProjectedFeatures, dense, widened
from nst_jax.types import Array

GRID = 32  # positions along each axis, at most


def grid_positions(length: int) -> np.ndarray:
    """Positions of a regular grid along an axis: all of a short one, else 32.

    >>> grid_positions(3).tolist(), grid_positions(64)[:3].tolist()
    ([0, 1, 2], [1, 3, 5])
    """
    count = min(length, GRID)
    return ((np.arange(count) + 0.5) * length / count).astype(np.int32)


def sample(features: Features, rows: Array, columns: Array, *, mask: Array | None = None) -> Array:
    """Features at the crossings of rows and columns, ``[n, C]``.

    Args:
      features: ``[h, w, C]``, or a product, see ``projection``.
      rows, columns: indices; what is outside gives zeros.
      mask: factors ``[h, w]`` of the positions; 1 where it is left out.
    """
    own = features.own if isinstance(features, ProjectedFeatures) else features
    height, width, channels = own.shape

    def inside(index: Array, length: int) -> Array:
        return (index >= 0) & (index < length)

    counts = inside(rows, height)[:, None] & inside(columns, width)[None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    counts = counts.astype(jnp.float32)
    if mask is not None:
        counts = counts * mask[rows[:, None], columns[None, :]]
    taken = own[rows[:, None], columns[None, :]].reshape(-1, channels)
    if isinstance(features, ProjectedFeatures):
        taken = dense(features._replace(own=taken))
    return widened(taken) * counts.reshape(-1, 1)


def similarity(features: Array) -> Array:
    """D_ij / sum_k D_kj of features ``[n, C]``; of features that are all of one direction 0.

    Features that are 0 have no direction: their distance is 1 from all, themselves included.
    Lengths and sums are bounded away from 0, so that the gradient is finite everywhere.
    """
    tiny = jnp.finfo(features.dtype).tiny ** 0.5
    squares = jnp.sum(jnp.square(features), axis=1, keepdims=True)
    alive = squares > tiny
    directions = jnp.where(alive, features / jnp.sqrt(jnp.where(alive, squares, 1)), 0)
    distances = 1 - jnp.matmul(directions, directions.T, precision="highest")
    # Rounding leaves some units in place of 0.
    distances = jnp.where(distances > 16 * jnp.finfo(features.dtype).eps, distances, 0)
    sums = jnp.sum(distances, axis=0, keepdims=True)
    return jnp.where(sums > 0, distances / jnp.where(sums > 0, sums, 1), 0)


def self_similarity_loss(features: Array, target: Array) -> Array:
    """The loss above.

    Args:
      features: of the image, ``[n, C]``.
      target: ``similarity`` of the content's, ``[n, n]``.

    Returns:
      Scalar, at most 2.
    """
    differences = similarity(features) - target
    # JAX's derivative of |x| is 1 at 0, where the image is the content; a sign's is 0.
    return jnp.sum(differences * jnp.sign(differences)) / len(features)


def laplacian(image: Array, *, pool: int, padding: str = "zero") -> Array:
    """Sum over colours of the Laplacian of an image averaged over squares, ``[H // p, W // p]``.

    Args:
      image: ``[H, W, 3]``; rows and columns that fill no square are left out.
      pool: p.
      padding: ``"circular"`` where opposite borders are neighbours, else the border is repeated.
    """
    height, width = image.shape[0] // pool, image.shape[1] // pool
    squares = image[: height * pool, : width * pool].reshape(height, pool, width, pool, -1)
    grey = jnp.sum(jnp.mean(squares, axis=(1, 3)), axis=-1)
    around = jnp.pad(grey, 1, mode="wrap" if padding == "circular" else "edge")
    return around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * grey


def laplacian_sum(image: Array, target: Array, *, mask: Array | None = None, **options) -> Array:
    """Sum over squares of the squared difference of Laplacians.

    Args:
      image: ``[H, W, 3]``.
      target: ``laplacian`` of the content, ``[H // p, W // p]``.
      mask: factors of the squares, of the target's shape; 1 where it is left out.
      options: of ``laplacian``.

    Returns:
      Scalar.
    """
    squares = jnp.square(laplacian(image, **options) - target)
    return jnp.sum(squares if mask is None else squares * mask)
