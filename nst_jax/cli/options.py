"""The options of all commands, as dataclasses from which tyro builds the command line.

Options that several commands share are nested dataclasses; their flags have no prefix. The
docstrings are the help texts, see ``help``. ``COMMON`` says which flags ``--help`` shows.
Imports the standard library and tyro only.
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
    """The preset, its settings, and the network's weights.

    Attributes:
      preset: Named settings, most of them of published tools; 'nst-jax presets' lists them. Other
        flags override the preset.
      seed: Seed of the noise.
      weights: File of VGG-19 weights in any supported format. By default $NST_JAX_WEIGHTS, then
        the cache, then the slim weights that are installed with the program.
      model: Require the full network (vgg19) or the slim one (vgg19-slim).
      overwrite: Replace existing output files. In a batch this includes results of other images
        or other settings.
      deterministic: Make results on GPUs reproducible bit by bit, at some cost in speed. Results
        on CPUs always are, for the same number of threads.
      threads: Number of CPU threads, on Linux. The last bits of the result depend on it. By
        default one for each CPU that the process may use.
      max_megapixels: Largest image file to read, in millions of pixels. Protects against files
        made to exhaust the memory.
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
      bit_depth: Bits per channel; 16 for .png and .tif only.
      quality: Quality from 1 to 100 of .jpg (95 by default) and .webp (lossless by default).
    """

    bit_depth: Literal[8, 16] = 8
    quality: int | None = None


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What to write during the run.

    Attributes:
      save_every: Write a numbered preview every N steps.
      animation: Write an animation of the run, a .gif file.
      plot: Plot the loss curve to this file.
      checkpoint: Save checkpoints in this folder, from which 'nst-jax resume' continues the run.
      checkpoint_every: Save a checkpoint every N steps. By default about every 30 seconds.
    """

    save_every: int | None = None
    animation: Path | None = None
    plot: Path | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """The style images and their weights.

    Attributes:
      style: The style images. Several are mixed, unless --region-styles or --layer-styles assigns
        them to regions or layers.
      style_blend: Weight of each style image in the mix. By default all weigh the same.
      style_scale: Longer side of the style images as a multiple of the result's. Larger values
        give larger strokes.
      layer_styles: Style layers that take one style, given by its number from 1. All other layers
        mix the styles.
    """

    style: tuple[Path, ...]
    style_blend: tuple[float, ...] = ()
    style_scale: float = 1.0
    layer_styles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """Regions of the content image and their styles.

    Attributes:
      content_mask: One mask for each region of the content image: white inside, grey at soft
        edges.
      style_mask: Masks of the parts of the style images to use: one for each styled region, or
        without regions one for each style.
      labels: A label image in place of content masks. Each of its colours is a region, sorted by
        red, green and blue, black first.
      style_labels: A label image for the only style image, in the colours of the styled regions.
      region_styles: For each region the number of its style from 1, mix for all styles, or keep
        to preserve the content. By default the styles in order, or the only style.
      region_weights: Weight of the style loss of each styled region. By default 1 each.
      feather: Soften the edges of regions over N pixels of the result.
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
    """Render a content image in the style of other images.

    Writes the result, and next to it a JSON file with the settings, versions, timing and losses.

    Attributes:
      content: The content image; give it before the options. One input image may be -, for
        standard input.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG on standard output.
      size: Longer side of the result in pixels. Smaller images are enlarged.
      spread: Divide the work among all devices: by rows, which also divides the memory, or by
        tiles, with the whole image on each device.
      styles: The style images.
      regions: The regions.
      run: Settings and weights.
      watch: What to write during the run.
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
    """Estimate how much memory a run needs, and show its execution plan.

    Runs nothing and writes nothing.

    Attributes:
      content: The content image, or - for standard input. Only its aspect ratio matters.
      size: Longer side of the result in pixels.
      styled_regions: Number of styled regions, as given by --content-mask.
      memory: Plan for this many GiB of device or container memory instead of what is free here.
        On CPUs they include the program itself.
      run: Settings and weights.
    """

    content: Positional[Path]
    size: int = 512
    styled_regions: int = 0
    memory: float | None = None
    run: OmitArgPrefixes[RunOptions] = RunOptions()


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Synthesise a texture from images: the style term alone, started from noise.

    Attributes:
      style: The images that give the texture. Several are mixed.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG on standard output.
      style_blend: Weight of each image in the mix. By default all weigh the same.
      size: Side of the texture in pixels, or its width and height.
      style_size: Longer side to which the images are scaled. By default that of the texture.
      tileable: Make opposite borders match, so that copies can be laid side by side.
      run: Settings and weights.
      watch: What to write during the run.
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
    """Reconstruct an image from its features: the content term alone, started from noise.

    Attributes:
      content: The image to reconstruct, or - for standard input.
      output: The image to write: .png, .jpg, .webp or .tif, or - for a PNG on standard output.
      layer: The layers from which to reconstruct the image, each with an optional weight.
      size: Longer side of the result in pixels. Smaller images are enlarged.
      run: Settings and weights.
      watch: What to write during the run.
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
    """Continue a run from its checkpoints, as if it had not been interrupted.

    The folder holds the run's settings and images. Existing outputs of the run are replaced.

    Attributes:
      folder: The folder given to --checkpoint.
      weights: The weights file, if it has moved since.
      threads: Number of CPU threads. By default that of the run's command line, or one for each
        CPU. Another number than before changes the last bits of the result.
    """

    folder: Positional[Path]
    weights: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Stylize an image with several values of some settings, and compare them on one sheet.

    Writes a contact sheet, and next to it a JSON file with the settings and losses of each image.

    Attributes:
      content: The content image; give it before the options.
      output: The sheet to write: .png, .jpg, .webp or .tif.
      over: A setting and its values. Layers within one value are joined by +. If given several
        times, every combination is shown, with the last setting along the rows.
      batch_size: Largest number of images that one program computes together.
      size: Longer side of each image in pixels.
      styles: The style images.
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
    """List the presets, or show one of them with its formula, source and settings.

    Attributes:
      name: The preset to show. By default all are listed.
    """

    name: Positional[str | None] = None


@dataclass(frozen=True, kw_only=True)
class Version:
    """Print the version of nst-jax."""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Processes on one or several machines that share the work.

    Attributes:
      distributed: Run as one of several processes, which share the images. SLURM, Open MPI,
        Kubernetes and Cloud TPU provide the next three values; give them elsewhere.
      coordinator: Address of process 0.
      process_count: Number of processes.
      process_index: Index of this process, from 0.
    """

    distributed: Annotated[bool, FlagCreatePairsOff] = False
    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stylize many images.

    Writes CONTENT__STYLE.png for each image, and manifest.jsonl with one line per image. A second
    start makes only the missing images. Without --pair and --grid, several styles are mixed.

    Attributes:
      contents: The content images: files, folders, quoted patterns, or .txt files with one image
        per line; give them before the options.
      output_dir: Folder for the results; created if it does not exist.
      pair: Pair the contents with the styles in order; there must be as many styles as contents.
      grid: Combine every content with every style.
      batch_size: Largest number of images to compute together; auto for as many as fit into
        memory and speed up the work. On CPUs every image has at least one core.
      size: Longer side of the results in pixels. Smaller images are enlarged.
      checkpoint: Save this command line in a folder, so that 'nst-jax resume' can make the
        missing images.
      bit_depth: Bits per channel of the results.
      styles: The style images.
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
    """Download official weights, verify them and store them in the cache.

    Attributes:
      source: Where to download from: keras (80 MB), torchvision, matconvnet or its older
        generation (over 500 MB each).
    """

    source: Literal["keras", "torchvision", "matconvnet", "matconvnet-beta16"] = "keras"


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert weights of any supported format to one canonical .safetensors file.

    Attributes:
      source: A Keras .h5, MatConvNet .mat, PyTorch .pth or .safetensors file.
      output: The .safetensors file to write.
      preprocessing: The network's preprocessing, if the file does not state it.
      overwrite: Replace an existing file.
    """

    source: Positional[Path]
    output: Positional[Path]
    preprocessing: Literal["caffe", "torchvision"] | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Scale weights so that the mean activation of every channel over some images is 1.

    The network is otherwise unchanged. Writes a canonical .safetensors file.

    Attributes:
      source: Weights of the full VGG-19 in any supported format.
      output: The .safetensors file to write.
      images: The images: files, folders, quoted patterns, or .txt files with one image per line.
      size: Longer side in pixels to which the images are scaled.
      pooling: Pooling of the network with which the activations are measured.
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
    """Check a weights file: its format, shapes, values, preprocessing and checksums.

    Attributes:
      file: The file. By default the one that stylize would use.
    """

    file: Positional[Path | None] = None


@dataclass(frozen=True, kw_only=True)
class ListWeights:
    """List the weights on this machine, and the sources for 'nst-jax weights fetch'."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Fetch, convert, normalize, verify or list VGG-19 weights."""

    action: OmitSubcommandPrefixes[
        Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Normalize, tyro.conf.subcommand("normalize")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[ListWeights, tyro.conf.subcommand("list")]
    ]


