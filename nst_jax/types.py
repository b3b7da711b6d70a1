"""The records that the package's functions pass to each other.

All but ``Loss`` and ``Solver`` are pytrees of arrays, so that each goes through ``jit``, ``vmap``
and ``scan`` and is saved as it is. Images are float32 RGB in [0, 1], ``[H, W, 3]``; features are
``[h, w, C]``. Nothing here has a batch axis: a batch is a ``vmap``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
Variables = Mapping[str, Any]  # Linen collections: "params", "preprocessing"
Taps = dict[str, Array]  # layer name -> features [h, w, C]


class LossWeights(NamedTuple):
    """Factors of the loss terms, traced: changing or sweeping one does not recompile.

    Attributes:
      content, style, tv: scalar factors of the three terms.
      content_layers, style_layers: layer name -> scalar factor within its term.
    """

    content: Any
    style: Any
    tv: Any
    content_layers: dict[str, Any]
    style_layers: dict[str, Any]


class Targets(NamedTuple):
    """What an objective compares with; computed once, outside the step.

    Attributes:
      content: layer name -> features of the content picture, ``[h, w, C]``.
      style: layer name -> normalised Gram matrix of the style pictures, ``[C, C]``.
      sizes: layer name -> number of feature positions h*w of the content picture, scalar.
      weights: the factors of the terms.
    """

    content: Taps
    style: dict[str, Array]
    sizes: dict[str, Array]
    weights: LossWeights


class Statistics(NamedTuple):
    """Sums over pixels of local quantities: all that a loss keeps of a picture.

    Attributes:
      content: layer name -> sum of squared differences from the content's features, scalar.
      style: layer name -> sum over positions of the features' outer products, ``[C, C]``.
      tv: total variation of the picture, scalar.
    """

    content: dict[str, Array]
    style: dict[str, Array]
    tv: Array


class Terms(NamedTuple):
    """The weighted terms whose sum is the loss."""

    content: Array
    style: Array
    tv: Array


class Loss(NamedTuple):
    """An objective as three pure functions; its value is ``head(statistics(...))``.

    Attributes:
      targets: ``(variables, content, styles, *, weights, blend=None) -> Targets``.
      statistics: ``(variables, image, targets) -> Statistics``, additive over pixels.
      head: ``(statistics, targets) -> (loss, Terms)``.
    """

    targets: Callable[..., Any]
    statistics: Callable[..., Any]
    head: Callable[..., tuple[Array, Any]]


class State(NamedTuple):
    """What the next step needs, and what a checkpoint holds.

    Attributes:
      image: the current picture, ``[H, W, 3]``.
      opt_state: state of the optimiser.
      count: steps done, int32.
      best_image, best_loss: the evaluated picture of lowest loss so far.
      frozen: whether a loss or gradient was not finite; the pictures then do not change any more.
    """

    image: Array
    opt_state: Any
    count: Array
    best_image: Array
    best_loss: Array
    frozen: Array


class Info(NamedTuple):
    """Diagnostics of one step, taken at the picture before its update.

    Attributes:
      loss: the loss.
      terms: the loss's terms.
      grad_norm: Euclidean norm of the gradient with respect to the picture in [0, 1].
      evaluations: evaluations of loss and gradient that the step took, int32.
    """

    loss: Array
    terms: Any
    grad_norm: Array
    evaluations: Array


class Solver(NamedTuple):
    """An optimiser bound to a loss, as two pure functions.

    Attributes:
      init: ``(image, variables, targets) -> State``.
      step: ``(state, variables, targets) -> (State, Info)``.
    """

    init: Callable[..., State]
    step: Callable[..., tuple[State, Info]]
