"""From images to an image: check, plan the scales, run each, finish.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Images are taken at the size that they
have; the result is neither clipped nor rounded.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nst_jax.config.config import Config
from nst_jax.config.layers import TAPS
from nst_jax.errors import InputError
from nst_jax.optim.lbfgs import PAIRS
from nst_jax.optim.optimizers import scale_learning_rate
from nst_jax.optim.solver import run
from nst_jax.system.memory import free_bytes
from nst_jax.transfer.loop import Run, add_timing, as_callback, iterate
from nst_jax.transfer.problem import (
    Problem,
    check_inputs,
    check_run,
    find_plan,
    make_problem,
    make_task,
)
from nst_jax.transfer.pyramid import (
    Scale,
    at_full_size,
    at_scale,
    make_scales,
    rescale_opt_state,
    resize,
)
from nst_jax.transfer.sharding import divides_rows
from nst_jax.transfer.state import (
    SMALLER,
    begin_again,
    first_state,
    flatten,
    loss_at,
    may_recover,
    outcome,
    restore,
    unflatten,
)
from nst_jax.transfer.types import (
    Callback,
    Custom,
    EndedScale,
    Execution,
    Inputs,
    Position,
    Progress,
    Result,
)
from nst_jax.types import Array, Guidance, Info, State, Variables


class Constants(NamedTuple):
    """What stays the same over all scales of a run; ``execution.plan`` is the last scale's."""

    variables: Variables
    inputs: Inputs
    scales: Sequence[Scale]
    config: Config
    key: Array | None
    custom: Custom
    callback: Callback | None
    execution: Execution


class Carried(NamedTuple):
    """What a run carries from one scale to the next.

    Attributes:
      started: ``time.perf_counter()`` when the work began that counts as compilation.
      timing: seconds so far.
      ended: the scales so far.
      histories: diagnostics so far, pieces of one entry a step.
      recoveries: how often the run went back to its best image.
      status: as in ``Result``; ``"done"`` while it goes on.
      image: what the next scale begins with, or None at the first.
      opt_state: the optimiser's state that it begins with, or None for a fresh one.
      kernels: of the network, prepared.
      saved: where the next scale stood, or None.
      last: of the scale that the run ends with, else None.
    """

    started: float
    timing: dict[str, float]
    ended: tuple[EndedScale, ...] = ()
    histories: tuple[Info, ...] = ()
    recoveries: int = 0
    status: str = "done"
    image: Array | None = None
    opt_state: Any = None
    kernels: Variables | None = None
    saved: Position | None = None
    last: tuple[Problem, State] | None = None


def stylize(
    variables: Variables,
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config = Config(),
    guidance: Guidance = Guidance(),
    key: Array | None = None,
    init: ArrayLike | Position | None = None,
    custom: Custom = Custom(),
    callback: Callable[[Progress], bool | None] | Callback | None = None,
    execution: Execution = Execution(),
) -> Result:
    """Give a content image the style of others (Gatys, Ecker and Bethge 2016).

    Where the loss or its gradient is not finite the run goes on from its best image with a fresh
    optimiser and a quarter of the learning rate, three times at most.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      content: ``[H, W, 3]`` in [0, 1]; without content layers only its size matters.
      styles: one image or a sequence, ``[h, w, 3]`` each, of any sizes; none without style
        layers.
      config: settings; a preset's, or one's own.
      guidance: which style holds where, and what of the content is left as it is.
      key: PRNG key of the noise, by default ``jax.random.key(0)``.
      init: initial image ``[H, W, 3]`` in place of ``config.initial.init``. Or where an earlier
        run with the same other arguments stood, from the ``Progress.position`` of its callback: on
        CPUs on the same number of threads the result is that of one run, bit for bit. The arrays
        of its ``state`` are taken out of it, so that they are not in memory twice.
      custom: objective and optimiser in place of the config's.
      callback: called on the host between chunks of steps, ``False`` stops the run; a function, or
        ``Callback(function, every=...)`` for chosen steps.
      execution: devices, and how it is computed on them.

    Returns:
      A ``Result``; also where the loss diverged.

    Raises:
      InputError: before the first step, for images and masks that do not fit, and for layers or a
        pooling that slim weights have not learned.

    Example:
      ``stylize(weights.variables, content, [style], config=get_preset("fast").config).image``
    """
    inputs = check_inputs(
        content,
        styles,
        config=config,
        guidance=guidance,
        init=None if isinstance(init, Position) else init,
        mesh=execution.mesh,
        layers=TAPS if custom.loss else (),
    )
    check_run(variables, config=config, custom=custom, execution=execution)
    return run_inputs(
        variables,
        inputs,
        config=config,
        key=key,
        position=init if isinstance(init, Position) else None,
        custom=custom,
        callback=callback,
        execution=execution,
    )


