"""The compiled programs of a batch: one program for all elements, or one per element.

In one program, the elements take each step together. Arrays in which the elements differ have a
leading batch axis; shared arrays exist once.
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
    copy_to,
    divides_rows,
    image_sharding,
    replicate,
    run_spread,
    start_rows,
    state_shardings,
    targets_shardings,
)
from nst_jax.types import Array, Info, Solver, State, Targets, Variables

# Names of the fields of the targets that have a leading batch axis.
Batched = tuple[str, ...]

# The fields that are computed from the content.
CONTENT_FIELDS = ("content", "similarity", "laplacian", "image")


def batched_fields(targets: Sequence[Targets], *, distinct: tuple[str, ...] = ()) -> Batched:
    """Find the fields of the targets that differ between the elements of a batch.

    Args:
      targets: of the elements. A field is shared if all elements have the same object there; values
        are not compared, which would need a transfer from the device.
      distinct: fields to be batched even if they are shared.
    """
    first = targets[0]

    def differs(name: str) -> bool:
        found = getattr(first, name)
        if not jax.tree.leaves(found):
            return False
        return name in distinct or any(getattr(one, name) is not found for one in targets)

    # The remaining fields follow from the config's structure, which all elements have in common.
    return ("weights", *filter(differs, (*CONTENT_FIELDS, "style", "regions", "preserved")))


def stack_fields(targets: Sequence[Targets], batched: Batched) -> Targets:
    """Make the targets of a batch: stack the batched fields, take the others from any element."""
    fields = {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(getattr(one, name) for one in targets))
        for name in batched
    }
    return targets[0]._replace(**fields)


def field_specs(batched: Batched) -> Any:
    """``Targets`` of partition specs: batched fields are divided among devices."""
    return Targets(*(DATA if name in batched else PartitionSpec() for name in Targets._fields))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def batch_solver(solver: Solver, batched: Batched, *, sequential: bool = False) -> Solver:
    """Make a solver of states with a leading batch axis; equal arguments give the same object.

    Args:
      solver: of one image.
      batched: see ``batched_fields``.
      sequential: take the elements' steps one after another (``lax.map``) instead of by ``vmap``. A
        line search needs this: under ``vmap`` every element would evaluate the loss as often as the
        longest search.
    """

    def over_batch(function: Callable[..., Any], leading: Any, targets: Targets, vmap: bool) -> Any:
        mapped = leading, {name: getattr(targets, name) for name in batched}

        # The shared fields stay outside of the mapped arguments, so that vmap does not copy them.
        def of_one(element: tuple[Any, dict[str, Any]]) -> Any:
            return function(element[0], targets._replace(**element[1]))

        return jax.vmap(of_one)(mapped) if vmap else jax.lax.map(of_one, mapped)

    def init(images: Array, variables: Variables, targets: Targets) -> State:
        def of_one(image: Array, targets: Targets) -> State:
            return solver.init(image, variables, targets)

        return over_batch(of_one, images, targets, True)

    def step(states: State, variables: Variables, targets: Targets) -> tuple[State, Info]:
        def of_one(state: State, targets: Targets) -> tuple[State, Info]:
            return solver.step(state, variables, targets)

        return over_batch(of_one, states, targets, not sequential)

    return Solver(init=init, step=step)


Take = Callable[..., tuple[State, Info]]  # the ``take`` of ``loop.iterate``


class Element(NamedTuple):
    """One element of a batch.

    Attributes:
      problem: see ``problem.make_problem``. Arrays that several elements share in its ``targets``
        exist once on each device.
      config: the element's settings.
      key: PRNG key of its noise.
      init: checked initial image that replaces the config's, or None.
    """

    problem: Problem
    config: Config
    key: Array | None = None
    init: Any = None


class BatchProgram(NamedTuple):
    """A batch before its first step.

    Attributes:
      take: takes steps, see ``loop.iterate``.
      state: of one program, with a leading axis that may be longer than the batch (padding); of
        several programs, with a list for each field.
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
    """Make one program for all elements, on one device or spread over several.

    Args:
      elements: of the batch.
      mesh: devices, or None. If it divides rows, its axis ``"data"`` divides the batch.
      width, distinct: as for ``batch.run_batch``.
    """
    by_rows = divides_rows(mesh)
    devices = 1 if mesh is None else mesh.shape.get("data", 1) if by_rows else mesh.size
    length = max(len(elements), width)
    length += -length % devices
    # Pad with copies of the last element, whose results are dropped.
    filled = [*elements, *[elements[-1]] * (length - len(elements))]
    targets = _targets(elements)
    targets += [targets[-1]] * (length - len(elements))
    batched = batched_fields(targets, distinct=distinct)
    return _shared_program(filled, targets, batched=batched, mesh=mesh)


