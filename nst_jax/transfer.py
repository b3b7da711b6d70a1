"""From pictures to a picture.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Pictures are taken at the size that they
have; the result is neither clipped nor rounded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nst_jax.allocator import release_freed_memory
from nst_jax.choices import Choice
from nst_jax.config import LBFGS, Config
from nst_jax.errors import InputError
from nst_jax.inputs import as_picture
from nst_jax.layers import TAPS
from nst_jax.lbfgs import PAIRS
from nst_jax.loop import Progress, add_timing, iterate
from nst_jax.memory import free_bytes
from nst_jax.objective import as_sequence
from nst_jax.optimizers import scale_learning_rate
from nst_jax.position import Position, flatten, restore, unflatten
from nst_jax.problem import Problem, find_choice, make_problem
from nst_jax.pyramid import rescale_moments, resize
from nst_jax.rows import divides_rows
from nst_jax.scale_state import SMALLER, begin, begin_again, loss_at, may_recover, outcome
from nst_jax.scales import (
    EndedScale,
    Inputs,
    Scale,
    at_full_size,
    at_scale,
    check_inputs,
    make_scales,
)
from nst_jax.solver import run
from nst_jax.types import Array, Info, Loss, State, Variables


class Result(NamedTuple):
    """What ``stylize`` and ``stylize_batch`` return.

    Attributes:
      image: the evaluated picture of lowest loss, ``[H, W, 3]``, not clipped; after that with the
        content's colours and the parts that are kept, where these were asked for.
        With ``averaging`` it is the average of the pictures, but after a divergence. Where a run
        ended before its last scale it is enlarged.
      loss: the lowest loss, of the picture as it was evaluated, at the size where the run ended.
      state: the last state, for ``run``; after a divergence its optimiser's part is of no use.
        None with ``averaging``.
      history: ``Info`` of arrays with one entry a step.
      status: ``"done"``, ``"stopped"`` (by the callback) or ``"diverged"`` (the loss or its
        gradient became infinite or NaN; ``image`` is the best before that).
      timing: seconds: ``compile_s``, ``steps_s``.
      scales: of a run from ``stylize`` what it did at each size, coarsest first.
      recoveries: how often it went back to its best picture because the loss or its gradient was
        not finite.

    Of several pictures, from ``stylize_batch``, ``image``, ``loss``, ``status`` and ``recoveries``
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


