"""Check a weights file, for `nst-jax weights verify`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.files import expand_home, file_digest
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
    """Check a weights file.

    Args:
      path: the file.

    Returns:
      The checks in this order:

      * form: the file format;
      * arrays: layers, shapes, finite values, and that a canonical file agrees with its header;
      * checksum: whether this is a published file, or was converted from one;
      * network: the network recognised by its first filter.

      If the file cannot be read, the failed check is the last. An unknown network passes.
    """
    path = expand_home(path)
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
    if projections := find_projections(converted.arrays):
        poolings, layers = (list(dict.fromkeys(part)) for part in zip(*projections, strict=True))
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
    # A canonical file records the checksums of its source; any other file is itself the source.
    md5 = record.source_md5 if converted.form == "canonical" else file_digest(path, "md5")
    found = {"md5": md5, "sha256": record.source_sha256}
    for name, source in SOURCES.items():
        algorithm, expected = source.checksum.split(":")
        if found[algorithm] == expected:
            origin = "normalised from " if record.normalized else ""
            detail = f"{origin}the published file {name!r} ({source.checksum})"
            return Check("checksum", True, detail)
    published = [source.checksum for source in SOURCES.values() if source.filename == path.name]
    if published:
        detail = f"expected {' or '.join(published)} of the published file, got md5:{md5}"
        return Check("checksum", False, detail)
    origin = "not a published file"
    if find_projections(converted.arrays):
        origin = f"{record.name}, {record.source}, {record.licence}"
    return Check("checksum", True, f"{origin}; sha256 is {converted.sha256}")


def _check_network(kernel: np.ndarray, preprocessing: Preprocessing) -> Check:
    found = recognise(kernel)
    if found is None:
        return Check("network", True, f"unknown; its preprocessing is {preprocessing.kind}")
    ok = found == (preprocessing.kind, False, False)
    detail = f"conv1_1 is that of {found.network}"
    if not ok:
        detail += f", but its layout or its preprocessing ({preprocessing.kind}) does not match"
    return Check("network", ok, detail)
