"""The style term: what is kept of the features of each layer, and how it is compared.

    sum_k f_k sum_l w_l sum_r v_r L_k(M_lr, sum_s b_lrs A_ls)

M_lr are moments of the image in region r of layer l, A_ls those of style s, L_k a loss with its
factor f_k. Moments add up: of styles that are mixed by shares b they are those of the mixture. (For
``style_mixing="sum"`` it is sum_s b_lrs L_k(M_lr, A_ls).)

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
from nst_jax.losses.tiling import owned, tiled
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

# Of large styles, whose forward pass as a whole takes more memory than runs of usual sizes.
STYLE_TILE = 512

# What each of ``STYLE_LOSSES`` in config/factors.py is computed from, see ``Moments``.
WANTED = {
    "gram": {"gram"},
    "covariance": {"gram", "mean"},
    "mean-std": {"mean", "squares"},
    "wasserstein": {"compact_gram", "compact_mean", "mean"},
    "histogram": set(),
}


def position_count(image: Array, name: str) -> int:
    """How many positions a layer has of an image."""
    return (image.shape[0] // stride(name)) * (image.shape[1] // stride(name))


def wanted_moments(config: LossConfig) -> frozenset[str]:
    """Fields of ``Moments`` that the losses ask for; outer products have the squares in them."""
    wanted = set().union(*(WANTED[name] for name, _ in config.style_losses))
    return frozenset(wanted - {"squares"} if "gram" in wanted else wanted)


def region_masks(name: str, tap: Features, targets: Targets) -> list[Array | None]:
    """The masks of a layer's regions; of one without a guide, what counts, of booleans."""
    own = owned(name, tap, targets)
    if targets.regions is None:
        return [None if own is None else own > 0]
    guides = targets.regions.guides[name]
    return [guide if own is None else guide * own for guide in guides]


def region_moments(name: str, tap: Features, targets: Targets, *, config: LossConfig) -> Moments:
    """Sums over the regions of a layer, with leading axis R."""
    # Unrolled: lax.map needs less memory from four regions on, but a quarter more time.
    masks = region_masks(name, tap, targets)
    wanted = wanted_moments(config)
    return stacked([moment_sums(tap, wanted=wanted, mask=mask) for mask in masks])


def style_sums(name: str, tap: Features, targets: Targets, *, config: LossConfig) -> Moments:
    """All sums that the losses keep of a layer, with leading axis R.

    Where histograms are compared and the image is whole, they are counted here; of its pieces
    they must be known before, as ``targets.matching``.
    """
    sums = region_moments(name, tap, targets, config=config)
    if name not in config.matched_layers:
        return sums
    if targets.matching is None:
        counts = region_counts(name, tap, targets)
        goals = matchings(name, counts, targets, mixing=config.style_mixing)
    else:
        goals = targets.matching[name]
    masks = region_masks(name, tap, targets)
    return sums._replace(unmatched=_unmatched(dense(tap), masks, goals))


def _unmatched(features: Array, masks: list[Array | None], goals: Matching) -> Array:
    def of_styles(mask: Array | None, goals: Matching) -> Array:
        styles = range(len(goals.values))
        each = [jax.tree.map(lambda x, style=style: x[style], goals) for style in styles]
        return jnp.stack([histogram_sum(features, goal, mask=mask) for goal in each])

    regions = [jax.tree.map(lambda x, r=r: x[r], goals) for r in range(len(masks))]
    return jnp.stack([of_styles(*pair) for pair in zip(masks, regions, strict=True)])


def _style_bounds(styles: Array) -> tuple[Array, Array]:
    """Bounds of all styles from their quantiles ``[S, C, K + 1]``."""
    return jnp.min(styles[:, :, 0], axis=0), jnp.max(styles[:, :, -1], axis=0)


def region_counts(name: str, tap: Features, targets: Targets) -> Array:
    """Histograms of the regions of a layer, ``[R, C, BINS]``, within the styles' bounds."""
    found: Any = targets.style[name].quantiles
    features, limits = jax.lax.stop_gradient(dense(tap)), _style_bounds(found)
    masks = region_masks(name, tap, targets)
    return jnp.stack([histogram(features, *limits, mask=mask) for mask in masks])


def matchings(name: str, counts: Array, targets: Targets, *, mixing: str) -> Matching:
    """How each region's features are matched to its mixed styles, or to each: ``[R, S, ...]``."""
    found: Any = targets.style[name].quantiles
    low, high = _style_bounds(found)
    if mixing == "average":
        goals = jnp.einsum("rs,sck->rck", targets.shares[name], found, precision="highest")[:, None]
    else:
        goals = jnp.broadcast_to(found[None], (len(counts), *found.shape))
    of_styles = jax.vmap(matching, in_axes=(None, 0, None, None))
    return jax.vmap(of_styles, in_axes=(0, 0, None, None))(counts, goals, low, high)


