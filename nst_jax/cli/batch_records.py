"""The records of a batch: what its images share, what an output depends on, the manifest.

By the manifest another run knows what need not be made again.

Contract: a manifest is a JSON Lines file in ASCII, one record a line; a record is a dict of plain
data whose "output" is a file's name.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from nst_jax.cli import record as report
from nst_jax.cli.batch_files import Item
from nst_jax.cli.messages import log
from nst_jax.config.config import Config, to_flat
from nst_jax.errors import InputError
from nst_jax.images.write import save_image
from nst_jax.system.backend import versions
from nst_jax.system.files import atomic_write
from nst_jax.transfer.types import Inputs, Result
from nst_jax.weights.canonical import Weights


class BatchJob(NamedTuple):
    """What all images of a job have in common.

    Attributes:
      config, seed, size: the settings.
      style_size: longer side of the styles.
      weights: the network.
      blend: factors of the styles that are mixed, as in ``Guidance``.
      style_files: the style images' files.
      style: from a style's place to its image.
      digest: from a file to its checksum.
      same_styles: whether all images have the same styles.
      batch_size: how many images to compute at once, at most.
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
    """An image to make, read."""

    item: Item
    content: np.ndarray
    alpha: np.ndarray | None
    inputs: Inputs
    job: str


class Made(NamedTuple):
    """An image that was made.

    Attributes:
      loaded: what was read for it.
      result: as of ``single.stylize``.
      together: how many images were made at once.
      alone: whether it was made once more after it had diverged among others.
    """

    loaded: Loaded
    result: Result
    together: int
    alone: bool = False


def job_fingerprint(job: BatchJob, item: Item) -> str:
    """What an output depends on, in one word: settings, network, program, and files' contents.

    Raises:
      InputError: where an image cannot be read.
    """
    files = [item.content, *(job.style_files[place] for place in item.styles)]
    try:
        content, *styles = [job.digest(path) for path in files]
    except OSError as error:
        raise InputError(
            f"cannot read the image {error.filename} ({error.strerror}): get the file again"
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


def item_record(job: BatchJob, made: Made) -> dict[str, Any]:
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
        | {"timing": own.timing | {"images": made.together, "finished": finished}}
    )


def leave_out(job: BatchJob, item: Item, error: InputError) -> None:
    """Tell of an image that cannot be made, and record it.

    Raises:
      InputError: where it cannot be recorded.
    """
    message = " ".join(str(error).splitlines())  # a file's name may hold a line break
    log(f"{item.output.name} is left out: {message}")
    why = {"status": "failed", "error": message}
    with writing(job.manifest):
        append_record(job.manifest, brief_record(item, job.style_files) | why)


def write(job: BatchJob, made: Made) -> None:
    """Write an image and, when it is there, its record.

    Raises:
      InputError: where that fails.
    """
    loaded, record = made.loaded, item_record(job, made)
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
            f"cannot write {path} ({error.strerror or error}): what is written "
            "stays; see to the place and run again"
        ) from None


NAME = "manifest.jsonl"

_PART = re.compile(r"manifest-\d+-of-\d+\.jsonl")

_appending = threading.Lock()


def fingerprint(facts: Mapping[str, Any]) -> str:
    """sha256 of plain data, hexadecimal, whatever the order of its keys.

    Raises:
      ValueError: for NaN and infinity, which JSON has no form for.
      TypeError: for what is no plain data.

    >>> fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(_as_line(facts, sort_keys=True)).hexdigest()


def part_name(index: int, count: int) -> str:
    """Name of the manifest that one of several processes writes.

    Args:
      index, count: which process of how many, from 0; the name counts from 1.

    >>> part_name(0, 1), part_name(2, 8)
    ('manifest.jsonl', 'manifest-3-of-8.jsonl')
    """
    return NAME if count == 1 else f"manifest-{index + 1}-of-{count}.jsonl"


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record as a whole line, which is on the disk at the return.

    Threads may call this at the same time (a lock of this module is held meanwhile). Where an
    earlier write was cut off, its piece stays alone on its line, see ``read_records``.

    Raises:
      ValueError, TypeError: as ``fingerprint``, with nothing written.
      OSError: where the file cannot be written.
    """
    line = _as_line(record)
    with _appending, open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        while line:  # a nearly full disk may take a part
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a manifest, none for a missing file; lines that hold no record are left out.

    Raises:
      InputError: for a file that cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read the manifest {path}: {error.strerror}") from None
    records = [_json_object(line) for line in lines]
    return [record for record in records if record and isinstance(record.get("output"), str)]


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG's text "nst_jax", see ``images.save_image``; its pixels are not decoded.

    Returns:
      The record; None where there is none, or the file is missing, damaged, cut off or no PNG.
    """
    try:
        with PngImageFile(path) as image:  # not Image.open, which warns of large images
            text = image.info["nst_jax"]
            image.verify()  # the checksums of all chunks up to the last
    except Exception:  # for damaged files Pillow's plugins raise almost anything
        return None
    return _json_object(text)


def merge_manifests(folder: Path) -> Path:
    """Join ``manifest.jsonl`` and the parts of several processes into ``manifest.jsonl``.

    Each process calls this when its own part is complete; several may do so at the same time,
    without a lock. After writing, each looks whether a part has changed since before it was read,
    and if so does it all again; so whoever writes last has seen every part as it is, and leaves
    the complete file. Only parts may be appended to meanwhile, not ``manifest.jsonl`` itself.

    Args:
      folder: where the manifests are. The parts stay.

    Returns:
      The merged file: one record for each output, in the order of their names. Where there are
      several, parts count more than the merged file, newer parts more than older ones, and later
      lines more than earlier ones.

    Raises:
      InputError: for a file that cannot be read.
      OSError: where the file cannot be written.
    """
    merged = Path(folder) / NAME
    parts, before = _parts(folder), None
    while parts != before:
        before = parts
        records = {
            record["output"]: record
            for path in (merged, *sorted(parts, key=lambda path: (parts[path], path)))
            for record in read_records(path)
        }
        with atomic_write(merged) as temporary:
            temporary.write_bytes(b"".join(_as_line(records[name]) for name in sorted(records)))
        parts = _parts(folder)
    return merged


def join_parts(folder: Path) -> None:
    """Put the parts of an earlier job of several processes into ``manifest.jsonl``, once for all.

    Only where no other process is at work.
    """
    parts = _parts(folder)
    if parts:
        merge_manifests(folder)
    for path in parts:
        path.unlink()


def _parts(folder: Path) -> dict[Path, tuple[int, int]]:
    """When each part was changed, in nanoseconds, and its size."""
    paths = [path for path in Path(folder).iterdir() if _PART.fullmatch(path.name)]
    states = [path.stat() for path in paths]
    return {
        path: (state.st_mtime_ns, state.st_size) for path, state in zip(paths, states, strict=True)
    }


def _as_line(record: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    # ASCII, as names of files need not be Unicode.
    text = json.dumps(dict(record), sort_keys=sort_keys, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text is, if it is one that can be written again."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
