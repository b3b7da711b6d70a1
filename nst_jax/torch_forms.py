"""The two forms with PyTorch's names and axis order: .pth and .safetensors, and our own file.

Both ``open_*`` are context managers that yield `Opened`; see ``weight_forms.py``.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.errors import InputError
from nst_jax.layers import CONVS
from nst_jax.stored import MAX_ITEMS, Opened, Stored, add, damaged_is_input_error
from nst_jax.torch_file import open_torch

FORMAT = "nst_jax.weights"  # the entry "format" in the header of a canonical file
_MAX_HEADER = 8 * 2**20  # bytes; VGG-19's has some thousand

# Positions in torchvision's nn.Sequential, where ReLU and pooling count as well.
_TORCH_VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_TORCH_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_TORCH_NAME = re.compile(r"(?:^|\.)(?:features\.(\d+)|(conv\d_\d))\.(weight|bias)$")
_PARTS = {"weight": "kernel", "bias": "bias"}


@contextmanager
def open_pth(path: Path) -> Iterator[Opened]:
    """Open a PyTorch file of either serialisation, with the names of `from_torch_names`."""
    with open_torch(path) as state:
        yield Opened("torch", from_torch_names(state))


@contextmanager
def open_safetensors(path: Path) -> Iterator[Opened]:
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
                dtype = _SAFETENSORS_DTYPES.get(str(piece.get_dtype()), "another type")
                read = partial(_read_safetensor, file, name, dtype)
                arrays[name] = Stored(tuple(piece.get_shape()), dtype, read)
            if header.get("format") == FORMAT:
                yield Opened("canonical", arrays, header)
            else:
                yield Opened("safetensors", from_torch_names(arrays))


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise InputError(
            f"its header should have {length} bytes, expected at most {_MAX_HEADER}: the file is "
            "damaged or holds far more than VGG-19, get it again"
        )


_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def _read_safetensor(file: Any, name: str, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (gives NumPy the type that safetensors asks it for)
    return file.get_tensor(name)


def from_torch_names(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename PyTorch's parameters and turn their kernels from [out, in, h, w] to [h, w, in, out].

    Known are torchvision's ``features.0.weight`` and Gatys' ``conv1_1.weight``, with any prefix
    such as ``module.``; other parameters are left out.

    Raises:
      InputError: where the names are those of another network of the VGG family.
    """
    matches = {name: match for name in state if (match := _TORCH_NAME.search(name))}
    positions = {int(match[1]) for match in matches.values() if match[1]}
    if any(name.endswith(".running_mean") for name in state):
        raise InputError("this network has batch normalisation, expected VGG-19 without it")
    if positions == set(_TORCH_VGG16):
        raise InputError("this is VGG-16 (13 convolutions), expected VGG-19 (16): use that file")
    if positions - set(_TORCH_VGG19):
        raise InputError(
            f"features has convolutions at {sorted(positions)}, expected VGG-19's "
            f"{list(_TORCH_VGG19)}: use a VGG-19 without batch normalisation"
        )
    arrays: dict[str, Stored] = {}
    for name, match in matches.items():
        conv = match[2] or CONVS[_TORCH_VGG19.index(int(match[1]))]
        add(arrays, f"{conv}/{_PARTS[match[3]]}", _hwio(state[name]))
    return arrays


def _hwio(stored: Stored) -> Stored:
    if len(stored.shape) != 4:
        return stored
    out, inputs, height, width = stored.shape
    return Stored(
        (height, width, inputs, out), stored.dtype, lambda: stored.read().transpose(2, 3, 1, 0)
    )
