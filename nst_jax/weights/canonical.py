"""The canonical weights file: one .safetensors whose header records where the weights come from.

Arrays are stored under ``conv1_1/kernel`` ([height, width, in, out], input RGB) and
``conv1_1/bias``. Slim weights also have ``lift/max/relu1_1/kernel`` and ``.../bias``, the
projections of ``models.projection``. All are float32 or all float16. The header is a dictionary of
strings, which hold JSON where the value is structured.

Layout of a .safetensors file (https://github.com/huggingface/safetensors, "Format"): 8 bytes, the
length N of the header as an unsigned little-endian integer; N bytes of JSON, which map each name
to ``dtype``, ``shape`` and ``data_offsets`` ([begin, end) counted from the end of the header), and
``__metadata__`` to a dictionary of strings; then the arrays, row-major and little-endian. The
format has no checksum, so a flipped bit would go unnoticed: the header of a canonical file
therefore holds a digest of the arrays.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.errors import InputError
from nst_jax.system.files import atomic_write, check_writable
from nst_jax.weights.foreign import (
    MAX_ITEMS,
    OpenedWeights,
    Stored,
    damaged_is_input_error,
    printable,
)
from nst_jax.weights.torch import from_torch_names

VERSION = "1"

_FORMAT = "nst_jax.weights"  # the entry "format" in the header of a canonical file

_MAX_HEADER = 8 * 2**20  # bytes; VGG-19's header has some thousand

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

_MAX_TEXT = 100_000  # characters of one entry in the header


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Network input = (image - mean) / std, for an RGB image in [0, 1].

    Attributes:
      kind: "caffe", "torchvision" or a custom name.
      mean, std: one number each for red, green and blue; std is positive.
    """

    kind: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        _check_text("preprocessing", self.kind)
        mean, std = self.mean, self.std
        if not (len(mean) == len(std) == 3 and np.isfinite(mean + std).all() and min(std) > 0):
            raise InputError(
                "expected a preprocessing of three finite means and three positive stds (red, "
                f"green, blue), got mean {mean} and std {std}"
            )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How `normalize_weights` scaled weights to a mean activation of 1.

    Attributes:
      images: the number of images over which the means were taken.
      pooling: the pooling of the network whose means are 1; with another pooling they differ.
      inactive: layer -> number of its inactive channels, which were not scaled.
    """

    images: int
    pooling: str
    inactive: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not self.pooling.isprintable() or len(self.pooling) > 40:
            raise InputError(
                "expected the name of a pooling in the header's entry 'normalized', got "
                f"{printable(self.pooling, 40)!r}"
            )
        if self.images < 1:
            raise InputError(
                f"expected activations normalised over 1 or more images, got {self.images}"
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a file tells about its weights besides the arrays; see `WeightsInfo` for the fields."""

    name: str
    preprocessing: Preprocessing
    source: str = "unknown"
    source_sha256: str = ""
    source_md5: str = ""
    licence: str = "unknown"
    attribution: str = ""
    training: str = ""
    normalized: Normalization | None = None

    def __post_init__(self):
        for key in ("name", *_TEXTS):
            _check_text(key, getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What is known about some weights: plain data that can be saved beside a result.

    Attributes:
      name: a short name, such as "vgg19-caffe".
      sha256: checksum of the loaded file; empty for weights from memory.
      form: "canonical", "keras", "matconvnet", "torch", "safetensors" or "memory".
      preprocessing: "caffe", "torchvision" or a custom name; the numbers are in the tree.
      source: the origin of the weights: an address or file name, and its form.
      source_sha256, source_md5: checksums of the source, empty if unknown.
      licence, attribution: the terms of use, and whom to credit.
      training: for slim weights, how and on what they were trained, and figures, as JSON.
      normalized: how the weights were scaled to a mean activation of 1; None for weights as
        trained, and for files that do not record it.
      path: the loaded file; empty for weights from memory.
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
    training: str = ""
    normalized: Normalization | None = None
    path: str = ""


class Weights(NamedTuple):
    """The network's variables and what is known about them, see ``load_weights``."""

    variables: dict[str, Any]
    info: WeightsInfo


_TEXTS = ("source", "source_sha256", "source_md5", "licence", "attribution", "training")


def _check_text(key: str, text: str) -> None:
    """Refuse text that would break a line of output or send control codes to a terminal."""
    if not text.isprintable() or len(text) > _MAX_TEXT:
        raise InputError(
            f"expected one line of printable characters as the {key}, got "
            f"{printable(text, 60)!r}: convert the original again"
        )


_ARCHITECTURE = "VGG-19, convolutions only; kernels [height, width, in, out], input RGB"

_SLIM = "; slim: fewer channels, with lifts (kernel [slim, full], bias) by pooling and layer"


def make_header(arrays: Mapping[str, np.ndarray], record: Record) -> dict[str, str]:
    """Make the header of a canonical file: a dictionary of strings."""
    preprocessing = record.preprocessing
    slim = any(name.startswith("lift/") for name in arrays)
    return {
        "format": _FORMAT,
        "format_version": VERSION,
        "name": record.name,
        "architecture": _ARCHITECTURE + (_SLIM if slim else ""),
        "layers": json.dumps({name: array.shape for name, array in arrays.items()}),
        "preprocessing": json.dumps(
            {
                "kind": preprocessing.kind,
                "channels": "RGB",
                "range": [0, 1],
                "mean": [_shortest(value) for value in preprocessing.mean],
                "std": [_shortest(value) for value in preprocessing.std],
                "formula": "(image - mean) / std",
            }
        ),
        "source": record.source,
        "source_sha256": record.source_sha256,
        "source_md5": record.source_md5,
        "licence": record.licence,
        "attribution": record.attribution,
        **({"training": record.training} if record.training else {}),
        **to_entry(record.normalized),
        "contents_sha256": digest(arrays),
    }


def _shortest(value: float) -> float:
    """The number with the fewest digits that rounds to the same float32."""
    return float(str(np.float32(value)))


def parse_header(header: Mapping[str, str]) -> Record:
    """Read the record from the header of a canonical file.

    Raises:
      InputError: for another format version, or a missing or malformed entry.
    """
    if header.get("format_version") != VERSION:
        raise InputError(
            f"expected format version {VERSION!r}, got {header.get('format_version')!r}: use the "
            "nst-jax that wrote the file, or convert the original again"
        )
    try:
        entry = json.loads(header["preprocessing"])
        if entry["channels"] != "RGB" or entry["range"] != [0, 1]:
            raise ValueError("channels or range")
        mean, std = (tuple(float(value) for value in entry[key]) for key in ("mean", "std"))
        preprocessing = Preprocessing(kind=str(entry["kind"]), mean=mean, std=std)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the header's preprocessing is malformed ({error!r}), expected a mean and std of "
            "three numbers each for RGB in [0, 1]: convert the original again"
        ) from error
    return Record(
        name=header.get("name", ""),
        preprocessing=preprocessing,
        normalized=parse_normalization(header),
        **{key: header.get(key, "") for key in _TEXTS},
    )


