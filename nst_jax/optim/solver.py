"""An optimiser bound to a loss, and the compiled loop around it.

Contract: one image, ``[H, W, 3]``; a batch is ``vmap`` of ``Solver.step`` with the loop outside.
"""

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nst_jax.types import Array, Info, Loss, Solver, State, Targets, Variables


def make_solver(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    averaging: float = 0.0,
    clip: bool = False,
) -> Solver:
    """Bind an optimiser to a loss; equal arguments give the same object.

    Args:
      loss: an objective, see ``objective.make_loss``.
      optimizer: any optax transformation. Value, gradient and function go to its ``update`` as
        ``value``, ``grad`` and ``value_fn``, as line searches want them.
      averaging: decay d of the images' running average, see ``averaged``; 0 for none.
      clip: whether pixels are kept in [0, 1] after each step.

    Returns:
      ``Solver(init, step)``. ``step`` evaluates loss and gradient at ``state.image`` and then
      updates it; so ``Info`` describes the image before the update, and ``state.best_image``
      is always an image whose loss is known. Where the loss or its gradient is not finite the
      image stays and ``state.frozen`` is set. A line search evaluates its accepted point again
      in the next step, whose terms it does not know.
    """
    return _make_solver(loss, optimizer, averaging, clip)


@lru_cache(maxsize=64)
def _make_solver(
    loss: Loss, optimizer: optax.GradientTransformation, averaging: float, clip: bool
) -> Solver:
    optimizer = optax.with_extra_args_support(optimizer)

    def init(image: Array, variables: Variables, targets: Targets) -> State:
        del variables, targets  # part of the signature for solvers that start from a gradient
        # The update's numbers have definite types; with weak ones at the start the loop would be
        # compiled once more for its second run.
        opt_state = jax.tree.map(
            lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), optimizer.init(image)
        )
        return State(
            image=image,
            opt_state=opt_state,
            count=jnp.zeros((), jnp.int32),
            best_image=image,
            best_loss=jnp.full((), jnp.inf, image.dtype),
            frozen=jnp.zeros((), bool),
            average=jnp.zeros_like(image) if averaging else None,
        )

    def step(state: State, variables: Variables, targets: Targets) -> tuple[State, Info]:
        def objective(image: Array):
            return loss.head(loss.statistics(variables, image, targets), targets)

        (value, terms), grad = jax.value_and_grad(objective, has_aux=True)(state.image)
        updates: Any
        updates, opt_state = optimizer.update(
            grad,
            state.opt_state,
            state.image,
            value=value,
            grad=grad,
            value_fn=lambda image: objective(image)[0],
        )
        # Scaled by the largest entry: squares of finite gradients may overflow.
        largest = jnp.maximum(jnp.max(jnp.abs(grad)), jnp.finfo(grad.dtype).tiny)
        grad_norm = largest * jnp.sqrt(jnp.sum(jnp.square(grad / largest)))
        frozen = state.frozen | ~(jnp.isfinite(value) & jnp.isfinite(grad).all())
        better = ~frozen & (value < state.best_loss)
        searched = optax.tree.get(opt_state, "num_linesearch_steps", 0)
        updated = (state.image + updates).astype(state.image.dtype)
        updated = jnp.clip(updated, 0, 1) if clip else updated
        image = jnp.where(frozen, state.image, updated)
        average = state.average
        if average is not None:
            average = averaging * average + (1 - averaging) * image
        new_state = State(
            image=image,
            opt_state=opt_state,
            count=state.count + 1,
            best_image=jnp.where(better, state.image, state.best_image),
            best_loss=jnp.where(better, value, state.best_loss),
            frozen=frozen,
            average=average,
        )
        return new_state, Info(value, terms, grad_norm, jnp.asarray(1 + searched, jnp.int32))

    return Solver(init=init, step=step)


def averaged(state: State, *, averaging: float) -> Array:
    """The average of the images x_1 ... x_n after n steps with weights that decay backwards.

    sum_i d^(n-i) x_i / sum_i d^(n-i), as in Adam's moments (Kingma and Ba 2015, section 3).

    Args:
      state: of a solver with this ``averaging`` d, after at least one step.

    Returns:
      ``[H, W, 3]``.
    """
    assert state.average is not None
    return state.average / average_weight(state.count.astype(state.average.dtype), averaging)


def average_weight(count: Array, averaging: float) -> Array:
    """What a running average with decay d has seen of n steps: 1 - d^n."""
    return -jnp.expm1(count * math.log(averaging))  # which has digits left where d is near 1


@partial(jax.jit, static_argnames=("solver", "chunk_size"), donate_argnames="state")
def run(
    solver: Solver,
    state: State,
    variables: Variables,
    targets: Targets,
    *,
    num_steps: Array | int,
    chunk_size: int = 64,
) -> tuple[State, Info]:
    """Take up to ``chunk_size`` steps in one compiled loop; stop early where the state freezes.

    The number of steps is traced: one compilation serves every length, and a run in pieces is the
    same as a run in one.

    Args:
      solver: from ``make_solver``; static.
      state: from ``jax.jit(solver.init)(...)`` or an earlier run. Its buffers are reused: the
        caller's ``state`` is invalid afterwards.
      variables: the network's variables.
      targets: from ``loss.targets``.
      num_steps: steps to take, at most ``chunk_size``.
      chunk_size: length of the recorded diagnostics; static.

    Returns:
      The new state and an ``Info`` whose leaves have a leading axis ``chunk_size``, of which the
      first ``count`` after minus ``count`` before are filled.
    """
    step = jax.jit(solver.step)  # traced once for both of its uses; compiled as part of the loop
    _, info = jax.eval_shape(step, state, variables, targets)
    record = jax.tree.map(lambda x: jnp.zeros((chunk_size, *x.shape), x.dtype), info)
    limit = jnp.minimum(num_steps, chunk_size)

    def unfinished(carry):
        i, state, _ = carry
        return (i < limit) & ~state.frozen.all()

    def body(carry):
        i, state, record = carry
        state, info = step(state, variables, targets)
        return i + 1, state, jax.tree.map(lambda xs, x: xs.at[i].set(x), record, info)

    start = (jnp.zeros((), jnp.int32), state, record)
    _, state, record = jax.lax.while_loop(unfinished, body, start)
    return state, record