def run_inputs(
    variables: Variables,
    inputs: Inputs,
    *,
    config: Config = Config(),
    key: Array | None = None,
    position: Position | None = None,
    custom: Custom = Custom(),
    callback: Callable[[Progress], bool | None] | Callback | None = None,
    execution: Execution = Execution(),
) -> Result:
    """``stylize`` of what is checked already.

    Args:
      inputs: from ``problem.check_inputs`` with the same ``config`` and ``execution.mesh``.
      position: where an earlier run stood, in place of the initial image.
      variables, config, key, custom, callback, execution: as for ``stylize``; they have passed
        ``problem.check_run``.

    Raises:
      InputError: for scales that do not fit, and where the memory does not suffice.
    """
    started = time.perf_counter()
    told = as_callback(callback)
    inputs = jax.tree.map(jnp.asarray, inputs)
    scales, execution = plan_scales(
        variables, inputs, config=config, custom=custom, execution=execution, position=position
    )
    constants = Constants(variables, inputs, scales, config, key, custom, told, execution)
    carried = Carried(started, {"compile_s": 0.0, "steps_s": 0.0})
    if position is not None:
        carried = carried._replace(
            timing=position.timing,
            ended=tuple(position.ended),
            recoveries=position.recoveries,
            saved=position,
        )
    while carried.last is None:
        carried = run_scale(constants, carried)
    return finish(constants, carried)


def plan_scales(
    variables: Variables,
    inputs: Inputs,
    *,
    config: Config,
    custom: Custom,
    execution: Execution,
    position: Position | None,
) -> tuple[list[Scale], Execution]:
    """The scales of a run, and how the last one is computed, before the first takes a step.

    Raises:
      InputError: for scales that do not fit the layers, the position or the memory.
    """
    mesh = execution.mesh
    if mesh is not None and divides_rows(mesh) and mesh.shape.get("data", 1) > 1:
        raise InputError("a mesh with groups is for stylize_batch: leave out groups for one image")
    layers = TAPS if custom.loss else ()  # an objective of one's own may ask for any
    scales = make_scales(inputs.content.shape, config=config, mesh=mesh, layers=layers)
    if position is not None:
        if not len(position.ended) + 1 == position.scale <= len(scales):
            raise InputError(
                f"the position is at scale {position.scale} of a run of {len(scales)}: begin anew"
            )
        return scales, execution._replace(plan=position.last_plan, free=position.free)
    if execution.free is None:
        # Once, for what a scale leaves free stays with the process.
        execution = execution._replace(free=free_bytes(jax.local_devices()[0]))
    if len(scales) > 1 and execution.plan is None and mesh is None and custom.loss is None:
        made_for = make_task(variables, inputs, config=config, optimizer=custom.optimizer)
        execution = execution._replace(plan=find_plan(made_for, execution))
    return scales, execution


def run_scale(constants: Constants, carried: Carried) -> Carried:
    """Run the next scale, from its targets to what the one after it begins with."""
    scale = constants.scales[len(carried.ended)]
    problem = _make_problem(constants, carried)
    own_optimizer = constants.custom.optimizer is not None
    state, past = _begin(constants, carried, problem)
    # What is still being computed would count as the first chunk's scratch memory.
    jax.block_until_ready((problem.variables, problem.targets, state))
    one = iterate(
        partial(run, problem.solver, variables=problem.variables, targets=problem.targets),
        state,
        steps=scale.steps,
        started=carried.started,
        callback=_reporting(constants, carried, problem),
        before=_steps(carried),
        history=past,
        recover=partial(
            begin_again,
            problem=problem,
            config=constants.config,
            own_optimizer=own_optimizer,
            mesh=constants.execution.mesh,
        ),
        recoveries=carried.recoveries,
    )
    return _carry_on(constants, carried, problem, one)


def _steps(carried: Carried) -> int:
    """Steps of the scales that have ended."""
    return sum(scale.steps for scale in carried.ended)


def _make_problem(constants: Constants, carried: Carried) -> Problem:
    """The next scale before its first step."""
    scale, config = constants.scales[len(carried.ended)], constants.config
    last = len(carried.ended) + 1 == len(constants.scales)
    own = config.but(steps=scale.steps)
    if config.optimizer.name == "lbfgs" and config.optimizer.memory_size is None and not last:
        # More pairs than steps are never there, and the last scale's plan does not allow for
        # their memory. (One program for all numbers of steps has who names the pairs.)
        own = own.but(memory_size=min(PAIRS, scale.steps))
    plan = constants.execution.plan if last else None
    if carried.saved is not None:
        plan = carried.saved.execution_plan
    try:
        return make_problem(
            constants.variables,
            at_scale(constants.inputs, shape=scale.shape, config=config),
            config=own,
            custom=constants.custom,
            execution=constants.execution._replace(plan=plan),
            kernels=carried.kernels,
        )
    except InputError as error:
        if last:
            raise
        height, width = scale.shape
        raise InputError(f"at the scale of {width}x{height} px: {error}") from None


