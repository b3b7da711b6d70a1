"""Convert a file of VGG-19 weights in any known format to one tree. NumPy only.

The tree is ``{"params": {"conv1_1": {"kernel", "bias"}, ...}, "preprocessing": {"mean", "std"}}``,
all float32. Kernels are [height, width, in, out] and the network's input is
``(image - mean) / std`` for an RGB image in [0, 1]. During conversion the arrays are flat:
``{"conv1_1/kernel": ..., ...}``.

Two trained VGG-19 are in use:

* "caffe", the original (Simonyan and Zisserman 2015), which Keras, MatConvNet and Gatys also
  distribute. Its input is BGR in [0, 255] minus the mean colour of ImageNet, not divided by a
  standard deviation.
* "torchvision", trained independently. Its input is RGB in [0, 1], minus the mean and divided by
  the standard deviation of ImageNet.

Their arrays have the same shapes, and files store the same network for RGB or for BGR. A wrong
pairing of weights and preprocessing only makes the images a little worse, so nobody would notice.
The values of the first filter therefore decide; the file's format decides only for an unknown
network.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nst_jax.config.layers import CHANNELS, CONVS, TAPS, block_of, convs_to, deepest
from nst_jax.errors import InputError
from nst_jax.system.files import expand_home, file_digest
from nst_jax.weights.canonical import (
    Preprocessing,
    Record,
    check_contents,
    parse_header,
    write_canonical,
)
from nst_jax.weights.foreign import MAX_VALUES, OpenedWeights, Stored, printable
from nst_jax.weights.readers import CAFFE_MEAN, open_weights

# In terms of RGB images in [0, 1]:
# - caffe: 255 x - m = (x - m / 255) / (1 / 255), with the mean colour m in [0, 255]
#   (``keras.applications.imagenet_utils.preprocess_input``, mode "caffe"). The order BGR is taken
#   out of the kernel of conv1_1 instead, see `_to_rgb`.
# - torchvision: ``torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()``.
PREPROCESSING = {
    "caffe": Preprocessing(
        kind="caffe",
        mean=(CAFFE_MEAN[0] / 255, CAFFE_MEAN[1] / 255, CAFFE_MEAN[2] / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
    "torchvision": Preprocessing(
        kind="torchvision", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}

# (licence, attribution) of each network. Both licences require a notice, so every converted file
# carries it in its header.
CREDITS = {
    "caffe": (
        "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "VGG-19 by Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of "
        "Oxford, https://www.robots.ox.ac.uk/~vgg/research/very_deep/. Changed: layout of the "
        "arrays, fully connected layers left out.",
    ),
    "torchvision": (
        "BSD-3-Clause, https://github.com/pytorch/vision/blob/main/LICENSE",
        "VGG-19 of torchvision (IMAGENET1K_V1), copyright Soumith Chintala 2016 and "
        "contributors. Changed: layout of the arrays, fully connected layers left out.",
    ),
}

# The first filter of conv1_1 as [channel (R, G, B), row, column]. One filter is enough: for any two
# combinations of network, channel order and transposition some entry differs by at least 0.05. It
# is also the only part of torchvision's network that can be found in print, without its file. The
# tolerance allows for weights that were rounded to 16 bits.
FIRST_FILTER = {
    "caffe": (
        (
            (0.39417, 0.37740, -0.04595),
            (0.26713, 0.09986, -0.34101),
            (-0.07574, -0.28034, -0.41602),
        ),
        (
            (0.46418, 0.41811, -0.04807),
            (0.30511, 0.10385, -0.37314),
            (-0.07647, -0.31071, -0.46454),
        ),
        (
            (0.34120, 0.33999, -0.04484),
            (0.23216, 0.08978, -0.30331),
            (-0.07261, -0.24668, -0.33683),
        ),
    ),
    "torchvision": (
        ((-0.05347, -0.04926, -0.06794), (0.01531, 0.04507, 0.00214), (0.03623, 0.02000, 0.01986)),
        ((0.01702, 0.05540, -0.00623), (0.14165, 0.22705, 0.13758), (0.12000, 0.20030, 0.09211)),
        ((-0.04489, 0.01268, -0.01450), (0.05974, 0.13955, 0.05410), (-0.00096, 0.05830, -0.02966)),
    ),
}

_TOLERANCE = 2e-3

_VGG16 = {conv for conv in CONVS if conv not in ("conv3_4", "conv4_4", "conv5_4")}


class Layout(NamedTuple):
    """How kernels are stored in a file.

    Attributes:
      network: "caffe" or "torchvision".
      bgr: whether conv1_1 takes blue, green, red.
      transposed: whether kernels are [width, height, in, out].
    """

    network: str
    bgr: bool
    transposed: bool = False


def recognise(kernel: np.ndarray) -> Layout | None:
    """Recognise a known network and its layout by the first filter.

    Args:
      kernel: the kernel of conv1_1, [3, 3, 3, out], as stored in the file.

    Returns:
      The layout, None for an unknown network.
    """
    first = kernel[..., 0].transpose(2, 0, 1)
    for network, target in FIRST_FILTER.items():
        for bgr in (False, True):
            for transposed in (False, True):
                candidate = first[::-1] if bgr else first
                candidate = candidate.swapaxes(1, 2) if transposed else candidate
                if np.allclose(candidate, target, rtol=0, atol=_TOLERANCE):
                    return Layout(network, bgr, transposed)
    return None


class Converted(NamedTuple):
    """Weights read from a file.

    Attributes:
      arrays: flat arrays in the canonical layout.
      record: what the file or its network tells about them.
      form: the file's format, as in `OpenedWeights`.
      network: the network recognised by its first filter, if any.
      sha256: checksum of the file.
      half: whether the file is canonical and stores float16.
    """

    arrays: dict[str, np.ndarray]
    record: Record
    form: str
    network: str | None
    sha256: str
    half: bool = False


def convert(path: str | Path, *, preprocessing: str | None = None) -> Converted:
    """Read a file of VGG-19 weights in any known format.

    Args:
      path: a canonical .safetensors, Keras .h5, MatConvNet .mat, PyTorch .pth, or a .safetensors
        with torchvision's names. The content decides, not the file's name.
      preprocessing: "caffe" or "torchvision", for weights that belong to neither known network.
        It implies the channel order: caffe is BGR (RGB in MatConvNet's files), torchvision RGB.

    Returns:
      The arrays and what is known about them.

    Raises:
      InputError: if the file is damaged, holds another network, or leaves its preprocessing open.
    """
    path = expand_home(path)
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise InputError(
            f"unknown preprocessing {preprocessing!r}: expected one of {', '.join(PREPROCESSING)}"
        )
    with open_weights(path) as opened:
        _check_stored(opened)
        arrays = {name: _read(name, stored) for name, stored in opened.arrays.items()}
        sha256 = file_digest(path)
        found = recognise(arrays["conv1_1/kernel"])
        network = found.network if found else None
        if opened.header is not None:
            record = parse_header(opened.header)
            check_contents(arrays, opened.header)
            if preprocessing not in (None, record.preprocessing.kind):
                raise InputError(_contradiction(record.preprocessing.kind, preprocessing))
            half = all(stored.dtype == "float16" for stored in opened.arrays.values())
            return Converted(arrays, record, opened.form, network, sha256, half)
        layout = _choose_layout(found, opened.form, preprocessing)
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
    """Convert a weights file to the canonical format.

    Args:
      source: a file in any format that `load_weights` reads.
      destination: the .safetensors to write.
      preprocessing: "caffe" or "torchvision", only for weights of neither known network.
      overwrite: whether an existing file may be replaced.

    Returns:
      The path of the written file.

    Raises:
      InputError: if the source cannot be used or the destination cannot be written.
    """
    destination = expand_home(destination)
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
    """Build the tree from flat arrays.

    >>> flat = {"conv1_1/kernel": np.ones((3, 3, 3, 4)), "conv1_1/bias": np.ones(4)}
    >>> to_tree(flat, PREPROCESSING["torchvision"])["params"]["conv1_1"]["bias"].shape
    (4,)
    """
    params: dict[str, Any] = {}
    projections: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, layer, part = name.split("/")
        entry = projections.setdefault(path[1], {}) if path else params
        entry.setdefault(layer, {})[part] = array
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    tree = {"params": params, "preprocessing": {"mean": mean, "std": std}}
    return tree | {"lift": projections} if projections else tree


def to_arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flatten a tree to float32 arrays; the inverse of ``to_tree``."""

    def flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from flatten(value, f"{prefix}{key}/")
            else:
                yield prefix + key, np.asarray(value, np.float32)

    projections = dict(flatten(variables.get("lift", {}), "lift/"))
    return dict(flatten(variables["params"], "")) | projections


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `InputError` for the first array that holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"expected finite numbers, got NaN or infinity in {name}: get the file again"
            )


