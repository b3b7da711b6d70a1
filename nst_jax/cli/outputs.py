"""The job of a command for one image: its checked inputs, and writing its outputs.

A result that cannot be written to its file is saved elsewhere.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from nst_jax.cli import record as report
from nst_jax.cli.options import ImageOptions, RunOptions, WatchOptions
from nst_jax.cli.parsing import Call
from nst_jax.config.config import Config
from nst_jax.errors import InputError
from nst_jax.images.write import save_image, to_uint8
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.types import RECOVERIES, Inputs, MemoryPlan, Result
from nst_jax.weights.canonical import Weights

EXIT_CODES = {"done": 0, "diverged": 1, "stopped": 130}


class Job(NamedTuple):
    """The checked inputs and options of a command for one image.

    Attributes:
      output: the file to write.
      inputs: the images and masks; without a content image, a grey canvas of the result's size.
      config: the settings.
      alpha: transparency of the content, ``[H, W]``, or None.
      run, watch, image: the command's options.
      settings: the command's options for the record.
      files: the files that were read.
      call: the command line.
      mesh: the devices that divide the image, or None.
    """

    output: Path
    inputs: Inputs
    config: Config
    alpha: np.ndarray | None
    run: RunOptions
    watch: WatchOptions
    image: ImageOptions
    settings: dict[str, Any]
    files: list[Path]
    call: Call
    mesh: Mesh | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.inputs.content.shape[:2]


class Outcome(NamedTuple):
    """The outcome of a run.

    Attributes:
      result: as returned by ``single.stylize``.
      plan: the last memory plan, or None on several devices.
      frames: frames of the animation, if one was requested.
      in_checkpoint: whether the newest checkpoint contains the end of the run.
    """

    result: Result
    plan: MemoryPlan | None
    frames: list[np.ndarray]
    in_checkpoint: bool


def status_message(result: Result, *, averaging: float = 0.0) -> str:
    """The message for a run that was stopped or diverged.

    Args:
      result: of the run.
      averaging: the setting.
    """
    step = len(result.history.loss)
    if result.status == "stopped":
        height, width = result.scales[-1].shape
        coarse = (height, width) != result.image.shape[:2]
        scaled = f", enlarged from {width}x{height} px" if coarse else ""
        image = "the average" if averaging else "the best image"
        return f"stopped at step {step}: wrote {image} so far{scaled}"
    image = "the best image before that"
    if not np.isfinite(result.loss):
        image = "the initial image, because no image had a finite loss"
    return (
        f"diverged at step {step}: the loss or its gradient is not finite; wrote {image}. Lower "
        "the weights or the learning rate"
    )


def recovery_message(times: int) -> str:
    """The message for an image that recovered from a divergence ``times`` times."""
    return (
        f"the loss or its gradient was not finite: restarted from the best image with a smaller "
        f"step ({times} of {RECOVERIES})"
    )


def make_record(job: Job, weights: Weights, result: Result) -> dict[str, Any]:
    """The record of a run of one image, without its timing."""
    facts = report.run_record(job.config, weights, shape=job.shape, options=job.settings)
    return (
        {"settings": facts.pop("settings"), "seed": job.run.seed}
        | facts
        | report.outcome_record(result)
        | {"history": report.history_record(result.history)}
    )


def write_outputs(record: dict[str, Any], outcome: Outcome, *, job: Job, started: float) -> None:
    """Write the result, then its record, and the animation and the plot if requested.

    Args:
      record: of the run; its total time is added.
      outcome: of the run.
      job: the job.
      started: ``time.perf_counter()`` at the start of the command.

    Raises:
      InputError: if a file cannot be written; the message says where the result is.
    """
    image, watch = outcome.result.image, job.watch
    texts, options = metadata(record), asdict(job.image)
    try:
        save_image(job.output, image, alpha=job.alpha, metadata=texts, **options)
    except Exception as error:  # encoders may raise any exception
        # Resuming helps only after an error of the system; an encoder would fail again.
        system_error = bool(getattr(error, "errno", None))
        folder = watch.checkpoint if outcome.in_checkpoint and system_error else None
        raise unwritable_image_error(error, image, texts, job=job, folder=folder) from None
    record["timing"]["total_s"] = time.perf_counter() - started
    path = report.json_path(job.output)
    try:
        if job.output != STANDARD:
            report.write_json(path, record)
        if watch.animation is not None:
            path = watch.animation
            report.write_animation(path, [*outcome.frames, to_uint8(image)])
        if watch.plot is not None:
            path = watch.plot
            report.write_plot(path, record["history"])
    except Exception as error:
        message = write_error_message(error, path)
        raise InputError(f"{message}the image is written as {job.output}") from None


def metadata(record: dict[str, Any]) -> dict[str, str]:
    """The texts stored in the image file: the record without long and changing entries."""
    omitted = ("history", "timing", "memory")
    brief = {key: value for key, value in record.items() if key not in omitted}
    return {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(report.as_json(brief)),
    }


def write_error_message(error: Exception, output: Path) -> str:
    """The start of the message for a file that cannot be written."""
    return f"cannot write {output} ({error_text(error)}): "


def error_text(error: Exception) -> str:
    """The text of an error from the system or an encoder, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def unwritable_image_error(
    error: Exception, image: Any, texts: dict[str, str], *, job: Job, folder: Path | None
) -> InputError:
    """The error for an image that cannot be written although the checks before the run passed.

    Args:
      error: raised when it was written.
      image: the image.
      texts: its metadata.
      job: the job.
      folder: of a checkpoint that contains the image; if None, the image is saved to the folder
        for temporary files.
    """
    message = write_error_message(error, job.output)
    if folder is not None:
        return InputError(
            f"{message}solve this, then run 'nst-jax resume {folder}' to write the result"
        )
    depth = job.image.bit_depth
    rescue = save_elsewhere(job.output, image, alpha=job.alpha, metadata=texts, bit_depth=depth)
    return InputError(f"{message}{rescue}")


def save_elsewhere(output: Path, image: Any, **options: Any) -> str:
    """Save an image that cannot be written to its file as a PNG in a temporary folder.

    Args:
      output: the file that cannot be written.
      image: the image.
      options: of ``save_image``, for a PNG.

    Returns:
      The end of the error message, which says where the image is.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix="nst-jax-")) / f"{output.stem}.png"
        save_image(path, image, **options)
    except Exception:
        return "the result is lost; solve this and run the command again"
    return f"the image is kept as {path}, move it to where you want it"
