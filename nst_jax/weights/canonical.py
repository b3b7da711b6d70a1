"""The canonical file of weights: one .safetensors whose header says all that is known of them.

Arrays are under ``conv1_1/kernel`` ([height, width, in, out], input RGB) and ``conv1_1/bias``,
and in slim weights also under ``lift/max/relu1_1/kernel`` and ``.../bias``, see
``models.projection``; they are float32, or float16 where so written. The header is a dictionary of
strings, JSON where structured. It holds a digest of the arrays, since the format has no checksum of
its own and a flipped bit would pass.
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

_MAX_HEADER = 8 * 2**20  # bytes; VGG-19's has some thousand

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

_MAX_TEXT = 100_000  # characters of an entry of the header


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Network input = (image - mean) / std for an image in [0, 1], red, green, blue."""

    kind: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        _check_text("preprocessing", self.kind)
        mean, std = self.mean, self.std
        if not (len(mean) == len(std) == 3 and np.isfinite(mean + std).all() and min(std) > 0):
            raise InputError(
                f"the preprocessing has mean {mean} and std {std}, expected three finite numbers "
                "each for red, green and blue, and a positive std"
            )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How weights were scaled to a mean activation of 1, by `normalize_weights`.

    Attributes:
      images: over how many images the means were taken.
      pooling: with which pooling; with another the means are others.
      inactive: layer -> number of its channels that were not active, and are as they were.
    """

    images: int
    pooling: str
    inactive: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not self.pooling.isprintable() or len(self.pooling) > 40:
            raise InputError("activations normalised with no pooling: expected its name")
        if self.images < 1:
            raise InputError(f"activations normalised over {self.images} images: expected some")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of some weights besides their arrays."""

    name: str
    preprocessing: Preprocessing
    source: str = "unknown"
    source_sha256: str = ""
    source_md5: str = ""
    licence: str = "unknown"
    attribution: str = ""
    training: str = ""  # of slim weights: how trained, on what, and figures, as JSON
    normalized: Normalization | None = None  # None: activations as trained, or not known

    def __post_init__(self):
        for key in ("name", *_TEXTS):
            _check_text(key, getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What is known of some weights; plain data, so that it can be saved beside a result.

    Attributes:
      name: a short name, such as "vgg19-caffe".
      sha256: checksum of the file that was read; empty for weights from memory.
      form: "canonical", "keras", "matconvnet", "torch", "safetensors" or "memory".
      preprocessing: "caffe", "torchvision" or a name of one's own; the numbers are in the tree.
      source: where the weights come from: an address or a file, and its form.
      source_sha256, source_md5: checksums of that source, empty where not known.
      licence, attribution: terms of use, and whom to name.
      training: of slim weights, how and on what they were trained, and figures, as JSON.
      normalized: how the weights were scaled to a mean activation of 1; None for weights as
        trained, and those of a file that cannot tell.
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
    training: str = ""
    normalized: Normalization | None = None
    path: str = ""


class Weights(NamedTuple):
    """Variables of the network and what is known of them, see ``load_weights``."""

    variables: dict[str, Any]
    info: WeightsInfo


_TEXTS = ("source", "source_sha256", "source_md5", "licence", "attribution", "training")


def _check_text(key: str, text: str) -> None:
    """Refuse what would not be one line where it is shown, or would command a terminal."""
    if not text.isprintable() or len(text) > _MAX_TEXT:
        raise InputError(
            f"the {key} is {printable(text, 60)!r}, expected one line of printable characters: "
            "convert the original again"
        )


_ARCHITECTURE = "VGG-19, convolutions only; kernels [height, width, in, out], input RGB"

_SLIM = "; slim: fewer channels, with lifts (kernel [slim, full], bias) by pooling and layer"


def make_header(arrays: Mapping[str, np.ndarray], record: Record) -> dict[str, str]:
    """The header of a canonical file: a dictionary of strings."""
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
    """The number of fewest digits that is the same float32, so that a round trip is exact."""
    return float(str(np.float32(value)))


def parse_header(header: Mapping[str, str]) -> Record:
    """The record in the header of a canonical file.

    Raises:
      InputError: for another version, or an entry that is missing or malformed.
    """
    if header.get("format_version") != VERSION:
        raise InputError(
            f"the file has format version {header.get('format_version')!r}, expected {VERSION!r}: "
            "use the nst-jax that wrote it, or convert the original again"
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
            f"the header's preprocessing is wrong ({error!r}), expected a mean and std of three "
            "numbers for RGB in [0, 1]: convert the original again"
        ) from error
    return Record(
        name=header.get("name", ""),
        preprocessing=preprocessing,
        normalized=parse_normalization(header),
        **{key: header.get(key, "") for key in _TEXTS},
    )


def describe_normalization(normalized: Normalization) -> str:
    """One line of what was done.

    >>> describe_normalization(Normalization(images=2, pooling="max", inactive={"relu5_4": 3}))
    'mean activations 1 over 2 images with max pooling, but of 3 inactive channels'
    """
    images, inactive = normalized.images, sum(normalized.inactive.values())
    line = f"mean activations 1 over {images} image{'s' * (images > 1)} with "
    line += f"{normalized.pooling} pooling"
    return line + f", but of {inactive} inactive channel{'s' * (inactive > 1)}" * bool(inactive)


def to_entry(normalized: Normalization | None) -> dict[str, str]:
    """The header's entry, none for weights as trained; the inverse of ``parse_normalization``."""
    return {"normalized": json.dumps(asdict(normalized))} if normalized else {}


def parse_normalization(header: Mapping[str, str]) -> Normalization | None:
    """How the weights of a canonical file's header were normalised, None where they were not.

    Raises:
      InputError: for an entry that is malformed.
    """
    if "normalized" not in header:
        return None
    try:
        entry = json.loads(header["normalized"])
        inactive = {str(layer): int(count) for layer, count in entry["inactive"].items()}
        return Normalization(
            images=int(entry.get("images", entry.get("pictures"))),  # the latter until 0.1
            pooling=str(entry["pooling"]),
            inactive=inactive,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"the header's entry of normalised activations is wrong ({error!r}), expected "
            "images, pooling and inactive: normalise the original again"
        ) from error


def check_contents(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> None:
    """Compare the arrays with what the header says of them.

    Raises:
      InputError: where shapes or digest differ.
    """
    shapes = json.dumps({name: array.shape for name, array in sorted(arrays.items())})
    try:
        recorded = json.dumps(dict(sorted(json.loads(header["layers"]).items())))
    except (KeyError, AttributeError, ValueError):
        recorded = "no list of shapes"
    if recorded != shapes:
        raise InputError("the header's shapes differ from the arrays': convert the original again")
    if header.get("contents_sha256") != digest(arrays):
        raise InputError(
            "the arrays' sha256 differs from the one in the header: the file is damaged, get it "
            "again"
        )


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the arrays' names, shapes and bytes, in the order of names."""
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
    """Write a canonical file under a temporary name, then rename it; in float16 if ``half``.

    Equal arrays and records give equal bytes. This is why the header is put together here: the
    safetensors library writes its entries in random order.

    Raises:
      InputError: where the file exists already, or cannot be written, or where float16 does not
        hold the numbers.
    """
    kind, dtype = ("F16", "<f2") if half else ("F32", "<f4")
    with np.errstate(over="ignore"):
        arrays = {name: array.astype(dtype) for name, array in sorted(arrays.items())}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(f"cannot write {path}: there are numbers beyond the range of {dtype[1:]}")
    entries: dict[str, object] = {"__metadata__": make_header(arrays, record)}
    start = 0
    for name, array in arrays.items():
        end = start + array.nbytes
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
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
    """Open a .safetensors file: the canonical one, or one with torchvision's names.

    The library refuses a header nested deeper than 128 and arrays that overlap, leave gaps, lie
    outside the file or differ from their shape; the size of the header is bounded here.
    """
    from safetensors import safe_open

    with damaged_is_input_error(path, "safetensors"):
        _check_header(path)
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays: dict[str, Stored] = {}
            names = file.keys()
            if len(names) > MAX_ITEMS:
                raise InputError(f"there are {len(names)} arrays: save VGG-19 alone")
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
            f"its header should have {length} bytes, expected at most {_MAX_HEADER}: the file is "
            "damaged or holds far more than VGG-19, get it again"
        )


def _read_safetensor(file: Any, name: str, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (gives NumPy the type that safetensors asks it for)
    return file.get_tensor(name)
