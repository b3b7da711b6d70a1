"""A solver for a batch: several pictures that take each step together.

Arrays of a batch have a leading axis, of its elements.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nst_jax.parallel import DATA
from nst_jax.types import Array, Info, Solver, State, Targets, Variables

# The names of the fields of the targets that have a leading axis.
Own = tuple[str, ...]
# Those that are computed of the content.
OF_CONTENT = ("content", "similarity", "laplacian", "picture")


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
      solver: of one picture.
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
