"""From a file of VGG-19's weights in any known form to one tree. NumPy only.

The tree is ``{"params": {"conv1_1": {"kernel", "bias"}, ...}, "preprocessing": {"mean", "std"}}``,
all float32: kernels [height, width, in, out] for an RGB image in [0, 1], of which the network
sees ``(image - mean) / std``. In between, arrays are flat: ``{"conv1_1/kernel": ..., ...}``.

A file's form settles its layout only where the network is not one of those in ``networks.py``.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.canonical import Preprocessing, Record, check_contents, parse_header, write_canonical
from nst_jax.errors import InputError
from nst_jax.files import expanded
from nst_jax.layers import CONVS
from nst_jax.networks import CREDITS, PREPROCESSING, Layout, recognise
from nst_jax.shapes import check_shapes
from nst_jax.stored import MAX_VALUES, Opened, Stored, printable
from nst_jax.weight_forms import open_weights


class Converted(NamedTuple):
    """Flat arrays in the canonical layout, and all that is known of them.

    ``network`` is the one recognised by its first filter, if any; ``sha256`` is of the file;
    ``half`` tells of a canonical file in float16.
    """

    arrays: dict[str, np.ndarray]
    record: Record
    form: str
    network: str | None
    sha256: str
    half: bool = False


def convert(path: str | Path, *, preprocessing: str | None = None) -> Converted:
    """Read a file of VGG-19's weights in any known form.

    Args:
      path: a canonical .safetensors, Keras .h5, MatConvNet .mat, PyTorch .pth or torchvision's
        names in .safetensors, recognised by content.
      preprocessing: "caffe" or "torchvision", for weights of PyTorch's names that are neither of
        the two known networks. It also says the channel order: caffe is BGR (in MatConvNet's
        files RGB), torchvision RGB.

    Returns:
      The arrays and what is known of them.

    Raises:
      InputError: where the file is damaged or holds another network, or where its preprocessing
        cannot be told.
    """
    path = expanded(path)
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise InputError(
            f"unknown preprocessing {preprocessing!r}: expected one of {', '.join(PREPROCESSING)}"
        )
    with open_weights(path) as opened:
        _check_stored(opened)
        # Foreign files may hold other arrays too, which are left out.
        names = opened.arrays if opened.form == "canonical" else array_names()
        arrays = {name: _read(name, opened.arrays[name]) for name in names}
        sha256 = file_digest(path, "sha256")
        found = recognise(arrays["conv1_1/kernel"])
        network = found.network if found else None
        if opened.header is not None:
            record = parse_header(opened.header)
            check_contents(arrays, opened.header)
            if preprocessing not in (None, record.preprocessing.kind):
                raise InputError(_contradiction(record.preprocessing.kind, preprocessing))
            half = all(stored.dtype == "float16" for stored in opened.arrays.values())
            return Converted(arrays, record, opened.form, network, sha256, half)
        layout = _settle(found, opened.form, preprocessing)
    licence, attribution = CREDITS.get(network or "", ("unknown", ""))
    record = Record(
        name=f"vgg19-{network}" if network else printable(path.stem),
        preprocessing=PREPROCESSING[layout.network],
        source=f"{printable(path.name)} ({opened.form})",
        source_sha256=sha256,
        licence=licence,
        attribution=attribution,
    )
    return Converted(_to_rgb(arrays, layout), record, opened.form, network, sha256)


def convert_file(
    source: str | Path,
    destination: str | Path,
    *,
    preprocessing: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a file of weights to the canonical form.

    Raises:
      InputError: as `convert` and `write_canonical`.
    """
    destination = expanded(destination)
    converted = convert(source, preprocessing=preprocessing)
    write_canonical(
        destination,
        converted.arrays,
        converted.record,
        overwrite=overwrite,
        half=converted.half,
    )
    return destination


def to_tree(arrays: Mapping[str, np.ndarray], preprocessing: Preprocessing) -> dict[str, Any]:
    """The tree of flat arrays.

    >>> flat = {"conv1_1/kernel": np.ones((3, 3, 3, 4)), "conv1_1/bias": np.ones(4)}
    >>> to_tree(flat, PREPROCESSING["torchvision"])["params"]["conv1_1"]["bias"].shape
    (4,)
    """
    params: dict[str, Any] = {}
    lift: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, layer, part = name.split("/")
        entry = lift.setdefault(path[1], {}) if path else params
        entry.setdefault(layer, {})[part] = array
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    tree = {"params": params, "preprocessing": {"mean": mean, "std": std}}
    return tree | {"lift": lift} if lift else tree


def to_flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The flat arrays of a tree, float32; the inverse of ``to_tree``."""

    def flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from flatten(value, f"{prefix}{key}/")
            else:
                yield prefix + key, np.asarray(value, np.float32)

    lift = dict(flatten(variables.get("lift", {}), "lift/"))
    return dict(flatten(variables["params"], "")) | lift


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `InputError` for the first array that holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite values: get the file again")


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal checksum of a file, for example by "sha256" or "md5"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def array_names() -> list[str]:
    return [f"{conv}/{part}" for conv in CONVS for part in ("kernel", "bias")]


def _check_stored(opened: Opened) -> None:
    shapes = {name: stored.shape for name, stored in opened.arrays.items()}
    check_shapes(shapes, slim=opened.form == "canonical")
    if (total := sum(map(math.prod, shapes.values()))) > MAX_VALUES:  # of any number of channels
        raise InputError(f"the arrays have {total} numbers, expected at most {MAX_VALUES}")


def _read(name: str, stored: Stored) -> np.ndarray:
    if stored.dtype.lstrip("<>=") not in ("float16", "bfloat16", "float32", "float64"):
        raise InputError(f"{name} holds {stored.dtype} values, expected floating-point numbers")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        array = np.ascontiguousarray(stored.read(), np.float32)
    check_finite({name: array})
    return array


def _settle(found: Layout | None, form: str, preprocessing: str | None) -> Layout:
    """The layout of kernels: what they were recognised as, else what the form or the user says."""
    if found is not None:
        if preprocessing not in (None, found.network):
            raise InputError(_contradiction(found.network, preprocessing))
        return found
    if form == "matconvnet" and preprocessing is None:
        # Both orders of a kernel's axes are told of these files: only a known filter settles it.
        raise InputError(
            "conv1_1 is neither that of imagenet-vgg-verydeep-19 nor its transpose: the file is "
            "damaged or was trained further; in that case convert it first: nst-jax weights "
            "convert FILE OUTPUT --preprocessing caffe"
        )
    if form != "keras" and preprocessing is None:
        raise InputError(
            "the weights are of no known network, so their preprocessing cannot be told: "
            "convert them first: nst-jax weights convert FILE OUTPUT --preprocessing caffe (BGR, "
            "0-255) or torchvision (RGB)"
        )
    network = preprocessing or "caffe"
    # MatConvNet stores RGB, and [height, width] by its manual.
    return Layout(network, bgr=network == "caffe" and form != "matconvnet")


def _contradiction(found: str, asked: str | None) -> str:
    return f"the weights need {found} preprocessing, but {asked} was asked for: leave that out"


def _to_rgb(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    def settle(name: str, array: np.ndarray) -> np.ndarray:
        if layout.transposed and array.ndim == 4:
            array = array.swapaxes(0, 1)
        if layout.bgr and name == "conv1_1/kernel":
            array = array[:, :, ::-1]
        return np.ascontiguousarray(array)

    return {name: settle(name, array) for name, array in arrays.items()}
