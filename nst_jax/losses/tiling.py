"""Exact sums over a whole image, computed tile by tile in the memory of one tile.

An image is divided into overlapping windows. Each window owns the pixels of its tile, and extends
beyond them by a halo. An objective is ``head(statistics(image))``, where the statistics are sums
over pixels: adding up those of the windows, each over the pixels that it owns, gives those of the
whole image. The gradient is exact as well. The derivative of the head is taken at the sums over all
windows, and the contributions of overlapping windows to a pixel add up. Activations are not stored;
each window is recomputed in the backward pass (``jax.checkpoint``).

All windows have one size, so that one compiled program serves them all. Their owned features equal
those of the whole image, because

- they lie inside the image, so that the network pads only at the true borders of the image;
- they begin at multiples of the deepest layer's stride, so that pooling windows and features fall
  on the same pixels in a window and in the whole image; and
- their halo covers the receptive field of every feature that they own, see ``halo``.

With circular padding, a halo of the opposite border is first put around the image.
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
      size: number of rows of each window.
      starts: first row of each window, ``[n]``.
      owned: first and last (exclusive) row that each window owns, ``[n, 2]``.
      wrapped: number of rows of the opposite border to put before the first row and after the last.
    """

    size: int
    starts: np.ndarray
    owned: np.ndarray
    wrapped: tuple[int, int] = (0, 0)


