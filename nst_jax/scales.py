"""A run's scales, from coarse to fine, and its inputs at each of them.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``; masks are ``[H, W]``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from nst_jax.choices import ExecutionPlan
from nst_jax.color import restore_colors
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.guides import lay_over
from nst_jax.inputs import Inputs
from nst_jax.layers import deepest, shortest_side, stride
from nst_jax.mask_checks import check_reach, with_rest
from nst_jax.pyramid import resize, scale_shapes
from nst_jax.rows import divides_rows
from nst_jax.types import Array


class Scale(NamedTuple):
    """One scale of a run.

    Attributes:
      shape: height and width of the picture.
      steps: how many it takes.
    """

    shape: tuple[int, int]
    steps: int


class EndedScale(NamedTuple):
    """What a run did at one size.

    Attributes:
      shape: height and width.
      steps: how many it took.
      choice: how it was computed, see ``choices``.
    """

    shape: tuple[int, int]
    steps: int
    choice: ExecutionPlan


def make_scales(
    shape: Sequence[int],
    *,
    config: Config,
    mesh: Mesh | None = None,
    layers: tuple[str, ...] = (),
) -> list[Scale]:
    """The scales of a run, coarsest first.

    Args:
      shape: of the picture, ``[H, W, ...]``.
      config: ``min_size``, ``scale_factor``, ``scale_steps`` and ``steps`` are read.
      mesh: where it is one of ``rows.rows_mesh`` it divides the heights of the scales, too.
      layers: taps of an objective of one's own, which ``mesh`` has to divide in place of the
        config's.

    Returns:
      At least one; the last is that of the picture.

    Raises:
      InputError: where ``scale_steps`` has numbers for more scales than there are, and where
        ``min_size`` is too small for the layers.
    """
    own = config.loss.aligned_layers
    tap, step = deepest(own), stride(deepest(own))
    height, width = shape[0], shape[1]
    rows = columns = step if config.loss.padding == "circular" else 1
    if mesh is not None and divides_rows(mesh):
        rows = mesh.shape["rows"] * stride(deepest(layers or own))
    shapes = scale_shapes(
        (height, width),
        min_size=config.pyramid.min_size,
        factor=config.pyramid.scale_factor,
        multiple=(rows, columns),
    )
    least = shortest_side(tap, padding=config.loss.padding)
    if min(shapes[0]) < least <= min(height, width):
        raise InputError(
            f"min_size is {config.pyramid.min_size}, with a scale of {shapes[0][1]}x{shapes[0][0]} "
            f"px, but layer {tap} needs a shorter side of at least {least} px: choose a larger "
            "min_size, or shallower layers"
        )
    given = config.pyramid.scale_steps or (config.steps,)
    before = len(shapes) - 1
    if len(config.pyramid.scale_steps) > before:
        numbers = "1 number" if len(given) == 1 else f"{len(given)} numbers"
        come = {0: "no scale comes", 1: "only 1 scale comes"}
        raise InputError(
            f"scale_steps has {numbers}, but {come.get(before, f'only {before} scales come')} "
            f"before the last: {'give fewer' if before else 'leave it out'}, or choose a smaller "
            "min_size (where they are a preset's: min_size=None is one scale)"
        )
    steps = [given[min(index, len(given) - 1)] for index in range(len(shapes) - 1)]
    return [Scale(*pair) for pair in zip(shapes, [*steps, config.steps], strict=True)]


def at_scale(inputs: Inputs, *, shape: tuple[int, int], config: Config) -> Inputs:
    """All pictures and masks for one scale; the styles shrink as the content does.

    Args:
      inputs: of the last scale.
      shape: height and width of the content there.
      config: its layers say how small a style may become.

    Returns:
      The inputs without an initial picture; of the last scale they are as they were.

    Raises:
      InputError: for masks that leave nothing of their regions at this scale.
    """
    content, full = inputs.content, inputs.content.shape[:2]
    if shape == full:
        return inputs
    ratio = max(shape) / max(full)
    layers = config.loss.style_names
    least = shortest_side(deepest(layers), padding=config.loss.padding) if layers else 1

    def shrunk(picture: Any) -> Array:
        # A style that is too small for the network was refused before.
        height, width = (max(min(least, side), round(side * ratio)) for side in picture.shape[:2])
        return resize(picture, shape=(height, width), method="linear")

    def resized(mask: Any) -> Array:
        return resize(mask, shape=shape, method="linear")

    masks, style_masks, preserve = (
        inputs.guidance.content_masks,
        inputs.guidance.style_masks,
        inputs.guidance.preserve,
    )
    guidance = inputs.guidance._replace(
        content_masks=None if masks is None else jnp.stack([resized(mask) for mask in masks]),
        style_masks=None
        if style_masks is None
        else [None if mask is None else shrunk(mask) for mask in style_masks],
        preserve=None if preserve is None else resized(preserve),
    )
    check_reach(with_rest(guidance, config=config.loss), config.loss)
    return Inputs(
        content=resize(content, shape=shape, method="linear"),
        styles=[shrunk(style) for style in inputs.styles],
        guidance=guidance,
    )


def at_full_size(image: Array, inputs: Inputs, *, config: Config) -> Array:
    """The result of a run that ended before its last scale.

    Args:
      image: the optimised picture, of any size.
      inputs: of the last scale.
      config: its colour mode is read.

    Returns:
      ``[H, W, 3]`` with the content's colours and the parts that are kept, where these were asked
      for, as sharp as they are.
    """
    content, preserve = inputs.content, inputs.guidance.preserve
    image = resize(image, shape=content.shape[:2])
    image = restore_colors(image, content, mode=config.loss.color)
    return image if preserve is None else lay_over(image, content, preserve)
