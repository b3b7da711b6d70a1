"""The state of a run at one scale: start, recovery, outcome, saving and restoring.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. A checkpoint holds NumPy arrays, named
by the path of a leaf in its tree, for example ``"opt_state/0/mu"``. Array files cannot hold
bfloat16, so it is stored as uint16 with the same bits.
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

RECOVERY_RATE = 0.25  # factor of the learning rate at each recovery


def first_state(
    problem: Problem, image: Array, opt_state: Any, *, config: Config | None, mesh: Mesh | None
) -> State:
    """Make the state before the first step, on the devices of a mesh if any.

    Args:
      problem: the run.
      image: the initial image.
      opt_state: optimizer state of the previous scale (warm start), or None for a fresh one.
      config: holds the learning rate; None with a custom optimiser.
      mesh: as in ``Execution``.
    """
    arguments = problem.solver, image, problem.variables, problem.targets
    by_rows = divides_rows(mesh)
    state = start_rows(*arguments, mesh=mesh) if mesh is not None and by_rows else start(*arguments)
    if opt_state is not None:
        state = state._replace(opt_state=opt_state)
    elif config is not None:
        state = state._replace(opt_state=set_learning_rate(state.opt_state, config))
    if mesh is None:
        return state
    # Place the learning rates as well: the first call returns them placed, so a second call would
    # otherwise see other shardings and compile again.
    return (
        jax.device_put(state, state_shardings(state, mesh=mesh))
        if by_rows
        else replicate(state, mesh)
    )


def may_recover(state: State, *, times: int) -> bool:
    """Whether a run may return to its best image; ``times`` counts the recoveries, from 1."""
    return times <= RECOVERIES and bool(np.isfinite(jax.device_get(state.best_loss)))


def recover(
    state: State,
    problem: Problem,
    *,
    config: Config,
    custom_optimizer: bool = False,
    mesh: Mesh | None = None,
    times: int,
) -> State | None:
    """Restart from the best image after a non-finite loss or gradient.

    The optimizer state is fresh. The learning rate, if the optimiser has one, is the original one
    times ``RECOVERY_RATE`` to the number of recoveries. A running average continues as if all
    images so far had been the best one.

    Args:
      state: frozen; its buffers are reused.
      problem: the run.
      config: its settings.
      custom_optimizer: whether the optimiser is not the config's.
      mesh: as in ``Execution``.
      times: number of this recovery, from 1.

    Returns:
      The new state with the old step count, or None if no image had a finite loss or if the run has
      recovered ``RECOVERIES`` times already.
    """
    if not may_recover(state, times=times):
        return None
    rate_config = None if custom_optimizer else config
    image, count, best_loss = jnp.copy(state.best_image), state.count, state.best_loss
    jax.block_until_ready(image)
    # Free the old optimizer state before the fresh one is allocated: L-BFGS's may fill the device.
    for leaf in jax.tree.leaves(state.opt_state):
        leaf.delete()
    fresh = first_state(problem, image, None, config=rate_config, mesh=mesh)
    average = fresh.average
    if average is not None:
        # The state holds the sum (1 - d) sum_i d^(n-i) x_i, see ``solver.averaged``. With every x_i
        # equal to the best image x that is (1 - d^n) x.
        weight = average_weight(count.astype(average.dtype), config.averaging)
        average = weight * fresh.best_image
    return fresh._replace(
        opt_state=scale_learning_rate(fresh.opt_state, RECOVERY_RATE**times),
        count=count,
        best_loss=best_loss,
        average=average,
    )


def outcome(state: State, *, config: Config) -> Array:
    """The image that a scale ends with: the average if there is one, else the best image.

    After a divergence the average contains images of no finite loss and is not used.
    """
    if config.averaging and not state.frozen:
        return averaged(state, averaging=config.averaging)
    return state.best_image


def loss_at(problem: Problem, state: State, image: Array) -> Array:
    """Evaluate the loss of an averaged image; the buffers of ``state`` are reused.

    This takes one step with the program of the run, so that nothing else is compiled.
    """
    if state.frozen:
        return state.best_loss
    _, info = run(
        problem.solver,
        state._replace(image=jnp.copy(image)),  # a copy, because ``run`` donates its state
        variables=problem.variables,
        targets=problem.targets,
        num_steps=1,
        chunk_size=CHUNK_SIZE,
    )
    return info.loss[0]


def flatten(tree: Any) -> Arrays:
    """Fetch the leaves of a tree to the host, by path.

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
    """Rebuild a tree on the host from its leaves.

    Args:
      like: a tree of the expected structure, dtypes and shapes.
      arrays: from ``flatten``.
      rows: whether the first axis may have any length.

    Raises:
      InputError: for missing or extra leaves, or another dtype or shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if sorted(names) != sorted(arrays):
        other = sorted(set(names) ^ set(arrays))
        raise _mismatch(f"{other[0]} is in only one of the two")
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array, dtype = arrays[name], np.dtype(leaf.dtype)
        if dtype == jnp.bfloat16 and array.dtype == np.uint16:
            array = array.view(dtype)
        skipped = int(rows)
        if array.dtype != dtype or array.shape[skipped:] != tuple(leaf.shape[skipped:]):
            raise _mismatch(
                f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(leaf.shape)}"
            )
        found.append(array)
    return jax.tree.unflatten(structure, found)


def restore(template: Any, arrays: Arrays) -> Any:
    """Restore a saved state on the devices of a template.

    At most one array at a time exists twice: the template's buffers are freed first, and ``arrays``
    is emptied as its arrays move to the devices.

    Args:
      template: the state of the same run before its first step; its buffers are freed.
      arrays: from ``flatten``; emptied.

    Raises:
      InputError: as ``unflatten``.
    """
    places = [leaf.sharding for leaf in jax.tree.leaves(template)]
    host = unflatten(jax.eval_shape(lambda tree: tree, template), arrays)
    for leaf in jax.tree.leaves(template):
        leaf.delete()
    # Pop each array as it is transferred, so that the host frees it before the next transfer.
    waiting, structure = jax.tree.leaves(host)[::-1], jax.tree.structure(host)
    del host
    arrays.clear()
    leaves = [jax.device_put(waiting.pop(), place) for place in places]
    return jax.tree.unflatten(structure, leaves)


def _mismatch(reason: str) -> InputError:
    return InputError(f"the saved state does not belong to this run ({reason}): start it again")
