"""Style transfer of one image: check the inputs, plan the scales, run each, finish.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``, and are used at the size they have. The
result is neither clipped nor rounded.

A run goes through a pyramid of scales, coarse to fine (Gatys et al. 2017, "Controlling Perceptual
Factors in Neural Style Transfer", on scale control). Large structures of the style form at a coarse
scale, where they fit into the network's receptive fields. Each scale starts from the enlarged
result of the one before. Adam's state is rescaled for a warm start; L-BFGS starts afresh.
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
    RECOVERY_RATE,
    first_state,
    flatten,
    loss_at,
    may_recover,
    outcome,
    recover,
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
    """What all scales of a run share; ``execution.plan`` is the last scale's."""

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
      started: ``time.perf_counter()`` at the start of the work that counts as compilation.
      timing: seconds so far.
      ended: the scales that have ended.
      histories: diagnostics so far, in pieces with one entry per step.
      recoveries: number of recoveries so far.
      status: as in ``Result``; ``"done"`` while the run continues.
      image: initial image of the next scale, or None at the first.
      opt_state: optimizer state for a warm start of the next scale, or None for a fresh one.
      kernels: the network's prepared kernels.
      saved: resume point within the next scale, or None.
      last: problem and state of the scale at which the run has ended, else None.
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
    """Transfer the style of images to a content image (Gatys, Ecker and Bethge 2016).

    If the loss or its gradient is not finite, the run continues from its best image with a fresh
    optimizer state and a quarter of the learning rate, at most three times.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      content: ``[H, W, 3]`` in [0, 1]; without content layers only its size matters.
      styles: one image or a sequence, ``[h, w, 3]`` each, of any sizes; may be empty without style
        layers.
      config: settings, for example of a preset.
      guidance: which style applies where, and what of the content is preserved.
      key: PRNG key of the noise; by default ``jax.random.key(0)``.
      init: initial image ``[H, W, 3]`` that replaces ``config.initial.init``. Or the resume point
        of an earlier run with otherwise equal arguments, from its ``Progress.position``. On CPUs
        with the same number of threads, the result is then bit for bit that of an uninterrupted
        run. The arrays are removed from its ``state``, so that they are not in memory twice.
      custom: objective and optimiser that replace the config's.
      callback: called on the host between chunks of steps; returning ``False`` stops the run. A
        function, or ``Callback(function, every=...)`` for chosen steps.
      execution: devices and execution plan.

    Returns:
      A ``Result``, even if the loss diverged.

    Raises:
      InputError: before the first step, for unusable images, masks or settings.

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
    """Run ``stylize`` on checked inputs.

    Args:
      inputs: from ``problem.check_inputs`` with the same ``config`` and ``execution.mesh``.
      position: resume point of an earlier run, or None.
      variables, config, key, custom, callback, execution: as for ``stylize``, checked by
        ``problem.check_run``.

    Raises:
      InputError: for unusable scales, and if no execution plan fits into memory.
    """
    started = time.perf_counter()
    callback = as_callback(callback)
    inputs = jax.tree.map(jnp.asarray, inputs)
    scales, execution = plan_scales(
        variables, inputs, config=config, custom=custom, execution=execution, position=position
    )
    constants = Constants(variables, inputs, scales, config, key, custom, callback, execution)
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
    """Plan the scales of a run and the memory of the last one, before the first step.

    Raises:
      InputError: for scales too small for the layers, a resume point of another run, and if no
        execution plan of the last scale fits into memory.
    """
    mesh = execution.mesh
    if mesh is not None and divides_rows(mesh) and mesh.shape.get("data", 1) > 1:
        raise InputError("a mesh with groups is for stylize_batch: leave out groups for one image")
    layers = TAPS if custom.loss else ()  # a custom objective may use any layer
    scales = make_scales(inputs.content.shape, config=config, mesh=mesh, layers=layers)
    if position is not None:
        if not len(position.ended) + 1 == position.scale <= len(scales):
            raise InputError(
                f"the resume point is at scale {position.scale} of a run of {len(scales)}: start "
                "the run again"
            )
        return scales, execution._replace(plan=position.last_plan, free=position.free)
    if execution.free is None:
        # Measure once: memory freed after a scale stays with the process and seems to be in use.
        execution = execution._replace(free=free_bytes(jax.local_devices()[0]))
    if len(scales) > 1 and execution.plan is None and mesh is None and custom.loss is None:
        # Plan the last scale now, so that a run that cannot finish fails before its first step.
        task = make_task(variables, inputs, config=config, optimizer=custom.optimizer)
        execution = execution._replace(plan=find_plan(task, execution))
    return scales, execution


def run_scale(constants: Constants, carried: Carried) -> Carried:
    """Run the next scale, from its targets to the start of the scale after it."""
    scale = constants.scales[len(carried.ended)]
    problem = _make_problem(constants, carried)
    custom_optimizer = constants.custom.optimizer is not None
    state, past = _start_scale(constants, carried, problem)
    # Wait: memory of pending computations would be taken for the first chunk's scratch memory.
    jax.block_until_ready((problem.variables, problem.targets, state))
    loop_run = iterate(
        partial(run, problem.solver, variables=problem.variables, targets=problem.targets),
        state,
        steps=scale.steps,
        started=carried.started,
        callback=_scale_callback(constants, carried, problem),
        before=_steps(carried),
        history=past,
        recover=partial(
            recover,
            problem=problem,
            config=constants.config,
            custom_optimizer=custom_optimizer,
            mesh=constants.execution.mesh,
        ),
        recoveries=carried.recoveries,
    )
    return _end_scale(constants, carried, problem, loop_run)


def _steps(carried: Carried) -> int:
    """Steps of the scales that have ended."""
    return sum(scale.steps for scale in carried.ended)


def _make_problem(constants: Constants, carried: Carried) -> Problem:
    """Make the problem of the next scale."""
    scale, config = constants.scales[len(carried.ended)], constants.config
    last = len(carried.ended) + 1 == len(constants.scales)
    scale_config = config.but(steps=scale.steps)
    if config.optimizer.name == "lbfgs" and config.optimizer.memory_size is None and not last:
        # A scale never has more pairs than steps, and the memory plan, made for the last scale,
        # does not allow for more. (With a given memory_size one program serves any step count.)
        scale_config = scale_config.but(memory_size=min(PAIRS, scale.steps))
    plan = constants.execution.plan if last else None
    if carried.saved is not None:
        plan = carried.saved.execution_plan
    try:
        return make_problem(
            constants.variables,
            at_scale(constants.inputs, shape=scale.shape, config=config),
            config=scale_config,
            custom=constants.custom,
            execution=constants.execution._replace(plan=plan),
            kernels=carried.kernels,
        )
    except InputError as error:
        if last:
            raise
        height, width = scale.shape
        raise InputError(f"at the scale of {width}x{height} px: {error}") from None


def _start_scale(constants: Constants, carried: Carried, problem: Problem) -> tuple[State, Any]:
    """Make the first state of a scale, and the ``history`` of ``loop.iterate``."""
    saved, image = carried.saved, carried.image
    rate_config = None if constants.custom.optimizer else constants.config
    if image is not None:
        first = image
    elif saved is not None:  # a template of the state to restore
        first = jnp.zeros(problem.shape, constants.inputs.content.dtype)
    else:
        init, shape = constants.inputs.init, constants.scales[len(carried.ended)].shape
        init = None if init is None else resize(init, shape=shape)
        first = problem.initial(constants.config, constants.key, init)
    mesh = constants.execution.mesh
    state = first_state(problem, first, carried.opt_state, config=rate_config, mesh=mesh)
    if image is not None:
        image.delete()  # the state has a copy
    if saved is not None:
        past = partial(unflatten, arrays=saved.history, rows=True)
        return restore(state, saved.state), past
    if carried.opt_state is None and carried.recoveries and rate_config is not None:
        # A fresh optimizer state has the config's learning rate: keep the reductions so far.
        smaller = scale_learning_rate(state.opt_state, RECOVERY_RATE**carried.recoveries)
        state = state._replace(opt_state=smaller)
    return state, None


def _scale_callback(constants: Constants, carried: Carried, problem: Problem) -> Callback | None:
    """Wrap the user's callback, so that it sees progress over all scales."""
    if constants.callback is None:
        return None
    call, number = constants.callback.call, len(carried.ended) + 1

    def report(progress: Progress) -> bool | None:
        step = _steps(carried) + progress.step

        # A function, because fetching the state to the host is slow and rarely wanted.
        def resume_point() -> Position:
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
                position=resume_point,
            )
        )

    return Callback(report, constants.callback.every)


