"""The records that the package's functions pass to each other.

All but ``Loss`` and ``Solver`` are pytrees of arrays, so that each goes through ``jit``, ``vmap``
and ``scan`` and is saved as it is. Images are float32 RGB in [0, 1], ``[H, W, 3]``; features are
``[h, w, C]``. Nothing here has a batch axis: a batch is a ``vmap``.
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
    """Factors of the loss terms, traced: changing or sweeping one does not recompile.

    Attributes:
      content, style, tv: scalar factors of the three terms.
      content_layers, style_layers: layer name -> scalar factor within its term.
      content_losses, style_losses: loss name -> scalar factor within its term, 1 where left out.
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
    """Where in the image which styles hold; R regions.

    Attributes:
      guides: layer name -> guides of the regions, ``[R, h, w]``.
      sizes: layer name -> sums of the guides, ``[R]``.
      weights: factors of the regions' style losses, ``[R]``, traced.
    """

    guides: dict[str, Array]
    sizes: dict[str, Array]
    weights: Array


class Guidance(NamedTuple):
    """Which style holds where, and what of the content is left as it is; None is the default.

    Attributes:
      blend: factors of the S styles, ``[S]``, or of each region, ``[R, S]``, or a mapping from
        style layers to such factors. By default all styles count the same, or each region has its
        own where there are as many.
      content_masks: R regions of the content, ``[H, W]`` in [0, 1] each, soft edges welcome. Each
        is compared with its styles for itself (Gatys 2017, section 4); what no mask covers has no
        style.
      style_masks: for each style the part of it that counts, ``[h, w]``, or None.
      region_weights: factors of the regions' style losses, ``[R]``; by default 1.
      preserve: ``[H, W]`` in [0, 1], 1 where the content is left as it is. Where no region is
        named, the rest is the region.
    """

    blend: Any = None
    content_masks: Any = None
    style_masks: Sequence[Any] | None = None
    region_weights: Any = None
    preserve: Any = None


class Keep(NamedTuple):
    """What of the content image is left as it is.

    Attributes:
      mask: 1 where the content is kept, ``[H, W]``.
      content: the content image, ``[H, W, 3]``.
    """

    mask: Array
    content: Array


class Window(NamedTuple):
    """Which pixels count of an image that is a piece of a larger one.

    Attributes:
      rows, columns: 1 where they count, else 0, ``[H]`` and ``[W]``.
      start: the window's first row and column in the whole image, ``[2]``; negative where it
        reaches around the border.
    """

    rows: Array
    columns: Array
    start: Array


class Moments(NamedTuple):
    """What is known of the features of a layer; each is None where no loss asks for it.

    Of an image's regions (leading axis R) sums over positions, of S styles means (axis S).

    Attributes:
      gram: outer products of the features, ``[., C, C]``.
      mean: features, ``[., C]``.
      squares: their squares, where the outer products are not asked for, ``[., C]``.
      compact_gram, compact_mean: as ``gram`` and ``mean``, of the features that
        ``projection.compact`` makes, ``[., c, c]`` and ``[., c]``.
      quantiles: of styles only, see ``histogram``, ``[S, C, K + 1]``.
      unmatched: of images only: sum of the mean over channels of the squared differences from
        features matched to the regions' styles, ``[R, 1]``, or to each style, ``[R, S]``.
    """

    gram: Array | None = None
    mean: Array | None = None
    squares: Array | None = None
    compact_gram: Array | None = None
    compact_mean: Array | None = None
    quantiles: Array | None = None
    unmatched: Array | None = None


class Matching(NamedTuple):
    """How features are matched to a style's histogram, see ``histogram``.

    Attributes:
      values: what the edges of the bins are taken to, ``[C, BINS + 1]``.
      low, high: bounds of the bins, ``[C]``.
    """

    values: Array
    low: Array
    high: Array


class Similarity(NamedTuple):
    """The content's self-similarity in a layer, see ``content``.

    Attributes:
      rows, columns: positions whose crossings are compared, of integers.
      matrix: normalised distances of their features, ``[n, n]``.
    """

    rows: Array
    columns: Array
    matrix: Array


