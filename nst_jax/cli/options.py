"""Options of all commands, from which tyro makes the command line. Standard library and tyro only.

What several commands have in common stands once and is nested; its flags have no prefix.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
)

from nst_jax.config.config import Config
from nst_jax.config.loss import Pooling

Output = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings and weights.

    Attributes:
      preset: Settings by name, most of published tools, see nst-jax presets; other flags override
        them.
      seed: Seed of the noise.
      weights: VGG-19 weights in any known form; by default those of $NST_JAX_WEIGHTS, of the
        cache, or else the slim ones that come with the program.
      model: Insist on the full network or on the slim one.
      overwrite: Replace existing output files; in a batch, those of other images or settings.
      deterministic: Let GPUs, too, give the same bits each time, at some cost of speed; CPUs always
        do on the same number of threads.
      threads: How many CPU threads to compute on, on which the result's bits depend; by default as
        many as the process has CPUs for, by its affinity mask and CPU quota. On Linux.
      max_megapixels: Largest image file to read, in millions of pixels; a guard against files
        made to fill the memory.
      config: Settings of the optimisation.
    """

    preset: str = "neural-style"
    seed: int = 0
    weights: Path | None = None
    model: Literal["vgg19", "vgg19-slim"] | None = None
    overwrite: bool = False
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    threads: int | None = None
    max_megapixels: float = 89.5  # Pillow's own limit, rounded
    config: OmitArgPrefixes[Config] = Config()


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How the result is written.

    Attributes:
      bit_depth: Bits a channel; 16 for .png and .tif.
      quality: 1 to 100, for .jpg (95 by default) and .webp (lossless by default).
    """

    bit_depth: Literal[8, 16] = 8
    quality: int | None = None


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What to write on the way.

    Attributes:
      save_every: Write a numbered preview at every so many steps.
      animation: Write the progression as a GIF.
      plot: Draw the loss curve into this file.
      checkpoint: Keep in this folder where the run stands, so that 'nst-jax resume' can go on.
      checkpoint_every: Save at every so many steps; by default about every half minute.
    """

    save_every: int | None = None
    animation: Path | None = None
    plot: Path | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """The styles and their shares.

    Attributes:
      style: The style image; several are mixed, or hold in regions or layers of their own.
      style_blend: Factor of each style image; by default all count the same.
      style_scale: Size of the style images: longer side as a multiple of the result's. Larger
        ones give larger strokes.
      layer_styles: Style layers with a style of their own, by its number from 1, as NAME=NUMBER;
        the other layers mix all styles.
    """

    style: tuple[Path, ...]
    style_blend: tuple[float, ...] = ()
    style_scale: float = 1.0
    layer_styles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """Regions of the content and their styles.

    Attributes:
      content_mask: A mask for each region of the content, white inside; grey edges are soft.
      style_mask: The part of a style image that counts: a mask for each styled region, or
        without regions one for each style.
      labels: One image in place of content masks: each of its colours is a region, in the
        order of red, green and blue, black first.
      style_labels: The same for the one style image, with the colours of the styled regions.
      region_styles: For each region the number of its style from 1, mix for all of them, or keep
        to leave it as it is. Default: as many styles as regions in their order, or the one style.
      region_weights: Factor of the style loss of each styled region.
      feather: Soften the regions' edges by so many pixels of the result.
    """

    content_mask: tuple[Path, ...] = ()
    style_mask: tuple[Path, ...] = ()
    labels: Path | None = None
    style_labels: Path | None = None
    region_styles: tuple[str, ...] = ()
    region_weights: tuple[float, ...] = ()
    feather: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stylize:
    """Give a content image the style of others.

    Writes the image, and beside it a JSON file with settings, versions, timing and the history
    of the loss.

    Attributes:
      content: The content image; name it first. - reads standard input, as for any one image.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG to standard output.
      size: Longer side of the result in pixels; may enlarge.
      spread: Divide the image among all devices: by its rows, with a part of the memory on each,
        or its tiles, with the whole image on each.
      styles: The styles.
      regions: The regions.
      run: Settings and weights.
      watch: What to write on the way.
      image: How the result is written.
    """

    content: Positional[Path]
    output: Output
    size: int = 512
    spread: Literal["rows", "tiles"] | None = None
    styles: OmitArgPrefixes[StyleOptions]
    regions: OmitArgPrefixes[RegionOptions] = RegionOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    watch: OmitArgPrefixes[WatchOptions] = WatchOptions()
    image: OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Tell what a run will need of the memory and how it will be computed, and run nothing.

    Attributes:
      content: The content image, - for standard input; only its proportions matter.
      size: Longer side of the result in pixels.
      styled_regions: Number of regions with a style of their own, as by --content-mask.
      memory: Plan for a device or container with so many GiB in place of what is free here. On
        CPUs the program itself takes some of them.
      run: Settings and weights.
    """

    content: Positional[Path]
    size: int = 512
    styled_regions: int = 0
    memory: float | None = None
    run: OmitArgPrefixes[RunOptions] = RunOptions()


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Make a texture from images: the style term alone, started from noise.

    Attributes:
      style: The image whose texture to make; several are mixed.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG to standard output.
      style_blend: Factor of each image; by default all count the same.
      size: Side of the texture in pixels, or its width and height.
      style_size: Longer side to which the images are scaled; by default that of the texture.
      tileable: Let opposite borders fit each other.
      run: Settings and weights.
      watch: What to write on the way.
      image: How the result is written.
    """

    style: Positional[tuple[Path, ...]]
    output: Output
    style_blend: tuple[float, ...] = ()
    size: tuple[int, ...] = (512,)
    style_size: int | None = None
    tileable: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    watch: OmitArgPrefixes[WatchOptions] = WatchOptions()
    image: OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Show what layers know of an image: the content term alone, started from noise.

    Attributes:
      content: The image to reconstruct, - for standard input.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG to standard output.
      layer: The layers to reconstruct it from, together; with factors as NAME=FACTOR.
      size: Longer side of the result in pixels; may enlarge.
      run: Settings and weights.
      watch: What to write on the way.
      image: How the result is written.
    """

    content: Positional[Path]
    output: Output
    layer: tuple[str, ...]
    size: int = 512
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    watch: OmitArgPrefixes[WatchOptions] = WatchOptions()
    image: OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run from its checkpoints, as if it had not ended.

    Its settings and images are in the folder; outputs of its names are replaced.

    Attributes:
      folder: The folder that --checkpoint has named.
      weights: The network's file, where it is not at its place any more.
      threads: How many CPU threads to compute on; by default the number that the run was told, or
        as many as the process has CPUs for. On another number than before the bits differ.
    """

    folder: Positional[Path]
    weights: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Stylize with several values of some settings, into one sheet.

    Writes a contact sheet, and beside it a JSON file with the settings and losses of each image.

    Attributes:
      content: The content image; name it first.
      output: The sheet to write: .png, .jpg, .webp or .tif.
      over: A setting and its values, as NAME=VALUE,VALUE; several layers of one value are joined
        by +. May be given several times: every combination is shown, the last setting along the
        rows.
      batch_size: How many images advance together in one program, at most.
      size: Longer side of each image in pixels.
      styles: The styles.
      regions: The regions.
      run: Settings and weights.
    """

    content: Positional[Path]
    output: Output
    over: UseAppendAction[tuple[str, ...]]
    batch_size: int = 8
    size: int = 256
    styles: OmitArgPrefixes[StyleOptions]
    regions: OmitArgPrefixes[RegionOptions] = RegionOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions()


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets, or show one with its formula and source.

    Attributes:
      name: The preset to show.
    """

    name: Positional[str | None] = None


