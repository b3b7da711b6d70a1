"""From pictures to a picture: the host loop around the compiled functions.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Pictures are taken at the size that they
have; the result is neither clipped nor rounded.
"""

import math
import operator
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.layers import check_sides
from nst_jax.objective import as_sequence, loss_weights, make_loss
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
      compile_s: seconds spent on compilation before the first step.
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
      state: the last state; a run may go on from it.
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
_init = jax.jit(
    lambda solver, image, variables, targets: solver.init(image, variables, targets),
    static_argnums=0,
)


def initial_image(content: Array, variables: Variables, *, config: Config, key: Array) -> Array:
    """The picture that the optimisation starts from.

    noise = mean + noise_scale * N(0, 1)  or  mean + noise_scale * U(-1, 1)
    blend = noise_ratio * noise + (1 - noise_ratio) * content

    with the network's mean colour, so that the blend is the course version's, which mixes
    mean-subtracted pictures.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      variables: the network's variables, for its mean colour.
      config: ``init``, ``noise``, ``noise_scale`` and ``noise_ratio`` are read.
      key: PRNG key.

    Returns:
      ``[H, W, 3]``, not clipped.

    Raises:
      InputError: where ``config.init`` is none of the three.
    """
    if config.init not in INITS:
        raise InputError(
            f"init is {config.init!r}: expected content, noise or blend, or that file's picture as "
            "stylize(..., init=picture)"
        )
    if config.init == "content":
        return content
    if config.noise == "normal":
        noise = jax.random.normal(key, content.shape, content.dtype)
    else:
        noise = jax.random.uniform(key, content.shape, content.dtype, -1, 1)
    mean = variables["preprocessing"]["mean"].astype(content.dtype)
    noise = mean[None, None] + config.noise_scale * noise
    ratio = 1.0 if config.init == "noise" else config.noise_ratio
    return ratio * noise + (1 - ratio) * content


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
      InputError: before the first step, for pictures that do not fit.
    """
    started = time.perf_counter()
    content = jnp.asarray(content)
    styles = [jnp.asarray(style) for style in as_sequence(styles)]
    init = None if init is None else jnp.asarray(init)
    check_pictures(content, styles, config=config, init=init)
    loss = loss or make_loss(config.loss)
    solver = make_solver(
        loss,
        optimizer
        or make_optimizer(
            config.optimizer, memory_size=config.memory_size, pixel_range=config.pixel_range
        ),
    )
    if blend is not None:
        blend = check_blend(blend)
    targets = compute_targets(loss, variables, content, styles, loss_weights(config), blend)
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
        taken = slice(int(count) - done)
        chunks.append(jax.tree.map(operator.itemgetter(taken), info))
        done = int(count)
        if frozen:
            status = "diverged"
        if callback is not None:
            last = jax.tree.map(operator.itemgetter(-1), chunks[-1])
            progress = Progress(done, config.steps, last, state.image, elapsed / chunk, compile_s)
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


def check_blend(blend: Sequence[float]) -> tuple[float, ...]:
    """Factors of the styles as plain numbers.

    Raises:
      InputError: where one is no weight, or all are zero.
    """
    factors = tuple(float(factor) for factor in blend)
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors) or not any(factors):
        raise InputError(
            f"style_blend is {factors}: expected finite numbers, 0 or more, and one above 0"
        )
    return factors


def check_pictures(
    content: Any, styles: Sequence[Any], *, config: Config, init: Any = None
) -> None:
    """Check the pictures' shapes against each other and against the layers of ``config``.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    pictures = [("content picture", content)] + [("style picture", style) for style in styles]
    if init is not None:
        pictures.append(("initial picture", init))
    for what, picture in pictures:
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise InputError(f"the {what} has shape {picture.shape}: expected [height, width, 3]")
    if init is not None and init.shape != content.shape:
        raise InputError(
            f"the initial picture has shape {init.shape}: expected the content's {content.shape}"
        )
    names = config.loss
    layers = names.content_layers + names.style_layers
    check_sides(content.shape[0], content.shape[1], layers, what="content picture")
    for style in styles:
        if names.style_layers:
            check_sides(style.shape[0], style.shape[1], names.style_layers, what="style picture")
