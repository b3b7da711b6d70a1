"""The command ``nst-jax`` with a fault injected into its computation.

    python tests/faults/injected.py FAULT FIRST LAST COMMAND ...

FAULT is ``loss`` or ``gradient``, which is NaN at the evaluations FIRST to LAST, counted from 1, or
``state``, that of the optimiser, which is NaN before these chunks of steps.
"""

import itertools
import sys
from contextlib import ExitStack
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from nst_jax.cli import main
from nst_jax.optim import solver
from nst_jax.transfer import planner, problem, single


@jax.custom_vjp
def scale_gradient(value, factor):
    """Return the value; its gradient is multiplied by the factor."""
    return value


scale_gradient.defvjp(lambda value, factor: (value, factor), lambda factor, ct: (factor * ct, None))


def make_faulty_solver(fault, is_faulty):
    """A ``solver.make_solver`` whose loss, or gradient, is NaN at some evaluations."""

    def factor():
        return np.float32(np.nan if is_faulty() else 1)

    def head(loss, statistics, targets):
        value, terms = loss.head(statistics, targets)
        number = io_callback(factor, jax.ShapeDtypeStruct((), jnp.float32), ordered=False)
        if fault == "gradient":
            return scale_gradient(value, number), terms
        # Addition of NaN without a gradient: the gradient stays finite.
        return value + jax.lax.stop_gradient(jnp.where(jnp.isnan(number), number, 0)), terms

    def make_solver(loss, *arguments, **options):
        faulty = loss._replace(head=lambda *given: head(loss, *given))
        return solver.make_solver(faulty, *arguments, **options)

    return make_solver


def make_faulty_run(is_faulty):
    """A ``solver.run`` that starts some chunks of steps from a state of NaN."""

    def spoil(x):
        return jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    def run(bound, state, *arguments, **options):
        if options["num_steps"] and is_faulty():  # a chunk of no steps only compiles
            state = state._replace(opt_state=jax.tree.map(spoil, state.opt_state))
        return solver.run(bound, state, *arguments, **options)

    return run


if __name__ == "__main__":
    fault, first, last, *command = sys.argv[1:]
    numbers = itertools.count(1)

    def is_faulty():
        return int(first) <= next(numbers) <= int(last)

    with ExitStack() as stack:
        if fault in ("loss", "gradient"):
            for module in (problem, planner):
                make = make_faulty_solver(fault, is_faulty)
                stack.enter_context(patch.object(module, "make_solver", make))
        else:
            stack.enter_context(patch.object(single, "run", make_faulty_run(is_faulty)))
        sys.exit(main(command))
