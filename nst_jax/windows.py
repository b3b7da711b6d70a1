"""A picture as overlapping windows, each of which counts what it alone owns.

Windows are of one size, so that one program serves all, and lie inside the picture, so that the
network's padding is met at the picture's true borders only. They begin at multiples of the
deepest layer's stride, so that features are the same in a window and in the whole, and reach far
enough (``halo``) beyond what they own for every owned feature to see all that it sees in the whole.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.layers import LAPLACIANS, deepest, reach, stride
from nst_jax.types import Array, Targets, Window


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
      tile: the most rows that a window owns inside the picture; a multiple of ``stride``. At a
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
      window: of a picture.
      shape: height and width of the layer's features.
      step: the layer's stride.
    """
    rows, columns = window.rows[::step], window.columns[::step]
    return rows[: shape[0], None] * columns[None, : shape[1]]


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
    """Targets with every array that has a picture's rows and columns transformed.

    Args:
      targets: of a picture.
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
        picture=None if targets.picture is None else transform(targets.picture, 1, 0),
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

    Both are of a picture with as many wrapped rows and columns before its own.
    """

    def along(axis: int) -> Array:
        positions = start[axis] + jnp.arange(size[axis])
        inside = (positions >= owned[axis, 0]) & (positions < owned[axis, 1])
        return inside.astype(dtype)

    begin = start - jnp.asarray(wrapped, start.dtype)
    return Window(rows=along(0), columns=along(1), start=begin)
