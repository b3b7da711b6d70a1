"""Several devices: meshes, one image divided by rows, and a batch divided among devices.

One image: arrays are placed by rows, and ``solver.run`` runs on them as it is. XLA's partitioner
gives every convolution the row beyond its own from each neighbour (collective-permute) and adds up
the sums over pixels (all-reduce), so that loss and gradient are those of one device, and no device
ever has all of a layer's features. The kernels are on every device.

A batch: its images need nothing of each other, so that every device runs the loop on its own part
(``shard_map``), with no communication and its own end.

Contract: images are ``[H, W, 3]``, or with a batch axis ``[B, H, W, 3]``, see
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
from nst_jax.losses.tiling import over_maps
from nst_jax.optim.solver import run
from nst_jax.types import Array, Info, Solver, State, Targets, Variables


def rows_mesh(devices: Sequence[Any] | None = None, *, groups: int = 1) -> Mesh:
    """A mesh that divides images by rows.

    Args:
      devices: by default all of this process.
      groups: parts of a batch; the devices are divided among them and each part's images by rows
        among its devices.

    Returns:
      A mesh of the axis ``"rows"``, for several groups of ``"data"`` and ``"rows"``.

    Raises:
      InputError: where the groups do not divide the devices.
    """
    chosen = np.array(jax.local_devices() if devices is None else devices)
    if groups < 1 or chosen.size % groups:
        raise InputError(
            f"{chosen.size} devices for {groups} groups: expected a multiple of the groups"
        )
    # Not jax.make_mesh, whose axes are Explicit: there Gram matrices of divided rows are refused.
    return (
        Mesh(chosen, ("rows",))
        if groups == 1
        else Mesh(chosen.reshape(groups, -1), ("data", "rows"))
    )


def divides_rows(mesh: Mesh | None) -> bool:
    """Whether a mesh is one that divides images by rows."""
    return mesh is not None and "rows" in mesh.axis_names


def check_rows(
    height: int, width: int, *, mesh: Mesh, config: Config, layers: Sequence[str] = ()
) -> None:
    """Check that images can be divided by rows without loss.

    Every device needs whole rows of the deepest layer. Other heights would give the same numbers,
    but XLA then gathers the features of layers that do not divide on every device.

    Args:
      height, width: of the image.
      mesh: see ``rows_mesh``.
      config: settings.
      layers: taps of an objective of one's own, in place of the config's.

    Raises:
      InputError: for a height that the mesh does not divide, with the nearest size; for a mesh of
        other axes; for settings that need whole images on a device.
    """
    if mesh.axis_names not in (("rows",), ("data", "rows")) or set(mesh.axis_types) != {
        AxisType.Auto
    }:
        raise InputError(
            f"a mesh of the axes {', '.join(map(str, mesh.axis_names))} does not divide rows: make "
            "it by rows_mesh"
        )
    if config.preconditioner == "spectral":
        raise InputError(
            "the spectral preconditioner transforms whole images, which are divided by rows "
            "here: use preconditioner none, or one device"
        )
    if config.execution.convolution == "winograd":
        raise InputError(
            "winograd convolution gathers whole layers on every device where images are divided "
            "by rows: use convolution direct or auto"
        )
    if isinstance(config.execution.tile, int):
        raise InputError(
            f"tile is {config.execution.tile}, but tiles are cut out of whole images, which are "
            "divided by rows here: use tile off, or divide the tiles among the devices (a mesh of "
            "make_mesh)"
        )
    if config.optimizer.name == "lbfgs-linesearch" and mesh.shape.get("data", 1) > 1:
        raise InputError(
            "line searches of several images gather whole layers where these are divided by "
            "rows: use lbfgs or adam, or a mesh of rows alone, one image after another"
        )
    tap = deepest(tuple(layers) or config.loss.aligned_layers)
    devices, longer = mesh.shape["rows"], max(height, width)
    step = devices * stride(tap)
    if height % step:
        # What the longer side may be if the height is to follow by the aspect ratio.
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
    """An array divided along its leading axes; equal however many trailing ones are named."""
    names = [name if name in mesh.axis_names else None for name in axes]
    while names and names[-1] is None:
        names.pop()
    return NamedSharding(mesh, PartitionSpec(*names))


def image_sharding(mesh: Mesh, *, batched: bool = False) -> NamedSharding:
    """Where an image ``[H, W, ...]`` is, or a batch of them ``[B, H, W, ...]``."""
    return _sharding(mesh, *["data"] * batched, "rows")


def state_shardings(state: State, *, mesh: Mesh) -> State:
    """A ``NamedSharding`` for every leaf of a solver's state.

    All that is as large as the image is divided by rows, with leading axes as of L-BFGS's memory
    ``[m, H, W, 3]``; the rest is small and everywhere.

    Args:
      state: arrays or their shapes; of a batch, each leaf has a leading axis.
      mesh: see ``rows_mesh``.
    """
    *batch, height, width, channels = state.image.shape
    batch_axes = ["data"] * len(batch)

    def of_leaf(leaf: Any) -> NamedSharding:
        between = len(leaf.shape) - len(batch_axes) - 3
        if between < 0 or leaf.shape[-3:] != (height, width, channels):
            return _sharding(mesh, *batch_axes)
        return _sharding(mesh, *batch_axes, *[None] * between, "rows")

    return jax.tree.map(of_leaf, state)


def targets_shardings(targets: Targets, *, mesh: Mesh, own: Sequence[str] = ()) -> Targets:
    """A ``NamedSharding`` for every leaf of an objective's targets.

    Features, guides and what is kept are divided by rows; Gram matrices and numbers everywhere.

    Args:
      targets: arrays or their shapes.
      mesh: see ``rows_mesh``.
      own: fields that have a batch axis, see ``batch_programs.own_fields``.
    """
    axes: Targets = jax.tree.map(lambda _: PartitionSpec(), targets)
    axes = over_maps(axes, lambda _, step, axis: PartitionSpec(*[None] * axis, "rows"))  # type: ignore[arg-type]

    def place(field: str) -> Any:
        batch_axes = ["data"] * (field in own)
        return jax.tree.map(lambda spec: _sharding(mesh, *batch_axes, *spec), getattr(axes, field))

    return Targets(*map(place, Targets._fields))


@partial(jax.jit, static_argnames=("solver", "mesh"))
def start_rows(
    solver: Solver, image: Array, variables: Variables, targets: Targets, *, mesh: Mesh
) -> State:
    """The state before the first step, compiled and divided by rows from the beginning.

    Without the constraint XLA puts an empty memory of L-BFGS on every device as a whole.
    """
    state = solver.init(image, variables, targets)
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh=mesh))


DATA = PartitionSpec("data")  # an array divided along its leading axis


def make_mesh(*, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, of devices; by default of all of this process."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))


def flat_mesh(mesh: Mesh) -> Mesh:
    """A mesh of one axis with the devices of any mesh."""
    return make_mesh(devices=mesh.devices.flatten().tolist())


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
      solver: of states with a leading axis, see ``batch_programs.batch_solver``; static.
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