def _end_scale(constants: Constants, carried: Carried, problem: Problem, loop_run: Run) -> Carried:
    """Determine what the run carries on from a scale that has ended."""
    state, config, number = loop_run.state, constants.config, len(carried.ended) + 1
    scale, last = constants.scales[number - 1], number == len(constants.scales)
    histories = (*carried.histories, loop_run.history)
    steps = sum(len(history.loss) for history in histories) - _steps(carried)
    recoveries, status = loop_run.recoveries, loop_run.status
    diverged, at_end = status == "diverged", not last and steps == scale.steps
    if diverged and at_end and may_recover(state, times=recoveries + 1):
        # Diverged at the last step of a coarse scale: the next one starts from the best image.
        recoveries, status = recoveries + 1, "done"
    if status == "done" and loop_run.stopped and not last:
        status = "stopped"  # the callback stopped the run at the last step of this scale
    after = Carried(
        started=time.perf_counter(),
        timing=add_timing(carried.timing, loop_run.timing),
        ended=(*carried.ended, EndedScale(scale.shape, steps, problem.execution_plan)),
        histories=histories,
        recoveries=recoveries,
        status=status,
    )
    if last or status != "done":
        return after._replace(last=(problem, state))
    shape, opt_state = constants.scales[number].shape, None
    if config.optimizer.name == "adam" and constants.custom.optimizer is None and not diverged:
        opt_state = rescale_opt_state(state.opt_state, old_shape=scale.shape, new_shape=shape)
    # L-BFGS starts afresh: its pairs are of another objective, and its memory may be larger than
    # everything at the next scale.
    return after._replace(
        image=resize(outcome(state, config=config), shape=shape),
        opt_state=opt_state,
        kernels=problem.variables,
    )


def finish(constants: Constants, carried: Carried) -> Result:
    """Make the result of a run that has ended."""
    assert carried.last is not None
    (problem, state), config = carried.last, constants.config
    image, best_loss, last = outcome(state, config=config), state.best_loss, state
    if config.averaging:
        # The average was never evaluated, so its loss is computed now; this uses up the state.
        best_loss, last = loss_at(problem, state, image), None
    if len(carried.ended) < len(constants.scales):
        image = at_full_size(image, constants.inputs, config=config)
    else:
        image = problem.finish(image)
    return Result(
        image=image,
        loss=float(best_loss),
        state=last,
        history=jax.tree.map(lambda *xs: np.concatenate(xs), *carried.histories),
        status=carried.status,
        timing=carried.timing,
        scales=carried.ended,
        recoveries=carried.recoveries,
    )
