"""The records that the package's functions pass to each other.

All except ``Loss`` and ``Solver`` are pytrees of arrays, which ``jit``, ``vmap`` and ``scan``
accept and checkpoints store unchanged. Images are float32 RGB in [0, 1], ``[H, W, 3]``; features
are ``[h, w, C]``. Nothing here has a batch axis: use ``vmap`` for a batch.

Axes are written H, W for pixels; h, w for the positions of a layer; C for channels; R for regions
of the image; S for style images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nst_jax.errors import InputError

Array = jax.Array

Variables = Mapping[str, Any]  # Linen collections: "params", "preprocessing"

Taps = dict[str, Array]  # layer name -> features [h, w, C]


class LossWeights(NamedTuple):
    """Weights of the loss terms. They are traced: changing one does not recompile.

    Attributes:
      content, style, tv: weights of the three terms, scalars.
      content_layers, style_layers: layer name -> weight of the layer within its term, scalar.
      content_losses, style_losses: loss name -> weight of the loss within its term, scalar;
        losses that are not listed have the weight 1.
    """

    content: Any
    style: Any
    tv: Any
    content_layers: dict[str, Any]
    style_layers: dict[str, Any]
    content_losses: dict[str, Any] = {}
    style_losses: dict[str, Any] = {}


NO_WEIGHTS = LossWeights(None, None, None, {}, {})


class Regions(NamedTuple):
    """The R regions of the image, each with styles of its own.

    Attributes:
      guides: layer name -> guides (masks at that layer's resolution), ``[R, h, w]``.
      sizes: layer name -> sum of each guide, ``[R]``.
      weights: weights of the regions' style losses, ``[R]``, traced.
    """

    guides: dict[str, Array]
    sizes: dict[str, Array]
    weights: Array


class Guidance(NamedTuple):
    """Which style applies where, and which part of the content is preserved.

    Every attribute may be None, its default.

    Attributes:
      blend: style weights: ``[S]`` for all regions, ``[R, S]`` for each region, or a mapping from
        style layers to either. Each row is scaled to sum to 1. By default each region has its own
        style if there are as many styles as regions, and otherwise all styles weigh the same.
      content_masks: masks of R regions of the content, each ``[H, W]`` in [0, 1]; soft edges are
        allowed. Each region is compared with its own styles (Gatys et al. 2017, section 4). Pixels
        outside all masks have no style.
      style_masks: for each style a mask of the part to use, ``[h, w]`` in [0, 1], or None for all.
      region_weights: weights of the regions' style losses, ``[R]``; by default 1.
      preserve: mask ``[H, W]`` in [0, 1], 1 where the content stays unchanged. Without
        ``content_masks``, the rest of the image becomes the only region.
    """

    blend: Any = None
    content_masks: Any = None
    style_masks: Sequence[Any] | None = None
    region_weights: Any = None
    preserve: Any = None


class Preserved(NamedTuple):
    """The preserved part of the content image.

    Attributes:
      mask: 1 where the content is preserved, ``[H, W]`` in [0, 1].
      content: the content image, ``[H, W, 3]``.
    """

    mask: Array
    content: Array


class Window(NamedTuple):
    """Marks the pixels that a window of a larger image owns.

    Windows overlap; each pixel of the whole image is owned by exactly one of them.

    Attributes:
      rows, columns: 1 for rows and columns that the window owns, else 0, ``[H]`` and ``[W]``.
      start: first row and column of the window in the whole image, ``[2]``; negative if a circular
        window begins across the border.
    """

    rows: Array
    columns: Array
    start: Array


class Moments(NamedTuple):
    """Moments of one layer's features; fields that no loss needs are None.

    For the optimised image these are sums over positions, with a leading axis R (regions). For the
    styles they are means, with a leading axis S.

    Attributes:
      gram: outer products of the features, ``[., C, C]``.
      mean: features, ``[., C]``.
      squares: squared features, ``[., C]``; only if ``gram``, whose diagonal they are, is None.
      compact_gram, compact_mean: as ``gram`` and ``mean``, of the features that
        ``projection.compact`` returns, ``[., c, c]`` and ``[., c]``.
      quantiles: for styles only, see ``histogram``, ``[S, C, K + 1]``.
      unmatched: for images only: squared differences between features and features matched to the
        style's histogram, averaged over channels and summed over positions; ``[R, 1]`` for the
        mixed style of each region, or ``[R, S]`` for each style.
    """

    gram: Array | None = None
    mean: Array | None = None
    squares: Array | None = None
    compact_gram: Array | None = None
    compact_mean: Array | None = None
    quantiles: Array | None = None
    unmatched: Array | None = None


class Matching(NamedTuple):
    """The map that gives features a style's histogram, see ``histogram``.

    Attributes:
      values: images of the bin edges, ``[C, BINS + 1]``; the map is linear in between.
      low, high: first and last bin edge, ``[C]``.
    """

    values: Array
    low: Array
    high: Array


class Similarity(NamedTuple):
    """Self-similarity of the content in one layer, see ``content``.

    Attributes:
      rows, columns: integer indices; the features at their crossings are compared.
      matrix: normalised distances between these n features, ``[n, n]``.
    """

    rows: Array
    columns: Array
    matrix: Array


class Targets(NamedTuple):
    """What an objective compares the image with; computed once, before the first step.

    Attributes:
      content: layer name -> features of the content image, ``[h, w, C]``.
      style: layer name -> ``Moments`` of the S style images.
      sizes: layer name -> number h*w of positions, scalar. Also holds the number of squares of each
        Laplacian, under its name, and those of "pixels" and of their "corners".
      weights: the weights of the terms.
      shares: layer name -> style weights of each region, ``[R, S]``, rows of sum 1, traced. Without
        regions, the whole image is the only region.
      regions: the regions, or None.
      preserved: the preserved part, or None.
      image: the content image, ``[H, W, 3]``, if every step recomputes its features and
        ``content`` is empty; else None.
      window: if the image is a window of a larger one, the part that it owns; else None.
      similarity: layer name -> self-similarity of the content.
      laplacian: loss name -> Laplacian of the content, ``[H // p, W // p]``.
      matching: for an image in tiles, layer name -> ``Matching`` of the whole image with the
        leading axes of ``Moments.unmatched``; else None.
    """

    content: Taps
    style: dict[str, Moments]
    sizes: dict[str, Array]
    weights: LossWeights
    style_weights: dict[str, Array]
    regions: Regions | None = None
    preserved: Preserved | None = None
    image: Array | None = None
    window: Window | None = None
    similarity: dict[str, Similarity] = {}
    laplacian: dict[str, Array] = {}
    matching: dict[str, Matching] | None = None


class Statistics(NamedTuple):
    """Sums over pixels of local quantities, from which the loss follows.

    Attributes:
      content: layer name -> squared differences from the content's features, averaged over channels
        and summed over positions, scalar.
      style: layer name -> ``Moments`` of the R regions.
      tv: total variation of the image, scalar.
      samples: layer name -> features whose self-similarity is compared, ``[n, C]``.
      laplacian: loss name -> sum of squared differences of Laplacians, scalar.
    """

    content: dict[str, Array]
    style: dict[str, Moments]
    tv: Array
    samples: dict[str, Array] = {}
    laplacian: dict[str, Array] = {}


class Terms(NamedTuple):
    """The weighted terms whose sum is the loss."""

    content: Array
    style: Array
    tv: Array


class Loss(NamedTuple):
    """An objective as three pure functions; its value is ``head(statistics(...))``.

    Attributes:
      targets: ``(variables, content, styles, *, weights) -> Targets``, called with a keyword
        ``guidance`` if there is any, see ``objective.make_loss``.
      statistics: ``(variables, image, targets) -> Statistics``, sums over pixels.
      head: ``(statistics, targets) -> (loss, Terms)``.
    """

    targets: Callable[..., Any]
    statistics: Callable[..., Any]
    head: Callable[..., tuple[Array, Any]]


class State(NamedTuple):
    """The state of a run between two steps, which a checkpoint stores.

    Attributes:
      image: the current image, ``[H, W, 3]``.
      opt_state: state of the optimiser.
      count: number of completed steps, int32.
      best_image, best_loss: the evaluated image with the lowest loss so far, and that loss.
      frozen: whether a loss or gradient was not finite; from then on the images do not change.
      average: if the solver averages images, the exponentially decaying sum of the images after
        each step, see ``solver.averaged``; else None.
    """

    image: Array
    opt_state: Any
    count: Array
    best_image: Array
    best_loss: Array
    frozen: Array
    average: Array | None = None


class Info(NamedTuple):
    """Diagnostics of one step, measured at the image before the update.

    Attributes:
      loss: the loss.
      terms: the terms of the loss.
      grad_norm: Euclidean norm of the gradient with respect to the image in [0, 1].
      evaluations: number of evaluations of loss and gradient in this step, int32.
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


def as_sequence(styles: Any) -> list[Any]:
    """Return one style image, or a sequence of them, as a list."""
    return [styles] if isinstance(styles, (jax.Array, np.ndarray)) else list(styles)


def as_image(image: ArrayLike) -> Any:
    """Convert an image to a float32 or wider array.

    NumPy arrays stay on the host. Integer arrays are returned unchanged, for ``check_image`` to
    reject.

    >>> as_image(jnp.zeros((2, 2, 3), jnp.float16)).dtype
    dtype('float32')
    """
    array: Any = image if isinstance(image, np.ndarray) else jnp.asarray(image)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(array.dtype, jnp.float32))
    return array if array.dtype == dtype else array.astype(dtype)


def check_image(what: str, image: Any) -> None:
    """Check that an array is an image: ``[height, width, 3]``, finite floats in about [0, 1].

    Args:
      what: how to name the image in messages.
      image: the array.

    Raises:
      InputError: for another shape or type, or for values outside of [-1.5, 2.5].
    """
    if image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"the {what} has shape {image.shape}: expected [height, width, 3]")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(
            f"the {what} has numbers of type {image.dtype}: expected floats in [0, 1]; divide "
            "by 255"
        )
    # Unclipped results of other runs are valid input, so values may lie somewhat outside [0, 1].
    if not jnp.isfinite(image).all():
        raise InputError(f"the {what} has NaN or infinite values: expected [0, 1]")
    if image.size and max(-image.min(), image.max() - 1) > 1.5:
        raise InputError(
            f"the {what} has values from {float(image.min()):.4g} to {float(image.max()):.4g}: "
            "expected [0, 1]"
        )
