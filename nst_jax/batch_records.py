"""What a batch job has in common, what decides that an output is its, and what it writes."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from nst_jax import report
from nst_jax.batch_inputs import Item
from nst_jax.config import Config, to_flat
from nst_jax.devices import versions
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.inputs import Inputs
from nst_jax.manifest import append_record, fingerprint
from nst_jax.messages import tell
from nst_jax.transfer import Result
from nst_jax.weights import Weights


class BatchJob(NamedTuple):
    """What all pictures of a job have in common.

    Attributes:
      config, seed, size: the settings.
      style_size: longer side of the styles.
      weights: the network.
      blend: factors of the styles that are mixed, as for ``transfer.stylize``.
      style_files: the style pictures' files.
      style: from a style's place to its picture.
      digest: from a file to its checksum.
      same_styles: whether all pictures have the same styles.
      batch_size: how many pictures to compute at once, at most.
      manifest: the file for the records.
      bit_depth: bits a channel of the outputs.
    """

    config: Config
    seed: int
    size: int
    style_size: int
    weights: Weights
    blend: Any
    style_files: list[Path]
    style: Callable[[int], np.ndarray]
    digest: Callable[[Path], str]
    same_styles: bool
    batch_size: int | Literal["auto"]
    manifest: Path
    bit_depth: int = 8


class Loaded(NamedTuple):
    """A picture to make, read."""

    item: Item
    content: np.ndarray
    alpha: np.ndarray | None
    inputs: Inputs
    job: str


class Made(NamedTuple):
    """A picture that was made.

    Attributes:
      loaded: what was read for it.
      result: as of ``transfer.stylize``.
      together: how many pictures were made at once.
      alone: whether it was made once more after it had diverged among others.
    """

    loaded: Loaded
    result: Result
    together: int
    alone: bool = False


def job_fingerprint(job: BatchJob, item: Item) -> str:
    """What an output depends on, in one word: settings, network, program, and files' contents.

    Raises:
      InputError: where a picture cannot be read.
    """
    files = [item.content, *(job.style_files[place] for place in item.styles)]
    try:
        content, *styles = [job.digest(path) for path in files]
    except OSError as error:
        raise InputError(
            f"cannot read the picture {error.filename} ({error.strerror}): get the file again"
        ) from None
    facts = {
        "content": content,
        "styles": styles,
        "blend": job.blend,
        "settings": to_flat(job.config),
        "seed": job.seed,
        "size": job.size,
        "style_size": job.style_size,
        "weights": job.weights.info.sha256,
        "version": versions()["nst_jax"],
        "bit_depth": job.bit_depth,
    }
    return fingerprint(report.as_json(facts))


def brief_record(item: Item, styles: Sequence[Path]) -> dict[str, Any]:
    """What a record says of any output."""
    return {
        "output": item.output.name,
        "content": str(item.content),
        "styles": [str(styles[place]) for place in item.styles],
    }


def make_record(job: BatchJob, made: Made) -> dict[str, Any]:
    """The record of an output."""
    own, loaded = made.result, made.loaded
    finite = np.isfinite(own.history.loss) & np.isfinite(own.history.grad_norm)
    best = int(np.argmin(np.where(finite, own.history.loss, np.inf)))
    terms = own.history.terms._asdict()
    options = {"size": job.size, "style_size": job.style_size, "blend": job.blend}
    shape = loaded.content.shape
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return report.as_json(
        brief_record(loaded.item, job.style_files)
        | {"job": loaded.job, "seed": job.seed}
        | report.outcome_record(own)
        | ({"alone": True} if made.alone else {})
        | {"final_terms": {name: float(values[best]) for name, values in terms.items()}}
        | report.run_record(
            job.config,
            job.weights,
            shape=shape,
            options=options | {"bit_depth": job.bit_depth},
        )
        | {"timing": own.timing | {"pictures": made.together, "finished": finished}}
    )


def leave_out(job: BatchJob, item: Item, error: InputError) -> None:
    """Tell of a picture that cannot be made, and record it.

    Raises:
      InputError: where it cannot be recorded.
    """
    message = " ".join(str(error).splitlines())  # a file's name may hold a line break
    tell(f"{item.output.name} is left out: {message}")
    why = {"status": "failed", "error": message}
    with writing(job.manifest):
        append_record(job.manifest, brief_record(item, job.style_files) | why)


def write(job: BatchJob, made: Made) -> None:
    """Write a picture and, when it is there, its record.

    Raises:
      InputError: where that fails.
    """
    loaded, record = made.loaded, make_record(job, made)
    metadata = {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(record),
    }
    with writing(loaded.item.output):
        save_image(
            loaded.item.output,
            made.result.image,
            alpha=loaded.alpha,
            metadata=metadata,
            bit_depth=job.bit_depth,
        )
    with writing(job.manifest):
        append_record(job.manifest, record)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make errors of the input of those that writing a file meets."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or path} ({error.strerror or error}): what is written "
            "stays; see to the place and run again"
        ) from None
