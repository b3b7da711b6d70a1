"""Several styles and regions: resolve their options, then read their images and masks.

Options are resolved without images, so that contradictions are found before any image is read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.cli.checks import check_room, check_size
from nst_jax.cli.messages import log
from nst_jax.cli.options import RegionOptions, StyleOptions
from nst_jax.config.config import Config
from nst_jax.errors import InputError
from nst_jax.images.masks import feather, load_labels, load_mask, mask_aspect_note, soft_edges_note
from nst_jax.images.read import image_shape, load_image
from nst_jax.losses.guides import check_blend
from nst_jax.types import Guidance


class StyleInputs(NamedTuple):
    """The styles and regions of a run.

    Attributes:
      styles: the style images, ``[h, w, 3]``; an image that several regions use is repeated.
      guidance: which style applies where.
      regions: the entries about regions for the record.
    """

    styles: list[np.ndarray]
    guidance: Guidance
    regions: list[dict[str, Any]]


def check_region_options(regions: RegionOptions, styles: StyleOptions, *, config: Config) -> None:
    """Check options against each other before any image is read.

    Raises:
      InputError: for options that contradict each other or have no effect.
    """
    if not styles.style:
        raise InputError("no style image: expected --style FILE")
    if regions.labels is not None and regions.content_mask:
        raise InputError("labels and content masks both define the regions: leave one of them out")
    if regions.style_labels is not None and regions.labels is None:
        raise InputError("style_labels has no effect without --labels: add it, or leave this out")
    if regions.style_labels is not None and regions.style_mask:
        raise InputError("style_labels and style masks contradict each other: leave one out")
    if regions.style_labels is not None and len(styles.style) > 1:
        raise InputError(
            f"style_labels is for one style, not {len(styles.style)}: use style masks for several"
        )
    has_regions = bool(regions.content_mask) or regions.labels is not None
    has_masks = has_regions or bool(regions.style_mask)
    if regions.region_weights and not has_regions:
        raise InputError(
            "region_weights needs regions: give --content-mask or --labels, or leave it out"
        )
    if not 0 <= regions.feather < float("inf"):
        raise InputError(f"feather is {regions.feather}: expected 0 or more pixels")
    if regions.feather and not has_regions:
        raise InputError("feather needs regions: give --content-mask or --labels, or leave it out")
    if config.loss.guides != "simple" and not has_masks:
        raise InputError(f"guides {config.loss.guides} needs masks: give some, or leave it out")
    if config.loss.style_mixing == "sum" and len(styles.style) == 1:
        raise InputError("style_mixing sum has no effect with one style: leave it out")
    if styles.style_blend:
        check_blend(styles.style_blend)
    style_size(1, styles)
    if regions.labels is None:  # otherwise the number of regions is known only from the image
        _plan(regions, styles, config, count=len(regions.content_mask))


def _plan(regions: RegionOptions, styles: StyleOptions, config: Config, *, count: int) -> "Plan":
    """The plan of the options for ``count`` regions, see ``plan_styles``."""
    plan = plan_styles(
        styles=len(styles.style),
        regions=count,
        style_masks=len(regions.style_mask),
        region_styles=regions.region_styles,
        style_blend=styles.style_blend,
        layer_styles=styles.layer_styles,
        layers=config.loss.style_names,
    )
    weights = regions.region_weights
    if weights and len(weights) != len(plan.styled):
        raise InputError(
            f"{len(weights)} region weights for {len(plan.styled)} styled regions: expected one "
            "each"
        )
    if config.loss.style_mixing == "sum" and not _mixes(plan.blend):
        raise InputError(
            "style_mixing sum has no effect because every region has one style: leave it out"
        )
    return plan


def _mixes(blend: Any) -> bool:
    """Whether any region mixes several styles."""
    if blend is None:
        return True
    tables = blend.values() if isinstance(blend, dict) else [[blend]]
    return any(np.count_nonzero(row) > 1 for table in tables for row in table)


def style_size(size: int, styles: StyleOptions) -> int:
    """The longer side of the style images, for a result with a longer side of ``size`` pixels.

    Raises:
      InputError: for an invalid scale.
    """
    scale = styles.style_scale
    if not 0 < scale < 100:
        raise InputError(f"style_scale is {scale}: expected a number above 0 and under 100")
    scaled = max(1, round(size * scale))
    check_size(scaled, what="the size of the styles")
    return scaled


def load_style(path: Path, *, size: int) -> np.ndarray:
    """Read a style image and scale its longer side to ``size`` pixels.

    Raises:
      InputError: for files that cannot be read, and sizes that do not fit into memory.
    """
    check_room(image_shape(path, size=size), what="style")
    return load_image(path, size=size)


def load_style_inputs(
    regions: RegionOptions,
    styles: StyleOptions,
    *,
    config: Config,
    shape: tuple[int, int],
    size: int,
) -> StyleInputs:
    """Read the style images and masks.

    Args:
      regions, styles: options that passed ``check_region_options``.
      config: the settings, for the names of the style layers.
      shape: height and width of the content image.
      size: longer side of the result in pixels.

    Raises:
      InputError: for files that cannot be read, and for labels that contradict other options.
    """
    colors, masks = _content_masks(regions, shape=shape)
    if len(masks):
        masks = feather(masks, radius=regions.feather)
    plan = _plan(regions, styles, config, count=len(masks))
    # Styles are scaled with the content, so that the relative size of strokes does not change.
    scaled = style_size(size, styles)
    images = [load_style(path, size=scaled) for path in styles.style]
    sources = plan.sources
    style_masks: list[np.ndarray | None] = [
        None
        if mask is None
        else _load_mask(regions.style_mask[mask], shape=images[index].shape[:2])
        for index, mask in sources
    ]
    blend: Any = plan.blend
    if regions.style_labels is not None:
        wanted = [colors[index] for index in plan.styled]
        if not wanted:
            raise InputError("style_labels has no effect if every region is kept: leave it out")
        _, found = load_labels(regions.style_labels, shape=images[0].shape[:2], colors=wanted)
        _warn_aspect(regions.style_labels, shape=images[0].shape[:2])
        style_masks, sources, blend = list(found), [(0, i) for i in range(len(wanted))], None
    given = any(mask is not None for mask in style_masks)
    guidance = Guidance(
        blend=blend,
        content_masks=masks[np.array(plan.styled)] if plan.styled else None,
        style_masks=style_masks if given else None,
        region_weights=(regions.region_weights or None) if plan.styled else None,
        preserve=np.clip(masks[np.array(plan.kept)].sum(axis=0), 0, 1) if plan.kept else None,
    )
    names = ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]
    record = [
        {"region": name, "kept": index in plan.kept, "share_of_image": float(masks[index].mean())}
        for index, name in enumerate(names or map(str, regions.content_mask))
    ]
    return StyleInputs([images[index] for index, _ in sources], guidance, record)


def with_layers(
    given: StyleInputs, regions: RegionOptions, styles: StyleOptions, *, config: Config
) -> StyleInputs:
    """The same inputs for other style layers, since the blend is given for each style layer."""
    if regions.style_labels is not None:
        return given
    plan = _plan(regions, styles, config, count=len(given.regions))
    return given._replace(guidance=given.guidance._replace(blend=plan.blend))


def region_names(regions: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the styled regions for errors, from the record's entries of all regions."""
    return [str(one["region"]) for one in regions if not one["kept"]] or ["of what is not kept"]


