"""Features of a slim network, projected to the channels of VGG-19 and kept as a product.

    F = S K + 1 b^T

S are the slim network's features, flattened to ``[h w, c]``; K ``[c, C]`` and b ``[C]`` are the
trained projection of the layer; F approximates VGG-19's features, with C > c channels. F itself is
formed only where a loss needs single features. Sums over positions follow from sums of S:

    sum_p F_p F_p^T = K^T (sum_p S_p S_p^T) K + (rank-2 terms with b)

takes (c / C)^2 of the work (``gram.gram_sum``).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from nst_jax.errors import InputError
from nst_jax.types import Array


class ProjectedFeatures(NamedTuple):
    """Features as the product S K + 1 b^T.

    Attributes:
      own: S, the features of the slim network, ``[h, w, c]``.
      kernel, bias: K, ``[c, C]``, and b, ``[C]``.
      root: (K K^T)^(1/2), ``[c, c]``, if it was computed in advance, see ``compact``.
    """

    own: Array
    kernel: Array
    bias: Array
    root: Array | None = None


Features = Array | ProjectedFeatures


def dense(features: Features) -> Array:
    """Multiply out features.

    Args:
      features: ``[h, w, C]``, which is returned unchanged, or a product.

    Returns:
      ``[h, w, C]``.

    >>> dense(ProjectedFeatures(jnp.ones((1, 1, 2)), jnp.ones((2, 3)), jnp.arange(3.0))).tolist()
    [[[2.0, 3.0, 4.0]]]
    """
    if not isinstance(features, ProjectedFeatures):
        return features
    own, kernel, bias = features.own, features.kernel, features.bias
    product = jnp.matmul(own, kernel, precision="highest")
    return product + bias.reshape((1,) * (own.ndim - 1) + bias.shape)


def kernel_root(kernel: Array) -> Array:
    """The symmetric root (K K^T)^(1/2), ``[c, c]``, of a kernel ``[c, C]``.

    The positive semi-definite root is unique, so that separate computations agree up to rounding.

    >>> kernel_root(jnp.array([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    # K = U D V^T gives K K^T = U D^2 U^T. The SVD of K, unlike an eigendecomposition of K K^T, does
    # not square the condition number.
    left, values, _ = jnp.linalg.svd(kernel, full_matrices=False)
    return jnp.matmul(left * values[None], left.T, precision="highest")


def compact(features: Features) -> Features:
    """Rotate features into as few channels as possible, up to a constant shift.

    A product S K + 1 b^T becomes S R with R = (K K^T)^(1/2), in the c channels of the slim network.
    As R R^T = K K^T, all distances and angles around the mean are the same: a covariance matrix of
    rank c in C channels becomes one of c channels, with the same non-zero eigenvalues.

    Args:
      features: ``[h, w, C]``, which is returned unchanged, or a product.

    Returns:
      ``[h, w, C]``, or a product with c channels.
    """
    if not isinstance(features, ProjectedFeatures):
        return features
    root = kernel_root(features.kernel) if features.root is None else features.root
    return ProjectedFeatures(features.own, root, jnp.zeros_like(root[0]))


def map_shape(features: Features) -> tuple[int, int]:
    """Height and width of features.

    >>> map_shape(jnp.ones((2, 3, 4)))
    (2, 3)
    """
    own = features.own if isinstance(features, ProjectedFeatures) else features
    return own.shape[-3], own.shape[-2]


def widened(x: Array) -> Array:
    """Convert to at least float32, for differences and sums."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def positions(features: Features) -> int:
    """Number of positions h*w of features.

    >>> positions(jnp.ones((2, 3, 4)))
    6
    """
    height, width = map_shape(features)
    return height * width


def check_projected(
    projections: Mapping[str, Mapping[str, Any]], *, layers: tuple[str, ...], pooling: str
) -> None:
    """Check that a slim network was trained for these layers and this pooling.

    Args:
      projections: pooling -> layer -> projection.
      layers: the layers that will be computed.
      pooling: the pooling of the network.

    Raises:
      InputError: if it was not.
    """
    remedy = "for others use the full VGG-19, which 'nst-jax weights fetch' downloads"
    if pooling not in projections:
        raise InputError(
            f"these slim weights were trained for {' and '.join(projections)} pooling, not "
            f"{pooling}; {remedy}"
        )
    for layer in layers:
        if layer not in projections[pooling]:
            raise InputError(
                f"these slim weights were trained for the layers "
                f"{', '.join(projections[pooling])}, not {layer}; {remedy}"
            )
