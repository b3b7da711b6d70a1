"""Masks of regions, checked before anything is computed.

Contract: a mask is ``[H, W]`` in [0, 1] for a picture ``[H, W, 3]``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config import LossConfig
from nst_jax.errors import InputError
from nst_jax.guides import layer_guides, whole_strides
from nst_jax.shares import is_weights
from nst_jax.types import Array


def check_guidance(
    content: Array,
    styles: Sequence[Array],
    *,
    config: LossConfig,
    content_masks: Any = None,
    style_masks: Sequence[Any] | None = None,
    region_weights: Any = None,
    keep: Any = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Check masks and the regions' weights; see ``transfer.stylize`` for what they are.

    Args:
      content, styles: the pictures.
      config: structure of the objective.
      content_masks, style_masks, region_weights, keep: as for ``transfer.stylize``.
      names: what to call the regions in errors in place of their numbers.

    Returns:
      What ``check_masks`` returns.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    if not config.style_names and not (content_masks is None and style_masks is None):
        raise InputError("masks of regions have no effect without style layers: leave them out")
    masks = check_masks(
        content, styles, content_masks=content_masks, style_masks=style_masks, keep=keep
    )
    if not config.style_names:
        masks["content_masks"] = None  # the rest of what is kept has no style
    check_reach(masks, config, names=names)
    regions = masks["content_masks"]
    check_region_weights(region_weights, regions=0 if regions is None else len(regions))
    return masks


def check_masks(
    content: Array,
    styles: Sequence[Array],
    *,
    content_masks: Any,
    style_masks: Sequence[Any] | None,
    keep: Any,
) -> dict[str, Any]:
    """Masks as arrays of their pictures' type.

    Where a part of the content is kept and no region is named, the rest is the region.

    Returns:
      ``content_masks [R, H, W]``, ``style_masks`` and ``keep [H, W]``, each None where not given.

    Raises:
      InputError: for masks of other shapes, outside of [0, 1], or empty.
    """
    if keep is not None:
        keep = _as_mask("mask of what is kept", keep, content)
        if not (keep < 1).any():
            raise InputError("all of the picture is kept as it is: nothing is left to stylize")
        if content_masks is None:
            content_masks = 1 - keep[None]
    if content_masks is not None:
        if getattr(content_masks, "ndim", 3) == 0:
            raise InputError("content masks are one number: expected [H, W] for each region")
        masks = [
            _as_mask(f"content mask {number}", mask, content)
            for number, mask in enumerate(content_masks, start=1)
        ]
        if not masks:
            raise InputError("no content mask: expected one for each region, or None")
        content_masks = jnp.stack(masks)
        if keep is not None and not all((mask * (1 - keep)).any() for mask in masks):
            raise InputError("a region lies wholly in what is kept as it is: leave one of them out")
    if style_masks is not None:
        if len(style_masks) != len(styles):
            raise InputError(
                f"{len(style_masks)} style masks for {len(styles)} styles: expected one each"
            )
        style_masks = [
            None if mask is None else _as_mask(f"style mask {number}", mask, style)
            for number, (mask, style) in enumerate(zip(style_masks, styles, strict=True), start=1)
        ]
    return {"content_masks": content_masks, "style_masks": style_masks, "keep": keep}


def _as_mask(what: str, mask: Any, picture: Array) -> Array:
    array = jnp.asarray(mask)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"the {what} has numbers of type {array.dtype}: expected real ones")
    if array.shape != picture.shape[:2]:
        raise InputError(
            f"the {what} has shape {array.shape}: expected its picture's {picture.shape[:2]}"
        )
    array = array.astype(picture.dtype)
    # NaN fails both comparisons.
    if not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"the {what} has values outside of [0, 1]: expected 0 to 1")
    if not array.any():
        raise InputError(f"the {what} is 0 everywhere: expected a region of the picture")
    return array


def check_reach(controls: dict[str, Any], config: LossConfig, *, names: Sequence[str] = ()) -> None:
    """Check that every mask has something left in every style layer.

    Raises:
      InputError: where a region is too small or thin for a layer.
    """
    if not config.style_names:
        return
    sums = partial(
        _guide_sums, layers=config.style_names, method=config.guides, padding=config.padding
    )
    masks = controls["content_masks"]
    for number, mask in enumerate([] if masks is None else masks, start=1):
        name = f"content mask {names[number - 1] if names else number}"
        _check_sums(name, sums(mask), config)
    for number, mask in enumerate(controls["style_masks"] or [], start=1):
        if mask is not None:
            if config.padding == "circular":  # as ``objective`` crops it
                mask = whole_strides(mask, config.style_names)
            _check_sums(f"style mask {number}", sums(mask), config)


@partial(jax.jit, static_argnames=("layers", "method", "padding"))
def _guide_sums(
    mask: Array, *, layers: tuple[str, ...], method: str, padding: str
) -> dict[str, Array]:
    return jax.tree.map(jnp.sum, layer_guides(mask, layers=layers, method=method, padding=padding))


def _check_sums(what: str, sums: dict[str, Array], config: LossConfig) -> None:
    for layer in config.style_names:
        if not sums[layer] > 0:
            raise InputError(
                f"{what} leaves nothing in layer {layer} with guides {config.guides}: expected a "
                "larger region, a larger picture, shallower style layers, or other guides"
            )


def check_region_weights(weights: Any, *, regions: int) -> None:
    """Check the factors of the regions' style losses.

    Raises:
      InputError: where they are no weights, all 0, or not as many as the regions.
    """
    if weights is None:
        return
    if not regions:
        raise InputError("there are weights for regions, but no regions: expected content masks")
    try:
        numbers = np.asarray(weights, float)
    except (TypeError, ValueError):
        raise InputError(f"region weights are {weights}: expected numbers") from None
    if numbers.shape != (regions,):
        raise InputError(f"{numbers.size} region weights for {regions} regions: expected one each")
    if not (is_weights(numbers) and np.float32(numbers).any()):
        raise InputError(
            f"region weights are {tuple(map(float, numbers))}: expected finite numbers, 0 or more, "
            "and one above 0"
        )
