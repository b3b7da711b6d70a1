"""One optimisation of the command line, from what was read to what is written.

Pictures and files meet the core only here.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nst_jax import report
from nst_jax.allocator import keep_to_place
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.images import check_output, resize_to, save_image, to_uint8
from nst_jax.inputs import as_picture, check_pictures, initial_image
from nst_jax.interrupt import stop_on_interrupt
from nst_jax.job_inputs import json_path, obtain_weights, tell_of_network, tell_of_slim
from nst_jax.job_plan import explained, make_plan
from nst_jax.job_records import (
    EXIT_CODES,
    Job,
    closing_words,
    make_record,
    not_written,
    write_pictures,
)
from nst_jax.loop import Progress
from nst_jax.memory import own_memory, peak_memory
from nst_jax.objective import check_learned
from nst_jax.options import RunOptions, WatchOptions
from nst_jax.plan_words import Plan, in_words
from nst_jax.problem import check_precision
from nst_jax.progress import planning_display, progress_display
from nst_jax.rows import check_rows, divides_rows
from nst_jax.scales import make_scales
from nst_jax.standard_streams import STANDARD
from nst_jax.transfer import Result, stylize
from nst_jax.weights import Weights


def execute(job: Job, *, run: RunOptions, watch: WatchOptions, started: float) -> int:
    """Find the weights, run, write.

    Args:
      job: what to do.
      run, watch: options; the outputs' names have been checked.
      started: ``time.perf_counter()`` of the command's start.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    check_output(job.output, alpha=job.alpha is not None, **asdict(job.picture))
    check_pictures(job.content, job.styles, config=job.config, init=job.init)
    weights = obtain_weights(run.weights, model=run.model)
    check_learned(weights.variables, job.config.loss)
    check_precision(job.config)
    tell_of_slim(run, weights)
    if job.styles:  # a reconstruction has nothing to balance
        tell_of_network(run, weights)
    mesh = job.mesh
    if mesh is not None and divides_rows(mesh):
        check_rows(job.content.shape[0], job.content.shape[1], mesh=mesh, config=job.config)
    scales = make_scales(job.content.shape, config=job.config, mesh=mesh)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    load_s = time.perf_counter() - started
    planned = time.perf_counter()
    try:
        with planning_display():
            plan, process = None if mesh is not None else make_plan(job, weights), own_memory()
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=job.content.shape[1], height=job.content.shape[0]) from None
    plan_s = 0.0 if mesh is not None else time.perf_counter() - planned
    words = f"{job.content.shape[1]}x{job.content.shape[0]} px: what it needs of the memory is not "
    words += "planned on several devices" if mesh is not None else "told here"
    if plan is not None:
        words = in_words(plan, shape=job.content.shape, process=process)
    print(f"nst-jax: {words}", file=sys.stderr)
    if job.config.min_size is not None and len(scales) == 1:
        height, width = scales[0].shape
        print(
            f"nst-jax: min_size {job.config.min_size} leaves no scale before the last of "
            f"{width}x{height} px",
            file=sys.stderr,
        )

    result, frames = optimise(
        job,
        weights,
        run=run,
        watch=watch,
        plan=plan,
        mesh=mesh,
        steps=sum(scale.steps for scale in scales),
    )

    record = make_record(job, weights, result, run=run)
    estimated = None if plan is None else {"program": process} | plan.needs._asdict()
    record["memory"] = {"estimated_bytes": estimated, "peak_bytes": peak_memory()}
    record["timing"] = {"load_s": load_s, "plan_s": plan_s} | result.timing
    try:
        write_pictures(record, result.image, job=job, watch=watch, frames=frames)
        record["timing"]["total_s"] = time.perf_counter() - started
        if job.output != STANDARD:
            report.write_json(json_path(job.output), record)
    except OSError as error:
        raise not_written(error, job.output) from None
    if result.status != "done":
        told = closing_words(result, averaging=job.config.averaging)
        print(f"nst-jax: {told}", file=sys.stderr)
    if job.output != STANDARD:
        print(job.output)
    return EXIT_CODES[result.status]


def optimise(
    job: Job,
    weights: Weights,
    *,
    run: RunOptions,
    watch: WatchOptions,
    plan: Plan | None,
    mesh: Mesh | None,
    steps: int,
) -> tuple[Result, list[np.ndarray]]:
    """Run the optimisation with progress and previews.

    Returns:
      The result, and the animation's frames where there is to be one.

    Raises:
      InputError: where the memory does not suffice.
    """
    key = jax.random.key(run.seed)
    frames: list[np.ndarray] = []
    scratch = plan.needs.scratch if plan and jax.default_backend() == "cpu" else 0
    watchers, every = [], None
    if watch.save_every is not None:
        watchers.append((watch.save_every, preview_writer(job)))
        every = watch.save_every
    if watch.animation is not None:
        # Where later frames get colours or parts of the content, the bare start would be a flash.
        if job.config.color == "none" and "keep" not in job.controls:
            frames.append(to_uint8(first_picture(job, weights, key=key)))
        # About 40 frames, at steps that meet those of the previews.
        wanted = max(1, steps // 40)
        every = wanted if every is None else smallest_divisor(every, at_least=wanted)
        watchers.append((every, lambda progress: frames.append(to_uint8(full_size(progress, job)))))

    try:
        with progress_display(steps) as show, stop_on_interrupt() as may_go_on:

            def callback(progress: Progress) -> bool:
                show(progress)
                for steps, watch in watchers:
                    if progress.step % steps == 0:
                        watch(progress)
                if scratch and progress.scale == progress.scales:
                    keep_to_place(scratch)
                return may_go_on()

            result = stylize(
                weights.variables,
                job.content,
                job.styles,
                config=job.config,
                key=key,
                init=job.init,
                callback=callback,
                callback_every=every,
                choice=plan and plan.choice,
                mesh=mesh,
                **job.controls,
            )
            return jax.block_until_ready(result), frames
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=job.content.shape[1], height=job.content.shape[0]) from None


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
        except OSError as error:
            print(f"nst-jax: cannot write {path} ({error.strerror}), going on", file=sys.stderr)

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
