"""Spatial control: masks at the layers of the network, style weights, and their checks.

Masks follow Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer",
section 4. The paper multiplies features by a guidance channel T; a guide here multiplies their
outer products, so that it is T squared: sum T^2 F F^T = sum guide F F^T. Soft masks that add up to
1 then give Gram sums that add up to that of the whole image. For hard masks both are the same.

Contract: a mask is ``[H, W]`` in [0, 1] for an image ``[H, W, 3]``; a guide is ``[h, w]`` for the
features of a layer.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config.checks import FLOAT32_MAX
from nst_jax.config.layers import block_of, convs_to, deepest, stride
from nst_jax.config.loss import LossConfig
from nst_jax.errors import InputError
from nst_jax.types import Array, Guidance


def layer_guides(
    mask: Array, *, layers: tuple[str, ...], method: str = "simple", padding: str = "zero"
) -> dict[str, Array]:
    """Propagate a mask to layers of the network.

    ``"simple"`` averages the mask wherever the network pools. ``"inside"`` takes the minimum over
    the receptive field of a feature, which selects features that see only the region. ``"all"``
    takes the maximum, which selects features that see any of the region.

    Args:
      mask: ``[H, W]`` in [0, 1].
      layers: names of layers.
      method: ``"simple"``, ``"inside"`` or ``"all"``.
      padding: padding of the network; with ``"circular"``, receptive fields wrap around the border.

    Returns:
      ``{layer: guide [h, w]}``, of the same size as the layer's features.

    Raises:
      ValueError: for another method.

    References:
      Gatys et al. 2017, section 4.

    >>> layer_guides(jnp.eye(2), layers=("relu2_1",))["relu2_1"].tolist()
    [[0.5]]
    >>> layer_guides(jnp.eye(2), layers=("relu2_1",), method="inside")["relu2_1"].tolist()
    [[0.0]]
    """
    if method not in ("simple", "inside", "all"):
        raise ValueError(f"method is {method!r}: expected 'simple', 'inside' or 'all'")
    reduce = {"simple": jnp.mean, "inside": jnp.min, "all": jnp.max}[method]
    guides: dict[str, Array] = {}
    # Pass the mask through the network like an image. The minimum over the receptive field of a
    # feature is the minimum over those of the features that it sees in the layer before (and so is
    # the maximum), so that each layer follows from the last.
    for name in convs_to(deepest(layers)):
        if name.endswith("_1") and block_of(name) > 1:
            # Pool as the network does: 2x2 windows of stride 2; an odd last row is dropped.
            height, width = (side // 2 for side in mask.shape)
            windows = mask[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
            mask = reduce(windows, axis=(1, 3))
        if method != "simple":
            mask = _over_neighbours(mask, reduce, padding=padding)
        for tap in (name, name.replace("conv", "relu")):
            if tap in layers:
                guides[tap] = mask
    return guides


def _over_neighbours(mask: Array, reduce, *, padding: str) -> Array:
    """Minimum or maximum over the 3x3 neighbourhood that a convolution sees."""
    height, width = mask.shape
    # Repeating the border changes no extreme. Nor does any other padding but circular: what it puts
    # beyond the border is not a pixel, or is one within the same neighbourhood.
    padded = jnp.pad(mask, 1, mode="wrap" if padding == "circular" else "edge")
    rows = reduce(jnp.stack([padded[i : i + height] for i in range(3)]), axis=0)
    return reduce(jnp.stack([rows[:, i : i + width] for i in range(3)]), axis=0)


def whole_strides(x: Array, layers: tuple[str, ...]) -> Array:
    """Crop an image or mask to multiples of the deepest layer's stride.

    With circular padding, all layers then wrap around at the same pixels.

    Args:
      x: ``[H, W, ...]``.
      layers: names of layers.

    Returns:
      ``[h, w, ...]``, at most 15 pixels smaller along each side. A side shorter than the stride is
      not cropped.

    >>> whole_strides(jnp.ones((7, 4)), ("relu1_1", "relu2_1")).shape
    (6, 4)
    """
    step = stride(deepest(layers))
    height, width = (max(step, side // step * step) for side in x.shape[:2])
    return x[:height, :width]


def lay_over(image: Array, content: Array, mask: Array) -> Array:
    """Blend the content over an image: (1 - mask) image + mask content.

    Args:
      image, content: ``[H, W, 3]``.
      mask: ``[H, W]`` in [0, 1].

    Returns:
      ``[H, W, 3]``, exactly the content where the mask is 1, and the image where it is 0.
    """
    mask = mask[..., None]
    # Not image + mask * (content - image), which would round where the mask is 1.
    return (1 - mask) * image + mask * content


def style_weights(
    blend: Any, *, layers: tuple[str, ...], regions: int, styles: int
) -> dict[str, Array]:
    """Style weights of every region and layer, scaled to sum to 1 over the styles.

    Args:
      blend: ``[S]`` for all regions, ``[R, S]``, or a mapping from layers to either; layers that it
        leaves out have the default. None is the default: if there are as many styles as regions,
        each region has its own style; otherwise all styles weigh the same.
      layers: names of the style layers.
      regions, styles: R and S.

    Returns:
      ``{layer: [R, S]}``.

    Raises:
      InputError: for weights of another shape, for names that are not style layers, and for several
        regions and styles of different number without weights.
    """
    if not isinstance(blend, Mapping):
        table = _scaled(_table(blend, regions=regions, styles=styles))
        return dict.fromkeys(layers, table)
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
    """Unscaled style weights of one layer, ``[R, S]``."""
    if blend is None and regions > 1 and styles > 1:
        if regions != styles:
            raise InputError(
                f"{styles} styles for {regions} regions: expected one style, one for each region, "
                "or to be told which region has which"
            )
        return jnp.eye(regions)
    table = jnp.ones(styles) if blend is None else jnp.asarray(blend)
    if not jnp.issubdtype(table.dtype, jnp.floating):
        table = table.astype(jnp.float32)
    if table.shape == (styles,):
        return jnp.broadcast_to(table[None], (regions, styles))
    if table.shape == (regions, styles):
        return table
    if table.ndim == 1:
        raise InputError(f"{table.size} blend factors for {styles} styles: expected one each")
    raise InputError(
        f"blend factors of shape {table.shape} for {regions} regions and {styles} styles: "
        f"expected [{styles}] or [{regions}, {styles}]"
    )


def _scaled(table: Array) -> Array:
    return table / jnp.sum(table, axis=1, keepdims=True)


def is_weights(numbers: np.ndarray) -> bool:
    """Whether all numbers are valid weights: 0 or more, and finite in float32."""
    return bool(((numbers >= 0) & (numbers <= FLOAT32_MAX)).all())


def check_blend(blend: Any) -> Any:
    """Check the values of style weights; ``style_weights`` checks their shapes.

    Args:
      blend: see ``style_weights``; not None.

    Returns:
      The same with NumPy arrays in place of sequences. Rows are scaled to sum to 1 here, in double
      precision, because their sums may overflow in float32.

    Raises:
      InputError: if a number is not a valid weight, or all weights of a region are 0.
    """
    if isinstance(blend, Mapping):
        return {layer: check_blend(table) for layer, table in blend.items()}
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


def check_guidance(
    content: Array,
    styles: Sequence[Array],
    guidance: Guidance,
    *,
    config: LossConfig,
    names: Sequence[str] = (),
) -> Guidance:
    """Check style weights, masks and region weights.

    Args:
      content, styles: the images.
      guidance: the guidance from the user.
      config: the objective.
      names: names of the regions for error messages, in place of their numbers.

    Returns:
      The guidance with masks as arrays of their images' type (``content_masks`` as ``[R, H, W]``)
      and weights as float64 NumPy arrays, those of styles scaled to sum to 1.

    Raises:
      InputError: if anything is invalid.
    """
    without_masks = guidance.content_masks is None and guidance.style_masks is None
    if not config.style_names and not without_masks:
        raise InputError("masks of regions have no effect without style layers: leave them out")
    blend, weights = guidance.blend, guidance.region_weights
    checked = check_masks(content, styles, guidance)._replace(
        blend=None if blend is None else check_blend(blend)
    )
    whole = add_rest_region(checked, config=config)
    check_reach(whole, config, names=names)
    regions = 0 if whole.content_masks is None else len(whole.content_masks)
    check_region_weights(weights, regions=regions)
    return checked._replace(region_weights=None if weights is None else np.asarray(weights, float))


def add_rest_region(guidance: Guidance, *, config: LossConfig) -> Guidance:
    """Make the part of the image that is not preserved a region, if the guidance has no regions.

    The guidance must have been checked.
    """
    if guidance.preserve is None or guidance.content_masks is not None or not config.style_names:
        return guidance
    return guidance._replace(content_masks=1 - guidance.preserve[None])


def check_masks(content: Array, styles: Sequence[Array], guidance: Guidance) -> Guidance:
    """Check masks and convert them to arrays of their images' type.

    Raises:
      InputError: for masks of another shape, with values outside of [0, 1], or that are empty; for
        a preserve mask that covers the whole image or a whole region.
    """
    content_masks, style_masks, preserve = (
        guidance.content_masks,
        guidance.style_masks,
        guidance.preserve,
    )
    if preserve is not None:
        preserve = _as_mask("preserve mask", preserve, content)
        if not (preserve < 1).any():
            raise InputError("all of the image is preserved: nothing is left to stylize")
    if content_masks is not None:
        if getattr(content_masks, "ndim", 3) == 0:
            raise InputError("content_masks is a number: expected [H, W] for each region")
        masks = [
            _as_mask(f"content mask {number}", mask, content)
            for number, mask in enumerate(content_masks, start=1)
        ]
        if not masks:
            raise InputError("no content mask: expected one for each region, or None")
        content_masks = jnp.stack(masks)
        if preserve is not None and not all((mask * (1 - preserve)).any() for mask in masks):
            raise InputError("a region lies entirely in the preserved part: leave one of them out")
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


def _as_mask(what: str, mask: Any, image: Array) -> Array:
    """Check one mask and convert it to the type of its image; ``what`` names it in messages."""
    array = jnp.asarray(mask)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"the {what} has numbers of type {array.dtype}: expected real ones")
    if array.shape != image.shape[:2]:
        raise InputError(
            f"the {what} has shape {array.shape}: expected its image's {image.shape[:2]}"
        )
    array = array.astype(image.dtype)
    # NaN fails both comparisons.
    if not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"the {what} has values outside of [0, 1]: expected 0 to 1")
    if not array.any():
        raise InputError(f"the {what} is 0 everywhere: expected a region of the image")
    return array


def check_reach(guidance: Guidance, config: LossConfig, *, names: Sequence[str] = ()) -> None:
    """Check that no guide of a mask is 0 everywhere in any style layer.

    Raises:
      InputError: if a region is too small or too thin for a layer.
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
            if config.padding == "circular":  # cropped as in ``style_term.style_moments``
                mask = whole_strides(mask, config.style_names)
            _check_sums(f"style mask {number}", sums(mask), config)


@partial(jax.jit, static_argnames=("layers", "method", "padding"))
def _guide_sums(
    mask: Array, *, layers: tuple[str, ...], method: str, padding: str
) -> dict[str, Array]:
    """Sum of a mask's guide in each layer."""
    return jax.tree.map(jnp.sum, layer_guides(mask, layers=layers, method=method, padding=padding))


def _check_sums(what: str, sums: dict[str, Array], config: LossConfig) -> None:
    for layer in config.style_names:
        if not sums[layer] > 0:
            raise InputError(
                f"{what} leaves nothing in layer {layer} with guides {config.guides}: expected a "
                "larger region, a larger image, shallower style layers, or other guides"
            )


def check_region_weights(weights: Any, *, regions: int) -> None:
    """Check the weights of the regions' style losses.

    Raises:
      InputError: if they are not valid weights, are all 0, or differ in number from the regions.
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
