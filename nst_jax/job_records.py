"""What a command has read and checked, and what is written of its run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from nst_jax import report
from nst_jax.choices import choice_in_words
from nst_jax.config import Config, to_flat
from nst_jax.options import PictureOptions, RunOptions
from nst_jax.scale_state import RECOVERIES
from nst_jax.transfer import Result
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
      picture: how the result is written.
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
    picture: PictureOptions = PictureOptions()


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


def settings_record(config: Config) -> dict[str, Any]:
    """The settings as the record has them, with layers by name."""
    layers = {
        "content_layers": dict(config.loss.content_layers),
        "style_layers": dict(config.loss.style_layers),
    }
    return to_flat(config) | layers


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
        "recoveries": result.recoveries,
        "final_loss": result.loss,
        "history": report.history_record(result.history),
    }