def _content_masks(
    regions: RegionOptions, *, shape: tuple[int, int]
) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """The colours of the labels, and the masks ``[R, H, W]`` of the content's regions."""
    if regions.labels is not None:
        colors, masks = load_labels(regions.labels, shape=shape)
        if note := soft_edges_note(regions.labels, masks):
            log(note)
        _warn_aspect(regions.labels, shape=shape)
        return colors, masks
    masks = [_load_mask(path, shape=shape) for path in regions.content_mask]
    return [], np.stack(masks) if masks else np.zeros((0, *shape), np.float32)


def _load_mask(path: Path, *, shape: tuple[int, int]) -> np.ndarray:
    mask = load_mask(path, shape=shape)
    _warn_aspect(path, shape=shape)
    return mask


def _warn_aspect(path: Path, *, shape: tuple[int, int]) -> None:
    note = mask_aspect_note(path, shape=shape)
    if note:
        log(note)


class Plan(NamedTuple):
    """Which styles and masks each region uses.

    A source is a style image together with its style mask, if it has one.

    Attributes:
      kept: indices of the regions that preserve the content.
      styled: indices of the other regions.
      sources: for each source the index of its image, and that of its style mask or None.
      blend: weights of the sources. None for equal weights; a tuple with a weight for each source;
        or for each style layer a table ``[styled regions, sources]`` of weights.
    """

    kept: list[int]
    styled: list[int]
    sources: list[tuple[int, int | None]]
    blend: tuple[float, ...] | dict[str, list[list[float]]] | None


