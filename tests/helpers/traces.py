"""Counts how often a program is traced."""

import jax

from nst_jax.optim import solver
from nst_jax.transfer import batch_programs, sharding, single


def count_traces(monkeypatch):
    """Return a list that grows with every trace of the loop."""
    traces = []

    def count(original, *static):
        def counting(solver, state, *args, **options):
            traces.append(None)
            return original.__wrapped__(solver, state, *args, **options)

        static = ("solver", "chunk_size", *static)
        return jax.jit(counting, static_argnames=static, donate_argnames="state")

    run = count(solver.run)
    for module in (single, batch_programs):
        monkeypatch.setattr(module, "run", run)
    spread = count(sharding.run_spread, "mesh", "specs")
    monkeypatch.setattr(batch_programs, "run_spread", spread)
    return traces
