"""Records of a batch: fingerprints of the inputs, the record of each output, and the manifest.

A later run compares fingerprints to find the outputs that need not be computed again.

Contract: a manifest is a JSON Lines file in ASCII with one record a line. A record is a dict of
plain data, and its "output" is the name of a file.
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
    """What all images of a batch job share.

    Attributes:
      config, seed, size: the settings; ``size`` is the longer side of the outputs in pixels.
      style_size: longer side of the style images in pixels.
      weights: the network's weights.
      blend: style weights, as in ``Guidance``.
      style_files: the files of the style images.
      style: function from an index in ``style_files`` to the image, ``[h, w, 3]``.
      digest: function from a file to its checksum.
      same_styles: whether all images have the same styles.
      batch_size: maximum number of images to compute at once.
      manifest: the file for the records.
      bit_depth: bits per channel of the outputs.
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
    """An item with its images read.

    Attributes:
      item: the item.
      content: the content image, ``[H, W, 3]``.
      alpha: transparency of the content, ``[H, W]``, or None.
      inputs: the checked inputs of the run.
      job: the fingerprint, see ``job_fingerprint``.
    """

    item: Item
    content: np.ndarray
    alpha: np.ndarray | None
    inputs: Inputs
    job: str


class Finished(NamedTuple):
    """An item that has been computed.

    Attributes:
      loaded: the item and its inputs.
      result: as returned by ``single.stylize``.
      batch_size: number of images that were computed at once.
      rerun: whether the image diverged in a batch and was computed again alone.
    """

    loaded: Loaded
    result: Result
    batch_size: int
    rerun: bool = False


def job_fingerprint(job: BatchJob, item: Item) -> str:
    """Hash all that an output depends on: settings, weights, version and contents of the files.

    Raises:
      InputError: if an image cannot be read.
    """
    files = [item.content, *(job.style_files[place] for place in item.styles)]
    try:
        content, *styles = [job.digest(path) for path in files]
    except OSError as error:
        raise InputError(
            f"cannot read the image {error.filename} ({error.strerror}): get the file again"
        ) from None
    # A change of these entries, or of their form, makes all earlier outputs stale.
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
    """The entries that the records of finished and failed items share."""
    return {
        "output": item.output.name,
        "content": str(item.content),
        "styles": [str(styles[place]) for place in item.styles],
    }


def item_record(job: BatchJob, finished: Finished) -> dict[str, Any]:
    """The record of a finished item."""
    result, loaded = finished.result, finished.loaded
    finite = np.isfinite(result.history.loss) & np.isfinite(result.history.grad_norm)
    best = int(np.argmin(np.where(finite, result.history.loss, np.inf)))
    terms = result.history.terms._asdict()
    options = {"size": job.size, "style_size": job.style_size, "blend": job.blend}
    shape = loaded.content.shape
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return report.as_json(
        brief_record(loaded.item, job.style_files)
        | {"job": loaded.job, "seed": job.seed}
        | report.outcome_record(result)
        | ({"alone": True} if finished.rerun else {})
        | {"final_terms": {name: float(values[best]) for name, values in terms.items()}}
        | report.run_record(
            job.config,
            job.weights,
            shape=shape,
            options=options | {"bit_depth": job.bit_depth},
        )
        | {"timing": result.timing | {"images": finished.batch_size, "finished": time}}
    )


def skip_item(job: BatchJob, item: Item, error: InputError) -> None:
    """Log and record that an item cannot be computed.

    Raises:
      InputError: if the record cannot be written.
    """
    message = " ".join(str(error).splitlines())  # a file name may contain a line break
    log(f"skipping {item.output.name}: {message}")
    failure = {"status": "failed", "error": message}
    with write_errors_to_input_errors(job.manifest):
        append_record(job.manifest, brief_record(item, job.style_files) | failure)


def write(job: BatchJob, finished: Finished) -> None:
    """Write an image, and then its record.

    Raises:
      InputError: if either cannot be written.
    """
    loaded, record = finished.loaded, item_record(job, finished)
    metadata = {
        "Software": f"nst_jax {record['versions']['nst_jax']}",
        "nst_jax": json.dumps(record),
    }
    with write_errors_to_input_errors(loaded.item.output):
        save_image(
            loaded.item.output,
            finished.result.image,
            alpha=loaded.alpha,
            metadata=metadata,
            bit_depth=job.bit_depth,
        )
    with write_errors_to_input_errors(job.manifest):
        append_record(job.manifest, record)


