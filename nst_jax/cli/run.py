"""One run of the command line, from what was read to what is written.

It finds weights and plan, optimises with what is done between steps, and writes the outputs.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.checkpoint import store
from nst_jax.checkpoint.store import Saved, held
from nst_jax.cli import record
from nst_jax.cli.checkpoints import (
    ResumePoint,
    SaveJob,
    image_saver,
    restore_resume_point,
    restore_settings,
    saving_times,
)
from nst_jax.cli.checks import find_network, output_paths
from nst_jax.cli.fallback import explaining, fallback_point, with_fallback
from nst_jax.cli.messages import log
from nst_jax.cli.outputs import (
    EXIT_CODES,
    Ended,
    Job,
    closing_words,
    make_record,
    reason,
    write_outputs,
)
from nst_jax.cli.planning import log_room, make_plan, make_room
from nst_jax.cli.progress import planning_display, progress_display
from nst_jax.images.read import resize_to
from nst_jax.images.write import check_output, check_output_sides, save_image, to_uint8
from nst_jax.system.backend import use_compilation_cache
from nst_jax.system.files import remove_leftovers
from nst_jax.system.memory import keep_to_place, own_memory, peak_memory
from nst_jax.system.signals import stop_on_signals
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.plan import plan_in_words
from nst_jax.transfer.problem import initial_image
from nst_jax.transfer.pyramid import Scale, make_scales
from nst_jax.transfer.single import run_inputs
from nst_jax.transfer.types import RECOVERIES, Callback, Execution, MemoryPlan, Progress
from nst_jax.weights.canonical import Weights

Watcher = Callable[[Progress], Any]


def optimise(
    job: Job,
    weights: Weights,
    resume_point: ResumePoint,
    *,
    scales: Sequence[Scale],
    save: SaveJob | None,
    asked: Callable[[], int | None],
) -> Ended:
    """Run the optimisation; where the memory does not suffice, in the plan's next smaller way.

    Args:
      job, weights: what to do.
      resume_point: where to begin.
      scales: of the run.
      save: writes checkpoints, if any.
      asked: gives the signal that asked to stop, or None.

    Raises:
      InputError: where the memory does not suffice in any way.
    """
    if save and resume_point.position is None:
        save(resume_point)
    ends = list(accumulate(one.steps for one in scales))
    step = 0  # from which the memory would not suffice

    def attempt(resume_point: ResumePoint) -> Ended:
        nonlocal step
        step = resume_point.position.step if resume_point.position else 0
        return _attempt(job, weights, resume_point, steps=ends[-1], save=save, stop=stop)

    def stop(progress: Progress) -> bool:
        nonlocal step
        step = progress.step
        return asked() is not None

    def smaller(resume_point: ResumePoint) -> ResumePoint | None:
        if resume_point.plan is None:
            return None
        scale = 1 + bisect_right(ends, step)
        return fallback_point(job, weights, resume_point.plan, scale=scale, scales=len(scales))

    return with_fallback(attempt, resume_point, smaller=smaller, shape=job.shape)


def _attempt(
    job: Job,
    weights: Weights,
    resume_point: ResumePoint,
    *,
    steps: int,
    save: SaveJob | None,
    stop: Callable[[Progress], bool],
) -> Ended:
    """One try, with progress, previews and checkpoints."""
    key, plan, frames = jax.random.key(job.run.seed), resume_point.plan, list(resume_point.frames)
    if job.watch.animation is not None and resume_point.position is None:
        # Where later frames get colours or parts of the content, the bare start would be a flash.
        if job.config.loss.color == "none" and job.inputs.guidance.preserve is None:
            frames.append(to_uint8(first_image(job, weights, key=key)))
    watchers = periodic_watchers(job, frames, steps=steps)
    multiples = [each for each, _ in watchers]
    if save and job.watch.checkpoint_every is not None:
        multiples.append(job.watch.checkpoint_every)
    scratch = plan.needs.scratch if plan and jax.default_backend() == "cpu" else 0
    keep, log_recovery = saving_times(job.watch.checkpoint_every), recovery_logger(resume_point)
    # Complete already, as of a result that could not be written.
    kept = bool(save and resume_point.position and resume_point.position.step == steps)

    with progress_display(steps) as show:

        def callback(progress: Progress) -> bool:
            nonlocal kept
            show(progress)
            log_recovery(progress)
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
            position=resume_point.position,
            callback=Callback(callback, multiples),
            execution=Execution(plan and plan.execution_plan, plan and plan.free, job.mesh),
        )
        return Ended(jax.block_until_ready(result), plan, frames, kept)


def _save(
    save: SaveJob, plan: MemoryPlan | None, position: Callable[[], Any], frames: list[np.ndarray]
) -> bool:
    return save(ResumePoint(plan, position(), frames))


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


def recovery_logger(resume_point: ResumePoint) -> Watcher:
    """A function that says where a run went back to its best image."""
    position = resume_point.position
    told, before = (position.recoveries, position.step) if position else (0, 0)

    def log_recovery(progress: Progress) -> None:
        nonlocal told, before
        if progress.recoveries > told:
            told = progress.recoveries
            finite = np.isfinite(progress.info.loss) & np.isfinite(progress.info.grad_norm)
            # It may have been at the last step of the scale before.
            step = before if finite else progress.step
            log(
                f"the loss or its gradient was not finite at step {step}: going on from the best "
                f"image with a fresh optimiser and a smaller step ({told} of {RECOVERIES})"
            )
        before = progress.step

    return log_recovery


def first_image(job: Job, weights: Weights, *, key: jax.Array) -> Any:
    """What the run starts from."""
    if job.inputs.init is not None:
        return job.inputs.init
    content = jnp.asarray(job.inputs.content)
    return initial_image(content, weights.variables, config=job.config, key=key)


def preview_writer(job: Job) -> Watcher:
    """A function that writes a numbered preview; one that cannot be written is only told."""

    def write(progress: Progress) -> None:
        path = record.preview_path(job.output, progress.step)
        try:
            save_image(path, full_size(progress, job), alpha=job.alpha, **asdict(job.image))
        except Exception as error:  # of an encoder it may be any
            log(f"cannot write {path} ({reason(error)}), going on")

    return write


def full_size(progress: Progress, job: Job) -> np.ndarray:
    """The current image, enlarged where the run is at a coarser scale."""
    return resize_to(np.asarray(progress.image), shape=job.shape)


def smallest_divisor(number: int, *, at_least: int) -> int:
    """The smallest divisor of a number that is not under a bound, or the number.

    >>> smallest_divisor(50, at_least=4), smallest_divisor(7, at_least=2)
    (5, 7)
    """
    return next((n for n in range(at_least, number) if number % n == 0), number)


def execute(job: Job, *, started: float, resumed: Saved | None = None) -> int:
    """Find the weights, run, write.

    Args:
      job: what to do; the outputs' names have been checked.
      started: ``time.perf_counter()`` of the command's start.
      resumed: the checkpoint from which the job goes on, if any, in a folder that is held.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    check_formats(job)
    resume_point = None
    if resumed is not None:
        resume_point = restore_resume_point(resumed, shape=job.shape)
        job = job._replace(settings=restore_settings(resumed))
    weights = find_network(
        job.run,
        [job.config],
        balanced=bool(job.inputs.styles),  # a reconstruction has nothing to balance
        mesh=job.mesh,
        resumed=resumed,
    )
    scales = make_scales(job.inputs.content.shape, config=job.config, mesh=job.mesh)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    if resumed is not None and resume_point is not None:
        log_resume(job, resumed, resume_point, steps=sum(scale.steps for scale in scales))
    load_s, planned = time.perf_counter() - started, time.perf_counter()
    plan, process = find_job_plan(job, weights, resume_point=resume_point), own_memory()
    plan_s = 0.0 if job.mesh is not None else time.perf_counter() - planned
    log_plan(job, plan, process=process, scales=scales)
    # Of a run that goes on ``resume`` holds the folder.
    with held(None if resumed else job.watch.checkpoint), stop_on_signals() as asked:
        save = None
        if job.watch.checkpoint is not None:
            save = image_saver(
                job.watch.checkpoint,
                call=job.call,
                inputs=job.files,
                settings={"init": job.config.initial.init} | job.settings,
                weights=weights,
                resumed=resumed,
            )
        ended = optimise(
            job,
            weights,
            resume_point or ResumePoint(plan, None, []),
            scales=scales,
            save=save,
            asked=asked,
        )
        record = make_record(job, weights, ended.result)
        needs = ended.plan and ended.plan.needs._asdict()
        estimated = needs and {"program": process} | needs
        record["memory"] = {"estimated_bytes": estimated, "peak_bytes": peak_memory()}
        record["timing"] = {"load_s": load_s, "plan_s": plan_s} | ended.result.timing
        write_outputs(record, ended, job=job, started=started)
        signal = asked()
    status = ended.result.status
    if status != "done":
        log(closing_words(ended.result, averaging=job.config.averaging))
    if job.output != STANDARD:
        print(job.output)
    return 128 + signal if status == "stopped" and signal else EXIT_CODES[status]


