"""Weights as loaded to weights with mean activations of 1, with a record of that."""

from collections.abc import Iterable
from dataclasses import replace

from jax.typing import ArrayLike

from nst_jax.activation_scale import inactive_channels, mean_activations, scale_activations
from nst_jax.config import Pooling
from nst_jax.errors import InputError
from nst_jax.normalization import Normalization, in_words
from nst_jax.weights import Weights, WeightsInfo


def normalize_weights(
    weights: Weights, pictures: Iterable[ArrayLike], *, pooling: Pooling = "max"
) -> Weights:
    """Scale weights so that every channel's mean activation over some pictures is 1.

    See ``activation_scale.py`` for the formula and its sources.

    Args:
      weights: of the full VGG-19, as ``load_weights`` gives them.
      pictures: ``[H, W, 3]`` in [0, 1] each, of any sizes; taken one after another.
      pooling: with which the mean is to be 1.

    Returns:
      The weights, with ``info.normalized`` set; ``info.form`` is "memory" until they are saved.
      Channels that are not active in these pictures are as they were, see ``inactive_channels``.

    Raises:
      InputError: for weights that are normalised already or slim, no picture, or one that cannot
        be used.
    """
    check_not_normalized(weights.info)
    count = 0

    def counted() -> Iterable[ArrayLike]:
        nonlocal count
        for count, picture in enumerate(pictures, start=1):
            yield picture

    means = mean_activations(weights.variables, counted(), pooling=pooling)
    inactive = {layer: len(channels) for layer, channels in inactive_channels(means).items()}
    info = replace(
        weights.info,
        name=f"{weights.info.name}-normalized",
        normalized=Normalization(pictures=count, pooling=pooling, inactive=inactive),
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
            f"({in_words(info.normalized)}): expected the original ones"
        )
