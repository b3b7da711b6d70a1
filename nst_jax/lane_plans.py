"""Lanes put into programs: together with leading axes, or apart on the devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from nst_jax.config import Config
from nst_jax.lane_solver import Own, field_specs, lanes_solver, own_fields, stack_fields
from nst_jax.objective import loss_weights
from nst_jax.optimizers import set_learning_rate
from nst_jax.parallel import Mesh, at_axis, copy_on, divided_axis, replicate, run_spread
from nst_jax.problem import Problem, start
from nst_jax.rows import (
    divides_rows,
    picture_sharding,
    start_rows,
    state_shardings,
    targets_shardings,
)
from nst_jax.scale_state import begin
from nst_jax.solver import run
from nst_jax.types import Array, Info, State, Targets

Take = Callable[..., tuple[State, Info]]  # as loop.iterate wants it


class Lane(NamedTuple):
    """One run of several.

    Attributes:
      problem: see ``problem.make_problem``; lanes that share arrays of its ``targets`` share them
        on the device too.
      config: its settings.
      key: PRNG key of its noise.
      init: its initial picture in place of the config's, or None.
    """

    problem: Problem
    config: Config
    key: Array | None = None
    init: Any = None


class Plan(NamedTuple):
    """Lanes before their first step.

    Attributes:
      take: from a state to the next.
      state: with leading axes, or where there are several programs with lists for fields.
      order: the place of each lane among all, which may be more to fill up a program.
    """

    take: Take
    state: State
    order: np.ndarray


def plan_together(
    lanes: Sequence[Lane],
    shape: tuple[int, ...],
    mesh: Mesh | None,
    width: int,
    distinct: tuple[str, ...],
) -> Plan:
    """One program of all lanes, on one device or, divided along one of the axes, on several."""
    devices = 1 if mesh is None else mesh.size
    if mesh is not None and divides_rows(mesh):
        # Also of a grid: such a mesh has one axis for lanes.
        shape, devices = (len(lanes),), mesh.shape.get("data", 1)
    axis = divided_axis(shape, devices)
    length = max(shape[axis], width if len(shape) == 1 else 1)
    length += -length % devices
    numbers = np.arange(len(lanes)).reshape(shape)
    filled = numbers.take(np.minimum(np.arange(length), shape[axis] - 1), axis=axis)
    places = np.arange(filled.size).reshape(filled.shape)
    targets = _lane_targets(lanes).take(filled)
    search = lanes[0].config.optimizer.name == "lbfgs-linesearch"
    take, state = _program(
        [lanes[index] for index in filled.ravel().tolist()],
        targets,
        own=own_fields(targets, distinct=distinct),
        in_turn=search,
        mesh=mesh,
        axis=axis,
    )
    return Plan(take, state, places.take(np.arange(shape[axis]), axis=axis).ravel())


def plan_apart(lanes: Sequence[Lane], mesh: Mesh | None) -> Plan:
    """The program of ``transfer.stylize`` for each, on a mesh for each of its devices."""
    devices = [None] if mesh is None else mesh.devices.flatten().tolist()
    known: dict[Any, Any] = {}
    programs = [
        _alone(lane, targets, device=devices[index % len(devices)], known=known)
        for index, (lane, targets) in enumerate(zip(lanes, _lane_targets(lanes), strict=True))
    ]
    takes, states = zip(*programs)

    def take(state: State, **options: Any) -> tuple[State, Info]:
        # All are sent off before any is waited for, so that devices work side by side.
        alone = zip(*state)  # type: ignore[arg-type]
        done = [take(State(*one), **options) for take, one in zip(takes, alone)]
        states, infos = zip(*done)
        return _listed(states), jax.tree.map(lambda *x: np.stack(x, axis=1), *jax.device_get(infos))

    return Plan(take, _listed(states), np.arange(len(lanes)))


def plan_one(lane: Lane, *, mesh: Mesh | None) -> tuple[Take, State]:
    """A lane by itself: how it goes on, and its state before its first step.

    It is on the first device of a mesh if any, or divided by rows.
    """
    targets = _lane_targets([lane])[0]
    if mesh is None or not divides_rows(mesh):
        device = None if mesh is None else mesh.devices.flat[0]
        return _alone(lane, targets, device=device, known={})
    problem = lane.problem
    state = begin(problem, _initial(lane), None, config=lane.config, mesh=mesh)
    return partial(run, problem.solver, variables=problem.variables, targets=targets), state


def _listed(states: Sequence[State]) -> State:
    """Several states as one whose fields are lists."""
    return State(*map(list, zip(*states)))  # type: ignore[arg-type]


def _alone(
    lane: Lane, targets: Targets, *, device: Any, known: dict[Any, Any]
) -> tuple[Take, State]:
    """One lane on one device."""
    problem = lane.problem
    given = (_initial(lane), problem.variables, targets)
    image, variables, targets = copy_on(given, device, known=known)
    state = start(problem.solver, image, variables, targets)
    state = state._replace(opt_state=set_learning_rate(state.opt_state, lane.config))
    state = (
        state if device is None else jax.device_put(state, device)
    )  # the rates too, or the second call would compile anew
    return partial(run, problem.solver, variables=variables, targets=targets), state


def _program(
    lanes: Sequence[Lane],
    targets: np.ndarray,
    *,
    own: Own,
    mesh: Mesh | None,
    axis: int,
    in_turn: bool,
) -> tuple[Take, State]:
    """Lanes with leading axes, on the devices of a mesh if any."""
    solver = lanes_solver(lanes[0].problem.solver, own, in_turn=in_turn)
    variables, stacked = lanes[0].problem.variables, stack_fields(targets, own)
    images = jnp.stack([_initial(lane) for lane in lanes])
    images = images.reshape(*targets.shape, *images.shape[1:])
    take: Take = partial(run, solver)
    places: Any = None
    variables = replicate(variables, mesh)
    if mesh is None:
        state = start(solver, images, variables, stacked)
    elif divides_rows(mesh):
        fields = [name for name, _ in own]
        stacked = jax.device_put(stacked, targets_shardings(stacked, mesh=mesh, own=fields))
        images = jax.device_put(images, picture_sharding(mesh, lanes=True))
        state = start_rows(solver, images, variables, stacked, mesh=mesh)
        places = state_shardings(state, mesh=mesh)
    else:
        specs, places = field_specs(own, axis=axis), NamedSharding(mesh, at_axis(axis))
        images = jax.device_put(images, places)
        stacked = Targets(
            *(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(stacked, specs))
        )
        take = partial(run_spread, solver, mesh=mesh, axis=axis, specs=specs)
        state = start(solver, images, variables, stacked, sharding=places)
    opt_state = set_learning_rate(state.opt_state, *(lane.config for lane in lanes))
    state = state._replace(opt_state=opt_state)
    if places is not None:  # the rates too, or the second call would compile anew
        state = jax.device_put(state, places)
    return partial(take, variables=variables, targets=stacked), state


def _initial(lane: Lane) -> Array:
    return lane.problem.initial(lane.config, lane.key, lane.init)


def _lane_targets(lanes: Sequence[Lane]) -> np.ndarray:
    """The targets of lanes with their own factors, an array of objects."""
    targets = np.empty(len(lanes), object)
    for index, lane in enumerate(lanes):
        old = lane.problem.targets
        weights = jax.tree.map(
            lambda w, old=old: np.asarray(w, old.weights.tv.dtype), loss_weights(lane.config)
        )
        targets[index] = old._replace(weights=weights)
    return targets
