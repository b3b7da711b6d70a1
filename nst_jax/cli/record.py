"""The files that a run writes besides its image: JSON record, previews, animation, loss plot."""

import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nst_jax.config.config import Config, to_flat
from nst_jax.errors import InputError
from nst_jax.system.backend import device, versions
from nst_jax.system.files import atomic_write
from nst_jax.transfer.plan import execution_in_words
from nst_jax.transfer.types import Result
from nst_jax.types import Info
from nst_jax.weights.canonical import Weights


def as_json(value: Any) -> Any:
    """Convert settings and results to plain data; NaN and infinity become None (JSON null).

    >>> as_json({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def history_record(history: Info) -> dict[str, list]:
    """The loss and each of its terms as lists with one number per step."""
    terms = history.terms._asdict() if hasattr(history.terms, "_asdict") else history.terms
    return as_json({"total": history.loss} | dict(terms))


def settings_record(config: Config) -> dict[str, Any]:
    """The settings for the record, with layers as dicts from name to weight."""
    layers = {
        "content_layers": dict(config.loss.content_layers),
        "style_layers": dict(config.loss.style_layers),
    }
    return to_flat(config) | layers


def run_record(
    config: Config, weights: Weights, *, shape: Sequence[int], options: dict[str, Any]
) -> dict[str, Any]:
    """The entries of a record that are known before the run.

    Args:
      config, weights: the settings and the network's weights.
      shape: height and width of the result.
      options: the command's other options. They override settings of the same name; a resumed run
        so keeps the name of an initial image that it reads from a copy.
    """
    settings = settings_record(config)
    others = {name: value for name, value in options.items() if name not in settings}
    return {
        "settings": others | settings | options,  # other options first, in a stable order
        "versions": versions(),
        "device": device(),
        "weights": {"name": weights.info.name, "sha256": weights.info.sha256},
        "image": {"width": shape[1], "height": shape[0]},
    }


def outcome_record(result: Result) -> dict[str, Any]:
    """The entries of a record about the outcome of a run."""
    record: dict[str, Any] = {"status": result.status}
    if result.scales:
        record["scales"] = [
            {"width": scale.shape[1], "height": scale.shape[0], "steps": scale.steps}
            | {"computed": execution_in_words(scale.execution_plan)}
            for scale in result.scales
        ]
    return record | {
        "steps": len(result.history.loss),
        "evaluations": int(result.history.evaluations.sum()),
        "recoveries": result.recoveries,
        "final_loss": result.loss,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(as_json(record), indent=1, allow_nan=False) + "\n", "utf-8")


def preview_path(output: Path, step: int) -> Path:
    """File name of the preview at a step.

    >>> preview_path(Path("out.png"), 50).name
    'out_00050.png'
    """
    return output.with_name(f"{output.stem}_{step:05d}{output.suffix}")


def write_animation(path: Path, frames: Sequence[np.ndarray], *, seconds: float = 4.0) -> None:
    """Write an animated GIF that pauses for two seconds on its last frame.

    Args:
      path: the file.
      frames: uint8 ``[H, W, 3]`` each.
      seconds: approximate duration without the pause.
    """
    images = [Image.fromarray(frame) for frame in frames]
    milliseconds = max(40, round(1000 * seconds / len(images)))
    durations = [milliseconds] * (len(images) - 1) + [2000]
    with atomic_write(path) as temporary:
        images[0].save(
            temporary, save_all=True, append_images=images[1:], duration=durations, loop=0
        )


def check_plotting(path: Path) -> None:
    """Check that a plot can be written to a file of this name.

    Raises:
      InputError: if the suffix is unknown, or Matplotlib is missing.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf", ".jpg"):
        raise InputError(f"{path} is not a name for a plot: expected .png, .svg, .pdf or .jpg")
    try:
        importlib.metadata.version("matplotlib")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "--plot requires matplotlib: install it with pip install matplotlib"
        ) from None


def write_plot(path: Path, history: dict[str, list]) -> None:
    """Plot the loss and its terms over the steps.

    Args:
      path: the file.
      history: from ``history_record``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in history.items():
        numbers = np.array(values, float)
        if np.nanmax(numbers, initial=0) > 0:  # a term of zeros has no place on a log axis
            axes.plot(np.arange(1, len(values) + 1), numbers, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def json_path(output: Path) -> Path:
    """The record beside an image: ``out.png`` -> ``out.json``."""
    return output.with_suffix(".json")