def check_formats(job: Job) -> None:
    """Check that the files to write can hold the result.

    Raises:
      InputError: where their formats cannot.
    """
    if job.alpha is not None:
        check_output(job.output, alpha=True, **asdict(job.image))
    check_output_sides(job.output, job.shape)
    if job.watch.animation is not None:
        check_output_sides(job.watch.animation, job.shape)


def log_resume(job: Job, resumed: Saved, resume_point: ResumePoint, *, steps: int) -> None:
    """Say where a run goes on, and remove what the one before has left half-written."""
    remove_leftovers(output_paths(job.output, job.watch, steps=steps))
    store.remove_damaged(resumed)
    step = 0 if resume_point.position is None else resume_point.position.step
    log(f"going on from step {step}, to write {job.output}")


def find_job_plan(
    job: Job, weights: Weights, *, resume_point: ResumePoint | None
) -> MemoryPlan | None:
    """How the job is computed: as it was where it goes on, else as the memory has room."""
    if job.mesh is not None:
        return None
    if resume_point is not None:
        if resume_point.plan is not None:
            log_room(resume_point.plan)
            make_room(resume_point.plan)
        return resume_point.plan
    with explaining(job.shape), planning_display():
        return make_plan(job, weights)


def log_plan(job: Job, plan: MemoryPlan | None, *, process: int, scales: list[Scale]) -> None:
    """The first lines of a run."""
    words = f"{job.shape[1]}x{job.shape[0]} px: what it needs of the memory is not "
    words += "planned on several devices" if job.mesh is not None else "told here"
    if plan is not None:
        words = plan_in_words(plan, shape=job.shape, process=process)
    log(words)
    if job.config.pyramid.min_size is not None and len(scales) == 1:
        height, width = scales[0].shape
        log(
            f"min_size {job.config.pyramid.min_size} leaves no scale before the last of "
            f"{width}x{height} px"
        )
