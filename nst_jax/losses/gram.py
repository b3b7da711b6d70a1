"""Losses of Gatys et al., and sums over positions from which all moments of a layer follow.

Symbols as in Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural
Networks": F are features flattened to M_l = h*w positions of N_l = C channels, G is the Gram matrix
of the image and A that of the style.

Contract: features are ``[h, w, C]`` or a product, see ``projection``. Gram matrices are ``[C, C]``.
Masks are ``[h, w]`` and constants for differentiation. All are unbatched (use ``jax.vmap``). Every
reduction is a mean unless its name says sum. Sums are additive over positions and over masks, and
accumulate in float32 or wider.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.models.projection import (
    Features,
    ProjectedFeatures,
    compact,
    map_shape,
    positions,
    widened,
)
from nst_jax.types import Array, Moments

_matmul = partial(jnp.matmul, precision="highest")


@jax.custom_jvp
def _outer_products(flat: Array, mask: Array | None) -> Array:
    """F^T diag(m) F for flat features F ``[n, C]`` and a mask m ``[n]``, ``[C, C]``."""
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    masked = flat if mask is None else flat * mask[:, None]  # promoted to the mask's type
    return jnp.matmul(flat.T, masked, precision="highest", preferred_element_type=dtype)


@_outer_products.defjvp
def _outer_products_jvp(primals: tuple[Array, Array | None], tangents: tuple[Array, Array | None]):
    """dG = P + P^T with P = F^T diag(m) dF; the mask is a constant.

    Transposed, this is the single product diag(m) F (D + D^T) for a cotangent D. JAX's own rule
    needs two products, because it does not know that both factors of G are the same.
    """
    (flat, mask), (tangent, _) = primals, tangents
    gram = _outer_products(flat, mask)
    tangent = tangent if mask is None else tangent * mask[:, None]
    product = jnp.matmul(flat.T, tangent, precision="highest", preferred_element_type=gram.dtype)
    return gram, product + product.T


def gram_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the outer products of features, the unnormalised Gram matrix.

    G_ij = sum_k m_k F_ik F_jk

    Args:
      features: F, ``[h, w, C]``, or a product, see ``projection``.
      mask: m, ``[h, w]``, a constant; by default 1.

    Returns:
      ``[C, C]`` in float32 or wider.

    References:
      Gatys et al. 2016, eq. 3; with a mask, Gatys et al. 2017, "Controlling Perceptual Factors in
      Neural Style Transfer", section 4.
    """
    narrow = features.own if isinstance(features, ProjectedFeatures) else features
    flat = narrow.reshape(-1, narrow.shape[-1])
    if mask is not None:
        # A soft mask stays in float32: rounded to bfloat16 it would no longer agree with its sum,
        # by which the result is divided. A boolean mask is exact in any type.
        soft = jnp.promote_types(flat.dtype, jnp.float32)
        mask = mask.reshape(-1).astype(flat.dtype if mask.dtype == bool else soft)
    # Sums in TF32 or bfloat16 would be too coarse for the differences that the style term squares.
    narrow_gram = _outer_products(flat, mask)
    if not isinstance(features, ProjectedFeatures):
        return narrow_gram
    # F = S K + 1 b^T has the sum
    #   K^T (sum m s s^T) K + (K^T sum m s) b^T + b (K^T sum m s)^T + (sum m) b b^T
    # over rows s of S, which needs the narrow Gram matrix only and never forms F.
    kernel, bias = (x.astype(narrow_gram.dtype) for x in (features.kernel, features.bias))
    masked = flat if mask is None else flat * mask[:, None]
    count = flat.shape[0] if mask is None else jnp.sum(mask, dtype=narrow_gram.dtype)
    gram = _matmul(kernel.T, _matmul(narrow_gram, kernel))
    crossed = jnp.outer(_matmul(kernel.T, jnp.sum(masked, axis=0, dtype=gram.dtype)), bias)
    return gram + crossed + crossed.T + count * jnp.outer(bias, bias)


def normalize_gram(gram: Array, *, positions: Array | int, normalization: str) -> Array:
    """Normalise a Gram sum as published tools do.

    ``"hw"`` divides by the number h*w of positions, which gives the mean outer product (Gatys'
    published code, and the course version up to a constant). ``"chw"`` divides by the number C*h*w
    of features (neural-style).

    Args:
      gram: sum over positions, ``[C, C]``.
      positions: the number of positions, or the sum of the mask.
      normalization: ``"hw"`` or ``"chw"``.

    Returns:
      ``[C, C]``.

    Raises:
      ValueError: for another normalisation.
    """
    if normalization not in ("hw", "chw"):
        raise ValueError(f"normalization is {normalization!r}: expected 'hw' or 'chw'")
    # C as a float: for a large image the integer C*h*w overflows 32 bits.
    return gram / (positions * (float(gram.shape[-1]) if normalization == "chw" else 1.0))


