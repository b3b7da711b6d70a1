"""The judge of looks: a network's features at layers that no preset's style term uses."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from look_measures import content_change, style_distance

from nst_jax.images import resize_to
from nst_jax.models import features

STYLE_JUDGES = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
CONTENT_JUDGES = ("relu3_3", "relu4_3")


def make_judge(
    variables: Any, images: Mapping[str, np.ndarray]
) -> Callable[[np.ndarray, str, str], dict[str, float]]:
    """A function of results that gives the two measures of ``look_measures``.

    Args:
      variables: the network that judges, of any width.
      images: contents and styles by name.

    Returns:
      ``(image, content name, style name) -> {"style": ..., "content_change": ...}``.
    """
    layers = tuple(dict.fromkeys(STYLE_JUDGES + CONTENT_JUDGES))
    take = jax.jit(partial(features, layers=layers))
    known: dict[Any, dict[str, np.ndarray]] = {}

    def of(image: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(take(variables, image))

    def of_input(name: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        if (name, shape) not in known:
            known[name, shape] = of(resize_to(images[name], shape=shape))
        return known[name, shape]

    def judge(image: np.ndarray, content: str, style: str) -> dict[str, float]:
        found, shape = of(image), (image.shape[0], image.shape[1])
        own, style_shape = of_input(content, shape), images[style].shape
        painted = of_input(style, (style_shape[0], style_shape[1]))
        over_content = of_input(style, shape)  # place by place
        columns = ([taps[name] for name in CONTENT_JUDGES] for taps in (found, own, over_content))
        return {
            "style": style_distance(
                *({name: taps[name] for name in STYLE_JUDGES} for taps in (found, painted, own))
            ),
            "content_change": content_change(*columns),
        }

    return judge