@dataclass(frozen=True, kw_only=True)
class Version:
    """Print the version."""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Several processes, on one machine or many, that share the work.

    Attributes:
      distributed: Be one of several processes, each of which takes its part of the images. SLURM,
        Open MPI, Kubernetes and Cloud TPU tell which one; elsewhere name the next three.
      coordinator: Address of process 0, HOST:PORT.
      process_count: How many processes there are.
      process_index: Which one this is, from 0.
    """

    distributed: Annotated[bool, FlagCreatePairsOff] = False
    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stylize many images.

    Writes CONTENT__STYLE.png for each, and manifest.jsonl with a line for each. Started again, it
    makes only what is missing. Several styles without --pair and --grid are mixed, as by stylize.

    Attributes:
      contents: The content images: files, folders, quoted patterns, and .txt files that list one
        image a line; name them first.
      output_dir: Folder for the results; it is made where it does not exist.
      pair: Give each content the style at its place: as many styles as contents.
      grid: Make every content with every style.
      batch_size: How many images to compute at once, at most: auto for as many as fit into the
        memory and are of use. On CPUs each has a core at least.
      size: Longer side of the results in pixels; may enlarge.
      checkpoint: Keep this command line in a folder, so that 'nst-jax resume' can go on with the
        images that are missing.
      bit_depth: Bits a channel of the results.
      styles: The styles.
      run: Settings and weights.
      processes: Several processes.
    """

    contents: Positional[tuple[Path, ...]]
    output_dir: Annotated[Path, arg(aliases=["-o"])]
    pair: Annotated[bool, FlagCreatePairsOff] = False
    grid: Annotated[bool, FlagCreatePairsOff] = False
    batch_size: int | Literal["auto"] = "auto"
    size: int = 512
    checkpoint: Path | None = None
    bit_depth: Literal[8, 16] = 8
    styles: OmitArgPrefixes[StyleOptions]
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    processes: OmitArgPrefixes[ProcessOptions] = ProcessOptions()


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
    """Scale weights so that every channel's mean activation over some images is 1.

    The network is otherwise the same. Writes a canonical .safetensors file that says so.

    Attributes:
      source: Weights of the full VGG-19 in any known form.
      output: The .safetensors file to write.
      images: Images to measure on: files, folders, quoted patterns, or .txt lists.
      size: Longer side in pixels to which the images are scaled.
      pooling: Pooling of the network with which the mean is 1.
      overwrite: Replace an existing file.
      max_megapixels: Largest image file to read, in millions of pixels.
    """

    source: Positional[Path]
    output: Positional[Path]
    images: Positional[tuple[Path, ...]]
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
