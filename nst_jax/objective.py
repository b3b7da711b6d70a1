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

from nst_jax.config import Config, LossConfig
from nst_jax.errors import InputError
from nst_jax.guides import lay_over, layer_guides
from nst_jax.lift import check_lifted, dense, positions
from nst_jax.losses import (
    gram_matrix,
    gram_sum,
    mask_size,
    mixed_style_loss,
    normalize_gram,
    total_variation,
)
from nst_jax.shares import style_shares
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


def loss_weights(config: Config) -> LossWeights:
    """The factors that a ``Config`` sets, as plain numbers."""
    return LossWeights(
        content=config.content_weight,
        style=config.style_weight,
        tv=config.tv_weight,
        content_layers=dict(config.content_layers),
        style_layers=dict(config.style_layers),
    )


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


@lru_cache(maxsize=64)
def make_loss(config: LossConfig) -> Loss:
    """Build the objective of the given structure.

    Equal structures give the same object, so that what was compiled for one serves the next.

    Args:
      config: structure of the objective.

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
    """
    # One pass serves both terms; a layer in both is computed once.
    layers = tuple(dict.fromkeys(config.content_layers + config.style_layers))
    of_picture = partial(network_features, pooling=config.pooling, padding=config.padding)

    of_masks = partial(
        layer_guides, layers=config.style_layers, method=config.guides, padding=config.padding
    )

    def style_target(variables: Variables, style: Array, mask: Array | None) -> dict[str, Array]:
        # A style has the picture's padding, or else the picture would imitate what the network
        # answers to a border that it has not.
        taps = of_picture(variables, style, layers=config.style_layers)
        guides = {} if mask is None else of_masks(mask)
        return {
            name: gram_matrix(tap, mask=guides.get(name), normalization=config.gram_normalization)
            for name, tap in taps.items()
        }

    def make_regions(masks: Array, region_weights: Any) -> Regions:
        guides = jax.vmap(of_masks)(masks)
        weights = jnp.ones(len(masks)) if region_weights is None else region_weights
        return Regions(
            guides=guides,
            sizes=jax.tree.map(jax.vmap(mask_size), guides),
            weights=jnp.asarray(weights, masks.dtype),
        )

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
        all_taps = of_picture(variables, content, layers=layers)
        return Targets(
            content={name: dense(all_taps[name]) for name in config.content_layers},
            style=grams,
            sizes={
                name: jnp.asarray(positions(tap), content.dtype) for name, tap in all_taps.items()
            },
            weights=jax.tree.map(lambda w: jnp.asarray(w, content.dtype), weights),
            shares={name: table.astype(content.dtype) for name, table in shares.items()},
            regions=None if content_masks is None else make_regions(content_masks, region_weights),
            keep=None if keep is None else Keep(keep, content),
        )

    def statistics(variables: Variables, image: Array, targets: Targets) -> Statistics:
        if targets.keep is not None:
            image = lay_over(image, targets.keep.content, targets.keep.mask)
        taps = of_picture(variables, image, layers=layers)
        regions = targets.regions

        def region_grams(name: str) -> Array:
            if regions is None:
                return gram_sum(taps[name])[None]
            # Unrolled: lax.map needs less memory from four regions on, but a quarter more time.
            return jnp.stack([gram_sum(taps[name], mask=guide) for guide in regions.guides[name]])

        return Statistics(
            content={
                name: jnp.sum(jnp.square(dense(taps[name]) - targets.content[name]))
                for name in config.content_layers
            },
            style={name: region_grams(name) for name in config.style_layers},
            tv=total_variation(
                image * config.pixel_range, order=config.tv_order, padding=config.padding
            ),
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
            weights.content_layers[name]
            * statistics.content[name]
            / (sizes[name] * targets.content[name].shape[-1])
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