@contextmanager
def write_errors_to_input_errors(path: Path) -> Iterator[None]:
    """Raise an ``InputError`` in place of an ``OSError`` from writing ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): finished images are kept; solve "
            "this and run the command again"
        ) from None


MANIFEST_NAME = "manifest.jsonl"

_PART_NAME = re.compile(r"manifest-\d+-of-\d+\.jsonl")

_append_lock = threading.Lock()


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of plain data, independent of the order of keys.

    Raises:
      ValueError: for NaN and infinity, which JSON cannot represent.
      TypeError: for objects that are not plain data.

    >>> fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(_as_line(facts, sort_keys=True)).hexdigest()


def part_name(index: int, count: int) -> str:
    """Name of the manifest that one process writes: with several processes, a part of the whole.

    Args:
      index, count: index of the process, from 0, and number of processes; the name counts from 1.

    >>> part_name(0, 1), part_name(2, 8)
    ('manifest.jsonl', 'manifest-3-of-8.jsonl')
    """
    return MANIFEST_NAME if count == 1 else f"manifest-{index + 1}-of-{count}.jsonl"


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line and wait until it is on the disk.

    Several threads may call this at the same time. If the file ends in the fragment of an
    interrupted write, the record starts on a new line, and ``read_records`` ignores the fragment.

    Raises:
      ValueError, TypeError: as ``fingerprint``; nothing is written.
      OSError: if the file cannot be written.
    """
    line = _as_line(record)
    with _append_lock, open(path, "a+b", buffering=0) as file:
        # Unbuffered, and in append mode: each write goes to the end, whatever was read.
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        while line:  # on a nearly full disk, write() may take only part of it
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a manifest, ignoring lines that are not records.

    Returns:
      The records in the order of the lines; none if the file is missing.

    Raises:
      InputError: if the file cannot be read.
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
    """Read the record from a PNG's text "nst_jax", see ``images.save_image``.

    The checksums of all chunks are verified, but the pixels are not decoded.

    Returns:
      The record, or None if the file has none, is missing, damaged, truncated or not a PNG.
    """
    try:
        with PngImageFile(path) as image:  # Image.open would warn about large images
            text = image.info["nst_jax"]
            image.verify()
    except Exception:  # Pillow raises almost any exception for a damaged file
        return None
    return _json_object(text)


def merge_manifests(folder: Path) -> Path:
    """Merge ``manifest.jsonl`` and the parts of several processes into ``manifest.jsonl``.

    Each process calls this when its part is complete. Several processes may do so at the same time.
    Meanwhile, records may be appended to the parts, but not to ``manifest.jsonl``.

    Args:
      folder: the folder of the manifests. The parts are kept.

    Returns:
      The merged file: one record for each output, sorted by name. If an output has several
      records, parts take precedence over the merged file, newer parts over older ones, and later
      lines over earlier ones.

    Raises:
      InputError: if a file cannot be read.
      OSError: if the file cannot be written.
    """
    merged = Path(folder) / MANIFEST_NAME
    parts, before = _parts(folder), None
    # This needs no lock. Every process writes first and then checks that no part has changed since
    # it read them; otherwise it repeats the merge. The last process to write has therefore seen
    # the final state of all parts.
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
    """Merge the parts of an earlier job into ``manifest.jsonl`` and delete them.

    No other process may be writing to the folder.
    """
    parts = _parts(folder)
    if parts:
        merge_manifests(folder)
    for path in parts:
        path.unlink()


def _parts(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time of the last change, in nanoseconds, and size of each part."""
    paths = [path for path in Path(folder).iterdir() if _PART_NAME.fullmatch(path.name)]
    states = [path.stat() for path in paths]
    return {
        path: (state.st_mtime_ns, state.st_size) for path, state in zip(paths, states, strict=True)
    }


def _as_line(record: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    # ASCII, because a file name need not be valid Unicode.
    text = json.dumps(dict(record), sort_keys=sort_keys, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None for other text and for values that strict JSON cannot hold."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
