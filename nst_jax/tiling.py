"""Sums over a whole picture taken tile by tile, exactly, in the memory of one tile.

An objective is ``head(statistics(image))`` with statistics that are sums over pixels. The sum over
windows is the same sum, so that its gradient, by JAX's own differentiation, is that of the whole
picture: the head's derivative knows the sums of all windows, and what overlapping windows give to
a pixel adds up. Each window is computed twice (``jax.checkpoint``): its activations are not kept.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nst_jax.layers import deepest, stride
from nst_jax.types import Array, Targets, Variables, Window
from nst_jax.windows import Spans, counted, cut, halo, over_maps, ownership, spans


class Grid(NamedTuple):
    """The windows of a picture.

    Attributes:
      rows, columns: windows along the axes.
    """

    rows: Spans
    columns: Spans

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of each window."""
        return self.rows.size, self.columns.size


def make_grid(
    shape: Sequence[int], *, layers: Sequence[str], tile: int, padding: str = "zero"
) -> Grid:
    """Divide a picture for the layers that are asked of it.

    Args:
      shape: of the picture, ``[H, W, ...]``.
      layers: names of taps.
      tile: the longest side of what a window owns, without its halo; taken up to the next multiple
        of the deepest layer's stride.
      padding: of the network.

    Returns:
      The ``Grid``; of one window where the picture is no larger than a tile.
    """
    step = stride(deepest(tuple(layers)))
    tile = -(-tile // step) * step
    of_axis = partial(spans, tile=tile, halo=halo(layers), stride=step, wrap=padding == "circular")
    return Grid(of_axis(shape[0]), of_axis(shape[1]))


def _at(grid: Grid, index: Array, *, dtype: Any) -> tuple[Array, Window]:
    """Where window ``index`` begins, and what it owns; one beyond the last owns nothing."""
    row, column = jnp.divmod(index, len(grid.columns.starts))
    places = (grid.rows, row), (grid.columns, column)

    def pick(values: np.ndarray, place: Array) -> Array:
        return jnp.asarray(values, jnp.int32)[place]  # past the end the last one

    start = jnp.stack([pick(axis.starts, place) for axis, place in places])
    owned = jnp.stack([pick(axis.owned, place) for axis, place in places])
    owned = jnp.where(index < grid.count, owned, 0)
    wrapped = grid.rows.wrapped[0], grid.columns.wrapped[0]
    return start, ownership(start, owned, size=grid.size, dtype=dtype, wrapped=wrapped)


def _surrounded(x: Array, step: int = 1, axis: int = 0, *, grid: Grid) -> Array:
    """An array of a layer with as much of its opposite borders around it as the windows need."""
    padding = [(0, 0)] * x.ndim
    for i, along in enumerate((grid.rows, grid.columns)):
        before, behind = along.wrapped
        padding[axis + i] = (before // step, behind // step)
    return jnp.pad(x, padding, mode="wrap") if any(map(any, padding)) else x


def tiled(
    statistics: Callable[[Variables, Array, Targets], Any],
    *,
    layers: Sequence[str],
    tile: int,
    padding: str = "zero",
    mesh: Mesh | None = None,
    join: Callable[[Array, Array], Array] = jnp.add,
    neutral: float = 0.0,
) -> Callable[[Variables, Array, Targets], Any]:
    """Statistics of a picture as the sum of those of its windows.

    Args:
      statistics: ``(variables, image, targets) -> tree of sums over pixels``, which counts what
        ``targets.window`` says; the targets' maps are those of the window.
      layers: names of the taps that it asks for.
      tile, padding: as for ``make_grid``.
      mesh: devices among which the windows are divided, of any axes; each has the whole picture.
      join, neutral: in place of the sum and 0, on one device only.

    Returns:
      The same function of whole pictures, with the same gradient to rounding. A step takes half as
      much time again for the second computation, times the windows' overlap.
    """

    def of_picture(variables: Variables, image: Array, targets: Targets) -> Any:
        grid = make_grid(image.shape, layers=layers, tile=tile, padding=padding)
        if grid.count == 1:
            return statistics(variables, image, targets)
        image = _surrounded(image, grid=grid)
        targets = over_maps(targets, lambda x, step, axis: _surrounded(x, step, axis, grid=grid))

        @partial(jax.checkpoint, prevent_cse=False)  # a loop's body is safe from it
        def of_window(variables: Variables, image: Array, targets: Targets, index: Array) -> Any:
            start, window = _at(grid, index, dtype=image.dtype)

            def piece(x: Array, step: int = 1, axis: int = 0) -> Array:
                return cut(x, start, size=grid.size, step=step, axis=axis)

            return statistics(
                variables, piece(image), over_maps(targets, piece)._replace(window=window)
            )

        def total(indices: Array, *given: Any) -> Any:
            def add(sums: Any, index: Array) -> tuple[Any, None]:
                return jax.tree.map(join, sums, of_window(*given, index)), None

            shapes = jax.eval_shape(of_window, *given, indices[0])
            first = jax.tree.map(lambda x: jnp.full(x.shape, neutral, x.dtype), shapes)
            return jax.lax.scan(add, first, indices)[0]

        if mesh is None:
            return total(jnp.arange(grid.count), variables, image, targets)
        return _divided(total, grid.count, variables, image, targets, mesh=mesh)

    return of_picture


def _divided(total: Callable[..., Any], count: int, *given: Any, mesh: Mesh) -> Any:
    """The sums of as many windows, each device its own part of them."""
    devices, axes = mesh.size, PartitionSpec(mesh.axis_names)

    def on_device(indices: Array, *given: Any) -> Any:
        return jax.tree.map(lambda x: x[None], total(indices, *given))

    indices = jnp.arange(-(-count // devices) * devices)
    parts = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(axes, *[PartitionSpec()] * len(given)),
        out_specs=axes,
        check_vma=False,  # the scan's zeros do not pass it
    )(indices, *given)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)


def tiled_maps(
    function: Callable[[Array], dict[str, Array]],
    image: Array,
    *,
    layers: Sequence[str],
    tile: int,
    padding: str = "zero",
) -> dict[str, Array]:
    """Features of a whole picture, put together from its windows.

    Args:
      function: ``[H, W, 3]`` to features by layer, ``[h, w, C]``.
      image: the whole picture.
      layers, tile, padding: as for ``tiled``; all layers that the function gives must be named.

    Returns:
      What ``function(image)`` is.
    """
    grid = make_grid(image.shape, layers=layers, tile=tile, padding=padding)
    if grid.count == 1:
        return function(image)
    surrounded = _surrounded(image, grid=grid)

    def put(maps: dict[str, Array], index: Array) -> tuple[dict[str, Array], None]:
        start, window = _at(grid, index, dtype=image.dtype)
        found = function(cut(surrounded, start, size=grid.size))

        def into(whole: Array, part: Array, step: int) -> Array:
            place = (start[0] // step, start[1] // step, jnp.zeros_like(start[0]))
            own = counted(window, shape=part.shape[:2], step=step)[..., None]
            before = jax.lax.dynamic_slice(whole, place, part.shape)
            return jax.lax.dynamic_update_slice(whole, jnp.where(own > 0, part, before), place)

        return {name: into(maps[name], found[name], stride(name)) for name in maps}, None

    shapes = jax.eval_shape(function, surrounded)
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    maps, _ = jax.lax.scan(put, zeros, jnp.arange(grid.count))

    def inside(x: Array, step: int) -> Array:
        top, left = grid.rows.wrapped[0] // step, grid.columns.wrapped[0] // step
        return x[top : top + image.shape[0] // step, left : left + image.shape[1] // step]

    return {name: inside(x, stride(name)) for name, x in maps.items()}
