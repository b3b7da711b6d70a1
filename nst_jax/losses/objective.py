"""The objective of style transfer as ``head(statistics(image))`` (Gatys et al. 2016, eq. 7).

    L = content_weight * mse_factor * content    with sum_l w_l mean (F_l - P_l)^2
      + style_weight   * mse_factor * style      with sum_l w_l sum_r v_r mean (G_lr - A_lr)^2
      + tv_weight * TV(pixel_range * image)

where content and style are Gatys' own losses. F_l are features of the image, P_l of the content;
G_lr are the image's Gram matrices in region r, with factor v_r, and A_lr = sum_s b_lrs A_ls those
of the styles mixed by shares b. The whole image is one region where there are none. The other
losses of the two terms are in ``content_term`` and ``style_term``.

``statistics`` holds every sum over pixels and nothing else, so that an image may be taken piece by
piece; every divisor is a constant of the targets. Histograms alone need the image twice: what its
values are taken to depends on all of them.
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
from nst_jax.losses.guides import lay_over, layer_guides, style_shares
from nst_jax.losses.style_term import (
    layer_loss,
    matchings,
    position_count,
    region_counts,
    style_moments,
    style_sums,
)
from nst_jax.losses.tiling import counted, tiled
from nst_jax.losses.variation import total_variation
from nst_jax.models.projection import Features, check_projected
from nst_jax.models.vgg import network_features
from nst_jax.types import (
    Array,
    Guidance,
    Keep,
    Loss,
    LossWeights,
    Moments,
    Regions,
    Statistics,
    Targets,
    Terms,
    Variables,
    as_sequence,
)


def loss_weights(config: Config) -> LossWeights:
    """The factors that a ``Config`` sets, as plain numbers."""
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
def of_luminance(loss: Loss) -> Loss:
    """A loss that sees the luminance of an image only; of equal losses it is the same object."""

    def statistics(variables: Variables, image: Array, targets: Targets):
        return loss.statistics(variables, grey(image), targets)

    return loss._replace(statistics=statistics)


def style_count(moments: Any) -> int:
    """How many styles ``Targets.style`` is of; 0 where there are none."""
    return len(next(iter(jax.tree.leaves(moments)), ()))


def check_learned(variables: Variables, config: LossConfig) -> None:
    """Check, before anything is computed, that slim weights have learned what an objective needs.

    Raises:
      InputError: where they have not; full weights have no such limits.
    """
    if "lift" in variables:
        check_projected(variables["lift"], layers=config.layers, pooling=config.pooling)


def make_loss(
    config: LossConfig, *, evaluation: Evaluation = Evaluation(), mesh: Mesh | None = None
) -> Loss:
    """Build an objective.

    Equal structures give the same object, so that what was compiled for one serves the next: the
    numbers that ``LossConfig.structure`` leaves out come with the targets.

    Args:
      config: the objective.
      evaluation: how it is computed.
      mesh: devices among which tiles are divided, see ``tiling.tiled``.

    Returns:
      ``Loss(targets, statistics, head)``. ``targets`` takes, after the variables, the content
      ``[H, W, 3]`` and one style image or a sequence of S (of any sizes), and by keyword

      - ``weights``: the factors of the terms;
      - ``guidance``: which style holds where, and what is preserved: there the image that is
        compared is the content's. Its regions are ``[R, H, W]``;
      - ``moments``: what is known of the styles, ``Targets.style`` of an earlier call, in place of
        style images.

      With circular padding styles and their masks are cropped, see ``guides.whole_strides``.
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
    known: Any = moments
    if known is None:
        of_style = partial(
            style_moments,
            variables,
            config=config,
            evaluation=evaluation,
            make_regions=make_regions,
        )
        each = [of_style(x, mask=mask) for x, mask in zip(images, masks, strict=True)]
        known = stacked(each) if each else {}
    shares = style_shares(
        guidance.blend,
        layers=config.style_names,
        regions=1 if regions is None else len(regions),
        styles=style_count(known) or len(images),
    )
    again = evaluation.recompute_content and config.feature_layers
    sizes = _sizes(content, config=config)
    return Targets(
        **content_targets(variables, content, config=config, evaluation=evaluation)._asdict(),
        style=known,
        sizes=jax.tree.map(lambda x: jnp.asarray(float(x), content.dtype), sizes),
        weights=jax.tree.map(lambda w: jnp.asarray(w, content.dtype), weights),
        shares={name: table.astype(content.dtype) for name, table in shares.items()},
        regions=None if regions is None else make_regions(regions, guidance.region_weights),
        keep=None if preserve is None else Keep(preserve, content),
        image=content if again else None,
    )


