"""The command ``nst-jax stylize``: read, check, run, write.

Pictures and files meet the core only here.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from nst_jax import report
from nst_jax.cli import Stylize
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.errors import InputError
from nst_jax.images import Picture, check_output, load_image, load_picture, save_image, to_uint8
from nst_jax.inputs import check_pictures, initial_image
from nst_jax.interrupt import stop_on_interrupt
from nst_jax.loop import Progress
from nst_jax.objective import check_learned
from nst_jax.progress import progress_display
from nst_jax.stylize_inputs import (
    check_options,
    json_path,
    load_init,
    obtain_weights,
    tell_of_slim,
)
from nst_jax.transfer import Result
from nst_jax.transfer import stylize as run_stylize
from nst_jax.weights import Weights

EXIT_CODES = {"done": 0, "diverged": 1, "stopped": 130}


def stylize(options: Stylize) -> int:
    """Run ``nst-jax stylize``; see ``cli.Stylize``.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    started = time.perf_counter()
    check_options(options)
    content = load_picture(options.content, size=options.size)
    check_output(options.output, alpha=content.alpha is not None)
    # Styles are scaled to the content's longer side, which keeps their strokes' size in step.
    styles = [load_image(path, size=options.size) for path in options.style]
    init = load_init(options.config, shape=content.rgb.shape)
    check_pictures(content.rgb, styles, config=options.config, init=init)
    weights = obtain_weights(options.weights, model=options.model)
    check_learned(weights.variables, options.config.loss)
    tell_of_slim(options, weights)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    if init is None:
        init = np.asarray(
            initial_image(
                jax.numpy.asarray(content.rgb),
                weights.variables,
                config=options.config,
                key=jax.random.key(options.seed),
            )
        )
    load_s = time.perf_counter() - started

    result, frames = optimise(options, weights, content, styles, init)

    record = make_record(options, weights, result, shape=content.rgb.shape)
    record["timing"] = {"load_s": load_s} | result.timing
    try:
        write_pictures(options, record, result.image, alpha=content.alpha, frames=frames)
        record["timing"]["total_s"] = time.perf_counter() - started
        report.write_json(json_path(options.output), record)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or options.output} ({error.strerror}): the result is "
            "lost; see to the place and run again"
        ) from None
    if result.status != "done":
        print(f"nst-jax: {closing_words(result)}", file=sys.stderr)
    print(options.output)
    return EXIT_CODES[result.status]


def optimise(
    options: Stylize,
    weights: Weights,
    content: Picture,
    styles: list[np.ndarray],
    init: np.ndarray,
) -> tuple[Result, list[np.ndarray]]:
    """Run the optimisation with progress and previews.

    Returns:
      The result, and the animation's frames where there is to be one.

    Raises:
      InputError: where the memory does not suffice.
    """
    frames: list[np.ndarray] = []
    watchers, every = [], None
    if options.save_every is not None:
        watchers.append((options.save_every, preview_writer(options, alpha=content.alpha)))
        every = options.save_every
    if options.animation is not None:
        frames.append(to_uint8(init))
        # About 40 frames, at steps that meet those of the previews.
        wanted = max(1, options.config.steps // 40)
        every = wanted if every is None else smallest_divisor(every, at_least=wanted)
        watchers.append((every, lambda progress: frames.append(to_uint8(progress.image))))

    try:
        with progress_display(options.config.steps) as show, stop_on_interrupt() as may_go_on:

            def callback(progress: Progress) -> bool:
                show(progress)
                for steps, watch in watchers:
                    if progress.step % steps == 0:
                        watch(progress)
                return may_go_on()

            result = run_stylize(
                weights.variables,
                content.rgb,
                styles,
                config=options.config,
                blend=options.style_blend or None,
                init=init,
                callback=callback,
                callback_every=every,
            )
            return jax.block_until_ready(result), frames
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" in str(error).lower():
            raise InputError(
                f"out of memory at {init.shape[1]}x{init.shape[0]} px: choose a smaller --size, or "
                "for L-BFGS a smaller --memory-size"
            ) from None
        raise


def preview_writer(options: Stylize, *, alpha: np.ndarray | None) -> Callable[[Progress], None]:
    """A function that writes a numbered preview; one that cannot be written is only told."""

    def write(progress: Progress) -> None:
        path = report.preview_path(options.output, progress.step)
        try:
            save_image(path, progress.image, alpha=alpha)
        except OSError as error:
            print(f"nst-jax: cannot write {path} ({error.strerror}), going on", file=sys.stderr)

    return write


def smallest_divisor(number: int, *, at_least: int) -> int:
    """The smallest divisor of a number that is not under a bound, or the number.

    >>> smallest_divisor(50, at_least=4), smallest_divisor(7, at_least=2)
    (5, 7)
    """
    return next((n for n in range(at_least, number) if number % n == 0), number)


def write_pictures(
    options: Stylize,
    record: dict[str, Any],
    image: Any,
    *,
    alpha: np.ndarray | None,
    frames: list[np.ndarray],
) -> None:
    """Write the result, and the animation and the plot where they are asked for."""
    brief = {key: value for key, value in record.items() if key not in ("history", "timing")}
    metadata = {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(report.as_json(brief)),
    }
    save_image(options.output, image, alpha=alpha, metadata=metadata)
    if options.animation is not None:
        report.write_animation(options.animation, [*frames, to_uint8(image)])
    if options.plot is not None:
        report.write_plot(options.plot, record["history"])


def closing_words(result: Result) -> str:
    """What to tell of a run that did not end as asked."""
    step = len(result.history.loss)
    if result.status == "stopped":
        return f"stopped at step {step}: wrote the best picture so far"
    picture = "the best picture before that"
    if not np.isfinite(result.loss):
        picture = "the initial picture, as none had a finite loss"
    return (
        f"diverged at step {step}: the loss or its gradient is not finite; wrote {picture}. Lower "
        "the weights or the learning rate"
    )


def make_record(
    options: Stylize, weights: Weights, result: Result, *, shape: tuple[int, ...]
) -> dict[str, Any]:
    """All that the run did, but its timing."""
    settings = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("config", "overwrite", "seed", "weights")
    }
    layers = {
        "content_layers": dict(options.config.content_layers),
        "style_layers": dict(options.config.style_layers),
    }
    return {
        "settings": settings | asdict(options.config) | layers,
        "seed": options.seed,
        "versions": report.versions(),
        "device": report.device(),
        "weights": {"name": weights.info.name, "sha256": weights.info.sha256},
        "picture": {"width": shape[1], "height": shape[0]},
        "status": result.status,
        "steps": len(result.history.loss),
        "evaluations": int(result.history.evaluations.sum()),
        "final_loss": result.loss,
        "history": report.history_record(result.history),
    }
