"""Shares of several styles: in all of the picture, in each of its regions, in each layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nst_jax.errors import InputError
from nst_jax.layer_factors import FLOAT32_MAX
from nst_jax.types import Array


def style_shares(
    blend: Any, *, layers: tuple[str, ...], regions: int, styles: int
) -> dict[str, Array]:
    """Shares of the styles in each region for each layer, each region's scaled to sum to 1.

    Args:
      blend: factors of the styles, ``[S]`` for all regions or ``[R, S]``; or a mapping from layers
        to such factors, where other layers have the default's. None is the default: all styles
        alike, or, where there are as many styles as regions, each region its own.
      layers: names of the style layers.
      regions, styles: R and S.

    Returns:
      ``{layer: [R, S]}``.

    Raises:
      InputError: for factors of another shape, layers that are not compared, and where there is no
        default.
    """
    if not isinstance(blend, Mapping):
        shares = _scaled(_table(blend, regions=regions, styles=styles))
        return dict.fromkeys(layers, shares)
    for layer in blend:
        if layer not in layers:
            raise InputError(
                f"there are blend factors for layer {layer}, which is no style layer: expected one "
                f"of {', '.join(layers)}"
            )
    return {
        layer: _scaled(_table(blend.get(layer), regions=regions, styles=styles)) for layer in layers
    }


def _table(blend: Any, *, regions: int, styles: int) -> Array:
    if blend is None and regions > 1 and styles > 1:
        if regions != styles:
            raise InputError(
                f"{styles} styles for {regions} regions: expected one style, one for each region, "
                "or to be told which region has which"
            )
        return jnp.eye(regions)
    factors = jnp.ones(styles) if blend is None else jnp.asarray(blend)
    if not jnp.issubdtype(factors.dtype, jnp.floating):
        factors = factors.astype(jnp.float32)
    if factors.shape == (styles,):
        return jnp.broadcast_to(factors[None], (regions, styles))
    if factors.shape == (regions, styles):
        return factors
    if factors.ndim == 1:
        raise InputError(f"{factors.size} blend factors for {styles} styles: expected one each")
    raise InputError(
        f"blend factors of shape {factors.shape} for {regions} regions and {styles} styles: "
        f"expected [{styles}] or [{regions}, {styles}]"
    )


def _scaled(factors: Array) -> Array:
    return factors / jnp.sum(factors, axis=1, keepdims=True)


def is_weights(numbers: np.ndarray) -> bool:
    """Whether numbers are factors: 0 or more, and finite in float32."""
    return bool(((numbers >= 0) & (numbers <= FLOAT32_MAX)).all())


def check_blend(blend: Any) -> Any:
    """Check the numbers of factors of styles; their shapes are checked by ``style_shares``.

    Returns:
      The same with arrays in the place of sequences, scaled to sum to 1 (here, in double precision:
      sums in float32 may overflow).

    Raises:
      InputError: where one is no weight, or a region or layer has nothing but zeros.
    """
    if isinstance(blend, Mapping):
        return {layer: check_blend(factors) for layer, factors in blend.items()}
    try:
        table = np.asarray(blend, float)
    except (TypeError, ValueError):
        table = np.array(np.nan)
    if not (is_weights(table) and np.atleast_2d(np.float32(table)).any(-1).all()):
        sequence = isinstance(blend, Sequence) and not isinstance(blend, str)
        shown = " ".join(str(tuple(blend) if sequence else blend).split())
        raise InputError(
            f"style_blend is {shown}: expected finite numbers, 0 or more, and one above 0"
        )
    return table / table.sum(-1, keepdims=True)
