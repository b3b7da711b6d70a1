"""The objective of style transfer as ``head(statistics(image))`` (Gatys et al. 2016, eq. 7).

    L = content_weight * mse_factor * sum_l w_l mean (F_l - P_l)^2
      + style_weight   * mse_factor * sum_l w_l sum_r v_r mean (G_lr - A_lr)^2
      + tv_weight * TV(pixel_range * image)

F_l are features of the picture, P_l of the content; G_lr are the picture's Gram matrices in region
r, with factor v_r, and A_lr = sum_s b_lrs A_ls those of the styles mixed by shares b. The whole
picture is one region where there are none. (``style_mixing="sum"`` has sum_s b_lrs mean (G_lr -
A_ls)^2 in place of mean (G_lr - A_lr)^2.) ``statistics`` holds every sum over pixels and nothing
else, so that a picture may be taken piece by piece; every divisor is a constant of the targets.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nst_jax.color_matching import grey
from nst_jax.config import Config, LossConfig
from nst_jax.errors import InputError
from nst_jax.guides import lay_over, layer_guides, whole_strides
from nst_jax.layers import check_sides, stride
from nst_jax.lift import Features, check_lifted, dense, map_shape, widened
from nst_jax.losses import (
    gram_sum,
    mask_size,
    mixed_style_loss,
    normalize_gram,
    total_variation,
)
from nst_jax.shares import style_shares
from nst_jax.tiling import tiled, tiled_maps
from nst_jax.types import (
    Array,
    Keep,
    Loss,
    LossWeights,
    Regions,
    Statistics,
    Targets,
    Terms,
    Variables,
)
from nst_jax.vgg import network_features
from nst_jax.windows import counted

# Of large styles, whose forward pass as a whole takes more memory than runs of usual sizes.
STYLE_TILE = 512
NO_WEIGHTS = LossWeights(None, None, None, {}, {})


def loss_weights(config: Config) -> LossWeights:
    """The factors that a ``Config`` sets, as plain numbers."""
    return LossWeights(
        content=config.content_weight,
        style=config.style_weight,
        tv=config.tv_weight,
        content_layers=dict(config.content_layers),
        style_layers=dict(config.style_layers),
        content_losses=dict(config.content_losses),
        style_losses=dict(config.style_losses),
    )


@lru_cache(maxsize=64)
def of_luminance(loss: Loss) -> Loss:
    """A loss that sees the luminance of a picture only; of equal losses it is the same object."""

    def statistics(variables: Variables, image: Array, targets: Targets):
        return loss.statistics(variables, grey(image), targets)

    return loss._replace(statistics=statistics)


def as_sequence(styles: Any) -> list[Any]:
    """Style pictures as a list, from one picture or several."""
    return [styles] if isinstance(styles, (jax.Array, np.ndarray)) else list(styles)


def check_learned(variables: Variables, config: LossConfig) -> None:
    """Check, before anything is computed, that slim weights have learned what an objective needs.

    Raises:
      InputError: where they have not; full weights have no such limits.
    """
    if "lift" in variables:
        layers = config.content_layers + config.style_layers
        check_lifted(variables["lift"], layers=layers, pooling=config.pooling)


def make_loss(config: LossConfig, *, mesh: Mesh | None = None) -> Loss:
    """Build the objective of the given structure.

    Equal structures give the same object, so that what was compiled for one serves the next.

    Args:
      config: structure of the objective, and how it is computed.
      mesh: devices among which tiles are divided, see ``tiling.tiled``.

    Returns:
      ``Loss(targets, statistics, head)``. ``targets`` takes, after the variables, the content
      ``[H, W, 3]`` and one style picture or a sequence of S (of any sizes), and by keyword

      - ``weights``: the factors of the terms;
      - ``blend``: factors of the styles, see ``shares.style_shares``;
      - ``content_masks``: R regions of the content, ``[R, H, W]`` in [0, 1];
      - ``style_masks``: for each style the part of it that counts, ``[h, w]``, or None;
      - ``region_weights``: factors of the regions' style losses, ``[R]``, by default 1;
      - ``keep``: where the content is left as it is, ``[H, W]``. The picture that is compared is
        there the content's;
      - ``grams``: the styles' Gram matrices, ``Targets.style`` of an earlier call, in place of the
        style pictures.

      With circular padding styles and their masks are cropped, see ``guides.whole_strides``.
    """
    return _make_loss(config, mesh)


@lru_cache(maxsize=64)
def _make_loss(config: LossConfig, mesh: Mesh | None) -> Loss:
    # One pass serves both terms; a layer in both is computed once.
    layers = tuple(dict.fromkeys(config.content_layers + config.style_layers))
    of_picture = partial(
        network_features,
        pooling=config.pooling,
        padding=config.padding,
        precision=config.precision,
    )
    of_masks = partial(
        layer_guides, layers=config.style_layers, method=config.guides, padding=config.padding
    )
    by_tiles: dict[str, Any] = {"tile": config.tile, "padding": config.padding}

    def content_features(variables: Variables, content: Array) -> dict[str, Array]:
        taps = of_picture(variables, content, layers=config.content_layers)
        return {name: dense(tap) for name, tap in taps.items()}

    def owned(name: str, tap: Features, targets: Targets) -> Array | None:
        """What of a layer's features counts, ``[h, w]``, or None for all."""
        if targets.window is None:
            return None
        return counted(targets.window, shape=map_shape(tap), step=stride(name))

    def region_grams(name: str, tap: Features, targets: Targets) -> Array:
        """Sums of outer products in each region, ``[R, C, C]``."""
        regions, own = targets.regions, owned(name, tap, targets)
        if regions is None:
            return gram_sum(tap, mask=None if own is None else own > 0)[None]
        # Unrolled: lax.map needs less memory from four regions on, but a quarter more time.
        masks = [guide if own is None else guide * own for guide in regions.guides[name]]
        return jnp.stack([gram_sum(tap, mask=mask) for mask in masks])

    def content_sum(name: str, tap: Features, target: Array, targets: Targets) -> Array:
        """Sum over positions of the mean over channels of the squared difference."""
        features, target = (widened(x) for x in (dense(tap), target))
        differences, own = jnp.square(features - target), owned(name, tap, targets)
        differences = differences if own is None else differences * own[..., None]
        return jnp.sum(differences) / features.shape[-1]

    def style_sums(variables: Variables, style: Array, targets: Targets) -> dict[str, Array]:
        taps = of_picture(variables, style, layers=config.style_layers)
        return {name: region_grams(name, tap, targets) for name, tap in taps.items()}

    def style_target(variables: Variables, style: Array, mask: Array | None) -> dict[str, Array]:
        # A style has the picture's padding, or else the picture would imitate what the network
        # answers to a border that it has not.
        if config.padding == "circular" and config.style_layers:
            style = whole_strides(style, config.style_layers)
            mask = None if mask is None else whole_strides(mask, config.style_layers)
        regions = None if mask is None else make_regions(mask[None], None)
        take, pixels = style_sums, style.shape[0] * style.shape[1]
        tile = config.tile or (STYLE_TILE if pixels > 2 * STYLE_TILE**2 else 0)
        if tile and config.style_layers:
            take = tiled(style_sums, layers=config.style_layers, tile=tile, padding=config.padding)
        sums = take(variables, style, Targets({}, {}, {}, NO_WEIGHTS, {}, regions=regions))
        return {
            name: normalize_gram(
                gram[0],
                positions=count(style, name) if regions is None else regions.sizes[name][0],
                normalization=config.gram_normalization,
            )
            for name, gram in sums.items()
        }

    def count(image: Array, name: str) -> int:
        return (image.shape[0] // stride(name)) * (image.shape[1] // stride(name))

    def make_regions(masks: Array, region_weights: Any) -> Regions:
        guides = jax.vmap(of_masks)(masks)
        weights = jnp.ones(len(masks)) if region_weights is None else region_weights
        return Regions(
            guides=guides,
            sizes=jax.tree.map(jax.vmap(mask_size), guides),
            weights=jnp.asarray(weights, masks.dtype),
        )

    def content_targets(variables: Variables, content: Array) -> dict[str, Array]:
        if config.recompute_content or not config.content_layers:
            return {}
        of_window = partial(content_features, variables)
        if not config.tile:
            return of_window(content)
        return tiled_maps(of_window, content, layers=config.content_layers, **by_tiles)

    def targets(
        variables: Variables,
        content: Array,
        styles: Array | Sequence[Array],
        *,
        weights: LossWeights,
        blend: Any = None,
        content_masks: Array | None = None,
        style_masks: Sequence[Array | None] | None = None,
        region_weights: Any = None,
        keep: Array | None = None,
        grams: dict[str, Array] | None = None,
    ) -> Targets:
        pictures = as_sequence(styles)
        if config.style_layers and not pictures and grams is None:
            raise InputError("no style picture: expected at least one")
        check_sides(content.shape[0], content.shape[1], layers)
        masks = [None] * len(pictures) if style_masks is None else style_masks
        if grams is None:
            each = [style_target(variables, *pair) for pair in zip(pictures, masks, strict=True)]
            grams = {name: jnp.stack([gram[name] for gram in each]) for name in config.style_layers}
        shares = style_shares(
            blend,
            layers=config.style_layers,
            regions=1 if content_masks is None else len(content_masks),
            styles=len(next(iter(grams.values()), pictures)),
        )
        again = config.recompute_content and config.content_layers
        return Targets(
            content=content_targets(variables, content),
            style=grams,
            sizes={name: jnp.asarray(count(content, name), content.dtype) for name in layers},
            weights=jax.tree.map(lambda w: jnp.asarray(w, content.dtype), weights),
            shares={name: table.astype(content.dtype) for name, table in shares.items()},
            regions=None if content_masks is None else make_regions(content_masks, region_weights),
            keep=None if keep is None else Keep(keep, content),
            picture=content if again else None,
        )

    def of_window(variables: Variables, image: Array, targets: Targets) -> Statistics:
        if targets.keep is not None:
            image = lay_over(image, targets.keep.content, targets.keep.mask)
        wanted = targets.content
        if targets.picture is not None:
            wanted = content_features(variables, targets.picture)

        def sums(name: str, tap: Features) -> tuple[Array | None, Array | None]:
            return (
                content_sum(name, tap, wanted[name], targets)
                if name in config.content_layers
                else None,
                region_grams(name, tap, targets) if name in config.style_layers else None,
            )

        found = of_picture(variables, image, layers=layers, remat=config.remat, reduce=sums)
        own = None if targets.window is None else counted(targets.window, shape=image.shape)
        return Statistics(
            content={name: found[name][0] for name in config.content_layers},
            style={name: found[name][1] for name in config.style_layers},
            tv=total_variation(
                image * config.pixel_range,
                order=config.tv_order,
                padding=config.padding,
                mask=own,
            ),
        )

    statistics = (
        tiled(of_window, layers=layers, mesh=mesh, **by_tiles) if config.tile else of_window
    )

    def style_layer(name: str, gram: Array, targets: Targets) -> Array:
        """The style loss of one layer over its regions."""
        regions = targets.regions
        counts = targets.sizes[name][None] if regions is None else regions.sizes[name]
        normalize = partial(normalize_gram, normalization=config.gram_normalization)
        losses = mixed_style_loss(
            jax.vmap(lambda gram, count: normalize(gram, positions=count))(gram, counts),
            targets.style[name],
            shares=targets.shares[name],
            mixing=config.style_mixing,
        )
        return jnp.sum(losses if regions is None else regions.weights * losses)

    def head(statistics: Statistics, targets: Targets) -> tuple[Array, Terms]:
        weights, sizes = targets.weights, targets.sizes
        content = sum(
            weights.content_layers[name] * statistics.content[name] / sizes[name]
            for name in config.content_layers
        )
        style = sum(
            weights.style_layers[name] * style_layer(name, statistics.style[name], targets)
            for name in config.style_layers
        )
        zero = jnp.zeros_like(statistics.tv)
        terms = Terms(
            content=zero + weights.content * config.mse_factor * content,
            style=zero + weights.style * config.mse_factor * style,
            tv=weights.tv * statistics.tv,
        )
        return terms.content + terms.style + terms.tv, terms

    return Loss(targets=targets, statistics=statistics, head=head)
