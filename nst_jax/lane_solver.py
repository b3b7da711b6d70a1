"""A solver for lanes: several pictures that take each step together.

Arrays of lanes have one leading axis, or for a grid two, of contents and of styles.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from nst_jax.parallel import at_axis
from nst_jax.types import Array, Info, Solver, State, Targets, Variables

# The fields of the targets that have leading axes, and which: (("content", (True, False)), ...).
Own = tuple[tuple[str, tuple[bool, ...]], ...]


def own_fields(lanes: np.ndarray, *, distinct: tuple[str, ...] = ()) -> Own:
    """Which fields of the targets differ between lanes, and along which axes.

    Args:
      lanes: the lanes' ``Targets``, an array of objects. What they share are the same arrays.
      distinct: fields that count as different although all may be the same.
    """

    def differs(name: str, axis: int) -> bool:
        first = np.broadcast_to(lanes.take([0], axis=axis), lanes.shape)
        return any(
            getattr(lane, name) is not getattr(other, name)
            for lane, other in zip(lanes.flat, first.flat)
        )

    every = range(lanes.ndim)
    own: dict[str, tuple[bool, ...]] = {"weights": (True,) * lanes.ndim}
    # The others follow from the structure.
    for name in ("content", "style", "regions", "keep", "picture"):
        if getattr(lanes.flat[0], name) is not None:
            own[name] = tuple(name in distinct or differs(name, axis) for axis in every)
    return tuple((name, axes) for name, axes in own.items() if any(axes))


def stack_fields(lanes: np.ndarray, own: Own) -> Targets:
    """Targets of all lanes: their own fields with leading axes, the others as they are."""
    fields = {}
    for name, axes in own:
        chosen = lanes[tuple(slice(None) if axis else 0 for axis in axes)]
        each = [getattr(lane, name) for lane in chosen.flat]
        fields[name] = jax.tree.map(
            lambda *x, shape=chosen.shape: jnp.stack(x).reshape(*shape, *x[0].shape), *each
        )
    return lanes.flat[0]._replace(**fields)


def field_specs(own: Own, *, axis: int) -> Any:
    """``Targets`` of specs: how they are divided among devices along one of the lanes' axes."""
    specs = {
        name: at_axis(sum(axes[:axis])) if axes[axis] else PartitionSpec() for name, axes in own
    }
    return Targets(*(specs.get(name, PartitionSpec()) for name in Targets._fields))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def lanes_solver(solver: Solver, own: Own, *, in_turn: bool = False) -> Solver:
    """A solver of states with leading axes; of equal arguments it is the same object.

    Args:
      solver: of one picture.
      own: see ``own_fields``.
      in_turn: take the lanes' steps one after another and not by ``vmap``, as a line search wants
        it, whose lanes would else wait for each other.
    """

    def along(axis: int, function: Callable[..., Any], together: bool) -> Callable[..., Any]:
        names = [name for name, axes in own if axes[axis]]

        def over_axis(leaves: Any, fields: dict[str, Any]) -> Any:
            mine = (leaves, {name: fields[name] for name in names})

            def of_one(lane: tuple[Any, dict[str, Any]]) -> Any:
                return function(lane[0], fields | lane[1])

            return jax.vmap(of_one)(mine) if together else jax.lax.map(of_one, mine)

        return over_axis

    def over_lanes(
        function: Callable[..., Any], leading: Any, targets: Targets, together: bool
    ) -> Any:
        def of_lane(leaves: Any, fields: dict[str, Any]) -> Any:
            return function(leaves, targets._replace(**fields))

        for axis in reversed(range(len(own[0][1]))):
            of_lane = along(axis, of_lane, together)
        return of_lane(leading, {name: getattr(targets, name) for name, _ in own})

    def init(images: Array, variables: Variables, targets: Targets) -> State:
        def of_lane(image: Array, targets: Targets) -> State:
            return solver.init(image, variables, targets)

        return over_lanes(of_lane, images, targets, True)

    def step(states: State, variables: Variables, targets: Targets) -> tuple[State, Info]:
        def of_lane(state: State, targets: Targets) -> tuple[State, Info]:
            return solver.step(state, variables, targets)

        return over_lanes(of_lane, states, targets, not in_turn)

    return Solver(init=init, step=step)