class Targets(NamedTuple):
    """What an objective compares with; computed once, outside the step.

    Attributes:
      content: layer name -> features of the content image, ``[h, w, C]``.
      style: layer name -> ``Moments`` of the S style images.
      sizes: layer name -> number of feature positions h*w of the content image, scalar; likewise
        of the squares of a Laplacian under its name, of pixels and of their corners.
      weights: the factors of the terms.
      shares: layer name -> shares of the styles in each region, ``[R, S]``, rows of sum 1, traced;
        the whole image is one region where there are none.
      regions: the regions, or None.
      keep: what is left as it is, or None.
      image: the content image, ``[H, W, 3]``, where its features are computed again at each
        step and ``content`` is empty; else None.
      window: where the image is a piece of a larger one what of it counts, else None.
      similarity: layer name -> the content's self-similarity.
      laplacian: name -> the content's Laplacian, ``[H // p, W // p]``.
      matching: where the image is taken piece by piece, layer name -> ``Matching`` of the whole
        with leading axes ``[R, S]`` as of ``Moments.unmatched``; else None.
    """

    content: Taps
    style: dict[str, Moments]
    sizes: dict[str, Array]
    weights: LossWeights
    shares: dict[str, Array]
    regions: Regions | None = None
    keep: Keep | None = None
    image: Array | None = None
    window: Window | None = None
    similarity: dict[str, Similarity] = {}
    laplacian: dict[str, Array] = {}
    matching: dict[str, Matching] | None = None


class Statistics(NamedTuple):
    """Sums over pixels of local quantities: all that a loss keeps of an image.

    Attributes:
      content: layer name -> sum over positions of the mean over channels of the squared differences
        from the content's features, scalar.
      style: layer name -> ``Moments`` of the R regions.
      tv: total variation of the image, scalar.
      samples: layer name -> features where self-similarity is compared, ``[n, C]``.
      laplacian: name -> sum of squared differences of Laplacians, scalar.
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
      targets: ``(variables, content, styles, *, weights) -> Targets``, and with a keyword
        ``guidance`` where there is any, see ``objective.make_loss``.
      statistics: ``(variables, image, targets) -> Statistics``, additive over pixels.
      head: ``(statistics, targets) -> (loss, Terms)``.
    """

    targets: Callable[..., Any]
    statistics: Callable[..., Any]
    head: Callable[..., tuple[Array, Any]]


class State(NamedTuple):
    """What the next step needs, and what a checkpoint holds.

    Attributes:
      image: the current image, ``[H, W, 3]``.
      opt_state: state of the optimiser.
      count: steps done, int32.
      best_image, best_loss: the evaluated image of lowest loss so far.
      frozen: whether a loss or gradient was not finite; the images then do not change any more.
      average: where the solver averages the decaying sum of the images after each step, see
        ``solver.averaged``; else None.
    """

    image: Array
    opt_state: Any
    count: Array
    best_image: Array
    best_loss: Array
    frozen: Array
    average: Array | None = None


class Info(NamedTuple):
    """Diagnostics of one step, taken at the image before its update.

    Attributes:
      loss: the loss.
      terms: the loss's terms.
      grad_norm: Euclidean norm of the gradient with respect to the image in [0, 1].
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


def as_sequence(styles: Any) -> list[Any]:
    """Style images as a list, from one image or several."""
    return [styles] if isinstance(styles, (jax.Array, np.ndarray)) else list(styles)


def as_image(image: ArrayLike) -> Any:
    """An image as an array of float32 or wider; integers stay, to be refused.

    Arrays of NumPy stay on the host.

    >>> as_image(jnp.zeros((2, 2, 3), jnp.float16)).dtype
    dtype('float32')
    """
    array: Any = image if isinstance(image, np.ndarray) else jnp.asarray(image)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(array.dtype, jnp.float32))
    return array if array.dtype == dtype else array.astype(dtype)


def check_image(what: str, image: Any) -> None:
    """Check that an array is an image.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    if image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"the {what} has shape {image.shape}: expected [height, width, 3]")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(
            f"the {what} has numbers of type {image.dtype}: expected floats in [0, 1]; divide "
            "by 255"
        )
    # An unclipped result may be the next run's input, so a little outside is right.
    if not jnp.isfinite(image).all():
        raise InputError(f"the {what} has NaN or infinite values: expected [0, 1]")
    if image.size and max(-image.min(), image.max() - 1) > 1.5:
        raise InputError(
            f"the {what} has values from {float(image.min()):.4g} to {float(image.max()):.4g}: "
            "expected [0, 1]"
        )
