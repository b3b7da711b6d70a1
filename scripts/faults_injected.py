"""Faults within a run's computation: numbers that are not finite, memory that does not suffice.

As a program it is ``nst-jax`` with one of them:
  python scripts/faults_injected.py FAULT FIRST LAST COMMAND ...
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from nst_jax.cli import main
from nst_jax.optim import solver
from nst_jax.transfer import planner, problem, single
from nst_jax.types import Loss

FAULTS = ("loss", "gradient", "state", "memory")


@jax.custom_vjp
def _with_gradient(value: Any, factor: Any) -> Any:
    """A value whose gradient is multiplied by a factor."""
    return value


_with_gradient.defvjp(
    lambda value, factor: (value, factor), lambda factor, cotangent: (factor * cotangent, None)
)


@contextmanager
def injected(fault: str, *, first: int, last: int) -> Iterator[None]:
    """Inject a fault into the runs of the block.

    Args:
      fault: "loss" and "gradient": that of an evaluation is NaN; "state": the optimiser's before a
        chunk of steps; "memory": a chunk of steps does not get any.
      first, last: at which of the evaluations or chunks, from 1.
    """
    with ExitStack() as stack:
        if fault in ("loss", "gradient"):
            make = _poisoned(fault, first=first, last=last)
            for module in (problem, planner):
                stack.enter_context(patch.object(module, "make_solver", make))
        else:
            stack.enter_context(patch.object(single, "run", _spoilt(fault, first, last)))
        yield


def _poisoned(fault: str, *, first: int, last: int) -> Any:
    """``solver.make_solver`` of a loss that is NaN at some evaluations, or its gradient."""
    numbers = itertools.count(1)

    def factor() -> np.float32:
        return np.float32(np.nan if first <= next(numbers) <= last else 1)

    def head(loss: Loss, statistics: Any, targets: Any) -> Any:
        value, terms = loss.head(statistics, targets)
        number = io_callback(factor, jax.ShapeDtypeStruct((), jnp.float32), ordered=False)
        if fault == "gradient":
            return _with_gradient(value, number), terms
        return value + jax.lax.stop_gradient(jnp.where(jnp.isnan(number), number, 0)), terms

    def make(loss: Loss, *arguments: Any, **options: Any) -> Any:
        spoilt = loss._replace(head=lambda *given: head(loss, *given))
        return solver.make_solver(spoilt, *arguments, **options)

    return make


def _spoilt(fault: str, first: int, last: int) -> Any:
    """``solver.run`` that fails at some chunks of steps."""
    numbers = itertools.count(1)

    def run(bound: Any, state: Any, *arguments: Any, **options: Any) -> Any:
        # The run of no steps only compiles.
        if options["num_steps"] and first <= next(numbers) <= last:
            if fault == "memory":
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory (injected)")
            broken = jax.tree.map(
                lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x,
                state.opt_state,
            )
            state = state._replace(opt_state=broken)
        return solver.run(bound, state, *arguments, **options)

    return run


if __name__ == "__main__":
    fault, first, last, *command = sys.argv[1:]
    with injected(fault, first=int(first), last=int(last)):
        sys.exit(main(command))
