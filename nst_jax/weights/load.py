"""Load, save, find and list weights of VGG-19.

`load_weights` reads any known format (``readers``) into one tree (``convert``); `save_weights`
writes the canonical .safetensors (``canonical``).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.files import expand_home
from nst_jax.weights.canonical import (
    Preprocessing,
    Record,
    Weights,
    WeightsInfo,
    parse_normalization,
    write_canonical,
)
from nst_jax.weights.convert import check_finite, check_shapes, convert, to_arrays, to_tree
from nst_jax.weights.fetch import DEFAULT_SOURCE, SOURCES, cached_path
from nst_jax.weights.readers import find_form, open_weights

WEIGHTS_VARIABLE = "NST_JAX_WEIGHTS"

SLIM_FILE = "vgg19-slim.safetensors"


class Place(NamedTuple):
    """One line of `list_weights`.

    Attributes:
      where: "NST_JAX_WEIGHTS", "cache", "shipped" or "to fetch".
      name: a short name.
      path: an existing file, or the address of a file to fetch.
      detail: size and kind, or what would be fetched.
    """

    where: str
    name: str
    path: str
    detail: str


def load_weights(path: str | Path | None, *, preprocessing: str | None = None) -> Weights:
    """Load VGG-19 weights from a file in any known format and put them on the device.

    ``load_weights(find_weights())`` loads the weights that ``nst-jax stylize`` would use.

    Args:
      path: a canonical .safetensors, Keras .h5, MatConvNet .mat, PyTorch .pth, or a .safetensors
        with torchvision's names. The content decides, not the file's name. None, which
        `find_weights` returns if it finds nothing, is refused.
      preprocessing: "caffe" or "torchvision", needed only for weights that belong to neither
        network.

    Returns:
      ``variables`` and ``info``. The variables are {"params": {"conv1_1": {"kernel": [3, 3, in,
      out], "bias": [out]}, ...}, "preprocessing": {"mean": [3], "std": [3]}}, float32, for RGB
      images in [0, 1]. Slim weights also have "lift": pooling -> layer -> {"kernel": [c, C],
      "bias": [C]}, see ``models.projection``.

    Raises:
      InputError: if the file cannot be used; the message says why and what to do.
    """
    import jax

    if path is None:
        raise InputError("found no such weights: run 'nst-jax weights fetch', or name a file")
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
        training=record.training,
        normalized=record.normalized,
        path=str(path),
    )
    return Weights(jax.device_put(to_tree(converted.arrays, record.preprocessing)), info)


def save_weights(
    path: str | Path, weights: Weights, *, overwrite: bool = False, half: bool = False
) -> Path:
    """Save weights as a canonical .safetensors, atomically.

    Args:
      path: the file to write, in an existing folder.
      weights: as `load_weights` returns them. A block may have any number of channels.
      overwrite: whether an existing file may be replaced.
      half: store float16 instead of float32.

    Returns:
      The path.

    Raises:
      InputError: if the weights are not a VGG-19, or the file cannot be written.
    """
    path = expand_home(path)
    variables, info = weights
    if set(variables) - {"lift"} != {"params", "preprocessing"}:
        raise InputError(
            "expected variables with the collections params and preprocessing, and lift for slim "
            f"weights, got {', '.join(sorted(variables))}: save only those"
        )
    arrays = to_arrays(variables)
    check_shapes({name: array.shape for name, array in arrays.items()})
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
        training=info.training,
        normalized=info.normalized,
    )
    write_canonical(path, arrays, record, overwrite=overwrite, half=half)
    return path


def find_weights(
    *,
    path: str | Path | None = None,
    model: str | None = None,
    folders: Sequence[Path] | None = None,
) -> Path | None:
    """Find the weights to use: ``path``, else ``NST_JAX_WEIGHTS``, the cache, or shipped weights.

    Args:
      path: a file that the user named.
      model: ``"vgg19"`` for the full network only, ``"vgg19-slim"`` for the slim one only. Files
        of the other model are skipped.
      folders: the folders of shipped weights; `shipped_folders` if not given.

    Returns:
      A file, or None if there is none.

    Raises:
      InputError: if ``path`` or the file in the variable does not exist, or if ``path`` holds the
        other model.
      ValueError: for an unknown model.
    """
    if model not in (None, "vgg19", "vgg19-slim"):
        raise ValueError(f"expected the model 'vgg19', 'vgg19-slim' or None, got {model!r}")
    variable = os.environ.get(WEIGHTS_VARIABLE)
    for named, origin in ((path, ""), (variable, f" (from {WEIGHTS_VARIABLE})")):
        if not named:
            continue
        found = expand_home(named)
        if not os.path.isfile(found):
            raise InputError(
                f"the weights {found}{origin} do not exist or are not a file: check the path, or "
                "run 'nst-jax weights fetch'"
            )
        if model is None or model_of(found) == model:
            return found
        if named is path:
            raise InputError(
                f"expected {model} weights, got {model_of(found)} in {found}: leave out the file "
                "or the model"
            )
    places = (path for _, path in _installed(folders))
    return next((path for path in places if model is None or _is_sound(path, model)), None)


def _is_sound(path: Path, model: str) -> bool:
    """Whether a file that the user did not name holds this model; False if it is damaged."""
    try:
        return model_of(path) == model
    except InputError:
        return False


def model_of(path: Path) -> str:
    """The network in a weights file: ``"vgg19"``, or ``"vgg19-slim"`` if it has projections."""
    with open_weights(path) as opened:
        slim = any(name.startswith("lift/") for name in opened.arrays)
    return "vgg19-slim" if slim else "vgg19"


def is_shipped_slim(path: Path, *, folders: Sequence[Path] | None = None) -> bool:
    """Whether a file is the slim one that is shipped with the package."""
    return path.name == SLIM_FILE and ("shipped", path) in _installed(folders)


def shipped_folders(package: Path | None = None) -> list[Path]:
    """The folders of shipped weights: the package's ``data``, and ``weights`` in a checkout.

    Args:
      package: the package's folder; that of nst_jax if not given.
    """
    package = Path(__file__).parents[1] if package is None else package
    folders = [package / "data"]
    # Beside an installed package (site-packages) a folder "weights" may belong to someone else.
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "weights")
    return folders


def _installed(folders: Sequence[Path] | None) -> Iterator[tuple[str, Path]]:
    """Iterate over the weights in the cache, then over shipped ones, as (where, path)."""
    for source in SOURCES:
        if os.path.isfile(path := cached_path(source)):
            yield "cache", path
    folders = shipped_folders() if folders is None else folders
    shipped = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    for path in sorted(shipped, key=lambda path: path.name == SLIM_FILE):  # full networks first
        yield "shipped", path


def list_weights(*, folders: Sequence[Path] | None = None) -> list[Place]:
    """List the weights in the variable, the cache and the package, then those to fetch.

    Args:
      folders: the folders of shipped weights; `shipped_folders` if not given.

    Returns:
      One `Place` each, in the order in which `find_weights` looks.
    """
    places = []
    if named := os.environ.get(WEIGHTS_VARIABLE):
        path = expand_home(named)
        detail = _size_and_kind(path) if os.path.isfile(path) else "does not exist"
        places.append(Place(WEIGHTS_VARIABLE, path.stem, named, detail))
    for where, path in _installed(folders):
        places.append(Place(where, path.stem, str(path), _size_and_kind(path)))
    for name, source in SOURCES.items():
        default = ", the default" if name == DEFAULT_SOURCE else ""
        detail = f"{source.summary}; {source.licence}{default}"
        places.append(Place("to fetch", name, source.urls[0], detail))
    return places


def _size_and_kind(path: Path) -> str:
    size = f"{path.stat().st_size / 2**20:.0f} MB"
    try:
        # Only canonical files record it, and other formats may be slow to open.
        if find_form(path) != "safetensors":
            return size
        with open_weights(path) as opened:
            normalized = parse_normalization(opened.header or {})
    except InputError:  # reported when the file is loaded or verified
        return size
    return f"{size}, normalised" if normalized else size
