"""The content term: what is compared with the content image, as sums over positions.

    f_1 sum_l w_l mean (F_l - P_l)^2 + f_2 sum_l w_l (self-similarity of layer l) + f_3 (Laplacians)

with features F_l of the image and P_l of the content in layer l, see ``content`` for the
others.

Contract: images are ``[H, W, 3]``; features ``[h, w, C]`` or a product, see ``projection``.
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
from nst_jax.losses.tiling import counted, owned, tiled, tiled_maps
from nst_jax.models.projection import Features, dense, widened
from nst_jax.models.vgg import network_features
from nst_jax.types import NO_WEIGHTS, Array, Similarity, Statistics, Targets, Variables


class ContentTargets(NamedTuple):
    """Fields of ``Targets`` of the same names."""

    content: dict[str, Array]
    similarity: dict[str, Similarity]
    laplacian: dict[str, Array]


def feature_maps(
    variables: Variables, content: Array, *, config: LossConfig, precision: Precision
) -> dict[str, Array]:
    """Features of the content in the layers that are compared position by position."""
    how: Any = config.network | {"precision": precision}
    taps = network_features(variables, content, layers=config.feature_layers, **how)
    return {name: dense(tap) for name, tap in taps.items()}


def content_targets(
    variables: Variables, content: Array, *, config: LossConfig, evaluation: Evaluation
) -> ContentTargets:
    """What the image's content is compared with, of a tiled objective tile by tile."""
    by_tiles: dict[str, Any] = {"tile": evaluation.tile, "padding": config.padding}
    of_window = partial(feature_maps, variables, config=config, precision=evaluation.precision)
    if evaluation.recompute_content or not config.feature_layers:
        features = {}
    elif evaluation.tile:
        features = tiled_maps(of_window, content, layers=config.feature_layers, **by_tiles)
    else:
        features = of_window(content)
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
    layers = config.similar_layers
    if not layers:
        return {}

    def places(name: str) -> Similarity:
        rows, columns = (grid_positions(side // stride(name)) for side in content.shape[:2])
        return Similarity(jnp.asarray(rows), jnp.asarray(columns), jnp.zeros((0, 0)))

    def of_window(variables: Variables, image: Array, targets: Targets) -> dict[str, Array]:
        how: Any = config.network | {"precision": evaluation.precision}
        taps = network_features(variables, image, layers=layers, **how)
        return {name: samples(name, tap, targets) for name, tap in taps.items()}

    take = of_window
    if evaluation.tile:
        take = tiled(of_window, layers=layers, tile=evaluation.tile, padding=config.padding)
    grids = {name: places(name) for name in layers}
    found = take(variables, content, Targets({}, {}, {}, NO_WEIGHTS, {}, similarity=grids))
    return {name: grids[name]._replace(matrix=similarity(found[name])) for name in layers}


def samples(name: str, tap: Features, targets: Targets) -> Array:
    """Features where self-similarity is compared, ``[n, C]``; what a window does not own is 0."""
    grid, window = targets.similarity[name], targets.window
    if window is None:
        return sample(tap, grid.rows, grid.columns)
    start = window.start // stride(name)
    mask = owned(name, tap, targets)
    return sample(tap, grid.rows - start[0], grid.columns - start[1], mask=mask)


def difference_sum(name: str, tap: Features, target: Array, targets: Targets) -> Array:
    """Sum over positions of the mean over channels of the squared difference."""
    features, target = (widened(x) for x in (dense(tap), target))
    differences, own = jnp.square(features - target), owned(name, tap, targets)
    differences = differences if own is None else differences * own[..., None]
    return jnp.sum(differences) / features.shape[-1]


def laplacian_sums(image: Array, targets: Targets, *, config: LossConfig) -> dict[str, Array]:
    """Sums over squares of squared differences of Laplacians."""

    def of_pool(name: str, pool: int) -> Array:
        target, window = targets.laplacian[name], targets.window
        own = None if window is None else counted(window, shape=target.shape, step=pool)
        return laplacian_sum(
            image * config.pixel_range, target, mask=own, pool=pool, padding=config.padding
        )

    return {name: of_pool(name, pool) for name, pool in config.laplacians.items()}


def content_value(statistics: Statistics, targets: Targets, *, config: LossConfig) -> Array:
    """The content term before its factor; scalar."""
    weights, sizes = targets.weights, targets.sizes
    factors = weights.content_losses

    def over_layers(values: dict[str, Array]) -> Array:
        each = [weights.content_layers[name] * value for name, value in values.items()]
        return sum(each, jnp.zeros_like(statistics.tv))

    means = {name: x / sizes[name] for name, x in statistics.content.items()}
    total = factors.get("features", 1.0) * over_layers(means)
    if config.similar_layers:
        alike = {
            name: self_similarity_loss(x, targets.similarity[name].matrix)
            for name, x in statistics.samples.items()
        }
        total = total + factors.get("self-similarity", 1.0) * over_layers(alike)
    for name, x in statistics.laplacian.items():
        total = total + factors.get(name, 1.0) * x / sizes[name]
    return total