def apart(elements: Sequence[Element], *, mesh: Mesh | None) -> BatchProgram:
    """Give each element the program of ``single.stylize``, dealing them out to the devices."""
    devices = [None] if mesh is None else mesh.devices.flatten().tolist()
    copies: dict[Any, Any] = {}
    programs = [
        _single_program(element, targets, device=devices[index % len(devices)], copies=copies)
        for index, (element, targets) in enumerate(zip(elements, _targets(elements), strict=True))
    ]
    takes, states = zip(*programs)

    def take(state: State, **options: Any) -> tuple[State, Info]:
        # Dispatch is asynchronous: start all programs before waiting for any, so that the devices
        # work in parallel.
        singles = zip(*state)  # type: ignore[arg-type]
        done = [take(State(*single), **options) for take, single in zip(takes, singles)]
        states, infos = zip(*done)
        return _listed(states), jax.tree.map(lambda *x: np.stack(x, axis=1), *jax.device_get(infos))

    return BatchProgram(take, _listed(states))


def _listed(states: Sequence[State]) -> State:
    """Combine several states into one whose fields are lists."""
    return State(*map(list, zip(*states)))  # type: ignore[arg-type]


def _single_program(
    element: Element, targets: Targets, *, device: Any, copies: dict[Any, Any]
) -> tuple[Take, State]:
    """Make the program and first state of one element on one device."""
    problem = element.problem
    arguments = (_initial(element), problem.variables, targets)
    image, variables, targets = copy_to(arguments, device, copies=copies)
    state = start(problem.solver, image, variables, targets)
    state = state._replace(opt_state=set_learning_rate(state.opt_state, element.config))
    # Place the learning rates as well, or the second call would compile again.
    state = state if device is None else jax.device_put(state, device)
    return partial(run, problem.solver, variables=variables, targets=targets), state


def _shared_program(
    elements: Sequence[Element], targets: Sequence[Targets], *, batched: Batched, mesh: Mesh | None
) -> BatchProgram:
    """Make the program of stacked elements, on the devices of a mesh if any."""
    search = elements[0].config.optimizer.name == "lbfgs-linesearch"
    solver = batch_solver(elements[0].problem.solver, batched, sequential=search)
    variables, stacked = elements[0].problem.variables, stack_fields(targets, batched)
    images = jnp.stack([_initial(element) for element in elements])
    take: Take = partial(run, solver)
    places: Any = None
    variables = replicate(variables, mesh)
    if mesh is None:
        state = start(solver, images, variables, stacked)
    elif divides_rows(mesh):
        stacked = jax.device_put(stacked, targets_shardings(stacked, mesh=mesh, batched=batched))
        images = jax.device_put(images, image_sharding(mesh, batched=True))
        state = start_rows(solver, images, variables, stacked, mesh=mesh)
        places = state_shardings(state, mesh=mesh)
    else:
        specs, places = field_specs(batched), NamedSharding(mesh, DATA)
        images = jax.device_put(images, places)
        stacked = Targets(
            *(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(stacked, specs))
        )
        take = partial(run_spread, solver, mesh=mesh, specs=specs)
        state = start(solver, images, variables, stacked, sharding=places)
    opt_state = set_learning_rate(state.opt_state, *(element.config for element in elements))
    state = state._replace(opt_state=opt_state)
    if places is not None:  # place the learning rates as well, or the second call compiles again
        state = jax.device_put(state, places)
    return BatchProgram(partial(take, variables=variables, targets=stacked), state)


def _initial(element: Element) -> Array:
    return element.problem.initial(element.config, element.key, element.init)


def _targets(elements: Sequence[Element]) -> list[Targets]:
    """The targets of each element, with the weights of its config."""

    def of_one(element: Element) -> Targets:
        old = element.problem.targets
        weights = jax.tree.map(
            lambda w: np.asarray(w, old.weights.tv.dtype), loss_weights(element.config)
        )
        return old._replace(weights=weights)

    return [of_one(element) for element in elements]
