"""Check a file of weights, for `nst-jax weights verify`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.files import expanded, file_digest
from nst_jax.weights.canonical import Preprocessing, describe_normalization
from nst_jax.weights.convert import Converted, convert, find_projections, recognise
from nst_jax.weights.fetch import SOURCES
from nst_jax.weights.readers import find_form


class Check(NamedTuple):
    """One line of `verify_weights`."""

    name: str
    ok: bool
    detail: str


def verify_weights(path: str | Path) -> list[Check]:
    """Check a file of weights.

    Args:
      path: the file.

    Returns:
      Checks in order: its form; its arrays (layers, shapes, finite values, and in a canonical
      file what the header says of them); its checksum; its network by the first filter. A check
      that fails to read the file is the last. Weights that are merely unknown pass.
    """
    path = expanded(path)
    try:
        form = find_form(path)
    except InputError as error:
        return [Check("form", False, str(error))]
    try:
        converted = convert(path)
    except InputError as error:
        return [Check("form", True, form), Check("arrays", False, str(error))]
    kernel = converted.arrays["conv1_1/kernel"]
    record = converted.record
    kernels = {n: a for n, a in converted.arrays.items() if a.ndim == 4}
    widest = max(array.shape[-1] for array in kernels.values())
    arrays = f"{len(kernels)} convolutions of VGG-19 with {kernel.shape[3]} to {widest} channels"
    if lifts := find_projections(converted.arrays):
        poolings, layers = (list(dict.fromkeys(part)) for part in zip(*lifts, strict=True))
        arrays += f", slim, trained for {' and '.join(poolings)} pooling, {', '.join(layers)}"
    arrays += ", all finite"
    if converted.form == "canonical":
        arrays += ", as the header says"
    if record.normalized:
        arrays += f"; {describe_normalization(record.normalized)}"
    return [
        Check("form", True, converted.form),
        Check("arrays", True, arrays),
        _check_checksum(path, converted),
        _check_network(kernel, record.preprocessing),
    ]


def _check_checksum(path: Path, converted: Converted) -> Check:
    record = converted.record
    md5 = record.source_md5 if converted.form == "canonical" else file_digest(path, "md5")
    found = {"md5": md5, "sha256": record.source_sha256}
    for name, source in SOURCES.items():
        algorithm, expected = source.checksum.split(":")
        if found[algorithm] == expected:
            made = "normalised from " if record.normalized else ""
            return Check("checksum", True, f"{made}the published file {name!r} ({source.checksum})")
    published = [source.checksum for source in SOURCES.values() if source.filename == path.name]
    if published:
        detail = f"md5 is {md5}, expected {' or '.join(published)} of the published file"
        return Check("checksum", False, detail)
    known = "none of the published files"
    if find_projections(converted.arrays):
        known = f"{record.name}, {record.source}, {record.licence}"
    return Check("checksum", True, f"{known}; sha256 is {converted.sha256}")


def _check_network(kernel: np.ndarray, preprocessing: Preprocessing) -> Check:
    found = recognise(kernel)
    if found is None:
        return Check("network", True, f"not known; its preprocessing is {preprocessing.kind}")
    ok = found == (preprocessing.kind, False, False)
    detail = f"conv1_1 is that of {found.network}"
    if not ok:
        detail += f", but not in the layout and with the preprocessing {preprocessing.kind}"
    return Check("network", ok, detail)
