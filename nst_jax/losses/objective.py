"""The objective of style transfer as ``head(statistics(image))`` (Gatys et al. 2016, eq. 7).

    L = content_weight * mse_factor * content    with sum_l w_l mean (F_l - P_l)^2
      + style_weight   * mse_factor * style      with sum_l w_l sum_r v_r mean (G_lr - A_lr)^2
      + tv_weight * TV(pixel_range * image)

The content and style terms are shown with the losses of Gatys et al.; ``content_term`` and
``style_term`` have the others. F_l are the features of the image in layer l and P_l those of the
content. G_lr are the Gram matrices of the image in region r, which has the weight v_r, and
A_lr = sum_s b_lrs A_ls are those of the styles, mixed with style weights b. Without regions, the
whole image is the only one.

``statistics`` consists of sums over pixels only, and every divisor is a constant in the targets, so
that an image can be processed in tiles, see ``tiling``. Only histogram losses need a second pass
over the image, because the matching of one value depends on all values.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nst_jax.color import grey
from nst_jax.config.config import Config
from nst_jax.config.layers import check_sides, check_squares
from nst_jax.config.loss import Evaluation, LossConfig
from nst_jax.errors import InputError
from nst_jax.losses.content_term import (
    content_targets,
    content_value,
    difference_sum,
    feature_maps,
    laplacian_sums,
    samples,
)
from nst_jax.losses.gram import mask_size, stacked
from nst_jax.losses.guides import lay_over, layer_guides, style_weights
from nst_jax.losses.style_term import (
    layer_loss,
    matchings,
    position_count,
    region_counts,
    style_moments,
    style_sums,
)
from nst_jax.losses.tiling import ownership, tiled
from nst_jax.losses.variation import total_variation
from nst_jax.models.projection import Features, check_projected
from nst_jax.models.vgg import network_features
from nst_jax.types import (
    Array,
    Guidance,
    Loss,
    LossWeights,
    Moments,
    Preserved,
    Regions,
    Statistics,
    Targets,
    Terms,
    Variables,
    as_sequence,
)


def loss_weights(config: Config) -> LossWeights:
    """Collect the weights of the terms, losses and layers from a ``Config``, as plain numbers."""
    return LossWeights(
        content=config.loss.content_weight,
        style=config.loss.style_weight,
        tv=config.loss.tv_weight,
        content_layers=dict(config.loss.content_layers),
        style_layers=dict(config.loss.style_layers),
        content_losses=dict(config.loss.content_losses),
        style_losses=dict(config.loss.style_losses),
    )


@lru_cache(maxsize=64)
def luminance_only(loss: Loss) -> Loss:
    """Make a loss that sees only the luminance of the image.

    It is cached, so that equal losses give the same object and share compiled programs.
    """

    def statistics(variables: Variables, image: Array, targets: Targets):
        return loss.statistics(variables, grey(image), targets)

    return loss._replace(statistics=statistics)


def count_styles(moments: Any) -> int:
    """Number of styles in ``Targets.style``; 0 without style layers."""
    return len(next(iter(jax.tree.leaves(moments)), ()))


def check_learned(variables: Variables, config: LossConfig) -> None:
    """Check that a slim network was trained for the layers and the pooling of an objective.

    Full networks have no such limits.

    Raises:
      InputError: if it was not.
    """
    if "lift" in variables:
        check_projected(variables["lift"], layers=config.layers, pooling=config.pooling)


def make_loss(
    config: LossConfig, *, evaluation: Evaluation = Evaluation(), mesh: Mesh | None = None
) -> Loss:
    """Build an objective.

    Configs with equal ``LossConfig.structure`` give the same object, and therefore share compiled
    programs. The numbers that are not part of the structure are passed with the targets.

    Args:
      config: the objective.
      evaluation: how to compute it.
      mesh: devices that share the tiles, see ``tiling.tiled``.

    Returns:
      ``Loss(targets, statistics, head)``. ``targets(variables, content, styles, ...)`` takes the
      content ``[H, W, 3]``, one style image or a sequence of S of any sizes, and the keywords

      - ``weights``: the weights of the terms, see ``loss_weights``;
      - ``guidance``: regions, style weights and the preserved part, with content masks as
        ``[R, H, W]``. The preserved part is replaced by the content before the image is compared;
      - ``moments``: ``Targets.style`` of an earlier call, in place of the style images.

      With circular padding, styles and their masks are cropped, see ``guides.whole_strides``.

    References:
      Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks",
      eq. 7.
    """
    return _make_loss(config.structure, evaluation, mesh)


@lru_cache(maxsize=64)
def _make_loss(config: LossConfig, evaluation: Evaluation, mesh: Mesh | None) -> Loss:
    whole = partial(_statistics, config=config, evaluation=evaluation)
    tiles = partial(_tiled_statistics, config=config, evaluation=evaluation, mesh=mesh)
    return Loss(
        targets=partial(_targets, config=config, evaluation=evaluation),
        statistics=tiles if evaluation.tile else whole,
        head=partial(_head, config=config),
    )


def _regions(masks: Array, region_weights: Any = None, *, config: LossConfig) -> Regions:
    of_masks = partial(
        layer_guides, layers=config.style_names, method=config.guides, padding=config.padding
    )
    guides = jax.vmap(of_masks)(masks)
    weights = jnp.ones(len(masks)) if region_weights is None else region_weights
    return Regions(
        guides=guides,
        sizes=jax.tree.map(jax.vmap(mask_size), guides),
        weights=jnp.asarray(weights, masks.dtype),
    )


def _sizes(content: Array, *, config: LossConfig) -> dict[str, int]:
    """Number of elements in every sum, see ``Targets.sizes``."""
    height, width = content.shape[:2]
    return (
        {name: position_count(content, name) for name in config.layers}
        | {name: (height // p) * (width // p) for name, p in config.laplacians.items()}
        | {"pixels": height * width, "corners": (height + 1) * (width + 1)}
    )


def _targets(
    variables: Variables,
    content: Array,
    styles: Array | Sequence[Array],
    *,
    config: LossConfig,
    evaluation: Evaluation,
    weights: LossWeights,
    guidance: Guidance = Guidance(),
    moments: dict[str, Moments] | None = None,
) -> Targets:
    images, make_regions = as_sequence(styles), partial(_regions, config=config)
    if config.style_names and not images and moments is None:
        raise InputError("no style image: expected at least one")
    check_sides(content.shape[0], content.shape[1], config.layers, padding=config.padding)
    check_squares(content.shape[0], content.shape[1], config.laplacians)
    masks = guidance.style_masks
    masks = [None] * len(images) if masks is None else masks
    regions, preserve = guidance.content_masks, guidance.preserve
    style: Any = moments
    if style is None:
        of_style = partial(
            style_moments,
            variables,
            config=config,
            evaluation=evaluation,
            make_regions=make_regions,
        )
        each = [of_style(x, mask=mask) for x, mask in zip(images, masks, strict=True)]
        style = stacked(each) if each else {}
    blend = style_weights(
        guidance.blend,
        layers=config.style_names,
        regions=1 if regions is None else len(regions),
        styles=count_styles(style) or len(images),
    )
    recompute = evaluation.recompute_content and config.feature_layers
    # Divisors are part of the targets: in a tile, the shapes would give those of the tile.
    sizes = _sizes(content, config=config)
    return Targets(
        **content_targets(variables, content, config=config, evaluation=evaluation)._asdict(),
        style=style,
        sizes=jax.tree.map(lambda x: jnp.asarray(float(x), content.dtype), sizes),
        weights=jax.tree.map(lambda w: jnp.asarray(w, content.dtype), weights),
        style_weights={name: table.astype(content.dtype) for name, table in blend.items()},
        regions=None if regions is None else make_regions(regions, guidance.region_weights),
        preserved=None if preserve is None else Preserved(preserve, content),
        image=content if recompute else None,
    )


def _with_preserved(image: Array, targets: Targets) -> Array:
    """The image with its preserved part replaced by the content."""
    if targets.preserved is None:
        return image
    return lay_over(image, targets.preserved.content, targets.preserved.mask)


def _counts(
    variables: Variables,
    image: Array,
    targets: Targets,
    *,
    config: LossConfig,
    evaluation: Evaluation,
) -> dict[str, Array]:
    """Histograms of the regions in every layer of the histogram loss."""
    image = _with_preserved(image, targets)
    options: Any = config.network | {"precision": evaluation.precision}
    taps = network_features(variables, image, layers=config.matched_layers, **options)
    return {name: region_counts(name, tap, targets) for name, tap in taps.items()}


def _statistics(
    variables: Variables,
    image: Array,
    targets: Targets,
    *,
    config: LossConfig,
    evaluation: Evaluation,
) -> Statistics:
    """Statistics of a whole image, or of one window if ``targets.window`` is set."""
    image = _with_preserved(image, targets)
    content = targets.content
    if targets.image is not None:
        content = feature_maps(
            variables, targets.image, config=config, precision=evaluation.precision
        )

    # Called once for each layer, also if both terms use it.
    def sums(name: str, tap: Features) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if name in config.feature_layers:
            found["content"] = difference_sum(name, tap, content[name], targets)
        if name in config.similar_layers:
            found["samples"] = samples(name, tap, targets)
        if name in config.style_names:
            found["style"] = style_sums(name, tap, targets, config=config)
        return found

    options: Any = config.network | {"precision": evaluation.precision, "remat": evaluation.remat}
    found = network_features(variables, image, layers=config.layers, reduce=sums, **options)
    mask = None if targets.window is None else ownership(targets.window, shape=image.shape)
    return Statistics(
        content={name: found[name]["content"] for name in config.feature_layers},
        style={name: found[name]["style"] for name in config.style_names},
        tv=total_variation(
            image * config.pixel_range,
            form=config.tv_form,
            order=config.tv_order,
            padding=config.padding,
            mask=mask,
            corner=targets.sizes["pixels"] / targets.sizes["corners"],
        ),
        samples={name: found[name]["samples"] for name in config.similar_layers},
        laplacian=laplacian_sums(image, targets, config=config),
    )


def _tiled_statistics(
    variables: Variables,
    image: Array,
    targets: Targets,
    *,
    config: LossConfig,
    evaluation: Evaluation,
    mesh: Mesh | None,
) -> Statistics:
    in_tiles: Any = partial(
        tiled, layers=config.aligned_layers, tile=evaluation.tile, padding=config.padding, mesh=mesh
    )
    if config.matched_layers:  # a first pass for the histograms of the whole image
        counts = in_tiles(partial(_counts, config=config, evaluation=evaluation))
        # The matching counts as a constant in the gradient, so this pass needs no backward pass.
        histograms = counts(variables, jax.lax.stop_gradient(image), targets)
        maps = {
            name: matchings(name, x, targets, mixing=config.style_mixing)
            for name, x in histograms.items()
        }
        targets = targets._replace(matching=maps)
    whole = partial(_statistics, config=config, evaluation=evaluation)
    return in_tiles(whole)(variables, image, targets)


def _head(statistics: Statistics, targets: Targets, *, config: LossConfig) -> tuple[Array, Terms]:
    """The loss and its weighted terms, from sums over the whole image."""
    weights = targets.weights
    style = sum(
        weights.style_layers[name] * layer_loss(name, sums, targets, config=config)
        for name, sums in statistics.style.items()
    )
    content = content_value(statistics, targets, config=config)
    variation = statistics.tv
    if config.tv_reduction == "mean":
        variation = variation / (3 * targets.sizes["pixels"])
    # Adding an array of zero gives terms without any loss, a plain 0, the type of the others.
    zero = jnp.zeros_like(statistics.tv)
    terms = Terms(
        content=zero + weights.content * config.mse_factor * content,
        style=zero + weights.style * config.mse_factor * style,
        tv=weights.tv * variation,
    )
    return terms.content + terms.style + terms.tv, terms
