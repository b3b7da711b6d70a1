"""The run of a command for one image: find weights and plan, optimise, write the outputs."""

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
from nst_jax.checkpoint.store import Saved, locked
from nst_jax.cli import record
from nst_jax.cli.checkpoints import (
    ResumePoint,
    SaveCheckpoint,
    checkpoint_saver,
    checkpoint_schedule,
    restore_resume_point,
    restore_settings,
)
from nst_jax.cli.checks import find_network, output_paths
from nst_jax.cli.fallback import (
    fallback_resume_point,
    memory_errors_to_input_errors,
    run_with_fallback,
)
from nst_jax.cli.messages import log
from nst_jax.cli.outputs import (
    EXIT_CODES,
    Job,
    Outcome,
    error_text,
    make_record,
    status_message,
    write_outputs,
)
from nst_jax.cli.planning import make_plan, reserve_memory, warn_if_memory_shrank
from nst_jax.cli.progress import planning_display, progress_display
from nst_jax.images.read import resize_to
from nst_jax.images.write import check_output, check_output_sides, save_image, to_uint8
from nst_jax.system.backend import use_compilation_cache
from nst_jax.system.files import remove_leftovers
from nst_jax.system.memory import peak_memory, process_memory, release_moved_block
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
    save: SaveCheckpoint | None,
    stop_signal: Callable[[], int | None],
) -> Outcome:
    """Run the optimisation, falling back to cheaper execution plans when memory runs out.

    Args:
      job, weights: the run.
      resume_point: where to start.
      scales: of the run.
      save: writes checkpoints, if any.
      stop_signal: returns the signal that requested a stop, or None.

    Raises:
      InputError: if no execution plan fits into memory.
    """
    if save and resume_point.position is None:
        save(resume_point)
    ends = list(accumulate(scale.steps for scale in scales))
    step = 0  # the last step reached before memory ran out

    def attempt(resume_point: ResumePoint) -> Outcome:
        nonlocal step
        step = resume_point.position.step if resume_point.position else 0
        return _attempt(job, weights, resume_point, steps=ends[-1], save=save, stop=stop)

    def stop(progress: Progress) -> bool:
        nonlocal step
        step = progress.step
        return stop_signal() is not None

    def next_option(resume_point: ResumePoint) -> ResumePoint | None:
        if resume_point.plan is None:  # nothing is planned on several devices
            return None
        scale = 1 + bisect_right(ends, step)  # the scale that ran out of memory
        return fallback_resume_point(
            job, weights, resume_point.plan, scale=scale, scales=len(scales)
        )

    return run_with_fallback(attempt, resume_point, next_option=next_option, shape=job.shape)


def _attempt(
    job: Job,
    weights: Weights,
    resume_point: ResumePoint,
    *,
    steps: int,
    save: SaveCheckpoint | None,
    stop: Callable[[Progress], bool],
) -> Outcome:
    """Run the optimisation once with progress, previews and checkpoints."""
    key, plan, frames = jax.random.key(job.run.seed), resume_point.plan, list(resume_point.frames)
    if job.watch.animation is not None and resume_point.position is None:
        # If later frames show colours or parts of the content, a frame without would flash.
        if job.config.loss.color == "none" and job.inputs.guidance.preserve is None:
            frames.append(to_uint8(first_image(job, weights, key=key)))
    watchers = periodic_watchers(job, frames, steps=steps)
    multiples = [each for each, _ in watchers]
    if save and job.watch.checkpoint_every is not None:
        multiples.append(job.watch.checkpoint_every)
    scratch = plan.needs.scratch if plan and jax.default_backend() == "cpu" else 0
    save_if_due = checkpoint_schedule(job.watch.checkpoint_every)
    log_recovery = recovery_logger(resume_point)
    # True from the start if the run had ended, and is resumed because its result was not written.
    in_checkpoint = bool(save and resume_point.position and resume_point.position.step == steps)

    with progress_display(steps) as show:

        def callback(progress: Progress) -> bool:
            nonlocal in_checkpoint
            show(progress)
            log_recovery(progress)
            for each, watcher in watchers:
                if progress.step % each == 0:
                    watcher(progress)
            # The next chunk of steps allocates the same scratch memory again. If it would get other
            # pages than the last one, both would count: then the old pages are given back first.
            if scratch and progress.scale == progress.scales:
                release_moved_block(scratch)
            stopped = stop(progress)
            if save and progress.position:
                # Also save at the end, so that ``resume`` can write outputs that fail now.
                last = stopped or progress.step == progress.steps
                write = partial(_save, save, plan, progress.position, frames)
                in_checkpoint = save_if_due(write, step=progress.step, last=last)
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
        # Running out of memory may surface only when the result is complete.
        return Outcome(jax.block_until_ready(result), plan, frames, in_checkpoint)


