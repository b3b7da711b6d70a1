"""Several runs of one structure: lanes, of other pictures of one size or with other numbers.

Lanes advance together, by ``vmap``, which keeps an accelerator busy; or apart, each by the very
program of a run alone, which on CPUs is as fast and gives the same bits. What lanes have in common
is there once: kernels, a content's features, a style's Gram matrices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config import Config, to_flat
from nst_jax.errors import InputError
from nst_jax.lane_ends import LaneEnd, cut, go_on_alone, repeat_to_equal, tell_of_one
from nst_jax.lane_plans import Lane, plan_apart, plan_together
from nst_jax.loop import Progress, add_timing, iterate
from nst_jax.parallel import Mesh, flat_mesh
from nst_jax.position import Position, flatten, restore, unflatten
from nst_jax.rows import divides_rows
from nst_jax.transfer import Result
from nst_jax.types import Array, Info, State

# What may differ between the lanes of one program: numbers, and what only the start depends on.
LANE_NUMBERS: dict[str, Any] = {
    "content_weight": 1.0,
    "style_weight": 1.0,
    "tv_weight": 1.0,
    "learning_rate": None,
    "init": "content",
    "noise": "normal",
    "noise_scale": 0.0,
    "noise_ratio": 0.0,
}


def structure(config: Config) -> Config:
    """A config without what may differ between lanes: equal for those of one program.

    >>> structure(Config.of(style_weight=1.0)) == structure(Config.of(style_weight=2.0))
    True
    >>> structure(Config(steps=1)) == structure(Config(steps=2))
    False
    """
    plain = {
        name: tuple((part, 1.0) for part, _ in to_flat(config)[name])
        for name in ("content_layers", "style_layers", "content_losses", "style_losses")
    }
    return config.but(**LANE_NUMBERS, **plain)


def stylize_lanes(
    lanes: Sequence[Lane],
    *,
    shape: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
    together: bool | None = None,
    width: int = 1,
    distinct: tuple[str, ...] = (),
    started: float | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    callback_every: int | Sequence[int] | None = None,
    with_pictures: bool = False,
    position: Position | None = None,
) -> Result:
    """Run lanes that differ in pictures of one size, or in numbers: factors, learning rate, noise.

    Args:
      lanes: their configs have equal ``steps``.
      shape: leading axes, of which ``lanes`` is in row-major order; by default one. With one of
        contents and one of styles a grid holds each content and each style once.
      mesh: devices over which the lanes are spread; their number need not divide. One of
        ``rows.rows_mesh`` divides each picture by rows, too; the lanes' problems are of it.
      together: whether all lanes take each step together; by default not on CPUs, but always where
        pictures are divided by rows.
      width: lanes to fill up to where they are together, so that a smaller last batch has the
        program of the others.
      distinct: fields of the targets that get a leading axis although all lanes may share them, for
        the same reason.
      started: ``time.perf_counter()`` when the work began.
      callback: as in ``transfer.stylize``; what it sees has a leading axis.
      callback_every: as in ``transfer.stylize``.
      with_pictures: whether the callback looks at ``Progress.image``, which else is None.
      position: where an earlier run of the same lanes stood, as for ``transfer.stylize``.

    Returns:
      A ``Result`` whose ``image``, ``loss``, ``status`` and ``recoveries`` have an entry for each
      lane, as have the leaves of ``history`` on their second axis. A lane whose loss is not finite
      does not change its neighbours: it waits for them and then goes on from its best picture by
      itself, as ``transfer.stylize`` does. One that diverged for good repeats its last numbers.
      ``state`` is None: L-BFGS's may be larger than all else.

    Raises:
      InputError: where the configs differ in more than numbers, for settings that are for single
        pictures, or where an initial picture does not fit.
    """
    check_lanes([lane.config for lane in lanes], mesh=mesh, together=together)
    by_rows = divides_rows(mesh)
    if together is None:
        together = by_rows or jax.default_backend() != "cpu"
    mesh = mesh if mesh is None or by_rows else flat_mesh(mesh)
    if together:
        plan = plan_together(lanes, shape or (len(lanes),), mesh, width, distinct)
    else:
        plan = plan_apart(lanes, mesh)

    def finished(field: Any) -> Array:
        images = _entries(field, plan.order, lanes[0].problem.shape)
        pairs = zip(lanes, images, strict=True)
        return jnp.stack([lane.problem.finish(jnp.asarray(image)) for lane, image in pairs])

    def report(progress: Progress) -> bool | None:
        assert callback is not None

        def where() -> Position:
            return Position(
                step=progress.step,
                scale=1,
                ended=(),
                choice=lanes[0].problem.choice,
                recoveries=0,
                timing={"compile_s": progress.compile_s, "steps_s": progress.steps_s},
                state=flatten(progress.state),
                history=flatten(jax.tree.map(lambda *xs: np.concatenate(xs), *progress.history)),
            )

        info = jax.tree.map(lambda x: x.ravel()[plan.order], progress.info)
        image: Any = finished(progress.image) if with_pictures else None
        return callback(progress._replace(info=info, image=image, position=where))

    last: Info | None = None
    state: State = plan.state
    if position is not None:
        plan = plan._replace(state=None)
        state = restore(state, position.state)

    def past(like: Info) -> Info:
        nonlocal last
        assert position is not None
        history = unflatten(like, position.history, rows=True)
        last = jax.tree.map(lambda x: x[-1], history)
        return history

    def take(state: State, **options: Any) -> tuple[State, Info]:
        nonlocal last
        state, info = plan.take(state, **options)
        info = _repeat_ends(jax.device_get(info), before=last)
        if options["num_steps"]:
            last = jax.tree.map(lambda x: x[-1], info)
        return state, info

    ended = iterate(
        take,
        state,
        steps=lanes[0].config.steps,
        started=started,
        callback=report if callback else None,
        callback_every=callback_every,
        history=None if position is None else past,
    )
    images = _entries(ended.state.best_image, plan.order, lanes[0].problem.shape)
    losses = _entries(ended.state.best_loss, plan.order)
    frozen = _entries(ended.state.frozen, plan.order)
    history = jax.tree.map(lambda x: x.reshape(len(x), -1)[:, plan.order], ended.history)
    timing = ended.timing if position is None else add_timing(position.timing, ended.timing)
    alone: list[LaneEnd] = []
    for index, lane in enumerate(lanes):
        own = jax.tree.map(lambda x, index=index: x[:, index], history)
        status = "diverged" if frozen[index] else ended.status
        end = LaneEnd(images[index], losses[index], cut(own) if frozen[index] else own, status, 0)
        if frozen[index] and ended.status != "stopped":
            tell = partial(tell_of_one, callback, lanes=len(lanes)) if callback else None
            end = go_on_alone(lane, end, mesh=mesh, callback=tell)
        alone.append(end)
    pictures = zip(lanes, alone, strict=True)
    return Result(
        image=jnp.stack([lane.problem.finish(jnp.asarray(end.image)) for lane, end in pictures]),
        loss=np.stack([end.loss for end in alone]),
        state=None,
        history=repeat_to_equal([end.history for end in alone]),
        status=tuple(end.status for end in alone),
        timing=timing,
        recoveries=tuple(end.recoveries for end in alone),
    )


def check_single(config: Config) -> None:
    """Refuse settings of runs that take one picture at a time.

    Raises:
      InputError: for ``min_size`` and ``averaging``.
    """
    for name in ("min_size", "averaging"):
        if to_flat(config)[name]:
            raise InputError(f"{name} is for stylize, one picture at a time: leave it out")


def check_lanes(
    configs: Sequence[Config], *, mesh: Mesh | None = None, together: bool | None = None
) -> None:
    """Check that configs differ only in what lanes may differ in; the rest as in ``stylize_lanes``.

    Raises:
      InputError: where they do, and for settings that lanes do not have.
    """
    for config in configs:
        check_single(config)
    if together is False and divides_rows(mesh):
        raise InputError(
            "pictures that are divided by rows take each step together: leave out together, or use "
            "make_mesh"
        )
    first = to_flat(structure(configs[0]))
    for number, config in enumerate(configs, start=1):
        found = to_flat(structure(config))
        other = [name for name in first if found[name] != first[name]]
        if other:
            raise InputError(
                f"config {number} differs from the first in {', '.join(other)}: expected the same "
                "but for factors of terms and layers, learning rate and noise"
            )


def each_result(result: Result) -> list[Result]:
    """The lanes' results as ``transfer.stylize`` gives them alone, with their own histories."""

    def of_lane(lane: int) -> Result:
        history = jax.tree.map(lambda x: x[:, lane], result.history)
        return result._replace(
            image=result.image[lane],
            loss=float(result.loss[lane]),
            history=cut(history) if result.status[lane] == "diverged" else history,
            status=result.status[lane],
            recoveries=result.recoveries[lane],
        )

    return [of_lane(lane) for lane in range(len(result.status))]


def _repeat_ends(info: Info, *, before: Info | None) -> Info:
    """Diagnostics ``[steps, ...]`` in which lanes that have ended repeat their last numbers.

    A device whose lanes have all ended leaves the rest empty, as has a lane by itself.

    Args:
      info: of one call; what is filled has at least one evaluation.
      before: the last row of the call before.
    """
    rows = np.arange(len(info.loss)).reshape(-1, *[1] * (info.loss.ndim - 1))
    latest = np.maximum.accumulate(np.where(info.evaluations > 0, rows, -1), axis=0)
    before = jax.tree.map(lambda x: x[0], info) if before is None else before

    def of_leaf(x: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(latest < 0, old[None], np.take_along_axis(x, np.maximum(latest, 0), axis=0))

    return jax.tree.map(of_leaf, info, before)


def _entries(field: Any, order: np.ndarray, tail: tuple[int, ...] = ()) -> np.ndarray:
    """The lanes' entries of a state's field, ``[L, *tail]``, on the host."""
    parts = jax.device_get(field if isinstance(field, list) else [field])
    return np.concatenate([part.reshape(-1, *tail) for part in parts])[order]
