"""Sums over a whole image taken tile by tile, exactly, in the memory of one tile.

An image is divided into overlapping windows, each of which counts what it alone owns. An objective
is ``head(statistics(image))`` with statistics that are sums over pixels. The sum over windows is
the same sum, so that its gradient, by JAX's own differentiation, is that of the whole image: the
head's derivative knows the sums of all windows, and what overlapping windows give to a pixel adds
up. Each window is computed twice (``jax.checkpoint``): its activations are not kept.

Windows are of one size, so that one program serves all, and lie inside the image, so that the
network's padding is met at the image's true borders only. They begin at multiples of the
deepest layer's stride, so that features are the same in a window and in the whole, and reach far
enough (``halo``) beyond what they own for every owned feature to see all that it sees in the whole.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nst_jax.config.layers import LAPLACIANS, deepest, reach, stride
from nst_jax.models.projection import Features, map_shape
from nst_jax.types import Array, Targets, Variables, Window


class Spans(NamedTuple):
    """Windows along one axis.

    Attributes:
      size: of each window.
      starts: the first row of each.
      owned: first and last (exclusive) row that each owns, ``[n, 2]``.
      wrapped: rows of the opposite border to put before the first row and behind the last.
    """

    size: int
    starts: np.ndarray
    owned: np.ndarray
    wrapped: tuple[int, int] = (0, 0)


def halo(layers: Sequence[str]) -> int:
    """Pixels that a window needs beyond what it owns: a multiple of the deepest layer's stride.

    >>> halo(("relu5_1",)), halo(("relu4_2", "relu1_1"))
    (80, 40)
    """
    step = stride(deepest(tuple(layers)))
    return -(-max(reach(layer) for layer in layers) // step) * step


def spans(length: int, *, tile: int, halo: int, stride: int, wrap: bool = False) -> Spans:
    """Divide an axis into as few windows as a tile's size allows, and these evenly.

    Args:
      length: of the axis.
      tile: the most rows that a window owns inside the image; a multiple of ``stride``. At a
        border it may own ``halo`` more.
      halo: rows that a window needs beyond what it owns; likewise.
      stride: of the deepest layer.
      wrap: whether opposite borders are neighbours; ``length`` is then a multiple of ``stride``.

    Returns:
      The ``Spans``; one window is the whole axis.

    >>> spans(200, tile=64, halo=16, stride=16).owned.tolist()
    [[0, 80], [80, 144], [144, 200]]
    """
    rest = length % stride  # rows that only reach the layers of smaller stride
    whole, beyond = length - rest, 2 * halo
    alone = tile >= (whole if wrap else whole - beyond)
    if alone:
        return Spans(length, np.array([0]), np.array([[0, length]]))
    inside = whole if wrap else whole - beyond  # at both borders a halo is owned as well
    step = -(-inside // -(-inside // tile))
    step = -(-step // stride) * stride
    count = -(-inside // step)
    size, starts = step + beyond, np.arange(count) * step
    if wrap:
        owned = np.stack([starts, np.minimum(starts + step, length)], axis=1) + halo
        return Spans(size, starts, owned, (halo, count * step + halo - length))
    bounds = np.array([0, *(starts[1:] + halo), length])
    starts = np.minimum(starts, whole - size)
    return Spans(size + rest, starts, np.stack([bounds[:-1], bounds[1:]], axis=1))


def counted(window: Window, *, shape: Sequence[int], step: int = 1) -> Array:
    """Which of a layer's features a window owns, ``[h, w]``.

    Args:
      window: of an image.
      shape: height and width of the layer's features.
      step: the layer's stride.
    """
    rows, columns = window.rows[::step], window.columns[::step]
    return rows[: shape[0], None] * columns[None, : shape[1]]


def owned(name: str, tap: Features, targets: Targets) -> Array | None:
    """What of a layer's features counts, ``[h, w]``, or None for all."""
    if targets.window is None:
        return None
    return counted(targets.window, shape=map_shape(tap), step=stride(name))


def cut(x: Array, start: Array, *, size: tuple[int, int], step: int = 1, axis: int = 0) -> Array:
    """What of a layer's array belongs to a window.

    Args:
      x: ``[..., h, w, ...]`` with the height at ``axis``.
      start: the window's first row and column in pixels, ``[2]``.
      size: its height and width in pixels.
      step: the layer's stride.
      axis: of the height.
    """
    for i in range(2):
        x = jax.lax.dynamic_slice_in_dim(x, start[i] // step, size[i] // step, axis + i)
    return x


def over_maps(targets: Targets, transform: Callable[[Array, int, int], Array]) -> Targets:
    """Targets with every array that has an image's rows and columns transformed.

    Args:
      targets: of an image.
      transform: ``(array, step, axis) -> array`` with the stride of its layer and the axis of its
        height.
    """
    regions, keep = targets.regions, targets.keep
    if regions is not None:
        guides = {name: transform(x, stride(name), 1) for name, x in regions.guides.items()}
        regions = regions._replace(guides=guides)
    if keep is not None:
        keep = keep._replace(mask=transform(keep.mask, 1, 0), content=transform(keep.content, 1, 0))
    laplacian = {name: transform(x, LAPLACIANS[name], 0) for name, x in targets.laplacian.items()}
    return targets._replace(
        content={name: transform(x, stride(name), 0) for name, x in targets.content.items()},
        laplacian=laplacian,
        image=None if targets.image is None else transform(targets.image, 1, 0),
        regions=regions,
        keep=keep,
    )


def ownership(
    start: Array,
    owned: Array,
    *,
    size: tuple[int, int],
    dtype: Any,
    wrapped: tuple[int, int] = (0, 0),
) -> Window:
    """A window's rows and columns that count, from its start ``[2]`` and bounds ``[2, 2]``.

    Both are of an image with as many wrapped rows and columns before its own.
    """

    def along(axis: int) -> Array:
        positions = start[axis] + jnp.arange(size[axis])
        inside = (positions >= owned[axis, 0]) & (positions < owned[axis, 1])
        return inside.astype(dtype)

    begin = start - jnp.asarray(wrapped, start.dtype)
    return Window(rows=along(0), columns=along(1), start=begin)


class Grid(NamedTuple):
    """The windows of an image.

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
    """Divide an image for the layers that are asked of it.

    Args:
      shape: of the image, ``[H, W, ...]``.
      layers: names of taps.
      tile: the longest side of what a window owns, without its halo; taken up to the next multiple
        of the deepest layer's stride.
      padding: of the network.

    Returns:
      The ``Grid``; of one window where the image is no larger than a tile.
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
    """Statistics of an image as the sum of those of its windows.

    Args:
      statistics: ``(variables, image, targets) -> tree of sums over pixels``, which counts what
        ``targets.window`` says; the targets' maps are those of the window.
      layers: names of the taps that it asks for.
      tile, padding: as for ``make_grid``.
      mesh: devices among which the windows are divided, of any axes; each has the whole image.
      join, neutral: in place of the sum and 0, on one device only.

    Returns:
      The same function of whole images, with the same gradient to rounding. A step takes half as
      much time again for the second computation, times the windows' overlap.
    """

    def of_image(variables: Variables, image: Array, targets: Targets) -> Any:
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

    return of_image


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
    """Features of a whole image, put together from its windows.

    Args:
      function: ``[H, W, 3]`` to features by layer, ``[h, w, C]``.
      image: the whole image.
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