def _save(
    save: SaveCheckpoint,
    plan: MemoryPlan | None,
    position: Callable[[], Any],
    frames: list[np.ndarray],
) -> bool:
    return save(ResumePoint(plan, position(), frames))


def periodic_watchers(
    job: Job, frames: list[np.ndarray], *, steps: int
) -> list[tuple[int, Watcher]]:
    """The functions that write previews and collect the animation's frames.

    Returns:
      Pairs of a number and a function to call at its multiples of steps.
    """
    watchers: list[tuple[int, Watcher]] = []
    every = job.watch.save_every
    if every is not None:
        watchers.append((every, preview_writer(job)))
    if job.watch.animation is not None:
        # About 40 frames, at a divisor of the preview interval so that few chunks are split.
        wanted = max(1, steps // 40)
        wanted = wanted if every is None else smallest_divisor(every, at_least=wanted)
        watchers.append((wanted, lambda now: frames.append(to_uint8(at_full_size(now, job)))))
    return watchers


def recovery_logger(resume_point: ResumePoint) -> Watcher:
    """Make a function that logs each recovery of the run from a divergence."""
    position = resume_point.position
    logged, before = (position.recoveries, position.step) if position else (0, 0)

    def log_recovery(progress: Progress) -> None:
        nonlocal logged, before
        if progress.recoveries > logged:
            logged = progress.recoveries
            finite = np.isfinite(progress.info.loss) & np.isfinite(progress.info.grad_norm)
            # If this step is finite, the divergence was at the last step of the previous scale.
            step = before if finite else progress.step
            log(
                f"the loss or its gradient was not finite at step {step}: restarting from the best "
                f"image with a fresh optimiser and a smaller step ({logged} of {RECOVERIES})"
            )
        before = progress.step

    return log_recovery


def first_image(job: Job, weights: Weights, *, key: jax.Array) -> Any:
    """The image that the run starts from."""
    if job.inputs.init is not None:
        return job.inputs.init
    content = jnp.asarray(job.inputs.content)
    return initial_image(content, weights.variables, config=job.config, key=key)


def preview_writer(job: Job) -> Watcher:
    """Make a function that writes a numbered preview, and logs an error if it cannot."""

    def write(progress: Progress) -> None:
        path = record.preview_path(job.output, progress.step)
        try:
            save_image(path, at_full_size(progress, job), alpha=job.alpha, **asdict(job.image))
        except Exception as error:  # encoders may raise any exception
            log(f"cannot write {path} ({error_text(error)}), continuing without it")

    return write


def at_full_size(progress: Progress, job: Job) -> np.ndarray:
    """The current image, enlarged to the size of the result."""
    return resize_to(np.asarray(progress.image), shape=job.shape)


def smallest_divisor(number: int, *, at_least: int) -> int:
    """The smallest divisor of ``number`` that is at least ``at_least``, or ``number`` itself.

    >>> smallest_divisor(50, at_least=4), smallest_divisor(7, at_least=2)
    (5, 7)
    """
    return next((n for n in range(at_least, number) if number % n == 0), number)


def execute(job: Job, *, started: float, resumed: Saved | None = None) -> int:
    """Find the weights and a memory plan, run the optimisation, and write the outputs.

    Args:
      job: the job; the names of its outputs have been checked.
      started: ``time.perf_counter()`` at the start of the command.
      resumed: the checkpoint to resume from, if any; its folder is locked by the caller.

    Returns:
      The exit code.

    Raises:
      InputError: for bad input, before anything is written; at the end, if an output cannot be
        written.
    """
    check_formats(job)
    resume_point = None
    if resumed is not None:
        resume_point = restore_resume_point(resumed, shape=job.shape)
        job = job._replace(settings=restore_settings(resumed))
    weights = find_network(
        job.run,
        [job.config],
        balanced=bool(job.inputs.styles),  # a reconstruction has only the content term
        mesh=job.mesh,
        resumed=resumed,
    )
    scales = make_scales(job.inputs.content.shape, config=job.config, mesh=job.mesh)
    use_compilation_cache()  # after all checks: bad input must not create the cache folder
    if resumed is not None and resume_point is not None:
        log_resume(job, resumed, resume_point, steps=sum(scale.steps for scale in scales))
    load_s, planning_started = time.perf_counter() - started, time.perf_counter()
    plan, process = find_job_plan(job, weights, resume_point=resume_point), process_memory()
    plan_s = 0.0 if job.mesh is not None else time.perf_counter() - planning_started
    log_plan(job, plan, process=process, scales=scales)
    # If the run is resumed, ``resume`` has locked the checkpoint folder.
    with locked(None if resumed else job.watch.checkpoint), stop_on_signals() as stop_signal:
        save = None
        if job.watch.checkpoint is not None:
            save = checkpoint_saver(
                job.watch.checkpoint,
                call=job.call,
                inputs=job.files,
                settings={"init": job.config.initial.init} | job.settings,
                weights=weights,
                resumed=resumed,
            )
        outcome = optimise(
            job,
            weights,
            resume_point or ResumePoint(plan, None, []),
            scales=scales,
            save=save,
            stop_signal=stop_signal,
        )
        record = make_record(job, weights, outcome.result)
        needs = outcome.plan and outcome.plan.needs._asdict()
        estimated = needs and {"program": process} | needs
        record["memory"] = {"estimated_bytes": estimated, "peak_bytes": peak_memory()}
        record["timing"] = {"load_s": load_s, "plan_s": plan_s} | outcome.result.timing
        write_outputs(record, outcome, job=job, started=started)
        signal = stop_signal()
    status = outcome.result.status
    if status != "done":
        log(status_message(outcome.result, averaging=job.config.averaging))
    if job.output != STANDARD:
        print(job.output)
    return 128 + signal if status == "stopped" and signal else EXIT_CODES[status]


def check_formats(job: Job) -> None:
    """Check that the formats of the output files support the size and transparency of the result.

    Raises:
      InputError: if not.
    """
    if job.alpha is not None:
        check_output(job.output, alpha=True, **asdict(job.image))
    check_output_sides(job.output, job.shape)
    if job.watch.animation is not None:
        check_output_sides(job.watch.animation, job.shape)


def log_resume(job: Job, resumed: Saved, resume_point: ResumePoint, *, steps: int) -> None:
    """Log where a run resumes, and remove files that the interrupted run left unfinished."""
    remove_leftovers(output_paths(job.output, job.watch, steps=steps))
    store.remove_damaged(resumed)
    step = 0 if resume_point.position is None else resume_point.position.step
    log(f"resuming from step {step}, writing to {job.output}")


def find_job_plan(
    job: Job, weights: Weights, *, resume_point: ResumePoint | None
) -> MemoryPlan | None:
    """Plan the memory of a job; a resumed one keeps its plan. None on several devices."""
    if job.mesh is not None:
        return None
    if resume_point is not None:
        if resume_point.plan is not None:
            warn_if_memory_shrank(resume_point.plan)
            reserve_memory(resume_point.plan)
        return resume_point.plan
    with memory_errors_to_input_errors(job.shape), planning_display():
        return make_plan(job, weights)


def log_plan(job: Job, plan: MemoryPlan | None, *, process: int, scales: list[Scale]) -> None:
    """Log the memory plan, and warn if ``min_size`` adds no coarser scale."""
    if plan is not None:
        log(plan_in_words(plan, shape=job.shape, process=process))
    else:
        where = "on several devices" if job.mesh is not None else "by this backend"
        log(f"{job.shape[1]}x{job.shape[0]} px: memory use is not estimated {where}")
    if job.config.pyramid.min_size is not None and len(scales) == 1:
        height, width = scales[0].shape
        log(
            f"min_size {job.config.pyramid.min_size} adds no scale coarser than {width}x{height} px"
        )
