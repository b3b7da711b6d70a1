"""The manifest of a batch: what was made, so that another run need not make it again.

Contract: a manifest is a JSON Lines file in ASCII, one record a line; a record is a dict of plain
data whose "output" is a file's name. Nothing here needs JAX.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngImageFile

from nst_jax.errors import InputError
from nst_jax.files import atomic_write

NAME = "manifest.jsonl"
_PART = re.compile(r"manifest-\d+-of-\d+\.jsonl")
_appending = threading.Lock()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def picture_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG's text "nst_jax", see ``images.save_image``; its pixels are not decoded.

    Returns:
      The record; None where there is none, or the file is missing, damaged, cut off or no PNG.
    """
    try:
        with PngImageFile(path) as image:  # not Image.open, which warns of large pictures
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
