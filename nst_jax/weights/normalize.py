"""Scale weights so that every channel has a mean activation of 1, without changing the network.

    m_l[c]      = mean of relu_l[..., c] over all images and positions
    K_l[..i,o] <- K_l[..i,o] m_(l-1)[i] / m_l[o],    b_l[o] <- b_l[o] / m_l[o]

K_l and b_l are the kernel and bias of the l-th convolution; m_0 = 1, since images are not scaled.
Each feature becomes the original one divided by the mean of its channel. The ReLU and all poolings
here (max, average, l2, scaled or not) work on each channel alone and are positively homogeneous,
pool(c x) = c pool(x) for c > 0: the factor passes through them, and the next kernel undoes it. This
holds with any pooling and padding, but the means are 1 only with the pooling that they were
measured with.

References: Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural
Networks", section 2, who normalised over the validation set of ImageNet; Gatys et al. 2017,
"Controlling Perceptual Factors in Neural Style Transfer".

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

# A channel is inactive if its mean is at most this fraction of its layer's mean. Dividing by so
# small a mean would amplify rounding errors a million times.
_INACTIVE_BELOW = 1e-6


def normalize_weights(
    weights: Weights, images: Iterable[ArrayLike], *, pooling: Pooling = "max"
) -> Weights:
    """Scale weights so that every channel's mean activation over some images is 1.

    See ``nst_jax.weights.normalize`` for the formula and references.

    Args:
      weights: of the full VGG-19, as ``load_weights`` returns them.
      images: ``[H, W, 3]`` in [0, 1] each, of any sizes; read one at a time.
      pooling: the pooling with which the means are to be 1.

    Returns:
      The weights, with ``info.normalized`` set. ``info.form`` is "memory" until they are saved.
      Channels that are inactive in these images are not scaled, see ``inactive_channels``.

    Raises:
      InputError: if the weights are normalised already or slim, if there is no image, or if an
        image cannot be used.
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
    if info.attribution:  # CC BY 4.0 requires that changes be indicated
        info = replace(info, attribution=f"{info.attribution} Channels scaled to a mean of 1.")
    return Weights(dict(scale_activations(weights.variables, means)), info)


def check_not_normalized(info: WeightsInfo) -> None:
    """Check that weights are not known to be normalised.

    Raises:
      InputError: if they are.
    """
    if info.normalized:
        raise InputError(
            f"expected the original weights, but {info.path or info.name} are normalised already "
            f"({describe_normalization(info.normalized)})"
        )


def mean_activations(
    variables: Variables, images: Iterable[ArrayLike], *, pooling: Pooling = "max"
) -> dict[str, np.ndarray]:
    """Mean activation of every channel over all images and positions, weighted equally.

    Args:
      variables: of a full network, see ``VGG19``.
      images: ``[H, W, 3]`` each, of any sizes; read one at a time.
      pooling: of the network, see ``Config``.

    Returns:
      ``reluB_I`` -> ``[C]``, float64.

    Raises:
      InputError: for slim weights, no image, an invalid image or one that is too small for the
        deepest layer, and activations that are not finite.
    """
    if "lift" in variables:
        raise InputError(
            "expected the full VGG-19, got slim weights, whose projections approximate the "
            "unscaled channels of the full network: run 'nst-jax weights fetch', or name a file"
        )
    sums: dict[str, np.ndarray] = {}
    positions = dict.fromkeys(RELUS, 0)
    for number, image in enumerate(images, start=1):
        image = as_image(image)
        check_image(f"image {number}", image)
        check_large_enough(*image.shape[:2], what=f"image {number}")
        # float32 is exact enough for the sum over a row, but not for all rows and images.
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
        raise InputError("expected at least one image to measure activations on, got none")
    means = {layer: sums[layer] / positions[layer] for layer in RELUS}
    for layer, mean in means.items():
        if not np.isfinite(mean).all():
            raise InputError(
                f"expected finite activations, got NaN or infinity in {layer}: use trained "
                "weights and images in [0, 1]"
            )
    return means


def check_large_enough(height: int, width: int, *, what: str) -> None:
    """Check that an image of this size has at least one feature in the deepest layer.

    Args:
      height, width: of the image, in pixels.
      what: names the image in the message.

    Raises:
      InputError: if it has none.
    """
    least = stride(RELUS[-1])
    if min(height, width) < least:
        raise InputError(
            f"expected a shorter side of at least {least} px, which {RELUS[-1]} needs, got "
            f"{width}x{height} px for {what}: choose a larger size, or leave the image out"
        )


def inactive_channels(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Find channels whose mean is zero, or negligible beside that of their layer.

    Args:
      means: layer -> ``[C]``, as from ``mean_activations``.

    Returns:
      Layer -> indices of its inactive channels, for layers that have any.

    >>> inactive_channels({"relu1_1": np.array([0.5, 0, 2]), "relu1_2": np.array([3.0])})
    {'relu1_1': array([1])}
    """
    found = {layer: np.flatnonzero(_is_inactive(mean)) for layer, mean in means.items()}
    return {layer: channels for layer, channels in found.items() if channels.size}


def _is_inactive(mean: np.ndarray) -> np.ndarray:
    return mean <= _INACTIVE_BELOW * mean.mean()


def scale_activations(variables: Variables, means: Mapping[str, np.ndarray]) -> Variables:
    """Scale the weights so that each channel's activations are divided by its mean.

    Args:
      variables: VGG-19's ``params`` and ``preprocessing``.
      means: ``reluB_I`` -> ``[C]``, as from ``mean_activations``. Those of ``inactive_channels``
        are replaced by 1.

    Returns:
      The variables with new ``params``. The collection ``prepared`` is dropped, because it was
      computed from the old ones.
    """
    params = {}
    incoming = np.ones(3)  # m_(l-1) of the module's formula; outgoing is m_l
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
