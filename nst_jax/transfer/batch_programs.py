"""The programs of a batch: one for all elements, or each element in its own.

In the first the elements take each step together. Their arrays have a leading axis where elements
differ; what they share is there once.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nst_jax.config.config import Config
from nst_jax.losses.objective import loss_weights
from nst_jax.optim.optimizers import set_learning_rate
from nst_jax.optim.solver import run
from nst_jax.transfer.problem import Problem, start
from nst_jax.transfer.sharding import (
    DATA,
    copy_on,
    divides_rows,
    image_sharding,
    replicate,
    run_spread,
    start_rows,
    state_shardings,
    targets_shardings,
)
from nst_jax.types import Array, Info, Solver, State, Targets, Variables

# The names of the fields of the targets that have a leading axis.
Own = tuple[str, ...]

# Those that are computed of the content.
OF_CONTENT = ("content", "similarity", "laplacian", "image")


def own_fields(targets: Sequence[Targets], *, distinct: tuple[str, ...] = ()) -> Own:
    """Which fields of the targets differ between the elements of a batch.

    Args:
      targets: of the elements. What they share are the same arrays.
      distinct: fields that count as different although all may be the same.
    """
    first = targets[0]

    def differs(name: str) -> bool:
        found = getattr(first, name)
        if not jax.tree.leaves(found):
            return False
        return name in distinct or any(getattr(one, name) is not found for one in targets)

    # The others follow from the structure.
    return ("weights", *filter(differs, (*OF_CONTENT, "style", "regions", "keep")))


def stack_fields(targets: Sequence[Targets], own: Own) -> Targets:
    """Targets of a batch: its elements' own fields with a leading axis, the others as they are."""
    fields = {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(getattr(one, name) for one in targets))
        for name in own
    }
    return targets[0]._replace(**fields)


def field_specs(own: Own) -> Any:
    """``Targets`` of specs: how they are divided among devices."""
    return Targets(*(DATA if name in own else PartitionSpec() for name in Targets._fields))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def batch_solver(solver: Solver, own: Own, *, in_turn: bool = False) -> Solver:
    """A solver of states with a leading axis; of equal arguments it is the same object.

    Args:
      solver: of one image.
      own: see ``own_fields``.
      in_turn: take the elements' steps one after another and not by ``vmap``, as a line search
        wants it, whose elements would else wait for each other.
    """

    def over_batch(function: Callable[..., Any], leading: Any, targets: Targets, vmap: bool) -> Any:
        mine = leading, {name: getattr(targets, name) for name in own}

        def of_one(element: tuple[Any, dict[str, Any]]) -> Any:
            return function(element[0], targets._replace(**element[1]))

        return jax.vmap(of_one)(mine) if vmap else jax.lax.map(of_one, mine)

    def init(images: Array, variables: Variables, targets: Targets) -> State:
        def of_one(image: Array, targets: Targets) -> State:
            return solver.init(image, variables, targets)

        return over_batch(of_one, images, targets, True)

    def step(states: State, variables: Variables, targets: Targets) -> tuple[State, Info]:
        def of_one(state: State, targets: Targets) -> tuple[State, Info]:
            return solver.step(state, variables, targets)

        return over_batch(of_one, states, targets, not in_turn)

    return Solver(init=init, step=step)


Take = Callable[..., tuple[State, Info]]  # as loop.iterate wants it


class Element(NamedTuple):
    """One image of a batch.

    Attributes:
      problem: see ``problem.make_problem``; elements that share arrays of its ``targets`` share
        them on the device too.
      config: its settings.
      key: PRNG key of its noise.
      init: its initial image in place of the config's, checked, or None.
    """

    problem: Problem
    config: Config
    key: Array | None = None
    init: Any = None


class BatchProgram(NamedTuple):
    """A batch before its first step.

    Attributes:
      take: from a state to the next.
      state: with a leading axis, which may be longer than the batch to fill up a program; or where
        there are several programs with lists for fields.
    """

    take: Take
    state: State