def halo(layers: Sequence[str]) -> int:
    """Number of pixels by which a window must extend beyond what it owns.

    It is the largest ``reach`` of the layers, the number of pixels that a feature sees on each side
    of its own square of stride x stride pixels, rounded up to a multiple of the deepest layer's
    stride, so that windows stay aligned.

    >>> halo(("relu5_1",)), halo(("relu4_2", "relu1_1"))
    (80, 40)
    """
    step = stride(deepest(tuple(layers)))
    return -(-max(reach(layer) for layer in layers) // step) * step


def spans(length: int, *, tile: int, halo: int, stride: int, wrap: bool = False) -> Spans:
    """Divide an axis into the smallest number of windows, of equal size.

    Args:
      length: number of rows.
      tile: largest number of rows that a window owns, a multiple of ``stride``. A window at a
        border may own ``halo`` more, since it needs no halo there.
      halo: rows that a window needs beyond what it owns, a multiple of ``stride``.
      stride: stride of the deepest layer.
      wrap: whether opposite borders are neighbours; ``length`` is then a multiple of ``stride``.

    Returns:
      The ``Spans``. A single window covers the whole axis.

    >>> spans(200, tile=64, halo=16, stride=16).owned.tolist()
    [[0, 80], [80, 144], [144, 200]]
    """
    rest = length % stride  # the last rows, which only layers of a smaller stride see
    whole, halos = length - rest, 2 * halo
    # The windows at the borders own their outer halo as well.
    inside = whole if wrap else whole - halos
    if tile >= inside:
        return Spans(length, np.array([0]), np.array([[0, length]]))
    step = -(-inside // -(-inside // tile))  # the least tile that needs no more windows
    step = -(-step // stride) * stride
    count = -(-inside // step)
    size, starts = step + halos, np.arange(count) * step  # windows overlap by two halos
    if wrap:
        # In coordinates of the axis with a halo before its first row. The last window may reach
        # further than a halo behind the last row.
        owned = np.stack([starts, np.minimum(starts + step, length)], axis=1) + halo
        return Spans(size, starts, owned, (halo, count * step + halo - length))
    # Except at the border, what a window owns begins a halo after its first row.
    bounds = np.array([0, *(starts[1:] + halo), length])
    starts = np.minimum(starts, whole - size)  # move the last window back into the image
    return Spans(size + rest, starts, np.stack([bounds[:-1], bounds[1:]], axis=1))


def ownership(window: Window, *, shape: Sequence[int], step: int = 1) -> Array:
    """Mask of the features that a window owns: those whose first pixel it owns.

    Args:
      window: the window.
      shape: height and width of the layer's features, ``(h, w, ...)``.
      step: stride of the layer.

    Returns:
      ``[h, w]``, 1 for owned features and else 0.
    """
    rows, columns = window.rows[::step], window.columns[::step]
    return rows[: shape[0], None] * columns[None, : shape[1]]


def owned_mask(name: str, tap: Features, targets: Targets) -> Array | None:
    """Mask of the features that the targets' window owns, ``[h, w]``, or None for a whole image."""
    if targets.window is None:
        return None
    return ownership(targets.window, shape=map_shape(tap), step=stride(name))


def crop(x: Array, start: Array, *, size: tuple[int, int], step: int = 1, axis: int = 0) -> Array:
    """Crop an array of a layer to a window.

    Args:
      x: ``[..., h, w, ...]`` with the height at ``axis``.
      start: first row and column of the window in pixels, ``[2]``.
      size: height and width of the window in pixels.
      step: stride of the layer.
      axis: axis of the height.
    """
    for i in range(2):
        x = jax.lax.dynamic_slice_in_dim(x, start[i] // step, size[i] // step, axis + i)
    return x


def transform_maps(targets: Targets, transform: Callable[[Array, int, int], Array]) -> Targets:
    """Transform every array of the targets that has the rows and columns of the image.

    Args:
      targets: the targets.
      transform: ``(array, step, axis) -> array``, where step is the stride of the array's layer in
        pixels, and axis that of its height.
    """
    regions, preserved = targets.regions, targets.preserved
    if regions is not None:
        guides = {name: transform(x, stride(name), 1) for name, x in regions.guides.items()}
        regions = regions._replace(guides=guides)
    if preserved is not None:
        preserved = preserved._replace(
            mask=transform(preserved.mask, 1, 0), content=transform(preserved.content, 1, 0)
        )
    laplacian = {name: transform(x, LAPLACIANS[name], 0) for name, x in targets.laplacian.items()}
    return targets._replace(
        content={name: transform(x, stride(name), 0) for name, x in targets.content.items()},
        laplacian=laplacian,
        image=None if targets.image is None else transform(targets.image, 1, 0),
        regions=regions,
        preserved=preserved,
    )


def make_window(
    start: Array,
    owned: Array,
    *,
    size: tuple[int, int],
    dtype: Any,
    wrapped: tuple[int, int] = (0, 0),
) -> Window:
    """Make a ``Window``.

    Args:
      start: first row and column of the window, ``[2]``.
      owned: first and last (exclusive) row and column that it owns, ``[2, 2]``.
      size: height and width.
      dtype: type of the masks.
      wrapped: number of rows and columns that were put before those of the image; ``start`` and
        ``owned`` count from there.
    """

    def along(axis: int) -> Array:
        positions = start[axis] + jnp.arange(size[axis])
        inside = (positions >= owned[axis, 0]) & (positions < owned[axis, 1])
        return inside.astype(dtype)

    image_start = start - jnp.asarray(wrapped, start.dtype)
    return Window(rows=along(0), columns=along(1), start=image_start)


class Grid(NamedTuple):
    """The windows of an image.

    Attributes:
      rows, columns: windows along the axes.
    """

    rows: Spans
    columns: Spans

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of each window."""
        return self.rows.size, self.columns.size


def make_grid(
    shape: Sequence[int], *, layers: Sequence[str], tile: int, padding: str = "zero"
) -> Grid:
    """Divide an image into windows for a set of layers.

    Args:
      shape: shape of the image, ``[H, W, ...]``.
      layers: names of layers.
      tile: longest side of a tile in pixels, rounded up to a multiple of the deepest layer's
        stride.
      padding: padding of the network.

    Returns:
      The ``Grid``, with one window if the image is no larger than a tile.
    """
    step = stride(deepest(tuple(layers)))
    tile = -(-tile // step) * step
    of_axis = partial(spans, tile=tile, halo=halo(layers), stride=step, wrap=padding == "circular")
    return Grid(of_axis(shape[0]), of_axis(shape[1]))


def _window_at(grid: Grid, index: Array, *, dtype: Any) -> tuple[Array, Window]:
    """First row and column of a window, and what it owns; indices past the last own nothing."""
    row, column = jnp.divmod(index, len(grid.columns.starts))
    places = (grid.rows, row), (grid.columns, column)

    def pick(values: np.ndarray, place: Array) -> Array:
        return jnp.asarray(values, jnp.int32)[place]  # JAX clamps indices past the end

    start = jnp.stack([pick(axis.starts, place) for axis, place in places])
    owned = jnp.stack([pick(axis.owned, place) for axis, place in places])
    owned = jnp.where(index < grid.count, owned, 0)
    wrapped = grid.rows.wrapped[0], grid.columns.wrapped[0]
    return start, make_window(start, owned, size=grid.size, dtype=dtype, wrapped=wrapped)


def _wrap_around(x: Array, step: int = 1, axis: int = 0, *, grid: Grid) -> Array:
    """Pad an array of a layer with its opposite borders, as circular windows need it."""
    padding = [(0, 0)] * x.ndim
    for i, along in enumerate((grid.rows, grid.columns)):
        before, after = along.wrapped
        padding[axis + i] = (before // step, after // step)
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
    """Transform a function that sums over an image into one that adds up the sums of its windows.

    Args:
      statistics: ``(variables, image, targets) -> tree of sums over pixels``. It must count only
        the pixels that ``targets.window`` owns; it gets the maps of the targets cropped to the
        window.
      layers: names of the layers that it computes.
      tile, padding: see ``make_grid``.
      mesh: devices, on any axes, that share the windows; each device holds the whole image.
      join, neutral: what replaces the sum and its initial value 0; only without a mesh.

    Returns:
      The function for whole images, with the same value and gradient up to rounding. Recomputing
      each window makes a step take half as long again, times the overlap of the windows.
    """

    def of_image(variables: Variables, image: Array, targets: Targets) -> Any:
        grid = make_grid(image.shape, layers=layers, tile=tile, padding=padding)
        if grid.count == 1:
            return statistics(variables, image, targets)
        image = _wrap_around(image, grid=grid)
        targets = transform_maps(
            targets, lambda x, step, axis: _wrap_around(x, step, axis, grid=grid)
        )

        # Within a scan, XLA cannot merge the recomputation with the first computation, so the
        # barriers against that (``prevent_cse``) are not needed.
        @partial(jax.checkpoint, prevent_cse=False)
        def of_window(variables: Variables, image: Array, targets: Targets, index: Array) -> Any:
            start, window = _window_at(grid, index, dtype=image.dtype)

            def crop_map(x: Array, step: int = 1, axis: int = 0) -> Array:
                return crop(x, start, size=grid.size, step=step, axis=axis)

            return statistics(
                variables,
                crop_map(image),
                transform_maps(targets, crop_map)._replace(window=window),
            )

        def total(indices: Array, *args: Any) -> Any:
            def add(sums: Any, index: Array) -> tuple[Any, None]:
                return jax.tree.map(join, sums, of_window(*args, index)), None

            # Accumulate into zeros of the result's structure, which only tracing tells.
            shapes = jax.eval_shape(of_window, *args, indices[0])
            first = jax.tree.map(lambda x: jnp.full(x.shape, neutral, x.dtype), shapes)
            return jax.lax.scan(add, first, indices)[0]

        if mesh is None:
            return total(jnp.arange(grid.count), variables, image, targets)
        return _sum_over_devices(total, grid.count, variables, image, targets, mesh=mesh)

    return of_image


def _sum_over_devices(total: Callable[..., Any], count: int, *args: Any, mesh: Mesh) -> Any:
    """Divide ``count`` windows among devices, and add up the sums of all devices.

    Args:
      total: ``(window indices, *args) -> tree of sums``.
      count: number of windows.
      args: arguments that every device gets whole.
      mesh: the devices.
    """
    devices, axes = mesh.size, PartitionSpec(mesh.axis_names)

    def on_device(indices: Array, *args: Any) -> Any:
        return jax.tree.map(lambda x: x[None], total(indices, *args))

    # As many indices for every device; those beyond the last window own nothing.
    indices = jnp.arange(-(-count // devices) * devices)
    parts = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(axes, *[PartitionSpec()] * len(args)),
        out_specs=axes,
        check_vma=False,  # the scan's initial zeros, equal on all devices, would fail the check
    )(indices, *args)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)


def tiled_maps(
    function: Callable[[Array], dict[str, Array]],
    image: Array,
    *,
    layers: Sequence[str],
    tile: int,
    padding: str = "zero",
) -> dict[str, Array]:
    """Compute the features of a whole image window by window, and assemble them.

    Args:
      function: computes ``{layer: features [h, w, C]}`` of an image ``[H, W, 3]``.
      image: the whole image.
      layers, tile, padding: see ``tiled``; ``layers`` must list all layers of the result.

    Returns:
      The value of ``function(image)``.
    """
    grid = make_grid(image.shape, layers=layers, tile=tile, padding=padding)
    if grid.count == 1:
        return function(image)
    surrounded = _wrap_around(image, grid=grid)

    def put(maps: dict[str, Array], index: Array) -> tuple[dict[str, Array], None]:
        start, window = _window_at(grid, index, dtype=image.dtype)
        parts = function(crop(surrounded, start, size=grid.size))

        def insert(whole: Array, part: Array, step: int) -> Array:
            place = (start[0] // step, start[1] // step, jnp.zeros_like(start[0]))
            mask = ownership(window, shape=part.shape[:2], step=step)[..., None]
            before = jax.lax.dynamic_slice(whole, place, part.shape)
            return jax.lax.dynamic_update_slice(whole, jnp.where(mask > 0, part, before), place)

        return {name: insert(maps[name], parts[name], stride(name)) for name in maps}, None

    shapes = jax.eval_shape(function, surrounded)
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    maps, _ = jax.lax.scan(put, zeros, jnp.arange(grid.count))

    def without_wrapped(x: Array, step: int) -> Array:
        top, left = grid.rows.wrapped[0] // step, grid.columns.wrapped[0] // step
        return x[top : top + image.shape[0] // step, left : left + image.shape[1] // step]

    return {name: without_wrapped(x, stride(name)) for name, x in maps.items()}