def _begin(constants: Constants, carried: Carried, problem: Problem) -> tuple[State, Any]:
    """The state that a scale begins with, and from a record to the history of it, or None."""
    saved, image = carried.saved, carried.image
    plain = None if constants.custom.optimizer else constants.config
    if image is not None:
        first = image
    elif saved is not None:  # a place for what is restored
        first = jnp.zeros(problem.shape, constants.inputs.content.dtype)
    else:
        init, shape = constants.inputs.init, constants.scales[len(carried.ended)].shape
        init = None if init is None else resize(init, shape=shape)
        first = problem.initial(constants.config, constants.key, init)
    mesh = constants.execution.mesh
    state = first_state(problem, first, carried.opt_state, config=plain, mesh=mesh)
    if image is not None:
        image.delete()  # the state has its own
    if saved is not None:
        past = partial(unflatten, arrays=saved.history, rows=True)
        return restore(state, saved.state), past
    if carried.opt_state is None and carried.recoveries and plain is not None:
        smaller = scale_learning_rate(state.opt_state, SMALLER**carried.recoveries)
        state = state._replace(opt_state=smaller)
    return state, None


def _reporting(constants: Constants, carried: Carried, problem: Problem) -> Callback | None:
    """The callback of a scale, which sees the whole run."""
    if constants.callback is None:
        return None
    call, number = constants.callback.call, len(carried.ended) + 1

    def report(progress: Progress) -> bool | None:
        step = _steps(carried) + progress.step

        def where() -> Position:
            pieces = [*carried.histories, *progress.history]
            seconds = {"compile_s": progress.compile_s, "steps_s": progress.steps_s}
            return Position(
                step=step,
                scale=number,
                ended=carried.ended,
                execution_plan=problem.execution_plan,
                recoveries=progress.recoveries,
                timing=add_timing(carried.timing, seconds),
                state=flatten(progress.state),
                history=flatten(jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)),
                last_plan=constants.execution.plan,
                free=constants.execution.free,
            )

        return call(
            progress._replace(
                step=step,
                steps=sum(scale.steps for scale in constants.scales),
                image=problem.finish(progress.image),
                scale=number,
                scales=len(constants.scales),
                position=where,
            )
        )

    return Callback(report, constants.callback.every)


def _carry_on(constants: Constants, carried: Carried, problem: Problem, one: Run) -> Carried:
    """What is carried on from a scale that has ended."""
    state, config, number = one.state, constants.config, len(carried.ended) + 1
    scale, last = constants.scales[number - 1], number == len(constants.scales)
    histories = (*carried.histories, one.history)
    steps = sum(len(history.loss) for history in histories) - _steps(carried)
    recoveries, status, spoilt = one.recoveries, one.status, one.status == "diverged"
    at_end = not last and steps == scale.steps
    if spoilt and at_end and may_recover(state, times=recoveries + 1):
        # At the last step of a coarse scale: the next one begins from the best image.
        recoveries, status = recoveries + 1, "done"
    if status == "done" and one.stopped and not last:
        status = "stopped"  # between two scales
    after = Carried(
        started=time.perf_counter(),
        timing=add_timing(carried.timing, one.timing),
        ended=(*carried.ended, EndedScale(scale.shape, steps, problem.execution_plan)),
        histories=histories,
        recoveries=recoveries,
        status=status,
    )
    if last or status != "done":
        return after._replace(last=(problem, state))
    shape, opt_state = constants.scales[number].shape, None
    if config.optimizer.name == "adam" and constants.custom.optimizer is None and not spoilt:
        opt_state = rescale_opt_state(state.opt_state, old_shape=scale.shape, new_shape=shape)
    # L-BFGS forgets what it remembers, which may be larger than all that comes.
    return after._replace(
        image=resize(outcome(state, config=config), shape=shape),
        opt_state=opt_state,
        kernels=problem.variables,
    )


def finish(constants: Constants, carried: Carried) -> Result:
    """The result of a run that has ended."""
    assert carried.last is not None
    (problem, state), config = carried.last, constants.config
    image, best_loss, kept = outcome(state, config=config), state.best_loss, state
    if config.averaging:
        best_loss, kept = loss_at(problem, state, image), None
    if len(carried.ended) < len(constants.scales):
        image = at_full_size(image, constants.inputs, config=config)
    else:
        image = problem.finish(image)
    return Result(
        image=image,
        loss=float(best_loss),
        state=kept,
        history=jax.tree.map(lambda *xs: np.concatenate(xs), *carried.histories),
        status=carried.status,
        timing=carried.timing,
        scales=carried.ended,
        recoveries=carried.recoveries,
    )