def together(
    elements: Sequence[Element],
    *,
    mesh: Mesh | None,
    width: int = 1,
    distinct: tuple[str, ...] = (),
) -> BatchProgram:
    """One program of all elements, on one device or spread over several.

    Args:
      elements: of the batch.
      mesh: devices; of one that divides rows the axis ``"data"`` is for the batch.
      width, distinct: as for ``batch.run_batch``.
    """
    by_rows = divides_rows(mesh)
    devices = 1 if mesh is None else mesh.shape.get("data", 1) if by_rows else mesh.size
    length = max(len(elements), width)
    length += -length % devices
    filled = [*elements, *[elements[-1]] * (length - len(elements))]
    targets = _own_targets(elements)
    targets += [targets[-1]] * (length - len(elements))
    own = own_fields(targets, distinct=distinct)
    return _program(filled, targets, own=own, mesh=mesh)


def apart(elements: Sequence[Element], *, mesh: Mesh | None) -> BatchProgram:
    """The program of ``single.stylize`` for each, on a mesh for each of its devices."""
    devices = [None] if mesh is None else mesh.devices.flatten().tolist()
    known: dict[Any, Any] = {}
    programs = [
        _alone(element, targets, device=devices[index % len(devices)], known=known)
        for index, (element, targets) in enumerate(
            zip(elements, _own_targets(elements), strict=True)
        )
    ]
    takes, states = zip(*programs)

    def take(state: State, **options: Any) -> tuple[State, Info]:
        # All are sent off before any is waited for, so that devices work side by side.
        alone = zip(*state)  # type: ignore[arg-type]
        done = [take(State(*one), **options) for take, one in zip(takes, alone)]
        states, infos = zip(*done)
        return _listed(states), jax.tree.map(lambda *x: np.stack(x, axis=1), *jax.device_get(infos))

    return BatchProgram(take, _listed(states))


def _listed(states: Sequence[State]) -> State:
    """Several states as one whose fields are lists."""
    return State(*map(list, zip(*states)))  # type: ignore[arg-type]


def _alone(
    element: Element, targets: Targets, *, device: Any, known: dict[Any, Any]
) -> tuple[Take, State]:
    """One element on one device."""
    problem = element.problem
    given = (_initial(element), problem.variables, targets)
    image, variables, targets = copy_on(given, device, known=known)
    state = start(problem.solver, image, variables, targets)
    state = state._replace(opt_state=set_learning_rate(state.opt_state, element.config))
    state = (
        state if device is None else jax.device_put(state, device)
    )  # the rates too, or the second call would compile anew
    return partial(run, problem.solver, variables=variables, targets=targets), state


def _program(
    elements: Sequence[Element], targets: Sequence[Targets], *, own: Own, mesh: Mesh | None
) -> BatchProgram:
    """Elements with a leading axis, on the devices of a mesh if any."""
    search = elements[0].config.optimizer.name == "lbfgs-linesearch"
    solver = batch_solver(elements[0].problem.solver, own, in_turn=search)
    variables, stacked = elements[0].problem.variables, stack_fields(targets, own)
    images = jnp.stack([_initial(element) for element in elements])
    take: Take = partial(run, solver)
    places: Any = None
    variables = replicate(variables, mesh)
    if mesh is None:
        state = start(solver, images, variables, stacked)
    elif divides_rows(mesh):
        stacked = jax.device_put(stacked, targets_shardings(stacked, mesh=mesh, own=own))
        images = jax.device_put(images, image_sharding(mesh, batched=True))
        state = start_rows(solver, images, variables, stacked, mesh=mesh)
        places = state_shardings(state, mesh=mesh)
    else:
        specs, places = field_specs(own), NamedSharding(mesh, DATA)
        images = jax.device_put(images, places)
        stacked = Targets(
            *(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(stacked, specs))
        )
        take = partial(run_spread, solver, mesh=mesh, specs=specs)
        state = start(solver, images, variables, stacked, sharding=places)
    opt_state = set_learning_rate(state.opt_state, *(element.config for element in elements))
    state = state._replace(opt_state=opt_state)
    if places is not None:  # the rates too, or the second call would compile anew
        state = jax.device_put(state, places)
    return BatchProgram(partial(take, variables=variables, targets=stacked), state)


def _initial(element: Element) -> Array:
    return element.problem.initial(element.config, element.key, element.init)


def _own_targets(elements: Sequence[Element]) -> list[Targets]:
    """The targets of elements with their own factors."""

    def of_one(element: Element) -> Targets:
        old = element.problem.targets
        weights = jax.tree.map(
            lambda w: np.asarray(w, old.weights.tv.dtype), loss_weights(element.config)
        )
        return old._replace(weights=weights)

    return [of_one(element) for element in elements]
