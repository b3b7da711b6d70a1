"""What a job writes at its end; what cannot be written where it was to be is kept elsewhere."""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax import report
from nst_jax.errors import InputError
from nst_jax.images import save_image, to_uint8
from nst_jax.job_inputs import json_path
from nst_jax.job_records import Job
from nst_jax.options import WatchOptions
from nst_jax.standard_streams import STANDARD


def write_outputs(
    record: dict[str, Any],
    image: Any,
    *,
    job: Job,
    watch: WatchOptions,
    frames: list[np.ndarray],
    started: float,
) -> None:
    """Write the result, then its record, and the animation and the plot where asked for.

    Args:
      record: of the run; its total time is added.
      image: the result.
      job, watch: where to.
      frames: of the animation.
      started: ``time.perf_counter()`` of the command's start.

    Raises:
      InputError: where something cannot be written; it says where the result is kept.
    """
    try:
        write_pictures(record, image, job=job, watch=watch, frames=frames)
        record["timing"]["total_s"] = time.perf_counter() - started
        if job.output != STANDARD:
            report.write_json(json_path(job.output), record)
    except OSError as error:
        raise not_written(error, image, record, job=job, watch=watch) from None


def write_pictures(
    record: dict[str, Any],
    image: Any,
    *,
    job: Job,
    watch: WatchOptions,
    frames: list[np.ndarray],
) -> None:
    """Write the result, and the animation and the plot where they are asked for."""
    save_image(
        job.output,
        image,
        alpha=job.alpha,
        metadata=metadata(record),
        **asdict(job.picture),
    )
    if watch.animation is not None:
        report.write_animation(watch.animation, [*frames, to_uint8(image)])
    if watch.plot is not None:
        report.write_plot(watch.plot, record["history"])


def metadata(record: dict[str, Any]) -> dict[str, str]:
    """The texts in a picture: the record but for what is long, or differs from run to run."""
    left_out = ("history", "timing", "memory")
    brief = {key: value for key, value in record.items() if key not in left_out}
    return {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(report.as_json(brief)),
    }


def not_written_words(error: OSError, output: Path) -> str:
    """What could not be written, and why."""
    return f"cannot write {error.filename or output} ({error.strerror or error}): "


def not_written(
    error: OSError, image: Any, record: dict[str, Any], *, job: Job, watch: WatchOptions
) -> InputError:
    """The error of an output that could be written before the run and cannot be now.

    The result is kept by the last checkpoint, or else in the folder for temporary files.
    """
    what = not_written_words(error, job.output)
    if watch.checkpoint is not None:
        folder = watch.checkpoint
        return InputError(
            f"{what}see to the place, then 'nst-jax resume {folder}' writes the result"
        )
    try:
        folder = Path(tempfile.mkdtemp(prefix="nst-jax-"))
        kept = folder / f"{job.output.stem}.png"
        depth = job.picture.bit_depth
        save_image(kept, image, alpha=job.alpha, metadata=metadata(record), bit_depth=depth)
    except OSError:
        return InputError(f"{what}the result is lost; see to the place and run again")
    return InputError(f"{what}the picture is kept as {kept}, move it to where you want it")