def style_moments(
    variables: Variables,
    style: Array,
    *,
    config: LossConfig,
    evaluation: Evaluation = Evaluation(),
    make_regions: Callable[[Array], Regions],
    mask: Array | None = None,
) -> dict[str, Moments]:
    """Means and quantiles of a style image, by layer, without leading axes.

    Args:
      variables: of the network.
      style: ``[h, w, 3]``.
      config: the objective.
      evaluation: how it is computed; of use are tile and precision.
      make_regions: from masks ``[1, h, w]`` to the style's one region.
      mask: the part of the style that counts, ``[h, w]``; all where it is left out.
    """
    # A style has the image's padding, or else the image would imitate what the network
    # answers to a border that it has not.
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
            how: Any = config.network | {"precision": evaluation.precision}
            taps = network_features(variables, image, layers=layers, **how)
            return {name: of_layer(name, tap, targets) for name, tap in taps.items()}

        take = of_window
        if tile and layers:
            take = tiled(of_window, layers=layers, tile=tile, padding=config.padding, **join)
        return take(variables, style, targets)

    bare = Targets({}, {}, {}, NO_WEIGHTS, {}, regions=regions)
    sums = over_image(partial(region_moments, config=config), config.style_names, bare)
    found = {
        name: divided(
            jax.tree.map(lambda x: x[0], sums[name]),
            position_count(style, name) if regions is None else regions.sizes[name][0],
        )
        for name in config.style_names
    }
    if not config.matched_layers:
        return found

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
        found[name] = found[name]._replace(quantiles=quantiles(counts[name], *limits[name]))
    return found


def _each(function: Callable[..., Array], *trees: Moments) -> Array:
    """``jax.vmap``, but of one element the function itself: loops with a batch axis cost more."""
    if len(jax.tree.leaves(trees)[0]) > 1:
        return jax.vmap(function)(*trees)
    return function(*jax.tree.map(lambda x: x[0], trees))[None]


def mixed_losses(
    distance: Callable[[Moments, Moments], Array],
    found: Moments,
    styles: Moments,
    *,
    shares: Array,
    mixing: str,
) -> Array:
    """Losses of regions against several styles.

    ``"average"``: L(M_r, sum_s b_rs A_s), the styles' moments averaged (neural-style; of means and
    second moments style-transfer-pytorch). ``"sum"``: sum_s b_rs L(M_r, A_s), their losses added
    (neural-style-tf). Where shares sum to 1 and L is a squared difference of what adds up, as of
    Gram matrices, the second is the first plus sum_s b_rs |A_s - sum_t b_rt A_t|^2, which does not
    depend on the image: the same gradient and result, another value.

    Args:
      distance: L, of one region and one style.
      found: moments of the regions, with leading axis R.
      styles: those of the styles, with leading axis S.
      shares: b, ``[R, S]``.
      mixing: ``"average"`` or ``"sum"``.

    Returns:
      ``[R]``.

    Raises:
      ValueError: for another mixing.
    """
    if mixing == "average":

        def mix(x: Array) -> Array:
            return jnp.einsum("rs,s...->r...", shares, x, precision="highest")

        return _each(distance, found, jax.tree.map(mix, styles))
    if mixing == "sum":

        def of_styles(found: Moments) -> Array:
            return _each(partial(distance, found), styles)

        return jnp.sum(shares * _each(of_styles, found), axis=1)
    raise ValueError(f"mixing is {mixing!r}: expected 'average' or 'sum'")


def moment_loss(loss: str, found: Moments, target: Moments, *, config: LossConfig) -> Array:
    """One loss of one region against one style, from their means; scalar."""
    x: Any = found
    y: Any = target
    # MSE(G / C, A / C) = MSE(G, A) / C^2.
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
        given = (x.compact_mean, x.compact_gram, y.compact_mean, y.compact_gram)
        channels = x.mean.shape[-1]
        return wasserstein_loss(*given, eps=config.covariance_eps, channels=channels)
    raise ValueError(f"loss is {loss!r}: expected gram, covariance, mean-std or wasserstein")


def layer_loss(name: str, sums: Moments, targets: Targets, *, config: LossConfig) -> Array:
    """The style loss of one layer over its regions, all losses with their factors added; scalar."""
    regions, factors = targets.regions, targets.weights.style_losses
    counts = targets.sizes[name][None] if regions is None else regions.sizes[name]
    shares = targets.shares[name]
    found = jax.vmap(divided)(sums._replace(unmatched=None), counts)
    styles = targets.style[name]._replace(quantiles=None)
    total = jnp.zeros_like(counts)
    for loss, _ in config.style_losses:
        if loss != "histogram":
            losses = mixed_losses(
                partial(moment_loss, loss, config=config),
                found,
                styles,
                shares=shares,
                mixing=config.style_mixing,
            )
        elif sums.unmatched is not None:  # of this layer
            unmatched = sums.unmatched / counts[:, None]
            mixed = config.style_mixing == "average"
            losses = unmatched[:, 0] if mixed else jnp.sum(shares * unmatched, axis=1)
        else:
            continue
        total = total + factors.get(loss, 1.0) * losses
    return jnp.sum(total if regions is None else regions.weights * total)
