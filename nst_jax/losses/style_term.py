"""The style term: the moments of each layer's features, and the losses that compare them.

    sum_k f_k sum_l w_l sum_r v_r L_k(M_lr, sum_s b_lrs A_ls)

M_lr are the moments of the image in region r of layer l, and A_ls those of style s. L_k are the
losses, with weights f_k; w_l are the weights of the layers, v_r those of the regions, and b_lrs the
style weights. Since moments are means over positions, the weighted mean of those of several styles
is the moment of the mixture of their distributions. With ``style_mixing="sum"`` the inner term is
sum_s b_lrs L_k(M_lr, A_ls) instead.

Contract: features are ``[h, w, C]`` or a product, see ``projection``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.config.layers import stride
from nst_jax.config.loss import Evaluation, LossConfig
from nst_jax.losses.gaussian import covariance, mean_std_loss, wasserstein_loss
from nst_jax.losses.gram import divided, moment_sums, stacked, style_loss
from nst_jax.losses.guides import whole_strides
from nst_jax.losses.histogram import bounds, extremes, histogram, histogram_sum, matching, quantiles
from nst_jax.losses.tiling import owned_mask, tiled
from nst_jax.models.projection import Features, dense
from nst_jax.models.vgg import network_features
from nst_jax.types import (
    NO_WEIGHTS,
    Array,
    Matching,
    Moments,
    Regions,
    Targets,
    Variables,
)

# A style image with more than 2 STYLE_TILE^2 pixels is processed in tiles of this side, because its
# forward pass as a whole would take more memory than a run of the usual size.
STYLE_TILE = 512

# The fields of ``Moments`` that each of ``STYLE_LOSSES`` (in config/factors.py) needs.
WANTED = {
    "gram": {"gram"},
    "covariance": {"gram", "mean"},
    "mean-std": {"mean", "squares"},
    "wasserstein": {"compact_gram", "compact_mean", "mean"},
    "histogram": set(),
}


def position_count(image: Array, name: str) -> int:
    """Number of positions of a layer for an image."""
    return (image.shape[0] // stride(name)) * (image.shape[1] // stride(name))


def wanted_moments(config: LossConfig) -> frozenset[str]:
    """The fields of ``Moments`` that the losses need; ``gram`` includes the squares."""
    wanted = set().union(*(WANTED[name] for name, _ in config.style_losses))
    return frozenset(wanted - {"squares"} if "gram" in wanted else wanted)


def region_masks(name: str, tap: Features, targets: Targets) -> list[Array | None]:
    """Masks of a layer's regions: the guides, restricted to what the window owns.

    Without regions, there is one: the window's own boolean mask, or None for a whole image.
    """
    window_mask = owned_mask(name, tap, targets)
    if targets.regions is None:
        return [None if window_mask is None else window_mask > 0]
    guides = targets.regions.guides[name]
    return [guide if window_mask is None else guide * window_mask for guide in guides]


def region_moments(name: str, tap: Features, targets: Targets, *, config: LossConfig) -> Moments:
    """Moments of a layer as sums over each region, with leading axis R."""
    # Unrolled: ``lax.map`` would save memory from four regions on, but take a quarter more time.
    masks = region_masks(name, tap, targets)
    wanted = wanted_moments(config)
    return stacked([moment_sums(tap, wanted=wanted, mask=mask) for mask in masks])


def style_sums(name: str, tap: Features, targets: Targets, *, config: LossConfig) -> Moments:
    """All sums over a layer that the style losses need, with leading axis R.

    For the histogram loss of a whole image, the histograms are computed here. For an image in
    tiles, ``targets.matching`` must hold the result of a first pass over the whole image.
    """
    sums = region_moments(name, tap, targets, config=config)
    if name not in config.matched_layers:
        return sums
    if targets.matching is None:
        counts = region_counts(name, tap, targets)
        maps = matchings(name, counts, targets, mixing=config.style_mixing)
    else:
        maps = targets.matching[name]
    masks = region_masks(name, tap, targets)
    return sums._replace(unmatched=_unmatched(dense(tap), masks, maps))


def _unmatched(features: Array, masks: list[Array | None], maps: Matching) -> Array:
    """Histogram losses of every region against every map, as sums, ``[R, S]`` or ``[R, 1]``."""
    regions, styles = maps.values.shape[:2]

    def loss(region: int, style: int) -> Array:
        one = jax.tree.map(lambda x: x[region, style], maps)
        return histogram_sum(features, one, mask=masks[region])

    return jnp.stack([jnp.stack([loss(r, s) for s in range(styles)]) for r in range(regions)])


def _style_bounds(styles: Array) -> tuple[Array, Array]:
    """Minimum and maximum over all styles, ``[C]`` each, from their quantiles ``[S, C, K + 1]``."""
    return jnp.min(styles[:, :, 0], axis=0), jnp.max(styles[:, :, -1], axis=0)


def region_counts(name: str, tap: Features, targets: Targets) -> Array:
    """Histograms of a layer's regions, between the bounds of the styles, ``[R, C, BINS]``."""
    styles: Any = targets.style[name].quantiles
    features, limits = jax.lax.stop_gradient(dense(tap)), _style_bounds(styles)
    masks = region_masks(name, tap, targets)
    return jnp.stack([histogram(features, *limits, mask=mask) for mask in masks])


