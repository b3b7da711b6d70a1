"""From pictures to a picture.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. Pictures are taken at the size that they
have; the result is neither clipped nor rounded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import optax
from jax.typing import ArrayLike

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.loop import Progress, iterate
from nst_jax.optimizers import set_learning_rate
from nst_jax.problem import make_problem, start
from nst_jax.solver import run
from nst_jax.types import Array, Info, Loss, State, Variables


class Result(NamedTuple):
    """What ``stylize`` and ``stylize_batch`` return.

    Attributes:
      image: the evaluated picture of lowest loss, ``[H, W, 3]``, not clipped; after that with the
        content's colours and the parts that are kept, where these were asked for.
      loss: the lowest loss, of the picture as it was evaluated.
      state: the last state, for ``run``; after a divergence its optimiser's part is of no use.
      history: ``Info`` of arrays with one entry a step.
      status: ``"done"``, ``"stopped"`` (by the callback) or ``"diverged"`` (the loss or its
        gradient became infinite or NaN; ``image`` is the best before that).
      timing: seconds: ``compile_s``, ``steps_s``.

    Of several pictures, from ``stylize_batch``, ``image``, ``loss`` and ``status`` have an entry
    for each, as have the leaves of ``history`` on their second axis, and ``state`` is None.
    """

    image: Array
    loss: Any
    state: State | None
    history: Info
    status: Any
    timing: dict[str, float]


def stylize(
    variables: Variables,
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config = Config(),
    blend: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    content_masks: Sequence[ArrayLike] | ArrayLike | None = None,
    style_masks: Sequence[ArrayLike | None] | None = None,
    region_weights: Sequence[float] | None = None,
    keep: ArrayLike | None = None,
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
      content: ``[H, W, 3]`` in [0, 1]; without content layers only its size matters.
      styles: one picture or a sequence, ``[h, w, 3]`` each, of any sizes; none without style
        layers.
      config: settings; a preset's, or one's own.
      blend: factors of the S styles, ``[S]``, or of each region, ``[R, S]``, or a mapping from
        style layers to such factors. By default all styles count the same, or each region has its
        own where there are as many.
      content_masks: R regions of the content, ``[H, W]`` in [0, 1] each, soft edges welcome. Each
        is compared with its styles for itself (Gatys 2017, section 4); what no mask covers has no
        style.
      style_masks: for each style the part of it that counts, ``[h, w]``, or None.
      region_weights: factors of the regions' style losses; by default 1.
      keep: ``[H, W]`` in [0, 1], 1 where the content is left as it is.
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
      InputError: before the first step, for pictures and masks that do not fit, and for layers or a
        pooling that slim weights have not learned.
    """
    started = time.perf_counter()
    if callback_every is not None and callback_every < 1:
        raise InputError(f"callback_every is {callback_every}: expected 1 or more")
    problem = make_problem(
        variables,
        content,
        styles,
        config=config,
        blend=blend,
        content_masks=content_masks,
        style_masks=style_masks,
        region_weights=region_weights,
        keep=keep,
        loss=loss,
        optimizer=optimizer,
    )
    state = start(
        problem.solver, problem.initial(config, key, init), problem.variables, problem.targets
    )
    if optimizer is None:
        state = state._replace(opt_state=set_learning_rate(state.opt_state, config))

    def report(progress: Progress) -> bool | None:
        assert callback is not None
        return callback(progress._replace(image=problem.finish(progress.image)))

    ended = iterate(
        partial(run, problem.solver, variables=problem.variables, targets=problem.targets),
        state,
        steps=config.steps,
        started=started,
        callback=report if callback else None,
        callback_every=callback_every,
    )
    return Result(
        image=problem.finish(ended.state.best_image),
        loss=float(ended.state.best_loss),
        state=ended.state,
        history=ended.history,
        status=ended.status,
        timing=ended.timing,
    )