def plan_styles(
    *,
    styles: int,
    regions: int = 0,
    style_masks: int = 0,
    region_styles: Sequence[str] = (),
    style_blend: Sequence[float] = (),
    layer_styles: Sequence[str] = (),
    layers: Sequence[str] = (),
) -> Plan:
    """Resolve the options about styles, regions and layers.

    Args:
      styles, regions, style_masks: the number of each.
      region_styles: for each region a style's number from 1, ``"mix"`` or ``"keep"``.
      style_blend: the weight of each style.
      layer_styles: pairs ``NAME=NUMBER`` of a style layer and a style's number.
      layers: names of the style layers.

    Raises:
      InputError: for options that contradict each other or have no effect.
    """
    if style_blend and len(style_blend) != styles:
        raise InputError(f"{len(style_blend)} blend weights for {styles} styles: expected one each")
    if style_blend and styles == 1:
        raise InputError("style_blend has no effect with one style: leave it out")
    chosen = _layer_choices(layer_styles, styles=styles, layers=layers)
    tokens = _region_choices(region_styles, regions=regions, styles=styles)
    kept = [index for index, token in enumerate(tokens) if token == "keep"]
    styled = [index for index, token in enumerate(tokens) if token != "keep"]
    # Without styled regions, all of the image that is not kept is one region that mixes all styles.
    rows = [tokens[index] for index in styled] or ["mix"]
    _refuse_useless(rows, styles=styles, style_blend=style_blend, chosen=chosen, layers=layers)

    expected = len(styled) if regions else styles
    if style_masks and style_masks != expected:
        wanted = "styled region" if regions else "style"
        raise InputError(
            f"{style_masks} style masks for {expected} {wanted}s: expected one for each {wanted}"
        )
    if style_masks and regions:
        if "mix" in rows and styles > 1:
            raise InputError(
                "a region with style 'mix' uses several images, so its style mask belongs to "
                "none of them: leave out the style masks, or give each region one style's number"
            )
        sources = [(int(row) - 1 if row != "mix" else 0, i) for i, row in enumerate(rows)]
        identity = {layer: _identity(len(rows)) for layer in layers}
        return Plan(kept, styled, list(sources), identity if len(rows) > 1 else None)
    sources = [(index, index if style_masks else None) for index in range(styles)]
    if not chosen and rows == ["mix"]:
        return Plan(kept, styled, list(sources), tuple(style_blend) or None)
    mixed = list(style_blend) or [1.0] * styles
    blend = {
        layer: [
            (_one(chosen[layer], styles) if layer in chosen else mixed)
            if row == "mix"
            else _one(int(row) - 1, styles)
            for row in rows
        ]
        for layer in layers
    }
    return Plan(kept, styled, list(sources), blend)


def _layer_choices(
    layer_styles: Sequence[str], *, styles: int, layers: Sequence[str]
) -> dict[str, int]:
    """The style layers that take one style, with the index of that style."""
    chosen: dict[str, int] = {}
    for item in (part for text in layer_styles for part in text.split(",") if part):
        name, _, number = item.partition("=")
        if name not in layers:
            raise InputError(
                f"layer_styles names {name!r}, which is not a style layer: expected one of "
                f"{', '.join(layers)}, as NAME=NUMBER"
            )
        if name in chosen:
            raise InputError(f"layer_styles names {name} twice: give each layer one style")
        chosen[name] = _number(number, styles, what=f"the style of layer {name}")
    if layer_styles and not chosen:
        raise InputError("layer_styles names no layer: expected NAME=NUMBER")
    if chosen and styles == 1:
        raise InputError("layer_styles has no effect with one style: give more, or leave it out")
    return chosen


def _region_choices(region_styles: Sequence[str], *, regions: int, styles: int) -> list[str]:
    """For each region its style's number, "mix" or "keep"."""
    if region_styles and not regions:
        raise InputError(
            "region_styles needs regions: give --content-mask or --labels, or leave it out"
        )
    if region_styles and len(region_styles) != regions:
        raise InputError(
            f"{len(region_styles)} region styles for {regions} regions: expected one each"
        )
    if not region_styles:
        if styles == 1 or regions == 1:
            return ["mix"] * regions
        if regions and styles != regions:
            raise InputError(
                f"{styles} styles for {regions} regions: expected one style, one for each region, "
                "or --region-styles to assign them"
            )
        return [str(number) for number in range(1, regions + 1)]
    for token in region_styles:
        if token not in ("mix", "keep"):
            _number(token, styles, what="the style of a region", also="mix, keep or ")
    return list(region_styles)


def _refuse_useless(
    rows: list[str],
    *,
    styles: int,
    style_blend: Sequence[float],
    chosen: dict[str, int],
    layers: Sequence[str],
) -> None:
    """Refuse styles, weights and assignments that have no effect."""
    mixes = "mix" in rows
    every_layer_chosen = bool(chosen) and set(chosen) == set(layers)
    if chosen and not mixes:
        raise InputError(
            "layer_styles has no effect because every region has one style: leave it out, or give "
            "a region the style 'mix'"
        )
    if style_blend and not mixes:
        raise InputError(
            "style_blend has no effect because every region has one style: leave it out, or give a "
            "region the style 'mix'"
        )
    if style_blend and every_layer_chosen:
        raise InputError(
            "style_blend has no effect because layer_styles gives every style layer one style: "
            "leave one of them out"
        )
    used = {int(row) - 1 for row in rows if row != "mix"}
    if mixes and not every_layer_chosen:
        used |= set(range(styles))
    elif mixes:
        used |= set(chosen.values())
    for index in range(styles):
        if index not in used:
            raise InputError(f"style {index + 1} is not used: leave it out, or assign it")


def _number(text: str, styles: int, *, what: str, also: str = "") -> int:
    """The index of the style whose number, from 1, the text gives."""
    if not text.isdecimal() or not 1 <= int(text) <= styles:
        raise InputError(f"{what} is {text!r}: expected {also}a number from 1 to {styles}")
    return int(text) - 1


def _one(index: int, count: int) -> list[float]:
    """Weights that choose one source."""
    return [float(index == other) for other in range(count)]


def _identity(count: int) -> list[list[float]]:
    return [_one(index, count) for index in range(count)]