def describe_normalization(normalized: Normalization) -> str:
    """Describe a normalisation in one line.

    >>> describe_normalization(Normalization(images=2, pooling="max", inactive={"relu5_4": 3}))
    'mean activations 1 over 2 images with max pooling, except 3 inactive channels'
    """
    images, inactive = normalized.images, sum(normalized.inactive.values())
    line = f"mean activations 1 over {images} image{'s' * (images > 1)} with "
    line += f"{normalized.pooling} pooling"
    return line + f", except {inactive} inactive channel{'s' * (inactive > 1)}" * bool(inactive)


def to_entry(normalized: Normalization | None) -> dict[str, str]:
    """The header's entry ``normalized``; no entry for weights as trained.

    The inverse of ``parse_normalization``.
    """
    return {"normalized": json.dumps(asdict(normalized))} if normalized else {}


def parse_normalization(header: Mapping[str, str]) -> Normalization | None:
    """Read how weights were normalised from a header; None if they were not.

    Raises:
      InputError: for a malformed entry.
    """
    if "normalized" not in header:
        return None
    try:
        entry = json.loads(header["normalized"])
        inactive = {str(layer): int(count) for layer, count in entry["inactive"].items()}
        return Normalization(
            images=int(entry.get("images", entry.get("pictures"))),  # "pictures" until 0.1
            pooling=str(entry["pooling"]),
            inactive=inactive,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"the header's entry 'normalized' is malformed ({error!r}), expected images, pooling "
            "and inactive: normalise the original again"
        ) from error


