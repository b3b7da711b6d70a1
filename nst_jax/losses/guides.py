"""Which style holds where: masks at the network's layers, shares of the styles, their checks.

Masks follow Gatys et al. 2017, "Controlling Perceptual Factors in Neural Style Transfer",
section 4. The paper's guidance channel T, which scales features, is the square root of a guide:
T^2 F F^T = guide F F^T. So soft masks that add up to 1 give sums that add up to the whole's, and
for hard masks nothing differs.

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
    """Guides of a mask for layers of the network.

    ``"simple"`` averages the mask where the network pools. ``"inside"`` takes the least value in a
    feature's receptive field, so that a guided feature has seen nothing else; ``"all"`` takes the
    greatest, so that every feature that has seen something of the region counts.

    Args:
      mask: ``[H, W]`` in [0, 1].
      layers: names of taps.
      method: ``"simple"``, ``"inside"`` or ``"all"``.
      padding: the network's; for ``"circular"`` receptive fields reach over the border. Whatever
        else lies beyond it, zero, repeated or mirrored, is no pixel, or one that is seen anyway.

    Returns:
      ``{layer: [h, w]}``, with sizes as those of ``features``.

    Raises:
      ValueError: for another method.

    >>> layer_guides(jnp.eye(2), layers=("relu2_1",))["relu2_1"].tolist()
    [[0.5]]
    >>> layer_guides(jnp.eye(2), layers=("relu2_1",), method="inside")["relu2_1"].tolist()
    [[0.0]]
    """
    if method not in ("simple", "inside", "all"):
        raise ValueError(f"method is {method!r}: expected 'simple', 'inside' or 'all'")
    reduce = {"simple": jnp.mean, "inside": jnp.min, "all": jnp.max}[method]
    guides: dict[str, Array] = {}
    for name in convs_to(deepest(layers)):
        if name.endswith("_1") and block_of(name) > 1:
            height, width = (side // 2 for side in mask.shape)
            windows = mask[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
            mask = reduce(windows, axis=(1, 3))
        if method != "simple":
            mask = _of_neighbours(mask, reduce, padding=padding)
        for tap in (name, name.replace("conv", "relu")):
            if tap in layers:
                guides[tap] = mask
    return guides


def _of_neighbours(mask: Array, reduce, *, padding: str) -> Array:
    """The least or greatest of each position's 3x3 neighbours, which a convolution sees."""
    height, width = mask.shape
    # A border repeated once more changes no extreme, and its mirrored neighbour would not either.
    padded = jnp.pad(mask, 1, mode="wrap" if padding == "circular" else "edge")
    rows = reduce(jnp.stack([padded[i : i + height] for i in range(3)]), axis=0)
    return reduce(jnp.stack([rows[:, i : i + width] for i in range(3)]), axis=0)


def whole_strides(x: Array, layers: tuple[str, ...]) -> Array:
    """An image or mask without the last rows and columns that the deepest layer leaves out.

    Where opposite borders are neighbours, features of all layers then meet at the same places.

    Args:
      x: ``[H, W, ...]``.
      layers: names of taps.

    Returns:
      ``[h, w, ...]`` with sides that are multiples of the deepest layer's stride, so at most 15
      shorter; a side below the stride is left as it is.

    >>> whole_strides(jnp.ones((7, 4)), ("relu1_1", "relu2_1")).shape
    (6, 4)
    """
    step = stride(deepest(layers))
    height, width = (max(step, side // step * step) for side in x.shape[:2])
    return x[:height, :width]


def lay_over(image: Array, content: Array, mask: Array) -> Array:
    """The content where a mask is 1, the image where it is 0.

    Args:
      image, content: ``[H, W, 3]``.
      mask: ``[H, W]`` in [0, 1].
    """
    mask = mask[..., None]
    return (1 - mask) * image + mask * content  # exact where the mask is 0 or 1


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
      content, styles: the images.
      guidance: as it was given.
      config: structure of the objective.
      names: what to call the regions in errors in place of their numbers.

    Returns:
      The guidance with masks as arrays of their images' type, ``content_masks`` as
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
    """Masks as arrays of their images' type.

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
            raise InputError("all of the image is kept as it is: nothing is left to stylize")
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


def _as_mask(what: str, mask: Any, image: Array) -> Array:
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
                "larger region, a larger image, shallower style layers, or other guides"
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
