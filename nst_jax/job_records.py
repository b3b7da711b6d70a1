"""What a command has read and checked, and what is told and written of its run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from nst_jax import report
from nst_jax.call import Call
from nst_jax.config import Config
from nst_jax.inputs import Inputs
from nst_jax.options import PictureOptions, RunOptions, WatchOptions
from nst_jax.plan_words import MemoryPlan
from nst_jax.scale_state import RECOVERIES
from nst_jax.transfer import Result
from nst_jax.weights import Weights

EXIT_CODES = {"done": 0, "diverged": 1, "stopped": 130}


class Job(NamedTuple):
    """What a command for one picture has read and checked.

    Attributes:
      output: the file to write.
      inputs: the pictures and masks; without a content a canvas of the result's size is there.
      config: the settings.
      alpha: transparency of the content, ``[H, W]``, or None.
      run, watch, picture: the command's options.
      settings: what the record says of the command's options.
      files: those that were read.
      call: the command line.
      mesh: devices that divide the picture, or None.
    """

    output: Path
    inputs: Inputs
    config: Config
    alpha: np.ndarray | None
    run: RunOptions
    watch: WatchOptions
    picture: PictureOptions
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
      result: of ``transfer.stylize``.
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
        picture = "the average" if averaging else "the best picture"
        return f"stopped at step {step}: wrote {picture} so far{scaled}"
    picture = "the best picture before that"
    if not np.isfinite(result.loss):
        picture = "the initial picture, as none had a finite loss"
    return (
        f"diverged at step {step}: the loss or its gradient is not finite; wrote {picture}. Lower "
        "the weights or the learning rate"
    )


def recovered_words(times: int) -> str:
    """What is told of one of several pictures that went back to its best before it ended."""
    return (
        f"the loss or its gradient was not finite: went on from the best picture with a smaller "
        f"step ({times} of {RECOVERIES})"
    )


def make_record(job: Job, weights: Weights, result: Result) -> dict[str, Any]:
    """All that a run of one picture did, but its timing."""
    facts = report.run_record(job.config, weights, shape=job.shape, options=job.settings)
    return (
        {"settings": facts.pop("settings"), "seed": job.run.seed}
        | facts
        | report.outcome_record(result)
        | {"history": report.history_record(result.history)}
    )