def check_contents(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> None:
    """Check that arrays have the shapes and the digest that the header records.

    Raises:
      InputError: if they differ.
    """
    shapes = json.dumps({name: array.shape for name, array in sorted(arrays.items())})
    try:
        recorded = json.dumps(dict(sorted(json.loads(header["layers"]).items())))
    except (KeyError, AttributeError, ValueError):
        recorded = "no list of shapes"
    if recorded != shapes:
        raise InputError(
            "the shapes of the arrays differ from those in the header: convert the original again"
        )
    if header.get("contents_sha256") != digest(arrays):
        raise InputError(
            "the sha256 of the arrays differs from the one in the header: the file is damaged, "
            "get it again"
        )


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of the arrays' names, shapes and float32 bytes, in alphabetical order of names."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name}{list(array.shape)}".encode())
        total.update(np.ascontiguousarray(array, "<f4").data)
    return total.hexdigest()


def write_canonical(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    record: Record,
    *,
    overwrite: bool = False,
    half: bool = False,
) -> None:
    """Write a canonical file under a temporary name, then rename it.

    Equal arrays and records give equal bytes.

    Args:
      path: the file to write.
      arrays: flat arrays, as from `to_arrays`.
      record: what to write into the header.
      overwrite: whether an existing file may be replaced.
      half: store float16 instead of float32.

    Raises:
      InputError: if the file exists or cannot be written, or if a number overflows in float16.
    """
    kind, dtype = ("F16", "<f2") if half else ("F32", "<f4")
    with np.errstate(over="ignore"):
        arrays = {name: array.astype(dtype) for name, array in sorted(arrays.items())}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(
            f"cannot write {path}: expected numbers within the range of {np.dtype(dtype).name}"
        )
    # The safetensors library writes the entries of the metadata in random order, so the header is
    # made here.
    entries: dict[str, object] = {"__metadata__": make_header(arrays, record)}
    start = 0
    for name, array in arrays.items():
        end = start + array.nbytes
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, ensure_ascii=False).encode()
    # The format allows trailing spaces; they align the arrays to 8 bytes.
    text += b" " * (-len(text) % 8)
    try:
        check_writable(path, overwrite=overwrite)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): choose another place") from error


@contextmanager
def open_safetensors(path: Path) -> Iterator[OpenedWeights]:
    """Open a .safetensors file, canonical or with torchvision's names.

    The library refuses a header nested deeper than 128 levels, and arrays that overlap, leave
    gaps, lie outside the file or disagree with their shapes. The header's size is bounded here.
    """
    from safetensors import safe_open

    with damaged_is_input_error(path, "safetensors"):
        _check_header(path)
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays: dict[str, Stored] = {}
            names = file.keys()
            if len(names) > MAX_ITEMS:
                raise InputError(
                    f"expected at most {MAX_ITEMS} arrays, got {len(names)}: save VGG-19 alone"
                )
            for name in names:
                piece = file.get_slice(name)
                dtype = _DTYPES.get(str(piece.get_dtype()), "another type")
                read = partial(_read_safetensor, file, name, dtype)
                arrays[name] = Stored(tuple(piece.get_shape()), dtype, read)
            if header.get("format") == _FORMAT:
                yield OpenedWeights("canonical", arrays, header)
            else:
                yield OpenedWeights("safetensors", from_torch_names(arrays))


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise InputError(
            f"expected a header of at most {_MAX_HEADER} bytes, got {length}: the file is damaged "
            "or holds far more than VGG-19, get it again"
        )


def _read_safetensor(file: Any, name: str, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (registers the bfloat16 that safetensors asks NumPy for)
    return file.get_tensor(name)
