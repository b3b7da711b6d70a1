"""Weights scaled so that every channel's mean activation is 1, the network otherwise the same.

    m_l[c]      = mean of relu_l[..., c] over all images and positions
    K_l[..i,o] <- K_l[..i,o] m_(l-1)[i] / m_l[o],    b_l[o] <- b_l[o] / m_l[o]

K_l and b_l are kernel and bias of the l-th convolution; m_0 = 1, for images are not scaled. Every
feature becomes the original one over its channel's mean: the ReLU and every pooling here (max,
average, l2, scaled or not) are positively homogeneous, pool(c x) = c pool(x) for c > 0, and work on
each channel alone, so the factor passes through them and is taken back by the next kernel. That
holds with any pooling and padding; only the mean of 1 is of the pooling that it was measured with.

Gatys, Ecker and Bethge 2016, section 2, who scaled over the validation set of ImageNet; Gatys et
al. 2017, "Controlling Perceptual Factors in Neural Style Transfer".

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nst_jax.config.layers import CONVS, stride
from nst_jax.config.loss import Pooling
from nst_jax.errors import InputError
from nst_jax.models.projection import dense, map_shape
from nst_jax.models.vgg import network_features
from nst_jax.types import Variables, as_image, check_image
from nst_jax.weights.canonical import Normalization, Weights, WeightsInfo, describe_normalization

RELUS = tuple(conv.replace("conv", "relu") for conv in CONVS)

LEAST_SHARE = 1e-6  # of the layer's mean; of a channel with less there is hardly a mean to measure


def normalize_weights(
    weights: Weights, images: Iterable[ArrayLike], *, pooling: Pooling = "max"
) -> Weights:
    """Scale weights so that every channel's mean activation over some images is 1.

    The module's text has the formula and its sources.

    Args:
      weights: of the full VGG-19, as ``load_weights`` gives them.
      images: ``[H, W, 3]`` in [0, 1] each, of any sizes; taken one after another.
      pooling: with which the mean is to be 1.

    Returns:
      The weights, with ``info.normalized`` set; ``info.form`` is "memory" until they are saved.
      Channels that are not active in these images are as they were, see ``inactive_channels``.

    Raises:
      InputError: for weights that are normalised already or slim, no image, or one that cannot
        be used.
    """
    check_not_normalized(weights.info)
    count = 0

    def counted() -> Iterable[ArrayLike]:
        nonlocal count
        for count, image in enumerate(images, start=1):
            yield image

    means = mean_activations(weights.variables, counted(), pooling=pooling)
    inactive = {layer: len(channels) for layer, channels in inactive_channels(means).items()}
    info = replace(
        weights.info,
        name=f"{weights.info.name}-normalized",
        normalized=Normalization(images=count, pooling=pooling, inactive=inactive),
        form="memory",
        sha256="",
        path="",
    )
    if info.attribution:  # licences ask that changes be told
        info = replace(info, attribution=f"{info.attribution} Channels scaled to a mean of 1.")
    return Weights(dict(scale_activations(weights.variables, means)), info)


def check_not_normalized(info: WeightsInfo) -> None:
    """Check that weights have their activations as trained, as far as is known.

    Raises:
      InputError: where they are normalised.
    """
    if info.normalized:
        raise InputError(
            f"the weights {info.path or info.name} are normalised already "
            f"({describe_normalization(info.normalized)}): expected the original ones"
        )


def mean_activations(
    variables: Variables, images: Iterable[ArrayLike], *, pooling: Pooling = "max"
) -> dict[str, np.ndarray]:
    """Mean of every channel over all images and positions; each position counts the same.

    Args:
      variables: of a full network, see ``VGG19``.
      images: ``[H, W, 3]`` each, of any sizes; taken one after another.
      pooling: of the network, see ``Config``.

    Returns:
      ``reluB_I`` -> ``[C]``, float64.

    Raises:
      InputError: for slim weights, no image, what is none or too small for the deepest layer,
        and activations that are not finite.
    """
    if "lift" in variables:
        raise InputError(
            "these are slim weights, whose lifts lead to the full network's channels as they are: "
            "expected the full VGG-19, run 'nst-jax weights fetch', or name it"
        )
    sums: dict[str, np.ndarray] = {}
    positions = dict.fromkeys(RELUS, 0)
    for number, image in enumerate(images, start=1):
        image = as_image(image)
        check_image(f"image {number}", image)
        check_large_enough(*image.shape[:2], what=f"image {number}")
        # A row's sum is exact enough in float32; that of all rows and images would not be.
        found = network_features(
            variables,
            image,
            layers=RELUS,
            pooling=pooling,
            reduce=lambda _, features: (dense(features).sum(-2), map_shape(features)),
        )
        for layer, (rows, (height, width)) in found.items():
            sums[layer] = sums.get(layer, 0) + np.asarray(rows, np.float64).sum(0)
            positions[layer] += height * width
    if not sums:
        raise InputError("there is no image: expected at least one to measure activations on")
    means = {layer: sums[layer] / positions[layer] for layer in RELUS}
    for layer, mean in means.items():
        if not np.isfinite(mean).all():
            raise InputError(
                f"the activations of {layer} are not finite: expected trained weights and images "
                "in [0, 1]"
            )
    return means


def check_large_enough(height: int, width: int, *, what: str) -> None:
    """Check that every layer has a feature of an image of this size.

    Raises:
      InputError: where the last one has none.
    """
    least = stride(RELUS[-1])
    if min(height, width) < least:
        raise InputError(
            f"{what} is {width}x{height} px, but {RELUS[-1]} needs a shorter side of at least "
            f"{least} px: choose a larger size, or leave it out"
        )


def inactive_channels(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Channels whose mean is nothing, or nothing beside that of their layer.

    Args:
      means: layer -> ``[C]``, as from ``mean_activations``.

    Returns:
      Layer -> indices of its channels; layers without any are left out.

    >>> inactive_channels({"relu1_1": np.array([0.5, 0, 2]), "relu1_2": np.array([3.0])})
    {'relu1_1': array([1])}
    """
    found = {layer: np.flatnonzero(_is_inactive(mean)) for layer, mean in means.items()}
    return {layer: channels for layer, channels in found.items() if channels.size}


def _is_inactive(mean: np.ndarray) -> np.ndarray:
    return mean <= LEAST_SHARE * mean.mean()


def scale_activations(variables: Variables, means: Mapping[str, np.ndarray]) -> Variables:
    """Divide every channel's activations by its mean, by way of the weights.

    Args:
      variables: VGG-19's ``params`` and ``preprocessing``.
      means: ``reluB_I`` -> ``[C]``, as from ``mean_activations``; those of ``inactive_channels``
        count as 1.

    Returns:
      The same with other ``params``; ``prepared`` is left out, for it is of the old ones.
    """
    params = {}
    incoming = np.ones(3)
    for conv, layer in zip(CONVS, RELUS, strict=True):
        kernel, bias = (variables["params"][conv][part] for part in ("kernel", "bias"))
        outgoing = np.where(_is_inactive(means[layer]), 1.0, means[layer])
        scaled = np.asarray(kernel, np.float64) * incoming[:, None] / outgoing
        params[conv] = {
            "kernel": jnp.asarray(scaled, kernel.dtype),
            "bias": jnp.asarray(np.asarray(bias, np.float64) / outgoing, bias.dtype),
        }
        incoming = outgoing
    return {"params": params, "preprocessing": variables["preprocessing"]}