def gram_matrix(
    features: Features, *, mask: Array | None = None, normalization: str = "hw"
) -> Array:
    """Normalised Gram matrix of features, the style representation.

    G = sum_k m_k F_k F_k^T / sum_k m_k   ("hw"), and divided by C as well for "chw"

    Without a mask this is F F^T / (h w) or F F^T / (C h w). Dividing by the sum of the mask makes a
    small region count as much as a large one.

    Args:
      features: F, ``[h, w, C]``, or a product, see ``projection``.
      mask: m, ``[h, w]`` in [0, 1], a constant; by default 1. The result for an empty mask is 0.
      normalization: ``"hw"`` or ``"chw"``, see ``normalize_gram``.

    Returns:
      ``[C, C]``, symmetric and positive semidefinite.

    Raises:
      ValueError: for another normalisation.

    References:
      Gatys et al. 2016, eq. 3; Gatys et al. 2017, section 4.

    >>> gram_matrix(jnp.ones((2, 2, 1))).tolist()
    [[1.0]]
    """
    count = positions(features) if mask is None else mask_size(mask)
    return normalize_gram(
        gram_sum(features, mask=mask), positions=count, normalization=normalization
    )


def mask_size(mask: Array) -> Array:
    """Sum of a mask ``[h, w]``, bounded away from 0 so that it can be a divisor.

    >>> float(mask_size(jnp.eye(3)))
    3.0
    """
    return jnp.maximum(jnp.sum(mask), jnp.finfo(mask.dtype).tiny)


def content_loss(features: Array, target: Array) -> Array:
    """Mean squared difference of features.

    L = mean (F - P)^2

    The objective computes the same sum and divides it afterwards, see ``objective``.

    Args:
      features, target: F and P, ``[h, w, C]``.

    Returns:
      Scalar.

    References:
      Gatys et al. 2016, eq. 1, which has half the sum in place of the mean.

    >>> float(content_loss(jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1))))
    1.0
    """
    return jnp.mean(jnp.square(features - target))


def style_loss(gram: Array, target: Array) -> Array:
    """Mean squared difference of two normalised Gram matrices.

    L = mean (G - A)^2

    Args:
      gram, target: G and A, ``[C, C]``.

    Returns:
      Scalar.

    References:
      Gatys et al. 2016, eq. 4: E_l = sum (G - A)^2 / (4 N_l^2 M_l^2) with unnormalised sums, which
      is a quarter of this value for ``normalization="hw"``.

    >>> float(style_loss(jnp.full((1, 1), 3.0), jnp.ones((1, 1))))
    4.0
    """
    return jnp.mean(jnp.square(gram - target))


def position_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Number of positions, or the sum of the mask; scalar in float32 or wider."""
    dtype = widened(features.own if isinstance(features, ProjectedFeatures) else features).dtype
    height, width = map_shape(features)
    return jnp.asarray(height * width, dtype) if mask is None else jnp.sum(mask, dtype=dtype)


def feature_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the features, sum_k m_k F_k, ``[C]``."""
    narrow = widened(features.own if isinstance(features, ProjectedFeatures) else features)
    total = jnp.sum(narrow if mask is None else narrow * mask[..., None], axis=(0, 1))
    if not isinstance(features, ProjectedFeatures):
        return total
    # F = S K + 1 b^T has the sum K^T (sum m s) + (sum m) b.
    bias = features.bias.astype(total.dtype)
    count = position_sum(features, mask=mask)
    return _matmul(features.kernel.astype(total.dtype).T, total) + count * bias


def square_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the squared features, the diagonal of ``gram_sum``, ``[C]``."""
    if not isinstance(features, ProjectedFeatures):
        squares = jnp.square(widened(features))
        return jnp.sum(squares if mask is None else squares * mask[..., None], axis=(0, 1))
    # The diagonal of the formula in ``gram_sum``.
    gram = gram_sum(features.own, mask=mask)
    kernel, bias = (x.astype(gram.dtype) for x in (features.kernel, features.bias))
    crossed = _matmul(kernel.T, feature_sum(features.own, mask=mask)) * bias
    count = position_sum(features, mask=mask)
    return jnp.sum(kernel * _matmul(gram, kernel), axis=0) + 2 * crossed + count * jnp.square(bias)


def moment_sums(
    features: Features, *, wanted: frozenset[str], mask: Array | None = None
) -> Moments:
    """Sums over positions of one layer.

    Args:
      features: ``[h, w, C]``, or a product, see ``projection``.
      wanted: the fields of ``Moments`` to compute.
      mask: ``[h, w]``, a constant; by default 1.

    Returns:
      ``Moments`` without leading axes; the other fields are None.
    """
    # On demand only: unless the kernel's root is known, ``compact`` computes an SVD.
    small = compact(features) if "compact_gram" in wanted else features
    return Moments(
        gram=gram_sum(features, mask=mask) if "gram" in wanted else None,
        mean=feature_sum(features, mask=mask) if "mean" in wanted else None,
        squares=square_sum(features, mask=mask) if "squares" in wanted else None,
        compact_gram=gram_sum(small, mask=mask) if "compact_gram" in wanted else None,
        compact_mean=feature_sum(small, mask=mask) if "compact_mean" in wanted else None,
    )


def divided(sums: Moments, count: Any) -> Moments:
    """Divide sums by the number of positions, which gives means."""
    return jax.tree.map(lambda x: x / count, sums)


def stacked(moments: Sequence[Any]) -> Any:
    """Stack trees of equal structure along a new leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *moments)