def _compared(image: Array, targets: Targets) -> Array:
    """The image with the parts that are preserved laid over it."""
    if targets.keep is None:
        return image
    return lay_over(image, targets.keep.content, targets.keep.mask)


def _counts(
    variables: Variables,
    image: Array,
    targets: Targets,
    *,
    config: LossConfig,
    evaluation: Evaluation,
) -> dict[str, Array]:
    """Histograms of the regions."""
    image = _compared(image, targets)
    how: Any = config.network | {"precision": evaluation.precision}
    taps = network_features(variables, image, layers=config.matched_layers, **how)
    return {name: region_counts(name, tap, targets) for name, tap in taps.items()}


def _statistics(
    variables: Variables,
    image: Array,
    targets: Targets,
    *,
    config: LossConfig,
    evaluation: Evaluation,
) -> Statistics:
    """Of a whole image, or of a window of it; a layer in both terms is computed once."""
    image = _compared(image, targets)
    wanted = targets.content
    if targets.image is not None:
        wanted = feature_maps(
            variables, targets.image, config=config, precision=evaluation.precision
        )

    def sums(name: str, tap: Features) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if name in config.feature_layers:
            found["content"] = difference_sum(name, tap, wanted[name], targets)
        if name in config.similar_layers:
            found["samples"] = samples(name, tap, targets)
        if name in config.style_names:
            found["style"] = style_sums(name, tap, targets, config=config)
        return found

    how: Any = config.network | {"precision": evaluation.precision, "remat": evaluation.remat}
    found = network_features(variables, image, layers=config.layers, reduce=sums, **how)
    own = None if targets.window is None else counted(targets.window, shape=image.shape)
    return Statistics(
        content={name: found[name]["content"] for name in config.feature_layers},
        style={name: found[name]["style"] for name in config.style_names},
        tv=total_variation(
            image * config.pixel_range,
            form=config.tv_form,
            order=config.tv_order,
            padding=config.padding,
            mask=own,
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
    if config.matched_layers:  # histograms of the whole first
        counts = in_tiles(partial(_counts, config=config, evaluation=evaluation))
        found = counts(variables, jax.lax.stop_gradient(image), targets)
        goals = {
            name: matchings(name, x, targets, mixing=config.style_mixing)
            for name, x in found.items()
        }
        targets = targets._replace(matching=goals)
    whole = partial(_statistics, config=config, evaluation=evaluation)
    return in_tiles(whole)(variables, image, targets)


def _head(statistics: Statistics, targets: Targets, *, config: LossConfig) -> tuple[Array, Terms]:
    weights = targets.weights
    style = sum(
        weights.style_layers[name] * layer_loss(name, sums, targets, config=config)
        for name, sums in statistics.style.items()
    )
    content = content_value(statistics, targets, config=config)
    variation = statistics.tv
    if config.tv_reduction == "mean":
        variation = variation / (3 * targets.sizes["pixels"])
    zero = jnp.zeros_like(statistics.tv)
    terms = Terms(
        content=zero + weights.content * config.mse_factor * content,
        style=zero + weights.style * config.mse_factor * style,
        tv=weights.tv * variation,
    )
    return terms.content + terms.style + terms.tv, terms
