"""One optimisation of the command line, from what was read to what is written.

Pictures and files meet the core only here.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nst_jax import report
from nst_jax.allocator import reserve
from nst_jax.choices import choice_in_words
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import check_output, resize_to, save_image, to_uint8
from nst_jax.inputs import as_picture, check_pictures, initial_image
from nst_jax.interrupt import stop_on_interrupt
from nst_jax.job_inputs import json_path, obtain_weights, tell_of_slim
from nst_jax.loop import Progress
from nst_jax.mask_checks import check_guidance
from nst_jax.memory import free_bytes, own_memory, peak_memory
from nst_jax.memory_plan import Plan, Task, as_shape, choose, in_words
from nst_jax.objective import check_learned
from nst_jax.options import RunOptions, WatchOptions
from nst_jax.parallel import make_mesh
from nst_jax.problem import check_precision
from nst_jax.progress import progress_display
from nst_jax.rows import check_rows, divides_rows, rows_mesh
from nst_jax.scales import make_scales
from nst_jax.transfer import Result, stylize
from nst_jax.weights import Weights

EXIT_CODES = {"done": 0, "diverged": 1, "stopped": 130}


class Job(NamedTuple):
    """What a command has read and checked.

    Attributes:
      output: the file to write.
      content: the content picture, ``[H, W, 3]``, or a canvas of the result's size.
      styles: the style pictures.
      config: the settings.
      controls: further keywords of ``transfer.stylize``: ``blend``, masks.
      alpha: transparency of the content, ``[H, W]``, or None.
      init: the initial picture where it is a file's.
      settings: what the record says of the command's options.
      mesh: devices that divide the picture, or None.
    """

    output: Path
    content: np.ndarray
    styles: list[np.ndarray]
    config: Config
    controls: dict[str, Any]
    alpha: np.ndarray | None
    init: np.ndarray | None
    settings: dict[str, Any]
    mesh: Mesh | None = None


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
    check_output(job.output, alpha=job.alpha is not None)
    check_pictures(job.content, job.styles, config=job.config, init=job.init)
    weights = obtain_weights(run.weights, model=run.model)
    check_learned(weights.variables, job.config.loss)
    check_precision(job.config)
    tell_of_slim(run, weights)
    mesh = job.mesh
    if mesh is not None and divides_rows(mesh):
        check_rows(job.content.shape[0], job.content.shape[1], mesh=mesh, config=job.config)
    scales = make_scales(job.content.shape, config=job.config, mesh=mesh)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    load_s = time.perf_counter() - started
    try:
        plan, process = None if mesh is not None else make_plan(job, weights), own_memory()
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=job.content.shape[1], height=job.content.shape[0]) from None
    words = f"{job.content.shape[1]}x{job.content.shape[0]} px: what it needs of the memory is not "
    words += "planned on several devices" if mesh is not None else "told here"
    if plan is not None:
        words = in_words(plan, shape=job.content.shape, process=process)
    print(f"nst-jax: {words}", file=sys.stderr)

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
    record["timing"] = {"load_s": load_s} | result.timing
    try:
        write_pictures(record, result.image, job=job, watch=watch, frames=frames)
        record["timing"]["total_s"] = time.perf_counter() - started
        report.write_json(json_path(job.output), record)
    except OSError as error:
        raise not_written(error, job.output) from None
    if result.status != "done":
        print(f"nst-jax: {closing_words(result)}", file=sys.stderr)
    print(job.output)
    return EXIT_CODES[result.status]


def not_written(error: OSError, output: Path) -> InputError:
    """An output that could be written before the run and cannot be now."""
    return InputError(
        f"cannot write {error.filename or output} ({error.strerror}): the result is lost; see to "
        "the place and run again"
    )


def make_mesh_of(spread: str | None) -> Mesh | None:
    """The mesh of all devices that a way to divide a picture wants.

    Raises:
      InputError: where there is one device only.
    """
    if spread is None:
        return None
    if len(jax.local_devices()) == 1:
        raise InputError(
            f"spread {spread} divides a picture among several devices, and there is one only: "
            "leave it out"
        )
    return rows_mesh() if spread == "rows" else make_mesh()


def make_plan(job: Job, weights: Weights) -> Plan | None:
    """What the last scale will need, and how it is to be computed.

    Raises:
      InputError: where it does not fit in any way.
    """
    given = {name: value for name, value in job.controls.items() if value is not None}
    masks = {name: given.pop(name, None) for name in ("content_masks", "style_masks", "keep")}
    if any(value is not None for value in masks.values()):
        content, *styles = [as_picture(picture) for picture in (job.content, *job.styles)]
        given |= check_guidance(content, styles, config=job.config.loss, **masks)
    task = Task(
        weights.variables,
        as_shape(job.content),
        [as_shape(style) for style in job.styles],
        job.config,
        {name: value for name, value in given.items() if value is not None},
    )
    plan = choose(task, free=free_bytes(jax.local_devices()[0]))
    if plan is not None and jax.default_backend() == "cpu":
        # Twice the scratch: what comes before the loop may break one room for it.
        reserve(sum(plan.needs) + plan.needs.scratch)
    return plan


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of the computation is one of too little memory."""
    return "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error)