def _check_stored(opened: OpenedWeights) -> None:
    shapes = {name: stored.shape for name, stored in opened.arrays.items()}
    check_shapes(shapes)
    # `check_shapes` allows any numbers of channels, so it does not bound the size.
    if (total := sum(map(math.prod, shapes.values()))) > MAX_VALUES:
        raise InputError(f"expected at most {MAX_VALUES} numbers in all arrays, got {total}")


def _read(name: str, stored: Stored) -> np.ndarray:
    if stored.dtype.lstrip("<>=") not in ("float16", "bfloat16", "float32", "float64"):
        raise InputError(f"expected floating-point numbers in {name}, got {stored.dtype}")
    with np.errstate(over="ignore"):  # float64 may overflow to infinity, refused below
        array = np.ascontiguousarray(stored.read(), np.float32)
    check_finite({name: array})
    return array


def _choose_layout(found: Layout | None, form: str, preprocessing: str | None) -> Layout:
    """The layout of the kernels: as recognised, otherwise by the file's format or the user."""
    if found is not None:
        if preprocessing not in (None, found.network):
            raise InputError(_contradiction(found.network, preprocessing))
        return found
    if form == "matconvnet" and preprocessing is None:
        # Reports differ on the order of a kernel's axes in these files: only a known filter
        # settles it.
        raise InputError(
            "conv1_1 is neither that of imagenet-vgg-verydeep-19 nor its transpose: if the file "
            "is not damaged but was trained further, convert it first with 'nst-jax weights "
            "convert FILE OUTPUT --preprocessing caffe'"
        )
    if form != "keras" and preprocessing is None:
        raise InputError(
            "the network is unknown, so its preprocessing has to be named: convert the file first "
            "with 'nst-jax weights convert FILE OUTPUT --preprocessing' and caffe (BGR, 0-255) or "
            "torchvision (RGB)"
        )
    network = preprocessing or "caffe"
    # MatConvNet stores RGB and, according to its manual, [height, width].
    return Layout(network, bgr=network == "caffe" and form != "matconvnet")


