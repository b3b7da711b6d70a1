"""A batch spread over devices: meshes, and the loop on all devices of one.

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

DATA = PartitionSpec("data")  # an array divided along its leading axis


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, of devices; by default of all of this process."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))


def flat_mesh(mesh: Mesh) -> Mesh:
    """A mesh of one axis with the devices of any mesh."""
    return make_mesh(mesh.devices.flatten().tolist())


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
    static_argnames=("solver", "mesh", "specs", "chunk_size"),
    donate_argnums=1,
)
def run_spread(
    solver: Solver,
    state: State,
    variables: Variables,
    targets: Targets,
    *,
    mesh: Mesh,
    specs: Targets,
    num_steps: ArrayLike,
    chunk_size: int,
) -> tuple[State, Info]:
    """``solver.run`` on every device of a mesh.

    Args:
      solver: of states with a leading axis, see ``lane_solver.batch_solver``; static.
      state: every leaf is divided along its leading axis.
      variables: the same on all devices.
      targets: divided as ``specs`` says, field by field.
      mesh: of one axis, ``"data"``; static, as is ``specs``.
      num_steps, chunk_size: as for ``run``.

    Returns:
      As ``run``; the diagnostics have the steps first and then the batch.
    """

    def on_device(state: State, variables: Variables, targets: Targets, num_steps: Any):
        return run(solver, state, variables, targets, num_steps=num_steps, chunk_size=chunk_size)

    everywhere = PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(DATA, everywhere, specs, everywhere),
        out_specs=(DATA, PartitionSpec(None, "data")),
        check_vma=False,  # line searches' inner loops do not pass it
    )(state, variables, targets, num_steps)