# The flags that `nst-jax COMMAND --help` shows; `--help-all` shows all. Commands that are not named
# here show all of theirs.
COMMON: dict[str, tuple[str, ...]] = {
    "stylize": (
        *("content", "output", "overwrite", "style", "style_blend", "style_scale", "color"),
        *("size", "min_size", "preset", "weights", "style_weight", "content_weight", "steps"),
        *("init", "save_every", "animation", "checkpoint"),
    ),
    "texture": (
        *("style", "output", "overwrite", "style_blend", "size", "style_size", "tileable"),
        *("preset", "weights", "steps", "seed", "save_every", "checkpoint"),
    ),
    "reconstruct": (
        *("content", "output", "overwrite", "layer", "size", "preset", "weights", "steps"),
        *("seed", "save_every", "checkpoint"),
    ),
    "sweep": (
        *("content", "output", "overwrite", "over", "style", "style_blend", "style_scale"),
        *("color", "size", "batch_size", "preset", "weights", "steps"),
    ),
    "batch": (
        *("contents", "output_dir", "overwrite", "style", "pair", "grid", "style_blend"),
        *("style_scale", "color", "size", "batch_size", "preset", "weights", "style_weight"),
        *("steps", "checkpoint"),
    ),
    "estimate": (
        *("content", "size", "min_size", "styled_regions", "memory", "preset", "weights"),
        *("optimizer", "precision", "tile"),
    ),
}

# Settings that a command refuses, for they have no effect in it; its help leaves them out.
REFUSED: dict[str, tuple[str, ...]] = {
    "texture": (
        *("content_layers", "content_losses", "content_weight", "color", "guides"),
        "noise_ratio",
    ),
    "reconstruct": (
        *("content_layers", "style_layers", "style_weight", "style_losses", "histogram_layers"),
        *("covariance_eps", "style_mixing", "gram_normalization", "guides", "color"),
        "noise_ratio",
    ),
}