def _contradiction(found: str, given: str | None) -> str:
    return f"the weights need {found} preprocessing, got {given}: leave that option out"


def _to_rgb(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    def reorder(name: str, array: np.ndarray) -> np.ndarray:
        if layout.transposed and array.ndim == 4:
            array = array.swapaxes(0, 1)
        if layout.bgr and name == "conv1_1/kernel":
            array = array[:, :, ::-1]
        return np.ascontiguousarray(array)

    return {name: reorder(name, array) for name, array in arrays.items()}


def expected_shapes(
    channels: tuple[int, ...], *, lifts: Iterable[tuple[str, str]] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of a VGG-19.

    Args:
      channels: the numbers of channels of the five blocks.
      lifts: for slim weights, the pairs (pooling, layer) that have a projection. The network ends
        with the deepest of these layers.

    >>> expected_shapes((64, 128, 256, 512, 512))["conv2_1/kernel"]
    (3, 3, 64, 128)
    """
    lifts = tuple(lifts)
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    projected = tuple(layer for _, layer in lifts)
    for conv in convs_to(deepest(projected)) if projected else CONVS:
        outputs = channels[block_of(conv) - 1]
        shapes[f"{conv}/kernel"] = (3, 3, inputs, outputs)
        shapes[f"{conv}/bias"] = (outputs,)
        inputs = outputs
    for pooling, layer in lifts:
        block = block_of(layer) - 1
        shapes[f"lift/{pooling}/{layer}/kernel"] = (channels[block], CHANNELS[block])
        shapes[f"lift/{pooling}/{layer}/bias"] = (CHANNELS[block],)
    return shapes


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], *, channels: tuple[int, ...] | None = None
) -> None:
    """Check that arrays of these shapes form a VGG-19, full or slim.

    Args:
      shapes: shapes by name.
      channels: the numbers of channels of the five blocks; any numbers if not given.

    Raises:
      InputError: names the first array that is missing, unexpected or has a wrong shape.
    """
    if {name.split("/")[0] for name in shapes} == _VGG16:
        raise InputError("expected VGG-19 (16 convolutions), got VGG-16 (13): use a file of VGG-19")
    projections = find_projections(shapes)
    names = expected_shapes(CHANNELS, lifts=projections)
    missing = [name for name in names if name not in shapes]
    if missing:
        raise InputError(
            f"expected the convolutions of VGG-19, but {missing[0]} is missing, and "
            f"{len(missing) - 1} more of {len(names)} arrays: use a file of VGG-19"
        )
    extra = sorted(set(shapes) - set(names))
    if extra:
        raise InputError(f"{extra[0]!r} is not an array of VGG-19: convert the original again")
    if channels is None:
        kernels = (shapes.get(f"conv{block}_1/kernel", ())[-1:] for block in range(1, 6))
        channels = tuple(max((1, *size)) for size in kernels)
    for name, expected in expected_shapes(channels, lifts=projections).items():
        if tuple(shapes[name]) != expected:
            raise InputError(
                f"expected shape {expected} for {name}, got {tuple(shapes[name])}: use a file of "
                "VGG-19"
            )


def find_projections(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The pairs (pooling, layer) that have a projection in slim weights, in network order."""
    pairs = {tuple(parts[1:3]) for name in names if len(parts := name.split("/")) == 4}
    return tuple(pair for pair in itertools.product(("max", "average"), TAPS) if pair in pairs)
