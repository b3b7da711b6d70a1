"""The objective of style transfer as ``head(statistics(image))`` (Gatys et al. 2016, eq. 7).

    L = content_weight * mse_factor * sum_l w_l mean (F_l - P_l)^2
      + style_weight   * mse_factor * sum_l w_l mean (G_l - A_l)^2
      + tv_weight * TV(pixel_range * image)

F_l are features of the picture, P_l of the content, G_l and A_l the normalised Gram matrices of
the picture and of the styles. ``statistics`` holds every sum over pixels and nothing else, so that
a picture may be taken piece by piece; every divisor is a constant of the targets.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config import Config, LossConfig
from nst_jax.errors import InputError
from nst_jax.lift import check_lifted, dense, positions
from nst_jax.losses import gram_matrix, gram_sum, normalize_gram, style_loss, total_variation
from nst_jax.types import Array, Loss, LossWeights, Statistics, Targets, Terms, Variables
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
    """Style pictures as a list, from one picture or several.

    Raises:
      InputError: where there is none.
    """
    pictures = [styles] if isinstance(styles, (jax.Array, np.ndarray)) else list(styles)
    if not pictures:
        raise InputError("no style picture: expected at least one")
    return pictures


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
      ``Loss(targets, statistics, head)``. ``targets`` takes the content ``[H, W, 3]``, one style
      picture or a sequence of them (of any sizes, their Gram matrices averaged with the factors
      ``blend``, which are scaled to sum to 1) and the factors of the terms.
    """
    # One pass serves both terms; a layer in both is computed once.
    layers = tuple(dict.fromkeys(config.content_layers + config.style_layers))

    of_picture = partial(network_features, pooling=config.pooling)

    def style_target(variables: Variables, style: Array) -> dict[str, Array]:
        taps = of_picture(variables, style, layers=config.style_layers)
        return {
            name: gram_matrix(tap, normalization=config.gram_normalization)
            for name, tap in taps.items()
        }

    def targets(
        variables: Variables,
        content: Array,
        styles: Array | Sequence[Array],
        *,
        weights: LossWeights,
        blend: Sequence[float] | Array | None = None,
    ) -> Targets:
        pictures = as_sequence(styles)
        shares = jnp.ones(len(pictures)) if blend is None else jnp.asarray(blend)
        if shares.shape != (len(pictures),):
            raise InputError(
                f"{shares.size} blend factors for {len(pictures)} styles: expected one each"
            )
        shares = (shares / shares.sum()).astype(content.dtype)
        grams = [style_target(variables, style) for style in pictures]
        all_taps = of_picture(variables, content, layers=layers)
        return Targets(
            content={name: dense(all_taps[name]) for name in config.content_layers},
            style={
                name: jnp.tensordot(shares, jnp.stack([gram[name] for gram in grams]), axes=1)
                for name in config.style_layers
            },
            sizes={
                name: jnp.asarray(positions(tap), content.dtype) for name, tap in all_taps.items()
            },
            weights=jax.tree.map(lambda w: jnp.asarray(w, content.dtype), weights),
        )

    def statistics(variables: Variables, image: Array, targets: Targets) -> Statistics:
        taps = of_picture(variables, image, layers=layers)
        return Statistics(
            content={
                name: jnp.sum(jnp.square(dense(taps[name]) - targets.content[name]))
                for name in config.content_layers
            },
            style={name: gram_sum(taps[name]) for name in config.style_layers},
            tv=total_variation(image * config.pixel_range, order=config.tv_order),
        )

    def head(statistics: Statistics, targets: Targets) -> tuple[Array, Terms]:
        weights, sizes = targets.weights, targets.sizes
        content = sum(
            weights.content_layers[name]
            * statistics.content[name]
            / (sizes[name] * targets.content[name].shape[-1])
            for name in config.content_layers
        )
        grams = {
            name: normalize_gram(
                gram, positions=sizes[name], normalization=config.gram_normalization
            )
            for name, gram in statistics.style.items()
        }
        style = sum(
            weights.style_layers[name] * style_loss(grams[name], targets.style[name])
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