def stylize(
    variables: Variables,
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config = Config(),
    blend: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    content_masks: Sequence[ArrayLike] | ArrayLike | None = None,
    style_masks: Sequence[ArrayLike | None] | None = None,
    region_weights: Sequence[float] | None = None,
    keep: ArrayLike | None = None,
    key: Array | None = None,
    init: ArrayLike | None = None,
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    callback_every: int | Sequence[int] | None = None,
    choice: Choice | None = None,
    free: int | None = None,
    mesh: Mesh | None = None,
    position: Position | None = None,
) -> Result:
    """Give a content picture the style of others (Gatys, Ecker and Bethge 2016).

    Where the loss or its gradient is not finite the run goes on from its best picture with a fresh
    optimiser and a quarter of the learning rate, three times at most.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      content: ``[H, W, 3]`` in [0, 1]; without content layers only its size matters.
      styles: one picture or a sequence, ``[h, w, 3]`` each, of any sizes; none without style
        layers.
      config: settings; a preset's, or one's own.
      blend: factors of the S styles, ``[S]``, or of each region, ``[R, S]``, or a mapping from
        style layers to such factors. By default all styles count the same, or each region has its
        own where there are as many.
      content_masks: R regions of the content, ``[H, W]`` in [0, 1] each, soft edges welcome. Each
        is compared with its styles for itself (Gatys 2017, section 4); what no mask covers has no
        style.
      style_masks: for each style the part of it that counts, ``[h, w]``, or None.
      region_weights: factors of the regions' style losses; by default 1.
      keep: ``[H, W]`` in [0, 1], 1 where the content is left as it is.
      key: PRNG key of the noise, by default ``jax.random.key(0)``.
      init: initial picture ``[H, W, 3]`` in place of ``config.init``.
      loss: objective in place of the config's.
      optimizer: any optax transformation of pixels in [0, 1] in place of the config's. Reuse the
        same object for runs that shall share a compilation.
      callback: called on the host between chunks of steps; ``False`` stops the run.
      callback_every: call the callback at each multiple of so many steps at least, or of each of
        several such numbers.
      choice: how to compute the last scale, of a plan of ``memory_plan``; by default as
        ``config.tile``, ``config.remat`` and the free memory have it.
      free: bytes of memory that coarser scales are chosen by; by default measured now.
      mesh: several devices for the one picture. One of ``rows.rows_mesh`` divides it by rows, with
        1 / n of the memory on each; with any other, of ``parallel.make_mesh``, each device has
        the whole picture and computes its share of the tiles.
      position: where an earlier run with the same other arguments stood, from the
        ``Progress.position`` of its callback; on CPUs on the same number of threads the result is
        that of one run, bit for bit. The arrays of its ``state`` are taken out of it, so that they
        are not in memory twice.

    Returns:
      A ``Result``; also where the loss diverged.

    Raises:
      InputError: before the first step, for pictures and masks that do not fit, and for layers or a
        pooling that slim weights have not learned.
    """
    started = time.perf_counter()
    for number in np.ravel([] if callback_every is None else callback_every):
        if number < 1:
            raise InputError(f"callback_every is {callback_every}: expected 1 or more")
    pictures = [as_picture(style) for style in as_sequence(styles)]
    inputs = Inputs(as_picture(content), pictures, content_masks, style_masks, keep)
    init = None if init is None else as_picture(init)
    if mesh is not None and divides_rows(mesh) and mesh.shape.get("data", 1) > 1:
        raise InputError("a mesh with lanes is for stylize_batch: leave out lanes for one picture")
    layers = TAPS if loss else ()  # an objective of one's own may ask for any
    check_inputs(inputs, config=config, init=init, mesh=mesh, layers=layers)
    scales = make_scales(inputs.content.shape, config=config, mesh=mesh, layers=layers)
    if position is not None and not len(position.ended) + 1 == position.scale <= len(scales):
        raise InputError(
            f"the position is at scale {position.scale} of a run of {len(scales)}: begin anew"
        )
    # Once, for what a scale leaves free stays with the process.
    free = free_bytes(jax.local_devices()[0]) if free is None else free
    stopped = False
    if position is not None:
        free, choice = position.free, position.last_choice
    elif len(scales) > 1 and choice is None and mesh is None and loss is None:
        # Before the first scale takes a step.
        given = inputs._asdict() | {"optimizer": optimizer, "free": free}
        choice = find_choice(variables, config=config, **given)

    def make(scale: Scale, **options: Any) -> Problem:
        own = config.but(steps=scale.steps)
        kind = config.optimizer
        if isinstance(kind, LBFGS) and kind.memory_size is None and scale != scales[-1]:
            # More pairs than steps are never there, and the last scale's plan does not allow for
            # their memory. (One program for all numbers of steps has who names the pairs.)
            own = own.but(memory_size=min(PAIRS, scale.steps))
        given = at_scale(inputs, shape=scale.shape, config=config)._asdict() | options
        given |= {"blend": blend, "region_weights": region_weights, "mesh": mesh, "free": free}
        try:
            return make_problem(variables, config=own, loss=loss, optimizer=optimizer, **given)
        except InputError as error:
            if scale == scales[-1]:
                raise
            height, width = scale.shape
            raise InputError(f"at the scale of {width}x{height} px: {error}") from None

    def tell(progress: Progress, *, number: int, problem: Problem) -> bool:
        nonlocal stopped
        assert callback is not None
        before = tuple(ended)
        step = sum(one.steps for one in before) + progress.step

        def where() -> Position:
            pieces = [*histories, *progress.history]
            return Position(
                step=step,
                scale=number,
                ended=before,
                choice=problem.choice,
                recoveries=progress.recoveries,
                timing=add_timing(
                    timing, {"compile_s": progress.compile_s, "steps_s": progress.steps_s}
                ),
                state=flatten(progress.state),
                history=flatten(jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)),
                last_choice=choice,
                free=free,
            )

        whole = progress._replace(
            step=step,
            steps=sum(scale.steps for scale in scales),
            image=problem.finish(progress.image),
            scale=number,
            scales=len(scales),
            position=where,
        )
        stopped = callback(whole) is False
        return not stopped

    ended: list[EndedScale] = []
    histories: list[Info] = []
    timing: dict[str, float] = {"compile_s": 0.0, "steps_s": 0.0}
    recoveries, saved = 0, position
    if saved is not None:
        ended, recoveries, timing = list(saved.ended), saved.recoveries, saved.timing
    kernels = image = moments = problem = state = one = None
    for number, scale in enumerate(scales[len(ended) :], start=len(ended) + 1):
        chosen = saved.choice if saved else choice if number == len(scales) else None
        problem = make(scale, kernels=kernels, choice=chosen)
        if image is None:
            first = None if init is None else resize(init, shape=scale.shape)
            image = problem.initial(config, key, first)
        state = begin(problem, image, moments, config=None if optimizer else config, mesh=mesh)
        done, past = sum(one.steps for one in ended), None
        if saved is not None:
            state = restore(state, saved.state)
            past = partial(unflatten, arrays=saved.history, rows=True)
        elif moments is None and recoveries and optimizer is None:
            smaller = scale_learning_rate(state.opt_state, SMALLER**recoveries)
            state = state._replace(opt_state=smaller)
        image = moments = saved = None
        # What the targets needed was more than they are, and may lie where the loop finds no use.
        release_freed_memory()
        one = iterate(
            partial(run, problem.solver, variables=problem.variables, targets=problem.targets),
            state,
            steps=scale.steps,
            started=started,
            callback=partial(tell, number=number, problem=problem) if callback else None,
            callback_every=callback_every,
            before=done,
            history=past,
            recover=partial(
                begin_again,
                problem=problem,
                config=config,
                own_optimizer=optimizer is not None,
                mesh=mesh,
            ),
            recoveries=recoveries,
        )
        state, one = one.state, one._replace(state=None)
        histories.append(one.history)
        recoveries, timing = one.recoveries, add_timing(timing, one.timing)
        steps = sum(len(history.loss) for history in histories)
        ended.append(EndedScale(scale.shape, steps - done, problem.choice))
        spoilt = one.status == "diverged"
        at_end = number < len(scales) and steps - done == scale.steps
        if spoilt and at_end and may_recover(state, times=recoveries + 1):
            # At the last step of a coarse scale: the next one begins from the best picture.
            recoveries, one = recoveries + 1, one._replace(status="done")
        if one.status != "done" or stopped or number == len(scales):
            break
        started = time.perf_counter()
        shape = scales[number].shape
        image = resize(outcome(state, config=config), shape=shape)
        if config.optimizer.name == "adam" and optimizer is None and not spoilt:
            moments = rescale_moments(state.opt_state, old_shape=scale.shape, new_shape=shape)
        # L-BFGS forgets what it remembers, which may be larger than all that comes.
        kernels, problem, state = problem.variables, None, None

    assert problem is not None and state is not None and one is not None
    status, best_loss = one.status, state.best_loss
    image = outcome(state, config=config)
    if config.averaging:
        best_loss, state = loss_at(problem, state, image), None
    if len(ended) < len(scales):
        status = "stopped" if status == "done" else status  # between two scales
        image = at_full_size(image, inputs, config=config)
    else:
        image = problem.finish(image)
    return Result(
        image=image,
        loss=float(best_loss),
        state=state,
        history=jax.tree.map(lambda *xs: np.concatenate(xs), *histories),
        status=status,
        timing=timing,
        scales=tuple(ended),
        recoveries=recoveries,
    )
