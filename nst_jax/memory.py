"""What a compiled loop takes of a device's memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from nst_jax.loop import CHUNK_SIZE
from nst_jax.solver import run
from nst_jax.types import Solver, Targets, Variables

USABLE = 0.85  # of what is free: for what is not counted, and holes between blocks


class LoopMemory(NamedTuple):
    """What the compiled loop of one picture takes, in bytes.

    Attributes:
      network, state, targets: its arguments.
      scratch: what it takes while it runs, for activations above all.
    """

    network: int
    state: int
    targets: int
    scratch: int

    @property
    def own(self) -> int:
        """All but the network, which pictures of one run share."""
        return self.state + self.targets + self.scratch


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a tree.

    >>> tree_bytes({"a": jax.ShapeDtypeStruct((2, 3), "float32")})
    24
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loop_memory(
    solver: Solver, image_shape: Sequence[int], dtype: Any, variables: Variables, targets: Targets
) -> LoopMemory | None:
    """What the compiled loop of one picture takes; nothing of it is allocated.

    The loop is compiled for it, and this very program serves a run in the same process whose
    arguments are passed as ``transfer.stylize`` does.

    Args:
      solver, variables, targets: as for ``solver.run``; arrays or their shapes.
      image_shape, dtype: of the picture.

    Returns:
      The ``LoopMemory``, or None where the backend does not tell.
    """
    image = jax.ShapeDtypeStruct(tuple(image_shape), dtype)
    state = jax.eval_shape(solver.init, image, variables, targets)
    # As the host's loop calls it first; other ways to pass the same would be another program.
    lowered = run.lower(
        solver, state, variables=variables, targets=targets, num_steps=0, chunk_size=CHUNK_SIZE
    )
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        return None
    # The new state is where the old one was; the rest of the output is what the loop records.
    recorded = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return LoopMemory(
        network=tree_bytes(variables),
        state=tree_bytes(state),
        targets=tree_bytes(targets),
        scratch=analysis.temp_size_in_bytes + recorded,
    )
