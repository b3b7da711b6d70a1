"""Where a run stands between two steps, as plain data and arrays: what a checkpoint holds.

Contract: arrays are NumPy's, by the path of a leaf in its tree, as ``"opt_state/0/mu"``; bfloat16,
which files of arrays do not have, is there as uint16 of the same bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.choices import ExecutionPlan
from nst_jax.errors import InputError
from nst_jax.scales import EndedScale

Arrays = dict[str, np.ndarray]


class Position(NamedTuple):
    """Where a run of ``transfer.stylize`` stands; with its other arguments all that it needs.

    Attributes:
      step: steps done, over all scales.
      scale: the scale that it is at, from 1.
      ended: what it did at the scales before.
      choice: how this scale is computed.
      recoveries: how often it went back to its best picture, see ``transfer.stylize``.
      timing: seconds so far, as in ``transfer.Result``.
      state: the leaves of this scale's ``State``.
      history: the leaves of ``Info`` with one entry for each step so far.
      last_choice: how the last scale is to be computed, where that is known before.
      free: bytes that the device had free at the start, or None; coarser scales follow it.
    """

    step: int
    scale: int
    ended: tuple[EndedScale, ...]
    choice: ExecutionPlan
    recoveries: int
    timing: dict[str, float]
    state: Arrays
    history: Arrays
    last_choice: ExecutionPlan | None = None
    free: int | None = None


def flatten(tree: Any) -> Arrays:
    """The leaves of a tree on the host, by their paths.

    >>> flatten({"a": (np.ones(2), np.zeros(1))})
    {'a/0': array([1., 1.]), 'a/1': array([0.])}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _storable(leaf)
        for path, leaf in leaves
    }


def _storable(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def unflatten(like: Any, arrays: Arrays, *, rows: bool = False) -> Any:
    """A tree of the given leaves on the host.

    Args:
      like: a tree of the structure, types and shapes to expect.
      arrays: see ``flatten``.
      rows: whether the first axis may have any length.

    Raises:
      InputError: where leaves are missing, too many, or of another type or shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if sorted(names) != sorted(arrays):
        other = sorted(set(names) ^ set(arrays))
        raise _foreign(f"{other[0]} is in one of the two only")
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array, dtype = arrays[name], np.dtype(leaf.dtype)
        if dtype == jnp.bfloat16 and array.dtype == np.uint16:
            array = array.view(dtype)
        skipped = int(rows)
        if array.dtype != dtype or array.shape[skipped:] != tuple(leaf.shape[skipped:]):
            raise _foreign(
                f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(leaf.shape)}"
            )
        found.append(array)
    return jax.tree.unflatten(structure, found)


def restore(template: Any, arrays: Arrays) -> Any:
    """A state on the devices where a template of it is, which is used up.

    Args:
      template: the state of the same run before its first step.
      arrays: see ``flatten``; it is emptied, so that no array is there twice for long.

    Raises:
      InputError: as ``unflatten``.
    """
    places = [leaf.sharding for leaf in jax.tree.leaves(template)]
    host = unflatten(jax.eval_shape(lambda tree: tree, template), arrays)
    for leaf in jax.tree.leaves(template):
        leaf.delete()  # what L-BFGS remembers is not to be there twice
    waiting, structure = jax.tree.leaves(host)[::-1], jax.tree.structure(host)
    del host
    arrays.clear()
    leaves = [jax.device_put(waiting.pop(), place) for place in places]
    return jax.tree.unflatten(structure, leaves)


def _foreign(reason: str) -> InputError:
    return InputError(f"the saved state does not belong to this run ({reason}): begin anew")
