"""The state of a run at one scale: how it begins, begins again, ends, and is saved and restored.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. What a checkpoint holds are NumPy's
arrays by the path of a leaf in its tree, as ``"opt_state/0/mu"``; bfloat16, which files of arrays
do not have, is there as uint16 of the same bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nst_jax.config.config import Config
from nst_jax.errors import InputError
from nst_jax.optim.optimizers import scale_learning_rate, set_learning_rate
from nst_jax.optim.solver import average_weight, averaged, run
from nst_jax.transfer.loop import CHUNK_SIZE
from nst_jax.transfer.problem import Problem, start
from nst_jax.transfer.sharding import divides_rows, replicate, start_rows, state_shardings
from nst_jax.transfer.types import RECOVERIES, Arrays
from nst_jax.types import Array, State

SMALLER = 0.25  # the learning rate after each time, as a part of what it was


def first_state(
    problem: Problem, image: Array, opt_state: Any, *, config: Config | None, mesh: Mesh | None
) -> State:
    """The state before the first step, on the devices of a mesh if any.

    Args:
      problem: what to run.
      image: the image to start from.
      opt_state: the optimiser's state of a scale before, or None.
      config: where the learning rate is, or None with an optimiser of one's own.
      mesh: as of ``Execution``.
    """
    given = problem.solver, image, problem.variables, problem.targets
    by_rows = divides_rows(mesh)
    state = start_rows(*given, mesh=mesh) if mesh is not None and by_rows else start(*given)
    if opt_state is not None:
        state = state._replace(opt_state=opt_state)
    elif config is not None:
        state = state._replace(opt_state=set_learning_rate(state.opt_state, config))
    if mesh is None:
        return state
    # The rates too, or the second call would compile anew.
    return (
        jax.device_put(state, state_shardings(state, mesh=mesh))
        if by_rows
        else replicate(state, mesh)
    )


def may_recover(state: State, *, times: int) -> bool:
    """Whether a run can go on from its best image for the given time, from 1."""
    return times <= RECOVERIES and bool(np.isfinite(jax.device_get(state.best_loss)))


def begin_again(
    state: State,
    problem: Problem,
    *,
    config: Config,
    own_optimizer: bool = False,
    mesh: Mesh | None = None,
    times: int,
) -> State | None:
    """A state that goes on from the best image after a loss or gradient that was not finite.

    The optimiser forgets what it knows, and where it has a learning rate that is 1/4 of what it
    was, of 1/4 each time. An average goes on as if all images had been the best one.

    Args:
      state: frozen; used up.
      problem: what is run.
      config: its settings.
      own_optimizer: whether the optimiser is not the config's.
      mesh: as of ``Execution``.
      times: which time it is, from 1.

    Returns:
      The state with its count, or None where no image had a finite loss, or often enough.
    """
    if not may_recover(state, times=times):
        return None
    plain = None if own_optimizer else config
    image, count, best_loss = jnp.copy(state.best_image), state.count, state.best_loss
    jax.block_until_ready(image)
    for leaf in jax.tree.leaves(state.opt_state):
        leaf.delete()  # what L-BFGS remembers is not to be there twice
    fresh = first_state(problem, image, None, config=plain, mesh=mesh)
    average = fresh.average
    if average is not None:
        weight = average_weight(count.astype(average.dtype), config.averaging)
        average = weight * fresh.best_image
    return fresh._replace(
        opt_state=scale_learning_rate(fresh.opt_state, SMALLER**times),
        count=count,
        best_loss=best_loss,
        average=average,
    )


def outcome(state: State, *, config: Config) -> Array:
    """The image that a scale ends with; after a divergence an average is of no use."""
    if config.averaging and not state.frozen:
        return averaged(state, averaging=config.averaging)
    return state.best_image


def loss_at(problem: Problem, state: State, image: Array) -> Array:
    """The loss of an average, by a step of the run's own program; the state is used up."""
    if state.frozen:
        return state.best_loss
    _, info = run(
        problem.solver,
        state._replace(image=jnp.copy(image)),  # for it is used up
        variables=problem.variables,
        targets=problem.targets,
        num_steps=1,
        chunk_size=CHUNK_SIZE,
    )
    return info.loss[0]


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
