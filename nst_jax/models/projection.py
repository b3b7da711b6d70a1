"""Features of a slim network in the channels of VGG-19, kept as a product.

    F = S K + 1 b^T

S are the slim network's own features at h*w positions of c channels, K and b the lift of its layer,
F what it takes VGG-19's features of C channels to be. F is not formed where a sum over positions
is all that is wanted: that of its outer products follows from those of S (``gram.gram_sum``),
at (c / C)^2 of the work.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from nst_jax.errors import InputError
from nst_jax.types import Array


class ProjectedFeatures(NamedTuple):
    """Features as a product.

    Attributes:
      own: S, the slim network's features, ``[h, w, c]``.
      kernel, bias: K, ``[c, C]``, and b, ``[C]``.
      root: (K K^T)^(1/2), ``[c, c]``, where it is known, see ``compact``.
    """

    own: Array
    kernel: Array
    bias: Array
    root: Array | None = None


Features = Array | ProjectedFeatures


def dense(features: Features) -> Array:
    """Features as one array.

    Args:
      features: ``[h, w, C]``, or a product.

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
    """The symmetric root (K K^T)^(1/2) of a kernel ``[c, C]``, ``[c, c]``.

    It has no other value, so that roots that were computed apart are the same to rounding.

    >>> kernel_root(jnp.array([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    left, values, _ = jnp.linalg.svd(kernel, full_matrices=False)
    return jnp.matmul(left * values[None], left.T, precision="highest")


def compact(features: Features) -> Features:
    """Features of the same distances and angles around their mean, in as few channels as there are.

    Of a product S K + 1 b^T they are S (K K^T)^(1/2), in the c channels of the slim network: what
    was a covariance matrix of rank c in C channels is one of c channels.

    Args:
      features: ``[h, w, C]``, which are returned as they are, or a product.

    Returns:
      ``[h, w, C]``, or a product of c channels.
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
    """An array in float32 or wider, to be subtracted and summed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def positions(features: Features) -> int:
    """The number h*w of positions of features.

    >>> positions(jnp.ones((2, 3, 4)))
    6
    """
    height, width = map_shape(features)
    return height * width


def check_projected(
    lift: Mapping[str, Mapping[str, Any]], *, layers: tuple[str, ...], pooling: str
) -> None:
    """Check that a slim network has learned these layers with this pooling.

    Args:
      lift: pooling -> layer -> its lift.

    Raises:
      InputError: where it has not.
    """
    full = "for others use the full VGG-19: run 'nst-jax weights fetch', or name it"
    if pooling not in lift:
        raise InputError(
            f"these slim weights were trained for {' and '.join(lift)} pooling, not {pooling}; "
            + full
        )
    for layer in layers:
        if layer not in lift[pooling]:
            raise InputError(
                f"these slim weights were trained for the layers {', '.join(lift[pooling])}, not "
                f"{layer}; {full}"
            )
