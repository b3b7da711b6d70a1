"""Several devices: meshes, an image divided by rows, and a batch divided among devices.

One image: its arrays are sharded by rows, and ``solver.run`` runs on them unchanged. XLA's
partitioner makes every convolution fetch one row from each neighbouring device (collective-permute)
and adds up the sums over pixels (all-reduce). So loss and gradient are those of one device, and no
device ever holds all of a layer's features. The kernels are replicated.

A batch: its elements are independent, so every device runs the loop on its part of the batch
(``shard_map``), without communication, and ends when its part ends.

Contract: images are ``[H, W, 3]``, or ``[B, H, W, 3]`` with a batch axis, see
``batch_programs.batch_solver``. A mesh has the axis ``"data"`` for a batch, ``"rows"`` for rows, or
both, ``"data"`` first.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from nst_jax.config.config import Config
from nst_jax.config.layers import deepest, stride
from nst_jax.errors import InputError
from nst_jax.losses.tiling import transform_maps
from nst_jax.optim.solver import run
from nst_jax.types import Array, Info, Solver, State, Targets, Variables


def rows_mesh(devices: Sequence[Any] | None = None, *, groups: int = 1) -> Mesh:
    """Make a mesh that divides images by rows.

    Args:
      devices: by default all devices of this process.
      groups: number of groups of devices. The images of a batch are divided among the groups, and
        each image by rows among the devices of its group.

    Returns:
      A mesh with the axis ``"rows"``, or ``"data"`` and ``"rows"`` for several groups.

    Raises:
      InputError: if the number of devices is not a multiple of ``groups``.
    """
    chosen = np.array(jax.local_devices() if devices is None else devices)
    if groups < 1 or chosen.size % groups:
        raise InputError(
            f"{chosen.size} devices for {groups} groups: expected a multiple of the groups"
        )
    # Not jax.make_mesh: its axes are Explicit, and explicit sharding refuses Gram matrices of
    # divided rows.
    return (
        Mesh(chosen, ("rows",))
        if groups == 1
        else Mesh(chosen.reshape(groups, -1), ("data", "rows"))
    )


def divides_rows(mesh: Mesh | None) -> bool:
    """Whether a mesh divides images by rows."""
    return mesh is not None and "rows" in mesh.axis_names


def check_rows(
    height: int, width: int, *, mesh: Mesh, config: Config, layers: Sequence[str] = ()
) -> None:
    """Check that an image can be divided by rows efficiently.

    Every device needs whole rows of the deepest layer. Other heights would give the same numbers,
    but XLA would gather the features of layers that do not divide evenly on every device.

    Args:
      height, width: of the image.
      mesh: see ``rows_mesh``.
      config: settings.
      layers: layers of a custom objective, instead of the config's.

    Raises:
      InputError: for a height that the mesh does not divide, with the nearest size that it does;
        for a mesh with other axes; for settings that need whole images on a device.
    """
    if mesh.axis_names not in (("rows",), ("data", "rows")) or set(mesh.axis_types) != {
        AxisType.Auto
    }:
        raise InputError(
            f"a mesh of the axes {', '.join(map(str, mesh.axis_names))} does not divide rows: make "
            "it with rows_mesh"
        )
    if config.preconditioner == "spectral":
        raise InputError(
            "the spectral preconditioner transforms whole images, but they are divided by rows: "
            "use preconditioner none, or one device"
        )
    if config.execution.convolution == "winograd":
        raise InputError(
            "winograd convolution of images divided by rows gathers whole layers on every device: "
            "use convolution direct or auto"
        )
    if isinstance(config.execution.tile, int):
        raise InputError(
            f"tile is {config.execution.tile}, but tiles need whole images, and they are divided "
            "by rows: use tile off, or divide the tiles among the devices (a mesh of make_mesh)"
        )
    if config.optimizer.name == "lbfgs-linesearch" and mesh.shape.get("data", 1) > 1:
        raise InputError(
            "line searches of several images divided by rows gather whole layers: use lbfgs or "
            "adam, or a mesh of rows alone, one image after another"
        )
    tap = deepest(tuple(layers) or config.loss.aligned_layers)
    devices, longer = mesh.shape["rows"], max(height, width)
    step = devices * stride(tap)
    if height % step:
        # Longer sides whose height, rounded by the aspect ratio, is a multiple; take the nearest.
        sizes = range(1, longer + step * longer // height + 2)
        heights = {size: round(height * size / longer) for size in sizes}
        fitting = [size for size in sizes if heights[size] and heights[size] % step == 0]
        size = min(fitting, key=lambda size: abs(size - longer))
        raise InputError(
            f"the image is {width}x{height} px, but divided by rows over {devices} devices layer "
            f"{tap} needs a multiple of {step} px for the height: choose a longer side of {size} "
            f"px (height {heights[size]} px), crop it, or use fewer devices or shallower layers"
        )


def _sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """A sharding along leading axes; the axes that the mesh lacks are not divided.

    Trailing None are dropped, so that equal shardings compare equal (they key jit's cache).
    """
    names = [name if name in mesh.axis_names else None for name in axes]
    while names and names[-1] is None:
        names.pop()
    return NamedSharding(mesh, PartitionSpec(*names))


def image_sharding(mesh: Mesh, *, batched: bool = False) -> NamedSharding:
    """The sharding of an image ``[H, W, ...]``, or of a batch ``[B, H, W, ...]``."""
    return _sharding(mesh, *["data"] * batched, "rows")


def state_shardings(state: State, *, mesh: Mesh) -> State:
    """A ``NamedSharding`` for every leaf of a solver's state.

    Leaves that end in the image's shape are divided by rows, also L-BFGS's memory ``[m, H, W, 3]``.
    The others are small and replicated.

    Args:
      state: arrays or their shapes. In a batch, each leaf has a leading axis.
      mesh: see ``rows_mesh``.
    """
    *batch, height, width, channels = state.image.shape
    batch_axes = ["data"] * len(batch)

    def of_leaf(leaf: Any) -> NamedSharding:
        # Axes between the batch axis and the image, such as the m of L-BFGS's memory. The shape is
        # matched from the end, because m may happen to equal the height.
        between = len(leaf.shape) - len(batch_axes) - 3
        if between < 0 or leaf.shape[-3:] != (height, width, channels):
            return _sharding(mesh, *batch_axes)
        return _sharding(mesh, *batch_axes, *[None] * between, "rows")

    return jax.tree.map(of_leaf, state)


def targets_shardings(targets: Targets, *, mesh: Mesh, batched: Sequence[str] = ()) -> Targets:
    """A ``NamedSharding`` for every leaf of an objective's targets.

    Features, guides and the preserved region are divided by rows; Gram matrices and numbers are
    replicated.

    Args:
      targets: arrays or their shapes.
      mesh: see ``rows_mesh``.
      batched: fields that have a batch axis, see ``batch_programs.batched_fields``.
    """
    # Replicate everything; then overwrite the maps, whose rows are on the axis that
    # ``transform_maps`` passes.
    axes: Targets = jax.tree.map(lambda _: PartitionSpec(), targets)
    axes = transform_maps(axes, lambda _, step, axis: PartitionSpec(*[None] * axis, "rows"))  # type: ignore[arg-type]

    def place(field: str) -> Any:
        batch_axes = ["data"] * (field in batched)
        return jax.tree.map(lambda spec: _sharding(mesh, *batch_axes, *spec), getattr(axes, field))

    return Targets(*map(place, Targets._fields))


@partial(jax.jit, static_argnames=("solver", "mesh"))
def start_rows(
    solver: Solver, image: Array, variables: Variables, targets: Targets, *, mesh: Mesh
) -> State:
    """Compute the state before the first step, divided by rows from the beginning."""
    # Without the constraint XLA would replicate L-BFGS's memory, which is initialised to zeros and
    # so depends on no sharded argument.
    state = solver.init(image, variables, targets)
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh=mesh))


DATA = PartitionSpec("data")  # divides an array along its leading axis


def make_mesh(*, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with the single axis ``"data"``; by default of all devices of this process."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))


def flat_mesh(mesh: Mesh) -> Mesh:
    """Make a mesh with the single axis ``"data"`` from the devices of any mesh."""
    return make_mesh(devices=mesh.devices.flatten().tolist())


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Copy a tree to every device of a mesh; without a mesh, return it unchanged."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def copy_to(tree: Any, device: Any, *, copies: dict[Any, Any]) -> Any:
    """Copy a tree to one device.

    Args:
      tree: arrays. Of a replicated array, the copy already on the device is used.
      device: the destination, or None to return the tree unchanged.
      copies: earlier copies by leaf and device, to be used again; new copies are added.
    """
    if device is None:
        return tree

    def of_leaf(leaf: Any) -> Any:
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else []
        whole = [x.data for x in shards if x.device == device and x.data.shape == leaf.shape]
        return jax.device_put(whole[0] if whole else leaf, device)

    def once(leaf: Any) -> Any:
        key = id(leaf), device
        if key not in copies:
            copies[key] = leaf, of_leaf(leaf)  # holding the leaf keeps its id from being reused
        return copies[key][1]

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
    """Call ``solver.run`` on every device of a mesh, each with its part of a batch.

    Args:
      solver: of states with a leading axis, see ``batch_programs.batch_solver``; static.
      state: every leaf is divided along its leading axis.
      variables: replicated.
      targets: divided field by field, as in ``specs``.
      mesh: with the single axis ``"data"``; static.
      specs: ``Targets`` of partition specs, see ``batch_programs.field_specs``; static.
      num_steps, chunk_size: as for ``run``.

    Returns:
      As ``run``; the axes of the diagnostics are steps and batch.
    """

    def on_device(state: State, variables: Variables, targets: Targets, num_steps: Any):
        return run(solver, state, variables, targets, num_steps=num_steps, chunk_size=chunk_size)

    replicated = PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(DATA, replicated, specs, replicated),
        out_specs=(DATA, PartitionSpec(None, "data")),
        check_vma=False,  # the inner loops of line searches fail this check
    )(state, variables, targets, num_steps)