def matchings(name: str, counts: Array, targets: Targets, *, mixing: str) -> Matching:
    """Maps that match each region's features to the styles.

    Returns:
      ``Matching`` with leading axes ``[R, 1]`` for the mixed style of each region (mixing
      ``"average"``), or ``[R, S]`` for each style.
    """
    styles: Any = targets.style[name].quantiles
    low, high = _style_bounds(styles)
    if mixing == "average":
        mixed = jnp.einsum("rs,sck->rck", targets.style_weights[name], styles, precision="highest")
        wanted = mixed[:, None]
    else:
        wanted = jnp.broadcast_to(styles[None], (len(counts), *styles.shape))
    of_styles = jax.vmap(matching, in_axes=(None, 0, None, None))
    return jax.vmap(of_styles, in_axes=(0, 0, None, None))(counts, wanted, low, high)


def style_moments(
    variables: Variables,
    style: Array,
    *,
    config: LossConfig,
    evaluation: Evaluation = Evaluation(),
    make_regions: Callable[[Array], Regions],
    mask: Array | None = None,
) -> dict[str, Moments]:
    """Moments (as means) and quantiles of a style image in every style layer.

    Args:
      variables: the network's variables.
      style: ``[h, w, 3]``.
      config: the objective.
      evaluation: how to compute it; only ``tile`` and ``precision`` matter.
      make_regions: makes ``Regions`` of a stack of masks ``[1, h, w]``.
      mask: the part of the style to use, ``[h, w]``; by default all.

    Returns:
      ``{layer: Moments}`` without leading axes.
    """
    # Styles get the same padding as the image. Otherwise the image would imitate the network's
    # response to a border that it does not have.
    if config.padding == "circular" and config.style_names:
        style = whole_strides(style, config.style_names)
        mask = None if mask is None else whole_strides(mask, config.style_names)
    regions = None if mask is None else make_regions(mask[None])
    pixels = style.shape[0] * style.shape[1]
    tile = evaluation.tile or (STYLE_TILE if pixels > 2 * STYLE_TILE**2 else 0)

    def over_image(
        of_layer: Callable[[str, Features, Targets], Any],
        layers: tuple[str, ...],
        targets: Targets,
        **join: Any,
    ) -> dict[str, Any]:
        def of_window(variables: Variables, image: Array, targets: Targets) -> dict[str, Any]:
            options: Any = config.network | {"precision": evaluation.precision}
            taps = network_features(variables, image, layers=layers, **options)
            return {name: of_layer(name, tap, targets) for name, tap in taps.items()}

        function = of_window
        if tile and layers:
            function = tiled(of_window, layers=layers, tile=tile, padding=config.padding, **join)
        return function(variables, style, targets)

    bare = Targets({}, {}, {}, NO_WEIGHTS, {}, regions=regions)
    sums = over_image(partial(region_moments, config=config), config.style_names, bare)
    moments = {
        name: divided(
            jax.tree.map(lambda x: x[0], sums[name]),
            position_count(style, name) if regions is None else regions.sizes[name][0],
        )
        for name in config.style_names
    }
    if not config.matched_layers:
        return moments

    # Histograms need two more passes over the style: the bounds of the bins are the extremes of the
    # whole image, and must be known before anything can be counted.
    def of_extremes(name: str, tap: Features, targets: Targets) -> Array:
        return extremes(dense(tap), mask=region_masks(name, tap, targets)[0])

    limits = over_image(
        of_extremes, config.matched_layers, bare, join=jnp.maximum, neutral=-jnp.inf
    )
    limits = {name: bounds(x) for name, x in limits.items()}

    def of_counts(name: str, tap: Features, targets: Targets) -> Array:
        return histogram(dense(tap), *limits[name], mask=region_masks(name, tap, targets)[0])

    counts = over_image(of_counts, config.matched_layers, bare)
    for name in config.matched_layers:
        moments[name] = moments[name]._replace(quantiles=quantiles(counts[name], *limits[name]))
    return moments


def _vmap(function: Callable[..., Array], *trees: Moments) -> Array:
    """Apply ``jax.vmap``, except to a single element.

    For one element the function itself is cheaper: ``vmap`` adds a batch axis to its loops.
    """
    if len(jax.tree.leaves(trees)[0]) > 1:
        return jax.vmap(function)(*trees)
    return function(*jax.tree.map(lambda x: x[0], trees))[None]


