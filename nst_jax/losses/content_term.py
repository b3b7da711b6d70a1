"""The content term: its targets, its sums over positions, and its value.

    f_1 sum_l w_l mean (F_l - P_l)^2 + f_2 sum_l w_l S_l + sum_p f_p D_p

F_l are the features of the image in layer l and P_l those of the content; S_l is the
self-similarity loss of layer l, and D_p the Laplacian loss over squares of p pixels (see
``content``). The weights of the losses are f, those of the layers w.

Contract: images are ``[H, W, 3]``; features are ``[h, w, C]`` or a product, see ``projection``.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from nst_jax.config.layers import stride
from nst_jax.config.loss import Evaluation, LossConfig, Precision
from nst_jax.losses.content import (
    grid_positions,
    laplacian,
    laplacian_sum,
    sample,
    self_similarity_loss,
    similarity,
)
from nst_jax.losses.tiling import owned_mask, ownership, tiled, tiled_maps
from nst_jax.models.projection import Features, dense, widened
from nst_jax.models.vgg import network_features
from nst_jax.types import NO_WEIGHTS, Array, Similarity, Statistics, Targets, Variables


class ContentTargets(NamedTuple):
    """The fields of ``Targets`` with the same names."""

    content: dict[str, Array]
    similarity: dict[str, Similarity]
    laplacian: dict[str, Array]


def feature_maps(
    variables: Variables, content: Array, *, config: LossConfig, precision: Precision
) -> dict[str, Array]:
    """Features of the content in the layers of the ``features`` loss, ``{layer: [h, w, C]}``."""
    options: Any = config.network | {"precision": precision}
    taps = network_features(variables, content, layers=config.feature_layers, **options)
    return {name: dense(tap) for name, tap in taps.items()}


def content_targets(
    variables: Variables, content: Array, *, config: LossConfig, evaluation: Evaluation
) -> ContentTargets:
    """Compute the targets of the content term; tile by tile for a tiled objective."""
    tiling: dict[str, Any] = {"tile": evaluation.tile, "padding": config.padding}
    maps_of = partial(feature_maps, variables, config=config, precision=evaluation.precision)
    if evaluation.recompute_content or not config.feature_layers:
        features = {}
    elif evaluation.tile:
        features = tiled_maps(maps_of, content, layers=config.feature_layers, **tiling)
    else:
        features = maps_of(content)
    return ContentTargets(
        content=features,
        similarity=_similarities(variables, content, config=config, evaluation=evaluation),
        laplacian={
            name: laplacian(content * config.pixel_range, pool=pool, padding=config.padding)
            for name, pool in config.laplacians.items()
        },
    )


def _similarities(
    variables: Variables, content: Array, *, config: LossConfig, evaluation: Evaluation
) -> dict[str, Similarity]:
    """Self-similarity of the content in every layer of that loss."""
    # Only the sampled features, at most 32 x 32 of each layer, are kept for the whole image. Their
    # distances are not a sum over positions, so they are computed after all tiles.
    layers = config.similar_layers
    if not layers:
        return {}

    def empty_grid(name: str) -> Similarity:
        rows, columns = (grid_positions(side // stride(name)) for side in content.shape[:2])
        return Similarity(jnp.asarray(rows), jnp.asarray(columns), jnp.zeros((0, 0)))

    def of_window(variables: Variables, image: Array, targets: Targets) -> dict[str, Array]:
        options: Any = config.network | {"precision": evaluation.precision}
        taps = network_features(variables, image, layers=layers, **options)
        return {name: samples(name, tap, targets) for name, tap in taps.items()}

    sample_all = of_window
    if evaluation.tile:
        sample_all = tiled(of_window, layers=layers, tile=evaluation.tile, padding=config.padding)
    grids = {name: empty_grid(name) for name in layers}
    sampled = sample_all(variables, content, Targets({}, {}, {}, NO_WEIGHTS, {}, similarity=grids))
    return {name: grids[name]._replace(matrix=similarity(sampled[name])) for name in layers}


def samples(name: str, tap: Features, targets: Targets) -> Array:
    """Features at the grid positions of self-similarity, ``[n, C]``.

    In a window, positions that it does not own are 0: the windows' samples add up to the image's.
    """
    grid, window = targets.similarity[name], targets.window
    if window is None:
        return sample(tap, grid.rows, grid.columns)
    # Grid positions count from the first feature of the whole image, features of a window from its
    # own first one.
    start = window.start // stride(name)
    mask = owned_mask(name, tap, targets)
    return sample(tap, grid.rows - start[0], grid.columns - start[1], mask=mask)


def difference_sum(name: str, tap: Features, target: Array, targets: Targets) -> Array:
    """Squared difference of features, averaged over channels and summed over owned positions."""
    features, target = (widened(x) for x in (dense(tap), target))
    squares, mask = jnp.square(features - target), owned_mask(name, tap, targets)
    squares = squares if mask is None else squares * mask[..., None]
    return jnp.sum(squares) / features.shape[-1]


def laplacian_sums(image: Array, targets: Targets, *, config: LossConfig) -> dict[str, Array]:
    """Sums of squared differences of Laplacians, ``{loss name: scalar}``."""

    def of_pool(name: str, pool: int) -> Array:
        target, window = targets.laplacian[name], targets.window
        mask = None if window is None else ownership(window, shape=target.shape, step=pool)
        return laplacian_sum(
            image * config.pixel_range, target, mask=mask, pool=pool, padding=config.padding
        )

    return {name: of_pool(name, pool) for name, pool in config.laplacians.items()}


def content_value(statistics: Statistics, targets: Targets, *, config: LossConfig) -> Array:
    """The content term before its own weight, scalar."""
    weights, sizes = targets.weights, targets.sizes
    loss_weights = weights.content_losses

    def over_layers(values: dict[str, Array]) -> Array:
        weighted = [weights.content_layers[name] * value for name, value in values.items()]
        return sum(weighted, jnp.zeros_like(statistics.tv))

    means = {name: x / sizes[name] for name, x in statistics.content.items()}
    total = loss_weights.get("features", 1.0) * over_layers(means)
    if config.similar_layers:
        similarities = {
            name: self_similarity_loss(x, targets.similarity[name].matrix)
            for name, x in statistics.samples.items()
        }
        total = total + loss_weights.get("self-similarity", 1.0) * over_layers(similarities)
    for name, x in statistics.laplacian.items():
        total = total + loss_weights.get(name, 1.0) * x / sizes[name]
    return total
