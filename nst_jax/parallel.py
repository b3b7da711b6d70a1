"""Lanes spread over devices: which axis a mesh divides, and the loop on all of its devices.

The pictures of a batch need nothing of each other, so that every device runs the loop on its own
part (``shard_map``), with no communication and its own end; arrays are placed by ``NamedSharding``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from nst_jax.solver import run
from nst_jax.types import Info, Solver, State, Targets, Variables


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, of devices; by default of all of this process."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))


def flat_mesh(mesh: Mesh) -> Mesh:
    """A mesh of one axis with the devices of any mesh."""
    return make_mesh(mesh.devices.flatten().tolist())


def divided_axis(shape: tuple[int, ...], devices: int) -> int:
    """The axis that wants the least filling up to be divided among so many devices.

    >>> divided_axis((1, 6), 2), divided_axis((4, 4), 2)
    (1, 0)
    """
    return min(range(len(shape)), key=lambda axis: (-shape[axis] % devices) / shape[axis])


def at_axis(axis: int) -> PartitionSpec:
    """An array divided along one axis."""
    return PartitionSpec(*[None] * axis, "data")


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A tree with a copy on every device of a mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def copy_on(tree: Any, device: Any, *, known: dict[Any, Any]) -> Any:
    """A tree on one device, or as it is for None.

    Args:
      tree: arrays; of those that are on all devices the device's own copy is taken.
      device: where to.
      known: copies that were made before, which serve again; these are added.
    """
    if device is None:
        return tree

    def of_leaf(leaf: Any) -> Any:
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else []
        whole = [x.data for x in shards if x.device == device and x.data.shape == leaf.shape]
        return jax.device_put(whole[0] if whole else leaf, device)

    def once(leaf: Any) -> Any:
        key = id(leaf), device
        if key not in known:
            known[key] = leaf, of_leaf(leaf)  # with the leaf itself, so that no other gets its id
        return known[key][1]

    return jax.tree.map(once, tree)


@partial(
    jax.jit,
    static_argnames=("solver", "mesh", "axis", "specs", "chunk_size"),
    donate_argnums=1,
)
def run_spread(
    solver: Solver,
    state: State,
    variables: Variables,
    targets: Targets,
    *,
    mesh: Mesh,
    axis: int,
    specs: Targets,
    num_steps: ArrayLike,
    chunk_size: int,
) -> tuple[State, Info]:
    """``solver.run`` on every device of a mesh.

    Args:
      solver: of states with leading axes, see ``lane_solver.lanes_solver``; static.
      state: every leaf is divided along ``axis``.
      variables: the same on all devices.
      targets: divided as ``specs`` says, field by field.
      mesh: of one axis, ``"data"``; static, as are ``axis`` and ``specs``.
      num_steps, chunk_size: as for ``run``.

    Returns:
      As ``run``; the diagnostics have the steps first and then the leading axes.
    """

    def on_device(state: State, variables: Variables, targets: Targets, num_steps: Any):
        return run(solver, state, variables, targets, num_steps=num_steps, chunk_size=chunk_size)

    lead, everywhere = at_axis(axis), PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(lead, everywhere, specs, everywhere),
        out_specs=(lead, at_axis(axis + 1)),
        check_vma=False,  # line searches' inner loops do not pass it
    )(state, variables, targets, num_steps)
