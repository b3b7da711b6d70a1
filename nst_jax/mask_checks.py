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
from nst_jax.shares import check_blend, is_weights
from nst_jax.types import Array, Guidance


def check_guidance(
    content: Array,
    styles: Sequence[Array],
    guidance: Guidance,
    *,
    config: LossConfig,
    names: Sequence[str] = (),
) -> Guidance:
    """Check factors of styles, masks and the regions' weights.

    Args:
      content, styles: the pictures.
      guidance: as it was given.
      config: structure of the objective.
      names: what to call the regions in errors in place of their numbers.

    Returns:
      The guidance with masks as arrays of their pictures' type, ``content_masks`` as
      ``[R, H, W]``, and factors as float64 of NumPy, those of styles scaled to sum to 1.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    without_masks = guidance.content_masks is None and guidance.style_masks is None
    if not config.style_names and not without_masks:
        raise InputError("masks of regions have no effect without style layers: leave them out")
    blend, weights = guidance.blend, guidance.region_weights
    checked = check_masks(content, styles, guidance)._replace(
        blend=None if blend is None else check_blend(blend)
    )
    whole = with_rest(checked, config=config)
    check_reach(whole, config, names=names)
    regions = 0 if whole.content_masks is None else len(whole.content_masks)
    check_region_weights(weights, regions=regions)
    return checked._replace(region_weights=None if weights is None else np.asarray(weights, float))


def with_rest(guidance: Guidance, *, config: LossConfig) -> Guidance:
    """Checked guidance in which the rest of what is preserved is a region, if none is named."""
    if guidance.preserve is None or guidance.content_masks is not None or not config.style_names:
        return guidance
    return guidance._replace(content_masks=1 - guidance.preserve[None])


def check_masks(content: Array, styles: Sequence[Array], guidance: Guidance) -> Guidance:
    """Masks as arrays of their pictures' type.

    Raises:
      InputError: for masks of other shapes, outside of [0, 1], or empty.
    """
    content_masks, style_masks, preserve = (
        guidance.content_masks,
        guidance.style_masks,
        guidance.preserve,
    )
    if preserve is not None:
        preserve = _as_mask("mask of what is kept", preserve, content)
        if not (preserve < 1).any():
            raise InputError("all of the picture is kept as it is: nothing is left to stylize")
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
        if preserve is not None and not all((mask * (1 - preserve)).any() for mask in masks):
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
    return guidance._replace(
        content_masks=content_masks, style_masks=style_masks, preserve=preserve
    )


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


def check_reach(guidance: Guidance, config: LossConfig, *, names: Sequence[str] = ()) -> None:
    """Check that every mask has something left in every style layer.

    Raises:
      InputError: where a region is too small or thin for a layer.
    """
    if not config.style_names:
        return
    sums = partial(
        _guide_sums, layers=config.style_names, method=config.guides, padding=config.padding
    )
    masks = guidance.content_masks
    for number, mask in enumerate([] if masks is None else masks, start=1):
        name = f"content mask {names[number - 1] if names else number}"
        _check_sums(name, sums(mask), config)
    for number, mask in enumerate(guidance.style_masks or [], start=1):
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
