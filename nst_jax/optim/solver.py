"""An optimiser bound to a loss, and the compiled optimisation loop.

Contract: one image, ``[H, W, 3]``; for a batch, ``vmap`` ``Solver.step`` and loop outside of it.
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
    """Bind an optimiser to a loss; equal arguments return the same object.

    Args:
      loss: an objective, see ``objective.make_loss``.
      optimizer: any optax transformation. Its ``update`` gets the arguments of line searches:
        ``value``, ``grad`` and ``value_fn``.
      averaging: decay d of the running average of the images, see ``averaged``; 0 for none.
      clip: whether to clip pixels to [0, 1] after each step.

    Returns:
      ``Solver(init, step)``. ``step`` evaluates loss and gradient at ``state.image`` and then
      updates it. Hence ``Info`` describes the image before the update, and ``state.best_image`` is
      always an image whose loss is known. If the loss or its gradient is not finite, the image
      stays and ``state.frozen`` is set. With line search, the next step evaluates the accepted
      point once more, as the search does not know the terms of the loss.
    """
    return _make_solver(loss, optimizer, averaging, clip)


# Cached, since ``run`` takes the solver as a static argument: the same object reuses the program.
@lru_cache(maxsize=64)
def _make_solver(
    loss: Loss, optimizer: optax.GradientTransformation, averaging: float, clip: bool
) -> Solver:
    optimizer = optax.with_extra_args_support(optimizer)

    def init(image: Array, variables: Variables, targets: Targets) -> State:
        del variables, targets  # for solvers whose initial state depends on a gradient
        # Updates make weak types strong. If the initial state had weak types, the second call of
        # the loop would have other input types and compile again.
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
        # Divide by the largest entry first, since squares of finite gradients may overflow.
        largest = jnp.maximum(jnp.max(jnp.abs(grad)), jnp.finfo(grad.dtype).tiny)
        grad_norm = largest * jnp.sqrt(jnp.sum(jnp.square(grad / largest)))
        # Once frozen, a state stays frozen: the optimizer state may hold NaN by now. The image is
        # selected and not branched, so that other batch elements go on under vmap.
        frozen = state.frozen | ~(jnp.isfinite(value) & jnp.isfinite(grad).all())
        # Value and gradient belong to the image before the update.
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
    """The exponentially weighted average of the images x_1 ... x_n after n steps.

        sum_i d^(n-i) x_i / sum_i d^(n-i)

    This is the running mean divided by its bias correction 1 - d^n, as in Adam (Kingma and Ba 2015,
    section 3).

    Args:
      state: state of a solver with this ``averaging`` d, after at least one step.
      averaging: d.

    Returns:
      ``[H, W, 3]``.
    """
    assert state.average is not None
    return state.average / average_weight(state.count.astype(state.average.dtype), averaging)


def average_weight(count: Array, averaging: float) -> Array:
    """Bias correction 1 - d^n of a running average with decay d after n steps."""
    return -jnp.expm1(count * math.log(averaging))  # accurate also for d near 1


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
    """Take up to ``chunk_size`` steps in one compiled loop; stop early if the state freezes.

    The number of steps is traced, so that one compiled program serves all lengths, and several
    short runs give the same bits as one long run.

    Args:
      solver: from ``make_solver``; static.
      state: from ``jax.jit(solver.init)(...)`` or an earlier run. Its buffers are donated: the
        caller must not use ``state`` afterwards.
      variables: the network's variables.
      targets: from ``loss.targets``.
      num_steps: number of steps, at most ``chunk_size``.
      chunk_size: length of the returned ``Info``; static.

    Returns:
      The new state, and an ``Info`` whose leaves have a leading axis of length ``chunk_size``. Only
      the entries of the steps taken are filled (the increase of ``state.count``).
    """
    step = jax.jit(solver.step)  # traced once for eval_shape and loop; compiled within the loop
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
