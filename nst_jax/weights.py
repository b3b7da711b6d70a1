"""Load, save, find and check weights of VGG-19.

`load_weights` takes any known form (``weight_forms.py``) and gives one tree (``convert.py``);
`save_weights` writes the canonical .safetensors (``canonical.py``).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.canonical import Preprocessing, Record, write_canonical
from nst_jax.convert import check_finite, check_shapes, convert, to_tree
from nst_jax.errors import InputError
from nst_jax.fetch import DEFAULT_SOURCE, SOURCES, cached_path

WEIGHTS_VARIABLE = "NST_JAX_WEIGHTS"


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What is known of some weights; plain strings, so that it can be saved beside a result.

    Attributes:
      name: a short name, such as "vgg19-caffe".
      sha256: checksum of the file that was read; empty for weights from memory.
      form: "canonical", "keras", "matconvnet", "torch", "safetensors" or "memory".
      preprocessing: "caffe", "torchvision" or a name of one's own; the numbers are in the tree.
      source: where the weights come from: an address or a file, and its form.
      source_sha256, source_md5: checksums of that source, empty where not known.
      licence, attribution: terms of use, and whom to name.
      path: the file that was read; empty for weights from memory.
    """

    name: str
    preprocessing: str
    sha256: str = ""
    form: str = "memory"
    source: str = "unknown"
    source_sha256: str = ""
    source_md5: str = ""
    licence: str = "unknown"
    attribution: str = ""
    path: str = ""


class Weights(NamedTuple):
    """Variables of the network ({"params", "preprocessing"}) and what is known of them."""

    variables: dict[str, Any]
    info: WeightsInfo


class Place(NamedTuple):
    """One line of `list_weights`: ``path`` is a file that is there, or an address to fetch."""

    where: str
    name: str
    path: str
    detail: str


def load_weights(path: str | Path, *, preprocessing: str | None = None) -> Weights:
    """Load VGG-19's weights from a file of any known form and put them on the device.

    Args:
      path: a canonical .safetensors, Keras .h5, MatConvNet .mat, PyTorch .pth or torchvision's
        names in .safetensors; the form is found from the content.
      preprocessing: "caffe" or "torchvision", needed only for PyTorch's names with weights that
        belong to neither network.

    Returns:
      ``variables`` = {"params": {"conv1_1": {"kernel": [3, 3, in, out], "bias": [out]}, ...},
      "preprocessing": {"mean": [3], "std": [3]}}, float32, for RGB images in [0, 1]; and ``info``.

    Raises:
      InputError: where the file cannot be used; the message says why and what to do.
    """
    import jax

    converted = convert(path, preprocessing=preprocessing)
    record = converted.record
    info = WeightsInfo(
        name=record.name,
        preprocessing=record.preprocessing.kind,
        sha256=converted.sha256,
        form=converted.form,
        source=record.source,
        source_sha256=record.source_sha256,
        source_md5=record.source_md5,
        licence=record.licence,
        attribution=record.attribution,
        path=str(path),
    )
    return Weights(jax.device_put(to_tree(converted.arrays, record.preprocessing)), info)


def save_weights(path: str | Path, weights: Weights, *, overwrite: bool = False) -> Path:
    """Save weights as a canonical .safetensors; it appears whole or not at all.

    Args:
      path: the file to write, in a folder that exists.
      weights: as `load_weights` gives them. Each block may have any number of channels.
      overwrite: whether a file of that name may be replaced.

    Returns:
      The path.

    Raises:
      InputError: where these are no weights of a VGG-19, or the file cannot be written.
    """
    path = Path(path).expanduser()
    variables, info = weights
    if set(variables) != {"params", "preprocessing"}:
        raise InputError(
            f"the variables have the collections {sorted(variables)}, expected params and "
            "preprocessing: save only those"
        )
    arrays = {
        f"{conv}/{part}": np.asarray(array, np.float32)
        for conv, layer in variables["params"].items()
        for part, array in layer.items()
    }
    check_shapes({name: array.shape for name, array in arrays.items()}, slim=True)
    check_finite(arrays)
    mean, std = (
        tuple(np.ravel(np.asarray(variables["preprocessing"][key], np.float32)).tolist())
        for key in ("mean", "std")
    )
    record = Record(
        name=info.name,
        preprocessing=Preprocessing(kind=info.preprocessing, mean=mean, std=std),
        source=info.source,
        source_sha256=info.source_sha256,
        source_md5=info.source_md5,
        licence=info.licence,
        attribution=info.attribution,
    )
    write_canonical(path, arrays, record, overwrite=overwrite)
    return path


def find_weights(path: str | Path | None = None) -> Path | None:
    """The weights to use: those named, else of ``NST_JAX_WEIGHTS``, the cache, or shipped ones.

    Args:
      path: a file that someone named.

    Returns:
      A file, or None where there is none.

    Raises:
      InputError: where a file that was named, or the one in the variable, does not exist.
    """
    for where, named in (("--weights", path), (WEIGHTS_VARIABLE, os.environ.get(WEIGHTS_VARIABLE))):
        if named:
            found = Path(named).expanduser()
            if not os.path.isfile(found):
                raise InputError(
                    f"the weights {found} (from {where}) do not exist or are no file: check the "
                    "path, or run 'nst-jax weights fetch'"
                )
            return found
    return next((path for _, path in _installed()), None)


def _installed() -> Iterator[tuple[str, Path]]:
    """Weights in the cache, then those shipped with the package or in a checkout."""
    for source in SOURCES:
        if (path := cached_path(source)).is_file():
            yield "cache", path
    package = Path(__file__).parent
    folders = [package / "data"]
    if (package.parent / "pyproject.toml").is_file():  # else it may be someone else's folder
        folders.append(package.parent / "weights")
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            yield "shipped", path


def list_weights() -> list[Place]:
    """What there is: the variable, the cache, shipped files, then what can be fetched.

    Returns:
      One `Place` each, in the order in which `find_weights` looks.
    """
    places = []
    if named := os.environ.get(WEIGHTS_VARIABLE):
        detail = "" if os.path.isfile(Path(named).expanduser()) else "does not exist"
        places.append(Place(WEIGHTS_VARIABLE, Path(named).stem, named, detail))
    for where, path in _installed():
        places.append(Place(where, path.stem, str(path), f"{path.stat().st_size / 2**20:.0f} MB"))
    for name, source in SOURCES.items():
        default = ", the default" if name == DEFAULT_SOURCE else ""
        detail = f"{source.summary}; {source.licence}{default}"
        places.append(Place("to fetch", name, source.urls[0], detail))
    return places
