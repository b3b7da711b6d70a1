"""From pictures to a picture: the host loop around the compiled functions.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Pictures are taken at the size that they
have; the result is neither clipped nor rounded.
"""

import operator
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from nst_jax.config import Config
from nst_jax.convolution import prepare_kernels
from nst_jax.errors import InputError
from nst_jax.inputs import as_picture, check_blend, check_pictures, initial_image
from nst_jax.layers import TAPS
from nst_jax.objective import as_sequence, check_learned, loss_weights, make_loss
from nst_jax.optimizers import make_optimizer, set_learning_rate
from nst_jax.solver import make_solver, run
from nst_jax.types import Array, Info, Loss, State, Variables

CHUNK_SECONDS = 1.5  # between chunks the host reports and may stop
CHUNK_SIZE = 64


class Progress(NamedTuple):
    """What a callback sees between two chunks of steps.

    Attributes:
      step, steps: steps done and asked for.
      info: diagnostics of the last step, host numbers.
      image: the current picture, ``[H, W, 3]``, on the device.
      seconds_per_step: of the last chunk, without compilation.
      compile_s: seconds before the first step: targets and compilation.
    """

    step: int
    steps: int
    info: Info
    image: Array
    seconds_per_step: float
    compile_s: float


class Result(NamedTuple):
    """What ``stylize`` returns.

    Attributes:
      image: the evaluated picture of lowest loss, ``[H, W, 3]``, not clipped.
      loss: its loss.
      state: the last state, for ``run``; after a divergence its optimiser's part is of no use.
      history: ``Info`` of arrays with one entry a step.
      status: ``"done"``, ``"stopped"`` (by the callback) or ``"diverged"`` (the loss or its
        gradient became infinite or NaN; ``image`` is the best before that).
      timing: seconds: ``compile_s``, ``steps_s``.
    """

    image: Array
    loss: float
    state: State
    history: Info
    status: str
    timing: dict[str, float]


compute_targets = jax.jit(
    lambda loss, variables, content, styles, weights, blend: loss.targets(
        variables, content, styles, weights=weights, blend=blend
    ),
    static_argnums=0,
)
_prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers"))
_init = jax.jit(
    lambda solver, image, variables, targets: solver.init(image, variables, targets),
    static_argnums=0,
)


def stylize(
    variables: Variables,
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config = Config(),
    blend: Sequence[float] | None = None,
    key: Array | None = None,
    init: ArrayLike | None = None,
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    callback_every: int | None = None,
) -> Result:
    """Give a content picture the style of others (Gatys, Ecker and Bethge 2016).

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      content: ``[H, W, 3]`` in [0, 1].
      styles: one picture or a sequence, ``[h, w, 3]`` each, of any sizes.
      config: settings; a preset's, or one's own.
      blend: a factor for each style; by default all count the same.
      key: PRNG key of the noise, by default ``jax.random.key(0)``.
      init: initial picture ``[H, W, 3]`` in place of ``config.init``.
      loss: objective in place of the config's.
      optimizer: any optax transformation of pixels in [0, 1] in place of the config's. Reuse the
        same object for runs that shall share a compilation.
      callback: called on the host between chunks of steps; ``False`` stops the run.
      callback_every: call the callback at each multiple of so many steps at least.

    Returns:
      A ``Result``; also where the loss diverged.

    Raises:
      InputError: before the first step, for pictures that do not fit, and for layers or a pooling
        that slim weights have not learned.
    """
    started = time.perf_counter()
    content = as_picture(content)
    styles = [as_picture(style) for style in as_sequence(styles)]
    init = None if init is None else as_picture(init)
    check_pictures(content, styles, config=config, init=init)
    if loss is None:
        check_learned(variables, config.loss)
    if callback_every is not None and callback_every < 1:
        raise InputError(f"callback_every is {callback_every}: expected 1 or more")
    # An objective of one's own may ask for any layer.
    layers = TAPS if loss else config.loss.content_layers + config.loss.style_layers
    loss = loss or make_loss(config.loss)
    solver = make_solver(
        loss,
        optimizer
        or make_optimizer(
            config.optimizer,
            memory_size=config.memory_size,
            pixel_range=config.pixel_range,
            preconditioner=config.preconditioner,
        ),
    )
    if blend is not None:
        blend = check_blend(blend)
    convolution = config.convolution
    if convolution == "auto":  # accelerators' libraries choose for themselves
        convolution = "winograd" if jax.default_backend() == "cpu" else "direct"
    targets = compute_targets(loss, variables, content, styles, loss_weights(config), blend)
    # Only now: targets are computed once, and more exactly by the plain convolution.
    variables = _prepare(variables, convolution=convolution, layers=layers)
    if init is None:
        init = initial_image(
            content, variables, config=config, key=jax.random.key(0) if key is None else key
        )
    state = _init(solver, init, variables, targets)
    if optimizer is None:
        state = state._replace(opt_state=set_learning_rate(state.opt_state, config))

    steps = partial(run, solver, chunk_size=CHUNK_SIZE)
    # A run of no steps compiles the loop, so that its time is known apart.
    state, _ = steps(state, variables, targets, num_steps=0)
    jax.block_until_ready(state)
    compile_s = time.perf_counter() - started

    chunks: list[Info] = []
    done, chunk, steps_s, status = 0, 1, 0.0, "done"
    while done < config.steps and status == "done":
        chunk = min(chunk, config.steps - done)
        if callback_every:
            chunk = min(chunk, callback_every - done % callback_every)
        chunk_started = time.perf_counter()
        state, info = steps(state, variables, targets, num_steps=chunk)
        count, frozen, info = jax.device_get((state.count, state.frozen, info))
        elapsed = time.perf_counter() - chunk_started
        steps_s += elapsed
        taken = int(count) - done
        chunks.append(jax.tree.map(operator.itemgetter(slice(taken)), info))
        done = int(count)
        if frozen:
            status = "diverged"
        if callback is not None:
            last = jax.tree.map(operator.itemgetter(-1), chunks[-1])
            progress = Progress(done, config.steps, last, state.image, elapsed / taken, compile_s)
            if callback(progress) is False and status == "done" and done < config.steps:
                status = "stopped"
        chunk = max(1, min(CHUNK_SIZE, round(CHUNK_SECONDS * chunk / elapsed)))

    return Result(
        image=state.best_image,
        loss=float(state.best_loss),
        state=state,
        history=jax.tree.map(lambda *xs: np.concatenate(xs), *chunks),
        status=status,
        timing={"compile_s": compile_s, "steps_s": steps_s},
    )
