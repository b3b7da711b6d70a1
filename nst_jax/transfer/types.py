"""The records of a run: inputs, execution plan, progress, resume point and result.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh

from nst_jax.types import Array, Guidance, Info, Loss, State


class Inputs(NamedTuple):
    """The checked images and masks of a run, as NumPy arrays or on the device.

    Attributes:
      content: the content image, ``[H, W, 3]``.
      styles: the style images, ``[h, w, 3]`` each.
      guidance: which style applies where, see ``guides.check_guidance``.
      init: an initial image ``[H, W, 3]`` that replaces the config's, or None.
    """

    content: Any
    styles: list[Any]
    guidance: Guidance = Guidance()
    init: Any = None


class ExecutionPlan(NamedTuple):
    """How a run is computed.

    Attributes:
      tile: longest side of a tile in pixels, or 0 for the whole image.
      remat: whether each block's activations are recomputed in the backward pass (gradient
        checkpointing) instead of stored.
      recompute_content: whether the content's features are recomputed at every step instead of
        stored with the targets.
      memory_size: pairs that L-BFGS remembers; None for the optimiser's default.
      memory_dtype: dtype of these pairs, see ``lbfgs``.
    """

    tile: int = 0
    remat: bool = False
    recompute_content: bool = False
    memory_size: int | None = None
    memory_dtype: str | None = None


class Execution(NamedTuple):
    """Where and how a run is computed; every field left out is chosen automatically.

    Attributes:
      plan: the execution plan of the last scale; by default it follows from ``config.execution``
        and the free memory.
      free: bytes of free memory to plan for; by default measured at the start.
      mesh: several devices. One image on a mesh of ``sharding.rows_mesh`` is divided by rows and
        takes 1 / n of the memory on each of n devices; on a mesh of ``sharding.make_mesh`` every
        device holds the whole image and computes its share of the tiles. The images of a batch
        are spread over the devices, in any number. On a mesh of ``sharding.rows_mesh`` each image
        of the batch is divided by rows; with ``groups`` above 1 the images are first divided among
        the groups of devices.
      together: whether all images of a batch take each step together. The default is False on
        CPUs and True elsewhere, and always True for images divided by rows.
    """

    plan: ExecutionPlan | None = None
    free: int | None = None
    mesh: Mesh | None = None
    together: bool | None = None


class LoopMemory(NamedTuple):
    """Memory of the compiled loop of one image, in bytes.

    Attributes:
      network, state, targets: the loop's arguments.
      scratch: temporary memory while the loop runs, mostly activations.
    """

    network: int
    state: int
    targets: int
    scratch: int

    @property
    def per_image(self) -> int:
        """All but the network, which the images of a run share."""
        return self.state + self.targets + self.scratch


class MemoryPlan(NamedTuple):
    """An execution plan and the memory that it needs.

    Attributes:
      execution_plan: how the run is computed.
      needs: memory of the compiled loop.
      free: bytes that were free, or None if unknown.
      whole: bytes that the plan of the settings would need, if it does not fit; else None.
    """

    execution_plan: ExecutionPlan
    needs: LoopMemory
    free: int | None
    whole: int | None = None


class Custom(NamedTuple):
    """An objective and an optimiser that replace the config's.

    Attributes:
      loss: an objective. It receives ``guidance`` only if any is given.
      optimizer: any optax transformation of pixels in [0, 1]. Runs share a compilation if they are
        given the same object.
    """

    loss: Loss | None = None
    optimizer: optax.GradientTransformation | None = None


class Progress(NamedTuple):
    """What a callback receives between two chunks of steps.

    Attributes:
      step, steps: steps done, and steps in total.
      info: diagnostics of the last step, on the host.
      image: the current image, ``[H, W, 3]``, on the device.
      seconds_per_step: mean over the last chunk, without compilation.
      compile_s: seconds before the first step, for targets and compilation.
      scale, scales: number of the current scale, from 1 at the coarsest, and number of scales.
      recoveries: how often the run has returned to its best image after a non-finite loss.
      state: the current state. The next chunk donates its buffers, so copy what you want to keep.
      history: diagnostics so far, in pieces with one entry per step.
      steps_s: seconds of all steps of this scale, without compilation.
      position: in a run of ``single.stylize``, a function that returns the resume point, a
        ``Position`` on the host. Call it before the callback returns.
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
    """A function to call between chunks of steps, and how often.

    Attributes:
      call: called on the host with a ``Progress``; returning ``False`` stops the run.
      every: a number of steps, or several numbers, at whose multiples the function is called
        without fail. In between, and by default, it is called about every 1.5 seconds.

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
    """A scale that has ended.

    Attributes:
      shape: height and width in pixels.
      steps: number of steps taken.
      execution_plan: how the scale was computed.
    """

    shape: tuple[int, int]
    steps: int
    execution_plan: ExecutionPlan


RECOVERIES = 3  # a run returns to its best image at most this often

Arrays = dict[str, np.ndarray]


class Position(NamedTuple):
    """The resume point of a run of ``single.stylize``.

    Together with the other arguments of the run it determines everything that follows.

    Attributes:
      step: steps done, over all scales.
      scale: number of the current scale, from 1.
      ended: the scales that have ended.
      execution_plan: how the current scale is computed.
      recoveries: how often the run has returned to its best image, see ``single.stylize``.
      timing: seconds so far, as in ``Result``.
      state: the leaves of the current scale's ``State``, by path.
      history: the leaves of ``Info``, by path, with one entry per step so far.
      last_plan: execution plan of the last scale, if it was made in advance.
      free: bytes that the device had free at the start, or None. The plans of all scales but the
        last follow it.
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
      image: the image of lowest loss, ``[H, W, 3]``, not clipped. The content's colours and the
        preserved region, if any, have been put back. With ``averaging`` it is the average of the
        images, unless the run diverged. If the run ended before its last scale, the image has been
        enlarged.
      loss: the lowest loss, evaluated at the scale where the run ended.
      state: the last state, for ``run``. After a divergence its optimizer state is useless. None
        with ``averaging``.
      history: ``Info`` of arrays with one entry per step.
      status: ``"done"``, ``"stopped"`` (by the callback) or ``"diverged"`` (the loss or its
        gradient became infinite or NaN; ``image`` is the best one before that).
      timing: seconds, under ``compile_s`` and ``steps_s``.
      scales: the scales of a run of ``stylize``, coarsest first.
      recoveries: how often the run returned to its best image because the loss or its gradient was
        not finite; 0 in a batch.

    For a batch, ``image``, ``loss``, ``status`` and ``recoveries`` have one entry per batch
    element, the leaves of ``history`` have the batch elements on their second axis, and ``state``
    is None.
    """

    image: Array
    loss: Any
    state: State | None
    history: Info
    status: Any
    timing: dict[str, float]
    scales: tuple[EndedScale, ...] = ()
    recoveries: Any = 0
