"""Which style holds where: the options of several styles and regions, resolved.

No pictures here, so that contradictions are found before any is read.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nst_jax.errors import InputError


class Plan(NamedTuple):
    """How regions, styles and masks meet.

    Attributes:
      kept: regions that are left as they are, by index.
      styled: the other regions, by index.
      sources: for each source of style the picture's index and its style mask's, or None.
      blend: factors of the sources: None for the default, for each source, or for each style layer
        and styled region a row of such factors.
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
    """Resolve what the options say of styles, regions and layers.

    Args:
      styles, regions, style_masks: how many there are.
      region_styles: for each region a number from 1, ``"mix"`` or ``"keep"``.
      style_blend: factor of each style.
      layer_styles: ``NAME=NUMBER`` each.
      layers: the style layers.

    Raises:
      InputError: for options that contradict each other or have no effect.
    """
    if style_blend and len(style_blend) != styles:
        raise InputError(f"{len(style_blend)} blend factors for {styles} styles: expected one each")
    if style_blend and styles == 1:
        raise InputError("style_blend has no effect with one style: leave it out")
    chosen = _layer_choices(layer_styles, styles=styles, layers=layers)
    tokens = _region_choices(region_styles, regions=regions, styles=styles)
    kept = [index for index, token in enumerate(tokens) if token == "keep"]
    styled = [index for index, token in enumerate(tokens) if token != "keep"]
    # Without styled regions the picture, or what is not kept of it, is one that mixes all.
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
                "a region with style 'mix' takes from several pictures, so that a style mask has "
                "no picture: leave out the style masks, or give each region its style's number"
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
    """Style layers with a style of their own, by index."""
    chosen: dict[str, int] = {}
    for item in (part for text in layer_styles for part in text.split(",") if part):
        name, _, number = item.partition("=")
        if name not in layers:
            raise InputError(
                f"layer_styles names {name!r}, which is no style layer: expected one of "
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
    """For each region its style's number, mix or keep."""
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
                "or --region-styles to tell which region has which"
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
    """Refuse styles, factors and choices that nothing uses."""
    mixes = "mix" in rows
    every_layer_chosen = bool(chosen) and set(chosen) == set(layers)
    if chosen and not mixes:
        raise InputError(
            "layer_styles has no effect where every region has one style: leave it out, or give a "
            "region the style 'mix'"
        )
    if style_blend and not mixes:
        raise InputError(
            "style_blend has no effect where every region has one style: leave it out, or give a "
            "region the style 'mix'"
        )
    if style_blend and every_layer_chosen:
        raise InputError(
            "style_blend has no effect where layer_styles gives every style layer one style: leave "
            "one of them out"
        )
    used = {int(row) - 1 for row in rows if row != "mix"}
    if mixes and not every_layer_chosen:
        used |= set(range(styles))
    elif mixes:
        used |= set(chosen.values())
    for index in range(styles):
        if index not in used:
            raise InputError(f"style {index + 1} is used nowhere: leave it out, or give it a place")


def _number(text: str, styles: int, *, what: str, also: str = "") -> int:
    if not text.isdecimal() or not 1 <= int(text) <= styles:
        raise InputError(f"{what} is {text!r}: expected {also}a number from 1 to {styles}")
    return int(text) - 1


def _one(index: int, count: int) -> list[float]:
    return [float(index == other) for other in range(count)]


def _identity(count: int) -> list[list[float]]:
    return [_one(index, count) for index in range(count)]
