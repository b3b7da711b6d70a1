"""The optimisation of a job, with all that is done between its steps."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax import report
from nst_jax.allocator import keep_to_place
from nst_jax.choices import Execution
from nst_jax.images import resize_to, save_image, to_uint8
from nst_jax.inputs import initial_image
from nst_jax.job_checkpoint import Save, Standing, saving_times
from nst_jax.job_outputs import reason
from nst_jax.job_records import Ended, Job
from nst_jax.loop import Callback, Progress
from nst_jax.messages import tell
from nst_jax.plan_words import MemoryPlan
from nst_jax.progress import progress_display
from nst_jax.scale_state import RECOVERIES
from nst_jax.scales import Scale
from nst_jax.smaller_ways import smaller_standing, with_fallback
from nst_jax.transfer import run_inputs
from nst_jax.weights import Weights

Watcher = Callable[[Progress], Any]


def optimise(
    job: Job,
    weights: Weights,
    standing: Standing,
    *,
    scales: Sequence[Scale],
    save: Save | None,
    asked: Callable[[], int | None],
) -> Ended:
    """Run the optimisation; where the memory does not suffice, in the plan's next smaller way.

    Args:
      job, weights: what to do.
      standing: where to begin.
      scales: of the run.
      save: writes checkpoints, if any.
      asked: gives the signal that asked to stop, or None.

    Raises:
      InputError: where the memory does not suffice in any way.
    """
    if save and standing.position is None:
        save(standing)
    ends = list(accumulate(one.steps for one in scales))
    step = 0  # from which the memory would not suffice

    def attempt(standing: Standing) -> Ended:
        nonlocal step
        step = standing.position.step if standing.position else 0
        return _attempt(job, weights, standing, steps=ends[-1], save=save, stop=stop)

    def stop(progress: Progress) -> bool:
        nonlocal step
        step = progress.step
        return asked() is not None

    def smaller(standing: Standing) -> Standing | None:
        if standing.plan is None:
            return None
        scale = 1 + bisect_right(ends, step)
        return smaller_standing(job, weights, standing.plan, scale=scale, scales=len(scales))

    return with_fallback(attempt, standing, smaller=smaller, shape=job.shape)


def _attempt(
    job: Job,
    weights: Weights,
    standing: Standing,
    *,
    steps: int,
    save: Save | None,
    stop: Callable[[Progress], bool],
) -> Ended:
    """One try, with progress, previews and checkpoints."""
    key, plan, frames = jax.random.key(job.run.seed), standing.plan, list(standing.frames)
    if job.watch.animation is not None and standing.position is None:
        # Where later frames get colours or parts of the content, the bare start would be a flash.
        if job.config.loss.color == "none" and job.inputs.guidance.preserve is None:
            frames.append(to_uint8(first_picture(job, weights, key=key)))
    watchers = periodic_watchers(job, frames, steps=steps)
    multiples = [each for each, _ in watchers]
    if save and job.watch.checkpoint_every is not None:
        multiples.append(job.watch.checkpoint_every)
    scratch = plan.needs.scratch if plan and jax.default_backend() == "cpu" else 0
    keep, tell_recovery = saving_times(job.watch.checkpoint_every), recovery_teller(standing)
    # Complete already, as of a result that could not be written.
    kept = bool(save and standing.position and standing.position.step == steps)

    with progress_display(steps) as show:

        def callback(progress: Progress) -> bool:
            nonlocal kept
            show(progress)
            tell_recovery(progress)
            for each, watcher in watchers:
                if progress.step % each == 0:
                    watcher(progress)
            if scratch and progress.scale == progress.scales:
                keep_to_place(scratch)
            stopped = stop(progress)
            if save and progress.position:
                # At the end, too: outputs that cannot be written then are by ``resume``.
                last = stopped or progress.step == progress.steps
                write = partial(_save, save, plan, progress.position, frames)
                kept = keep(write, step=progress.step, last=last)
            return not stopped

        result = run_inputs(
            weights.variables,
            job.inputs,
            config=job.config,
            key=key,
            position=standing.position,
            callback=Callback(callback, multiples),
            execution=Execution(plan and plan.choice, plan and plan.free, job.mesh),
        )
        return Ended(jax.block_until_ready(result), plan, frames, kept)


def _save(
    save: Save, plan: MemoryPlan | None, position: Callable[[], Any], frames: list[np.ndarray]
) -> bool:
    return save(Standing(plan, position(), frames))


def periodic_watchers(
    job: Job, frames: list[np.ndarray], *, steps: int
) -> list[tuple[int, Watcher]]:
    """What is done at each multiple of so many steps: previews, and the animation's frames."""
    watchers: list[tuple[int, Watcher]] = []
    every = job.watch.save_every
    if every is not None:
        watchers.append((every, preview_writer(job)))
    if job.watch.animation is not None:
        # About 40 frames, at steps that meet those of the previews.
        wanted = max(1, steps // 40)
        wanted = wanted if every is None else smallest_divisor(every, at_least=wanted)
        watchers.append((wanted, lambda now: frames.append(to_uint8(full_size(now, job)))))
    return watchers


def recovery_teller(standing: Standing) -> Watcher:
    """A function that says where a run went back to its best picture."""
    position = standing.position
    told, before = (position.recoveries, position.step) if position else (0, 0)

    def tell_recovery(progress: Progress) -> None:
        nonlocal told, before
        if progress.recoveries > told:
            told = progress.recoveries
            finite = np.isfinite(progress.info.loss) & np.isfinite(progress.info.grad_norm)
            # It may have been at the last step of the scale before.
            step = before if finite else progress.step
            tell(
                f"the loss or its gradient was not finite at step {step}: going on from the best "
                f"picture with a fresh optimiser and a smaller step ({told} of {RECOVERIES})"
            )
        before = progress.step

    return tell_recovery


def first_picture(job: Job, weights: Weights, *, key: jax.Array) -> Any:
    """What the run starts from."""
    if job.inputs.init is not None:
        return job.inputs.init
    content = jnp.asarray(job.inputs.content)
    return initial_image(content, weights.variables, config=job.config, key=key)


def preview_writer(job: Job) -> Watcher:
    """A function that writes a numbered preview; one that cannot be written is only told."""

    def write(progress: Progress) -> None:
        path = report.preview_path(job.output, progress.step)
        try:
            save_image(path, full_size(progress, job), alpha=job.alpha, **asdict(job.picture))
        except Exception as error:  # of an encoder it may be any
            tell(f"cannot write {path} ({reason(error)}), going on")

    return write


def full_size(progress: Progress, job: Job) -> np.ndarray:
    """The current picture, enlarged where the run is at a coarser scale."""
    return resize_to(np.asarray(progress.image), shape=job.shape)


def smallest_divisor(number: int, *, at_least: int) -> int:
    """The smallest divisor of a number that is not under a bound, or the number.

    >>> smallest_divisor(50, at_least=4), smallest_divisor(7, at_least=2)
    (5, 7)
    """
    return next((n for n in range(at_least, number) if number % n == 0), number)