def mixed_losses(
    distance: Callable[[Moments, Moments], Array],
    found: Moments,
    styles: Moments,
    *,
    style_weights: Array,
    mixing: str,
) -> Array:
    """Losses of regions against a mixture of styles.

    ``"average"``: L(M_r, sum_s b_rs A_s), the loss against the averaged moments (neural-style;
    style-transfer-pytorch for means and second moments).

    ``"sum"``: sum_s b_rs L(M_r, A_s), the weighted sum of the losses (neural-style-tf).

    If the style weights sum to 1 and L is a mean squared difference of moments, as for Gram
    matrices, both have the same gradient: the second exceeds the first by
    sum_s b_rs L(A_s, sum_t b_rt A_t), which does not depend on the image.

    Args:
      distance: L, the loss of one region against one style.
      found: M, moments of the regions, with leading axis R.
      styles: A, moments of the styles, with leading axis S.
      shares: b, style weights, ``[R, S]``.
      mixing: ``"average"`` or ``"sum"``.

    Returns:
      Losses of the regions, ``[R]``.

    Raises:
      ValueError: for another mixing.

    >>> one, two = jnp.zeros((1, 1, 1)), jnp.array([[[0.0]], [[2.0]]])
    >>> half = jnp.full((1, 2), 0.5)
    >>> mixed_losses(style_loss, one, two, style_weights=half, mixing="average").tolist()
    [1.0]
    >>> mixed_losses(style_loss, one, two, style_weights=half, mixing="sum").tolist()
    [2.0]
    """
    if mixing == "average":

        def mix(x: Array) -> Array:
            return jnp.einsum("rs,s...->r...", style_weights, x, precision="highest")

        return _vmap(distance, found, jax.tree.map(mix, styles))
    if mixing == "sum":

        def of_styles(found: Moments) -> Array:
            return _vmap(partial(distance, found), styles)

        return jnp.sum(style_weights * _vmap(of_styles, found), axis=1)
    raise ValueError(f"mixing is {mixing!r}: expected 'average' or 'sum'")


def moment_loss(loss: str, found: Moments, target: Moments, *, config: LossConfig) -> Array:
    """One style loss of one region against one style.

    Args:
      loss: ``"gram"``, ``"covariance"``, ``"mean-std"`` or ``"wasserstein"``.
      found: moments of the region, as means, without leading axes.
      target: moments of the style.
      config: the objective.

    Returns:
      Scalar.

    Raises:
      ValueError: for another loss.
    """
    x: Any = found
    y: Any = target
    # Moments are divided by h*w; "chw" divides by C too, and MSE(G / C, A / C) = MSE(G, A) / C^2.
    scale = 1.0
    if config.gram_normalization == "chw" and loss in ("gram", "covariance"):
        scale = 1 / x.gram.shape[-1] ** 2
    if loss == "gram":
        return scale * style_loss(x.gram, y.gram)
    if loss == "covariance":
        return scale * style_loss(covariance(x.mean, x.gram), covariance(y.mean, y.gram))
    if loss == "mean-std":
        squares = [jnp.diagonal(m.gram) if m.squares is None else m.squares for m in (x, y)]
        return mean_std_loss(x.mean, squares[0], y.mean, squares[1])
    if loss == "wasserstein":
        moments = (x.compact_mean, x.compact_gram, y.compact_mean, y.compact_gram)
        channels = x.mean.shape[-1]
        return wasserstein_loss(*moments, eps=config.covariance_eps, channels=channels)
    raise ValueError(f"loss is {loss!r}: expected gram, covariance, mean-std or wasserstein")


def layer_loss(name: str, sums: Moments, targets: Targets, *, config: LossConfig) -> Array:
    """Weighted sum of all style losses of one layer over its regions.

    Args:
      name: the layer.
      sums: from ``style_sums``, added up over all tiles.
      targets: the targets.
      config: the objective.

    Returns:
      Scalar, before the weight of the layer.
    """
    regions, loss_weights = targets.regions, targets.weights.style_losses
    counts = targets.sizes[name][None] if regions is None else regions.sizes[name]
    style_weights = targets.style_weights[name]
    # From sums over regions to means; the moments of styles are means already.
    found = jax.vmap(divided)(sums._replace(unmatched=None), counts)
    styles = targets.style[name]._replace(quantiles=None)
    total = jnp.zeros_like(counts)
    for loss, _ in config.style_losses:
        if loss != "histogram":
            losses = mixed_losses(
                partial(moment_loss, loss, config=config),
                found,
                styles,
                style_weights=style_weights,
                mixing=config.style_mixing,
            )
        elif sums.unmatched is not None:  # a layer of the histogram loss
            unmatched = sums.unmatched / counts[:, None]
            average = config.style_mixing == "average"
            losses = unmatched[:, 0] if average else jnp.sum(style_weights * unmatched, axis=1)
        else:
            continue
        total = total + loss_weights.get(loss, 1.0) * losses
    return jnp.sum(total if regions is None else regions.weights * total)