def explained(error: Exception, *, width: int, height: int, advice: str = "") -> Exception:
    """An error of the computation as one of the input, where it is one of too little memory."""
    if not is_out_of_memory(error):
        return error
    return InputError(
        f"out of memory at {width}x{height} px: choose a smaller --size, {advice}or for L-BFGS a "
        "smaller --memory-size"
    )


def preview_writer(job: Job) -> Callable[[Progress], None]:
    """A function that writes a numbered preview; one that cannot be written is only told."""

    def write(progress: Progress) -> None:
        path = report.preview_path(job.output, progress.step)
        try:
            save_image(path, full_size(progress, job), alpha=job.alpha)
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


def write_pictures(
    record: dict[str, Any],
    image: Any,
    *,
    job: Job,
    watch: WatchOptions,
    frames: list[np.ndarray],
) -> None:
    """Write the result, and the animation and the plot where they are asked for."""
    brief = {
        key: value for key, value in record.items() if key not in ("history", "timing", "memory")
    }
    metadata = {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(report.as_json(brief)),
    }
    save_image(job.output, image, alpha=job.alpha, metadata=metadata)
    if watch.animation is not None:
        report.write_animation(watch.animation, [*frames, to_uint8(image)])
    if watch.plot is not None:
        report.write_plot(watch.plot, record["history"])


def closing_words(result: Result) -> str:
    """What to tell of a run that did not end as asked."""
    step = len(result.history.loss)
    if result.status == "stopped":
        height, width = result.scales[-1].shape
        coarse = (height, width) != result.image.shape[:2]
        scaled = f", enlarged from {width}x{height} px" if coarse else ""
        return f"stopped at step {step}: wrote the best picture so far{scaled}"
    picture = "the best picture before that"
    if not np.isfinite(result.loss):
        picture = "the initial picture, as none had a finite loss"
    return (
        f"diverged at step {step}: the loss or its gradient is not finite; wrote {picture}. Lower "
        "the weights or the learning rate"
    )


def settings_record(config: Config) -> dict[str, Any]:
    """The settings as the record has them, with layers by name."""
    layers = {
        "content_layers": dict(config.content_layers),
        "style_layers": dict(config.style_layers),
    }
    return asdict(config) | layers


def make_record(job: Job, weights: Weights, result: Result, *, run: RunOptions) -> dict[str, Any]:
    """All that the run did, but its timing."""
    return {
        "settings": job.settings | settings_record(job.config),
        "seed": run.seed,
        "versions": report.versions(),
        "device": report.device(),
        "weights": {"name": weights.info.name, "sha256": weights.info.sha256},
        "picture": {"width": job.content.shape[1], "height": job.content.shape[0]},
        "status": result.status,
        "scales": [
            {"width": scale.shape[1], "height": scale.shape[0], "steps": scale.steps}
            | {"computed": choice_in_words(scale.choice)}
            for scale in result.scales
        ],
        "steps": len(result.history.loss),
        "evaluations": int(result.history.evaluations.sum()),
        "final_loss": result.loss,
        "history": report.history_record(result.history),
    }
