"""The forms in which VGG-19's weights are found: what a file is, and which array is which layer.

Every ``open_*`` is a context manager that yields `Opened`: the arrays of the convolutions under
the names ``conv1_1/kernel`` and ``conv1_1/bias``, kernels as [height, width, in, out], everything
else in the file left out. Nothing is decided here about channel order or preprocessing.
"""

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from nst_jax.errors import InputError
from nst_jax.hdf5_file import datasets, stored
from nst_jax.mat_file import read_mat
from nst_jax.stored import MAX_FILE, Opened, Stored, add, damaged_is_input_error
from nst_jax.torch_forms import open_pth, open_safetensors

CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green, blue, of pixels in 0-255
_MAX_AVERAGE = 3 * 2**20  # numbers in the mean picture, which has 224 x 224 x 3

_KERAS_NAME = re.compile(
    r"(?:^|/)block(\d)_conv(\d)/(?:.+/)?(?:block\d_conv\d_)?(W|b|kernel|bias)(?:_1)?(?::0)?$"
)
_PARTS = {"W": "kernel", "kernel": "kernel", "b": "bias", "bias": "bias"}


def find_form(path: Path) -> str:
    """Form of a file of weights, from its first bytes and never from its name.

    Args:
      path: the file.

    Returns:
      "keras", "matconvnet", "torch" or "safetensors".

    Raises:
      InputError: where there is no such file, it is far too large, or it begins like none of these.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, expected a file of VGG-19 weights: name the file")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is no file, expected VGG-19 weights: name their file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(
            f"cannot read the weights {path} ({error.strerror}): check the path, or run "
            "'nst-jax weights fetch'"
        ) from error
    if found.st_size > MAX_FILE:  # of which the checksum alone would take minutes
        raise InputError(
            f"{path} has {found.st_size / 2**30:.1f} GiB, expected at most {MAX_FILE // 2**30} "
            "(VGG-19 has 0.6): save the network alone"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith(b"MATLAB 5"):
        return "matconvnet"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 * 2**20:
        return "safetensors"
    raise InputError(
        f"{path} {_describe(head)}, expected VGG-19 weights as .safetensors, Keras .h5, PyTorch "
        ".pth or MatConvNet .mat: get the file again, or run 'nst-jax weights fetch'"
    )


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (a download that went wrong)"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer without its data"
    if head.startswith(b"MATLAB 7"):
        return "is a MATLAB 7.3 file"
    return "is of no known form"


def open_weights(path: Path) -> AbstractContextManager[Opened]:
    """Open a file of weights in whichever form it has; see `find_form` and the ``open_*``."""
    return _OPENERS[find_form(path)](path)


@contextmanager
def open_keras(path: Path) -> Iterator[Opened]:
    """Open Keras' HDF5 file, with or without the fully connected layers, of any Keras up to 2.

    Names: ``block1_conv1/block1_conv1_W_1:0`` (Keras 1) or ``block1_conv1/kernel:0`` at any depth.
    """
    import h5py

    with damaged_is_input_error(path, "Keras .h5"), h5py.File(path, "r") as file:
        arrays: dict[str, Stored] = {}
        for name, dataset in datasets(file):
            if match := _KERAS_NAME.search(name):
                block, index, part = match.groups()
                add(arrays, f"conv{block}_{index}/{_PARTS[part]}", stored(name, dataset))
        yield Opened("keras", arrays)


@contextmanager
def open_matconvnet(path: Path) -> Iterator[Opened]:
    """Open MatConvNet's .mat file, of either released generation.

    The older has ``normalization.averageImage`` as a whole picture and, at first, ``filters`` and
    ``biases`` instead of ``weights``; the newer has ``meta.normalization``.
    """
    with damaged_is_input_error(path, "MatConvNet .mat"):
        data = read_mat(path, ("layers", "meta", "normalization"))
        arrays: dict[str, Stored] = {}
        for layer in data.get("layers", ()):
            name = str(layer.get("name"))
            if re.fullmatch(r"conv\d_\d", name):
                pair = layer.get("weights") or (layer["filters"], layer["biases"])
                kernel, bias = pair
                add(arrays, f"{name}/kernel", kernel)
                add(arrays, f"{name}/bias", _flat(bias))
        normalization = data.get("meta", data).get("normalization", {})
        if average := normalization.get("averageImage"):
            _check_average(average)
        yield Opened("matconvnet", arrays)


def _flat(stored: Stored) -> Stored:
    """A bias as a vector: MATLAB has none, so it is stored as a row or a column."""
    return Stored((math.prod(stored.shape),), stored.dtype, lambda: stored.read().ravel())


def _check_average(average: Stored) -> None:
    if math.prod(average.shape) == 0:
        return
    # A whole picture [224, 224, 3], or one colour in any of the shapes of a vector.
    if math.prod(average.shape) > _MAX_AVERAGE:
        raise InputError(f"the mean picture has the shape {average.shape}, expected (224, 224, 3)")
    with np.errstate(all="ignore"):  # of values that are no colours
        mean = average.read().reshape(-1, 3, order="F").mean(0)
    if not np.allclose(mean, CAFFE_MEAN, atol=0.1):
        raise InputError(
            f"the mean colour is {np.round(mean, 2).tolist()}, expected {list(CAFFE_MEAN)} (red, "
            "green, blue) of imagenet-vgg-verydeep-19: use that file"
        )


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    "keras": open_keras,
    "matconvnet": open_matconvnet,
    "torch": open_pth,
    "safetensors": open_safetensors,
}
