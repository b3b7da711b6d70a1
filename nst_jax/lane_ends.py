"""How lanes end: each for itself, and the one whose loss was not finite goes on alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nst_jax.lane_plans import Lane, plan_one
from nst_jax.loop import Progress, iterate
from nst_jax.rows import divides_rows
from nst_jax.scale_state import begin_again
from nst_jax.types import Info, State


class LaneEnd(NamedTuple):
    """What a lane ended with: its best picture and loss, and its own history."""

    image: Any
    loss: Any
    history: Info
    status: str
    recoveries: int


def go_on_alone(lane: Lane, end: LaneEnd, *, mesh: Mesh | None, callback: Any) -> LaneEnd:
    """Let a lane whose loss was not finite go on by itself, as a run alone would.

    Args:
      lane: the lane.
      end: what it ended with.
      mesh: devices of the lanes, if any.
      callback: as of ``loop.iterate``.
    """
    if len(end.history.loss) >= lane.config.steps:
        return end  # without a step left nothing would show that it is finite again
    take, fresh = plan_one(lane, mesh=mesh)
    places = jax.tree.map(lambda x: x.sharding, fresh)
    rows = mesh if divides_rows(mesh) else None

    def begin(state: State, *, times: int) -> State | None:
        again = begin_again(state, lane.problem, config=lane.config, mesh=rows, times=times)
        return again and jax.device_put(again, places)

    frozen = fresh._replace(
        best_image=jnp.asarray(end.image),
        best_loss=jnp.asarray(end.loss),
        count=jnp.full(fresh.count.shape, len(end.history.loss), fresh.count.dtype),
    )
    state = begin(frozen, times=1)
    if state is None:
        return end
    ended = iterate(
        take,
        state,
        steps=lane.config.steps,
        callback=callback,
        history=lambda _: end.history,
        recover=begin,
        recoveries=1,
    )
    image, loss = jax.device_get((ended.state.best_image, ended.state.best_loss))
    return LaneEnd(image, loss, ended.history, ended.status, ended.recoveries)


def tell_of_one(callback: Callable[[Progress], Any], progress: Progress, *, lanes: int) -> Any:
    """Report a lane that goes on by itself; the others have ended."""
    info = jax.tree.map(lambda x: np.full(lanes, x), progress.info)
    image = jnp.broadcast_to(progress.image, (lanes, *progress.image.shape))
    return callback(progress._replace(info=info, image=image))


def cut(history: Info) -> Info:
    """The history of a lane up to where it diverged, without the repetitions."""
    finite = np.isfinite(history.loss) & np.isfinite(history.grad_norm)
    steps = int(np.flatnonzero(finite)[-1] if finite.any() else -1) + 2
    return jax.tree.map(lambda x: x[:steps], history)


def repeat_to_equal(histories: Sequence[Info]) -> Info:
    """Histories ``[steps, L]`` of which shorter ones repeat their last entries."""
    longest = max(len(history.loss) for history in histories)

    def column(*each: np.ndarray) -> np.ndarray:
        filled = [x[np.minimum(np.arange(longest), len(x) - 1)] for x in each]
        return np.stack(filled, axis=1)

    return jax.tree.map(column, *histories)
