"""The options of the command ``nst-jax weights``; conventions as in ``options``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional

from nst_jax.loss_config import Pooling


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download official weights, check them and keep them in the cache.

    Attributes:
      source: Where to download from: keras (80 MB), or torchvision or matconvnet (also
        its older generation), over 500 MB each.
    """

    source: Literal["keras", "torchvision", "matconvnet", "matconvnet-beta16"] = "keras"


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert weights of any known form into one canonical .safetensors file.

    Attributes:
      source: A Keras .h5, MatConvNet .mat, PyTorch .pth or .safetensors file.
      output: The .safetensors file to write.
      preprocessing: What the network expects, where the file does not tell.
      overwrite: Replace an existing file.
    """

    source: Positional[Path]
    output: Positional[Path]
    preprocessing: Literal["caffe", "torchvision"] | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Scale weights so that every channel's mean activation over some pictures is 1.

    The network is otherwise the same. Writes a canonical .safetensors file that says so.

    Attributes:
      source: Weights of the full VGG-19 in any known form.
      output: The .safetensors file to write.
      pictures: Pictures to measure on: files, folders, quoted patterns, or .txt lists.
      size: Longer side in pixels to which the pictures are scaled.
      pooling: Pooling of the network with which the mean is 1.
      overwrite: Replace an existing file.
      max_megapixels: Largest picture file to read, in millions of pixels.
    """

    source: Positional[Path]
    output: Positional[Path]
    pictures: Positional[tuple[Path, ...]]
    size: int = 256
    pooling: Pooling = "max"
    overwrite: bool = False
    max_megapixels: float = 89.5


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a weights file: form, shapes, values, preprocessing and checksums.

    Attributes:
      file: The file; by default the one that stylize would use.
    """

    file: Positional[Path | None] = None


@dataclass(frozen=True, kw_only=True)
class ListWeights:
    """List the weights on this machine and the sources to fetch from."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Fetch, convert, normalize, verify and list VGG-19 weights."""

    action: OmitSubcommandPrefixes[
        Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Normalize, tyro.conf.subcommand("normalize")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[ListWeights, tyro.conf.subcommand("list")]
    ]
