"""The optimisation of a job, with all that is done between its steps."""

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import numpy as np

from nst_jax import report
from nst_jax.allocator import keep_to_place
from nst_jax.checkpoint_records import saving_times
from nst_jax.images import resize_to, save_image, to_uint8
from nst_jax.inputs import as_picture, initial_image
from nst_jax.job_checkpoint import Save, Standing
from nst_jax.job_outputs import reason
from nst_jax.job_plan import explained, is_out_of_memory
from nst_jax.job_records import Job
from nst_jax.loop import Progress
from nst_jax.options import RunOptions, WatchOptions
from nst_jax.plan_words import Plan
from nst_jax.position import Position
from nst_jax.progress import progress_display
from nst_jax.scale_state import RECOVERIES
from nst_jax.scales import Scale
from nst_jax.smaller_ways import smaller
from nst_jax.transfer import Result, stylize
from nst_jax.weights import Weights


class Ended(NamedTuple):
    """What ``optimise`` returns.

    Attributes:
      result: of ``transfer.stylize``.
      plan: how it was computed in the end, or None on several devices.
      frames: the animation's, where there is to be one.
      kept: whether the newest checkpoint is of the run's end.
    """

    result: Result
    plan: Plan | None
    frames: list[np.ndarray]
    kept: bool


def optimise(
    job: Job,
    weights: Weights,
    *,
    run: RunOptions,
    watch: WatchOptions,
    standing: Standing,
    scales: Sequence[Scale],
    save: Save | None,
    asked: Callable[[], int | None],
) -> Ended:
    """Run the optimisation; where the memory does not suffice, in the plan's next smaller way.

    Args:
      job, weights, run, watch: what to do.
      standing: where to begin.
      scales: of the run.
      save: writes checkpoints, if any.
      asked: gives the signal that asked to stop, or None.

    Raises:
      InputError: where the memory does not suffice in any way.
    """
    if save and standing.position is None:
        save(standing.plan, None, [])
    ends = list(accumulate(one.steps for one in scales))

    def seen(place: Progress | Position | None) -> None:
        nonlocal scale  # at which the memory would not suffice
        scale = 1 if place is None else 1 + bisect_right(ends, place.step)

    scale = 1
    while True:
        seen(standing.position)
        try:
            return _optimise(job, weights, run, watch, standing, ends[-1], save, asked, seen)
        except jax.errors.JaxRuntimeError as error:
            size = {"width": job.content.shape[1], "height": job.content.shape[0]}
            if standing.plan is None or not is_out_of_memory(error):
                raise explained(error, **size) from None
        standing = smaller(job, weights, standing.plan, watch=watch, scale=scale, scales=scales)


def _optimise(
    job: Job,
    weights: Weights,
    run: RunOptions,
    watch: WatchOptions,
    standing: Standing,
    steps: int,
    save: Save | None,
    asked: Callable[[], int | None],
    seen: Callable[[Progress], None],
) -> Ended:
    """One try, with progress, previews and checkpoints."""
    key = jax.random.key(run.seed)
    plan, frames = standing.plan, list(standing.frames)
    scratch = plan.needs.scratch if plan and jax.default_backend() == "cpu" else 0
    watchers: list[tuple[int, Callable[[Progress], None]]] = []
    if watch.save_every is not None:
        watchers.append((watch.save_every, preview_writer(job)))
    if watch.animation is not None:
        # Where later frames get colours or parts of the content, the bare start would be a flash.
        plain = job.config.loss.color == "none" and "keep" not in job.controls
        if plain and standing.position is None:
            frames.append(to_uint8(first_picture(job, weights, key=key)))
        # About 40 frames, at steps that meet those of the previews.
        wanted = max(1, steps // 40)
        if watch.save_every is not None:
            wanted = smallest_divisor(watch.save_every, at_least=wanted)
        watchers.append(
            (wanted, lambda progress: frames.append(to_uint8(full_size(progress, job))))
        )
    keep = saving_times(watch.checkpoint_every)
    multiples = [each for each, _ in watchers]
    if save and watch.checkpoint_every is not None:
        multiples.append(watch.checkpoint_every)
    told, before, kept = 0, 0, False
    if standing.position is not None:
        told, before = standing.position.recoveries, standing.position.step
        # Complete already, as of a result that could not be written.
        kept = save is not None and before == steps

    with progress_display(steps) as show:

        def callback(progress: Progress) -> bool:
            nonlocal told, before, kept
            show(progress)
            seen(progress)
            if progress.recoveries > told:
                told = progress.recoveries
                finite = np.isfinite(progress.info.loss) & np.isfinite(progress.info.grad_norm)
                # It may have been at the last step of the scale before.
                step = before if finite else progress.step
                print(f"nst-jax: {recovery_words(step, told)}", file=sys.stderr)
            before = progress.step
            for each, watcher in watchers:
                if progress.step % each == 0:
                    watcher(progress)
            if scratch and progress.scale == progress.scales:
                keep_to_place(scratch)
            stop = asked() is not None
            if save and progress.position:
                # At the end, too: outputs that cannot be written then are by ``resume``.
                last = stop or progress.step == progress.steps
                write = partial(_save, save, plan, progress.position, frames)
                kept = keep(write, step=progress.step, last=last)
            return not stop

        result = stylize(
            weights.variables,
            job.content,
            job.styles,
            config=job.config,
            key=key,
            init=job.init,
            callback=callback,
            callback_every=multiples or None,
            choice=plan and plan.choice,
            free=plan and plan.free,
            mesh=job.mesh,
            position=standing.position,
            **job.controls,
        )
        return Ended(jax.block_until_ready(result), plan, frames, kept)


def _save(
    save: Save, plan: Plan | None, position: Callable[[], Any], frames: list[np.ndarray]
) -> bool:
    return save(plan, position(), frames)


def recovery_words(step: int, times: int) -> str:
    """What is told of a run that went back to its best picture."""
    return (
        f"the loss or its gradient was not finite at step {step}: going on from the best picture "
        f"with a fresh optimiser and a smaller step ({times} of {RECOVERIES})"
    )


def first_picture(job: Job, weights: Weights, *, key: jax.Array) -> Any:
    """What the run starts from."""
    if job.init is not None:
        return job.init
    return initial_image(as_picture(job.content), weights.variables, config=job.config, key=key)


def preview_writer(job: Job) -> Callable[[Progress], None]:
    """A function that writes a numbered preview; one that cannot be written is only told."""

    def write(progress: Progress) -> None:
        path = report.preview_path(job.output, progress.step)
        try:
            save_image(path, full_size(progress, job), alpha=job.alpha, **asdict(job.picture))
        except Exception as error:  # of an encoder it may be any
            print(f"nst-jax: cannot write {path} ({reason(error)}), going on", file=sys.stderr)

    return write


def full_size(progress: Progress, job: Job) -> np.ndarray:
    """The current picture, enlarged where the run is at a coarser scale."""
    return resize_to(np.asarray(progress.image), shape=job.content.shape[:2])


def smallest_divisor(number: int, *, at_least: int) -> int:
    """The smallest divisor of a number that is not under a bound, or the number.

    >>> smallest_divisor(50, at_least=4), smallest_divisor(7, at_least=2)
    (5, 7)
    """
    return next((n for n in range(at_least, number) if number % n == 0), number)
