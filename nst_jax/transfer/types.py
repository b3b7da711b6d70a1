"""The records of a run: what goes in, how it is computed, what is seen of it, what comes out.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh

from nst_jax.types import Array, Guidance, Info, Loss, State


class Inputs(NamedTuple):
    """Images and masks of a run, checked; of NumPy or on the device.

    Attributes:
      content: the content image, ``[H, W, 3]``.
      styles: the style images, ``[h, w, 3]`` each.
      guidance: which style holds where, see ``guides.check_guidance``.
      init: the initial image in place of the config's, ``[H, W, 3]``, or None.
    """

    content: Any
    styles: list[Any]
    guidance: Guidance = Guidance()
    init: Any = None


class ExecutionPlan(NamedTuple):
    """How a run is computed.

    Attributes:
      tile: longest side of a tile, or 0 for the whole image.
      remat: whether the whole image's activations are computed twice, block by block.
      recompute_content: whether the content's features are computed again at every step.
      memory_size: pairs that L-BFGS remembers; None for the optimiser's own default.
      memory_dtype: their type, see ``lbfgs``.
    """

    tile: int = 0
    remat: bool = False
    recompute_content: bool = False
    memory_size: int | None = None
    memory_dtype: str | None = None


class Execution(NamedTuple):
    """On what and how a run is computed; each is chosen by itself where it is left out.

    Attributes:
      plan: how the last scale is computed, of a ``MemoryPlan``; by default as
        ``config.execution`` and the free memory have it.
      free: bytes of memory that plans are made for; by default measured at the start.
      mesh: several devices. For one image: a mesh of ``sharding.rows_mesh`` divides it by rows,
        with 1 / n of the memory on each; with any other, of ``sharding.make_mesh``, each device has
        the whole image and computes its share of the tiles. For a batch: its images are
        spread over the devices, their number need not divide; one of ``sharding.rows_mesh`` divides
        each image by rows, and with ``groups`` above 1 the images among so many parts of the
        devices.
      together: of a batch, whether all images take each step together; by default not on CPUs,
        but always where they are divided by rows.
    """

    plan: ExecutionPlan | None = None
    free: int | None = None
    mesh: Mesh | None = None
    together: bool | None = None


class LoopMemory(NamedTuple):
    """What the compiled loop of one image takes, in bytes.

    Attributes:
      network, state, targets: its arguments.
      scratch: what it takes while it runs, for activations above all.
    """

    network: int
    state: int
    targets: int
    scratch: int

    @property
    def own(self) -> int:
        """All but the network, which images of one run share."""
        return self.state + self.targets + self.scratch


class MemoryPlan(NamedTuple):
    """What a run will need.

    Attributes:
      execution_plan: how it is computed.
      needs: what the compiled loop takes.
      free: bytes that were free for it, or None where that is not known.
      whole: bytes of the whole image's run as the settings have it, where it does not fit.
    """

    execution_plan: ExecutionPlan
    needs: LoopMemory
    free: int | None
    whole: int | None = None


class Custom(NamedTuple):
    """Objects of one's own in place of the config's.

    Attributes:
      loss: an objective. It knows only what it is given: ``guidance`` where there is any.
      optimizer: any optax transformation of pixels in [0, 1]. Reuse the same object for runs that
        shall share a compilation.
    """

    loss: Loss | None = None
    optimizer: optax.GradientTransformation | None = None


class Progress(NamedTuple):
    """What a callback sees between two chunks of steps.

    Attributes:
      step, steps: steps done and asked for.
      info: diagnostics of the last step, host numbers.
      image: the current image, ``[H, W, 3]``, on the device.
      seconds_per_step: of the last chunk, without compilation.
      compile_s: seconds before the first step: targets and compilation.
      scale, scales: the scale of a run from coarse to fine, from 1, and how many there are.
      recoveries: how often the loss was not finite and the run went back to its best image.
      state: the current state, which the next chunk uses up: copy what is to be kept.
      history: diagnostics so far, pieces of one entry a step.
      steps_s: seconds of all steps of this scale, without compilation.
      position: of a run of ``single.stylize`` a function that gives its ``Position``, on the
        host; call it before the callback returns.
    """

    step: int
    steps: int
    info: Info
    image: Array
    seconds_per_step: float
    compile_s: float
    scale: int = 1
    scales: int = 1
    recoveries: int = 0
    state: Any = None
    history: tuple[Info, ...] = ()
    steps_s: float = 0.0
    position: Callable[[], Any] | None = None


class Callback(NamedTuple):
    """A function that sees a run between chunks of steps, and when.

    Attributes:
      call: called on the host with a ``Progress``; ``False`` stops the run.
      every: call it at each multiple of so many steps at least, or of each of several such numbers;
        by default about every second and a half.

    >>> Callback(print, every=10).multiples
    (10,)
    """

    call: Callable[[Progress], bool | None]
    every: int | Sequence[int] | None = None

    @property
    def multiples(self) -> tuple[int, ...]:
        """``every`` as a tuple."""
        return (self.every,) if isinstance(self.every, int) else tuple(self.every or ())


class EndedScale(NamedTuple):
    """What a run did at one size.

    Attributes:
      shape: height and width.
      steps: how many it took.
      execution_plan: how it was computed.
    """

    shape: tuple[int, int]
    steps: int
    execution_plan: ExecutionPlan


RECOVERIES = 3  # how often a run goes back to its best image

Arrays = dict[str, np.ndarray]


class Position(NamedTuple):
    """Where a run of ``single.stylize`` stands; with its other arguments all that it needs.

    Attributes:
      step: steps done, over all scales.
      scale: the scale that it is at, from 1.
      ended: what it did at the scales before.
      execution_plan: how this scale is computed.
      recoveries: how often it went back to its best image, see ``single.stylize``.
      timing: seconds so far, as in ``Result``.
      state: the leaves of this scale's ``State``.
      history: the leaves of ``Info`` with one entry for each step so far.
      last_plan: how the last scale is to be computed, where that is known before.
      free: bytes that the device had free at the start, or None; coarser scales follow it.
    """

    step: int
    scale: int
    ended: tuple[EndedScale, ...]
    execution_plan: ExecutionPlan
    recoveries: int
    timing: dict[str, float]
    state: Arrays
    history: Arrays
    last_plan: ExecutionPlan | None = None
    free: int | None = None


class Result(NamedTuple):
    """What ``stylize`` and ``stylize_batch`` return.

    Attributes:
      image: the evaluated image of lowest loss, ``[H, W, 3]``, not clipped; after that with the
        content's colours and the parts that are preserved, where these were asked for.
        With ``averaging`` it is the average of the images, but after a divergence. Where a run
        ended before its last scale it is enlarged.
      loss: the lowest loss, of the image as it was evaluated, at the size where the run ended.
      state: the last state, for ``run``; after a divergence its optimiser's part is of no use.
        None with ``averaging``.
      history: ``Info`` of arrays with one entry a step.
      status: ``"done"``, ``"stopped"`` (by the callback) or ``"diverged"`` (the loss or its
        gradient became infinite or NaN; ``image`` is the best before that).
      timing: seconds: ``compile_s``, ``steps_s``.
      scales: of a run from ``stylize`` what it did at each size, coarsest first.
      recoveries: how often it went back to its best image because the loss or its gradient was
        not finite; 0 in a batch.

    Of several images, from ``stylize_batch``, ``image``, ``loss``, ``status`` and ``recoveries``
    have an entry for each, as have the leaves of ``history`` on their second axis, and ``state`` is
    None.
    """

    image: Array
    loss: Any
    state: State | None
    history: Info
    status: Any
    timing: dict[str, float]
    scales: tuple[EndedScale, ...] = ()
    recoveries: Any = 0
