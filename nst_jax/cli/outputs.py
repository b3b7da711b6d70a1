"""What a job for one image has read, and what it tells and writes at its end.

What cannot be written where it was to be is kept elsewhere.
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
    """What a command for one image has read and checked.

    Attributes:
      output: the file to write.
      inputs: the images and masks; without a content a canvas of the result's size is there.
      config: the settings.
      alpha: transparency of the content, ``[H, W]``, or None.
      run, watch, image: the command's options.
      settings: what the record says of the command's options.
      files: those that were read.
      call: the command line.
      mesh: devices that divide the image, or None.
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


class Ended(NamedTuple):
    """What a run ended with.

    Attributes:
      result: of ``single.stylize``.
      plan: how it was computed in the end, or None on several devices.
      frames: the animation's, where there is to be one.
      kept: whether the newest checkpoint is of the run's end.
    """

    result: Result
    plan: MemoryPlan | None
    frames: list[np.ndarray]
    kept: bool


def closing_words(result: Result, *, averaging: float = 0.0) -> str:
    """What to tell of a run, with this ``averaging``, that did not end as asked."""
    step = len(result.history.loss)
    if result.status == "stopped":
        height, width = result.scales[-1].shape
        coarse = (height, width) != result.image.shape[:2]
        scaled = f", enlarged from {width}x{height} px" if coarse else ""
        image = "the average" if averaging else "the best image"
        return f"stopped at step {step}: wrote {image} so far{scaled}"
    image = "the best image before that"
    if not np.isfinite(result.loss):
        image = "the initial image, as none had a finite loss"
    return (
        f"diverged at step {step}: the loss or its gradient is not finite; wrote {image}. Lower "
        "the weights or the learning rate"
    )


def recovered_words(times: int) -> str:
    """What is told of one of several images that went back to its best before it ended."""
    return (
        f"the loss or its gradient was not finite: went on from the best image with a smaller "
        f"step ({times} of {RECOVERIES})"
    )


def make_record(job: Job, weights: Weights, result: Result) -> dict[str, Any]:
    """All that a run of one image did, but its timing."""
    facts = report.run_record(job.config, weights, shape=job.shape, options=job.settings)
    return (
        {"settings": facts.pop("settings"), "seed": job.run.seed}
        | facts
        | report.outcome_record(result)
        | {"history": report.history_record(result.history)}
    )


def write_outputs(record: dict[str, Any], ended: Ended, *, job: Job, started: float) -> None:
    """Write the result, then its record, and the animation and the plot where asked for.

    Args:
      record: of the run; its total time is added.
      ended: what the run ended with.
      job: where to.
      started: ``time.perf_counter()`` of the command's start.

    Raises:
      InputError: where something cannot be written; it says where the result is kept.
    """
    image, watch = ended.result.image, job.watch
    texts, more = metadata(record), asdict(job.image)
    try:
        save_image(job.output, image, alpha=job.alpha, metadata=texts, **more)
    except Exception as error:  # of an encoder it may be any
        # What an encoder cannot do now, it cannot do later either.
        folder = watch.checkpoint if ended.kept and getattr(error, "errno", None) else None
        raise not_written(error, image, texts, job=job, folder=folder) from None
    record["timing"]["total_s"] = time.perf_counter() - started
    path = report.json_path(job.output)
    try:
        if job.output != STANDARD:
            report.write_json(path, record)
        if watch.animation is not None:
            path = watch.animation
            report.write_animation(path, [*ended.frames, to_uint8(image)])
        if watch.plot is not None:
            path = watch.plot
            report.write_plot(path, record["history"])
    except Exception as error:
        words = not_written_words(error, path)
        raise InputError(f"{words}the image is written as {job.output}") from None


def metadata(record: dict[str, Any]) -> dict[str, str]:
    """The texts in an image: the record but for what is long, or differs from run to run."""
    left_out = ("history", "timing", "memory")
    brief = {key: value for key, value in record.items() if key not in left_out}
    return {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(report.as_json(brief)),
    }


def not_written_words(error: Exception, output: Path) -> str:
    """What could not be written, and why."""
    return f"cannot write {output} ({reason(error)}): "


def reason(error: Exception) -> str:
    """Why something could not be written, by the system's words or an encoder's."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def not_written(
    error: Exception, image: Any, texts: dict[str, str], *, job: Job, folder: Path | None
) -> InputError:
    """The error of an image that could be written before the run and cannot be now.

    It is kept by the checkpoint in ``folder``, or else in the folder for temporary files.
    """
    what = not_written_words(error, job.output)
    if folder is not None:
        return InputError(
            f"{what}see to the place, then 'nst-jax resume {folder}' writes the result"
        )
    depth = job.image.bit_depth
    kept = kept_elsewhere(job.output, image, alpha=job.alpha, metadata=texts, bit_depth=depth)
    return InputError(f"{what}{kept}")


def kept_elsewhere(output: Path, image: Any, **options: Any) -> str:
    """Keep an image that cannot be written in the folder for temporary files.

    Args:
      output: where it was to be.
      image: the image.
      options: of ``save_image``, for a PNG.

    Returns:
      What became of it, in words.
    """
    try:
        kept = Path(tempfile.mkdtemp(prefix="nst-jax-")) / f"{output.stem}.png"
        save_image(kept, image, **options)
    except Exception:
        return "the result is lost; see to the place and run again"
    return f"the image is kept as {kept}, move it to where you want it"
