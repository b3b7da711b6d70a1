"""What a preset is. Standard library only."""

from dataclasses import dataclass
from typing import Literal

from nst_jax.config import Config

# Which VGG-19: its two trainings, and the first with activations scaled to a mean of 1 a channel.
# Those of "caffe" are some hundred times those of "torchvision".
Network = Literal["caffe", "torchvision", "caffe-normalized"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named setting.

    Attributes:
      summary: what it is, one line.
      formula: the objective.
      source: where it was published.
      notes: what to know when comparing with the source.
      weights: the network that its factors were chosen for; with another one content, style and
        total variation are out of balance.
      config: the settings.
      size: longer side of the picture in pixels.
    """

    summary: str
    formula: str
    source: str
    notes: str
    weights: Network
    config: Config
    size: int
