"""The command ``nst-jax stylize``: read, check, run, write.

Pictures and files meet the core only here.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nst_jax import report
from nst_jax.cli import Stylize
from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.fetch import fetch
from nst_jax.files import check_writable
from nst_jax.images import check_output, load_image, load_picture, save_image, to_uint8
from nst_jax.inputs import check_blend, check_pictures, initial_image
from nst_jax.progress import progress_display
from nst_jax.transfer import Progress, Result
from nst_jax.transfer import stylize as run_stylize
from nst_jax.weights import Weights, find_weights, load_weights

EXIT_CODES = {"done": 0, "diverged": 1, "stopped": 130}


def stylize(options: Stylize) -> int:
    """Run ``nst-jax stylize``; see ``cli.Stylize``.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is computed or written.
    """
    started = time.perf_counter()
    check_options(options)
    content = load_picture(options.content, size=options.size)
    check_output(options.output, alpha=content.alpha is not None)
    # Styles are scaled to the content's longer side, which keeps their strokes' size in step.
    styles = [load_image(path, size=options.size) for path in options.style]
    init = load_init(options.config, shape=content.rgb.shape)
    check_pictures(content.rgb, styles, config=options.config, init=init)
    weights = obtain_weights(options.weights)
    load_s = time.perf_counter() - started

    key = jax.random.key(options.seed)
    if init is None:
        picture = jax.numpy.asarray(content.rgb)
        init = initial_image(picture, weights.variables, config=options.config, key=key)
    frame_every = None if options.animation is None else max(1, options.config.steps // 40)
    every = [n for n in (options.save_every, frame_every) if n is not None]
    frames = [to_uint8(init)]

    def preview(progress: Progress) -> None:
        if frame_every is not None and progress.step % frame_every == 0:
            frames.append(to_uint8(progress.image))
        if options.save_every is not None and progress.step % options.save_every == 0:
            path = report.preview_path(options.output, progress.step)
            save_image(path, progress.image, alpha=content.alpha)

    with progress_display(options.config.steps) as show, stop_on_interrupt() as may_go_on:

        def callback(progress: Progress) -> bool:
            show(progress)
            preview(progress)
            return may_go_on()

        result = run_stylize(
            weights.variables,
            content.rgb,
            styles,
            config=options.config,
            blend=options.style_blend or None,
            init=init,
            callback=callback,
            callback_every=math.gcd(*every) or None,
        )
        jax.block_until_ready(result.image)

    record = make_record(options, weights, result, shape=content.rgb.shape)
    brief = {key: value for key, value in record.items() if key != "history"}
    save_image(
        options.output,
        result.image,
        alpha=content.alpha,
        metadata={
            "Software": f"nst_jax {record['versions']['nst_jax']}",
            "nst_jax": json.dumps(report.as_json(brief)),
        },
    )
    if options.animation is not None:
        report.write_animation(options.animation, frames + [to_uint8(result.image)])
    if options.plot is not None:
        report.write_plot(options.plot, record["history"])
    record["timing"] = {"load_s": load_s} | result.timing
    record["timing"]["total_s"] = time.perf_counter() - started
    report.write_json(json_path(options.output), record)

    if result.status == "diverged":
        step = len(result.history.loss)
        print(
            f"nst-jax: diverged at step {step}: the loss or its gradient is not finite; wrote the "
            "best picture before that. Lower the weights or the learning rate",
            file=sys.stderr,
        )
    print(options.output)
    return EXIT_CODES[result.status]


def json_path(output: Path) -> Path:
    """The record beside a picture: ``out.png`` -> ``out.json``."""
    return output.with_suffix(".json")


def check_options(options: Stylize) -> None:
    """Check what can be checked before any picture is read.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    check_output(options.output)
    if not options.style:
        raise InputError("no style picture: expected --style FILE")
    if options.size < 1:
        raise InputError(f"size is {options.size}: expected at least 1 pixel")
    if not 0 <= options.seed < 2**32:  # JAX takes larger ones modulo 2**32, or not at all
        raise InputError(f"seed is {options.seed}: expected 0 to {2**32 - 1}")
    if options.style_blend and len(options.style_blend) != len(options.style):
        raise InputError(
            f"{len(options.style_blend)} blend factors for {len(options.style)} styles: "
            "expected one each"
        )
    if options.style_blend:
        check_blend(options.style_blend)
    if options.save_every is not None and options.save_every < 1:
        raise InputError(f"save_every is {options.save_every}: expected 1 or more")
    outputs = [options.output, json_path(options.output)]
    if options.animation is not None:
        if options.animation.suffix.lower() != ".gif":
            raise InputError(f"{options.animation} is no name of an animation: expected FILE.gif")
        outputs.append(options.animation)
    if options.plot is not None:
        report.check_plotting(options.plot)
        outputs.append(options.plot)
    if options.save_every is not None:
        steps = range(options.save_every, options.config.steps + 1, options.save_every)
        outputs += [report.preview_path(options.output, step) for step in steps]
    inputs = [options.content, *options.style]
    if options.config.init not in INITS:
        inputs.append(Path(options.config.init))
    if options.weights is not None:
        inputs.append(options.weights)
    read = {os.path.realpath(path) for path in inputs}
    seen: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in read:
            raise InputError(f"{path} is an input: choose another name for the output")
        if real in seen:
            raise InputError(f"{path} is named for two outputs: choose different names")
        seen.add(real)
        check_writable(path, overwrite=options.overwrite)


def load_init(config: Config, *, shape: tuple[int, ...]) -> np.ndarray | None:
    """The initial picture where ``config.init`` names a file, scaled to the content's size.

    Raises:
      InputError: for a file of another aspect ratio, and as ``load_image``.
    """
    if config.init in INITS:
        return None
    image = load_image(config.init, size=max(shape))
    if image.shape != shape:
        raise InputError(
            f"the initial picture {config.init} becomes {image.shape[1]}x{image.shape[0]} px, the "
            f"content {shape[1]}x{shape[0]} px: expected the same aspect ratio"
        )
    return image


def obtain_weights(path: Path | None) -> Weights:
    """The weights of ``path``, or found on this machine, or else fetched.

    Raises:
      InputError: where there are none, or they are no VGG-19.
    """
    found = find_weights(path)
    if found is None:
        print("no VGG-19 weights on this machine: fetching the official file", file=sys.stderr)
        found = fetch("keras")
    return load_weights(found)


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


@contextmanager
def stop_on_interrupt() -> Iterator[Any]:
    """Let Ctrl-C end the run at the next chunk, and a second one at once.

    Gives a function that says whether to go on; until it was first called, when there is nothing
    to keep yet, the first Ctrl-C ends at once too.
    """
    asked, running = False, False

    def handle(signum, frame):
        nonlocal asked
        if asked or not running:
            raise KeyboardInterrupt
        asked = True

    def may_go_on() -> bool:
        nonlocal running
        running = True
        return not asked

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield may_go_on
    finally:
        signal.signal(signal.SIGINT, previous)
