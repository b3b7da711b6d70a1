"""Settings of a run as frozen, keyword-only dataclasses. Standard library only.

``Config`` is what a person sets: the command line is generated from it and it is saved beside
every result. ``LossConfig`` is the part of it that shapes the compiled program; every number that
someone may sweep (weights, learning rate) stays outside, so that changing one does not recompile.
"""

from dataclasses import dataclass, fields
from typing import Literal

from nst_jax.config_checks import check_config
from nst_jax.layer_factors import STYLE_LAYERS, Layers, as_layers
from nst_jax.loss_config import (
    HISTOGRAM_LAYERS,
    GramNormalization,
    Guides,
    LossConfig,
    Padding,
    Pooling,
    Precision,
    StyleMixing,
    TVForm,
    TVReduction,
)
from nst_jax.loss_factors import CONTENT_LOSSES, STYLE_LOSSES, Losses, LossFactor, as_losses

Optimizer = Literal["lbfgs", "lbfgs-linesearch", "adam"]
Noise = Literal["normal", "uniform"]
Preconditioner = Literal["none", "spectral"]
Convolution = Literal["auto", "direct", "winograd"]
Tile = int | Literal["auto", "off"]
Remat = Literal["auto", "on", "off"]
Color = Literal[
    "none",
    "keep-yiq",
    "keep-ycbcr",
    "keep-lab",
    "match-cholesky",
    "match-pca",
    "match-symmetric",
    "match-histogram",
    "luminance",
]

INITS = ("content", "noise", "blend")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run of the optimisation depends on but pictures, network and seed.

    The default is neural-style-pt's objective started from the content picture.

    Attributes:
      content_layers: Layers of the content term; with factors as NAME=FACTOR.
      style_layers: Layers of the style term; with factors as NAME=FACTOR, or after the name of a
        scheme: equal, 1/C2, geometric, course.
      content_losses: What the content term compares, with factors as NAME=FACTOR: features, the
        self-similarity of features (STROTSS), and Laplacians of the picture averaged over
        squares of 4 or 16 pixels (laplacian4, laplacian16).
      style_losses: What the style term compares, likewise: Gram matrices (gram) or those of
        centred features (covariance), means and standard deviations of channels (mean-std),
        Gaussians by their 2-Wasserstein distance (wasserstein), histograms of channels (histogram).
      histogram_layers: Style layers of the histogram loss; by default relu1_1 and relu4_1 as far as
        they are style layers.
      covariance_eps: What wasserstein adds to the diagonal of covariance matrices, in squared
        units of the features.
      content_weight: Factor of the content term.
      style_weight: Factor of the style term.
      tv_weight: Factor of the total variation, for pixels in [0, pixel_range].
      pooling: Pooling of the network: the greatest or the average of four values, twice the average
        (average-scaled), or 0.78 times the root of the sum of squares (l2); the last two make up
        for an average's smaller activations, and more.
      gram_normalization: Divisor of the Gram matrices: the h*w (hw) or C*h*w (chw) of their
        layer.
      tv_form: Total variation of horizontal and vertical differences apart (anisotropic), together
        as the gradient's length (isotropic), or of those to all eight neighbours (nine-point).
      tv_order: Power p of the differences: anisotropic sums |d|^p / p for p = 1 or 2, isotropic
        (dx^2 + dy^2)^(p/2), nine-point squares only (2).
      tv_reduction: Sum over all pixels, or mean over all values.
      mse_factor: Factor of every mean squared error; 1/4 in the course version.
      pixel_range: Range of pixels for the total variation and the optimiser's units.
      style_mixing: Several styles by the average of their Gram matrices, or by the sum of
        their losses; with the same shares both have the same gradient.
      guides: How masks reach a layer: averaged (simple), or with those features only that see
        nothing else (inside), or with all that see anything of the region (all).
      padding: What the network sees beyond a picture's border, the styles' too: zero, the mirrored
        picture (reflect), the border repeated (replicate, or replicate-input at the first layer
        alone), or (circular) the opposite border, so that the result tiles; its sides must then be
        multiples of the deepest layer's stride, and those of styles are cropped to such.
      color: Colours of the result: the content's kept afterwards (keep-...: its chroma under the
        result's luminance), the style's matched to the content's before (match-...), or (luminance)
        transfer of luminance only.
      optimizer: L-BFGS with Torch's fixed step, L-BFGS with line search, or Adam.
      learning_rate: Step size for pixels in [0, pixel_range]. Default 1 for lbfgs and 10/255 of
        the range for adam; not for lbfgs-linesearch.
      memory_size: Pairs that L-BFGS remembers. Default 100, with line search 10; not for adam.
      adam_beta1, adam_beta2, adam_epsilon: Of adam: decay of its moments, and what it adds to the
        root of the second.
      clip: Keep pixels in [0, 1] after each step of adam.
      preconditioner: Coordinates in which the optimiser works: the pixels themselves, or (spectral)
        frequencies and colours scaled so that fewer steps are needed.
      steps: Optimisation steps; each evaluates loss and gradient once (line search: at
        least once). The result is the evaluated picture of lowest loss.
      min_size: Longer side of the coarsest scale, at least. The run goes from there to the wanted
        size, each scale starting from the result of the one before; for one picture, not for batch
        and sweep. Default: the wanted size alone.
      scale_factor: Ratio of the sizes of neighbouring scales.
      scale_steps: Steps of the scales before the last, the coarsest first; the last number holds
        for the rest. Default: the same as steps for each.
      averaging: Decay of a running average of the pictures, as 0.99 for adam, which is then the
        result in place of the one of lowest loss; 0 for none.
      init: Initial picture: content, noise, blend (of both), or a file. A script reads the file
        itself and passes the picture to stylize.
      noise: Distribution of the noise around the network's mean colour.
      noise_scale: Standard deviation (normal) or half width (uniform) of the noise, for
        pixels in [0, 1].
      noise_ratio: Share of noise in a blend.
      convolution: How the network convolves: direct, or winograd with a quarter of the
        multiplications and a little more rounding; auto takes winograd on CPUs only.
      precision: Of the network: float32; tf32 with products of 10 bits, on NVIDIA GPUs only; or
        bfloat16 activations, with half of the memory. Gram matrices are summed in float32 and the
        picture is kept in float32 always.
      tile: Longest side of the tiles in which the picture is taken, with the same loss and gradient
        to rounding; off for the whole picture; auto for tiles where the whole does not fit into the
        memory.
      remat: Compute activations twice rather than keep them: on, off, or auto where the whole
        picture does not fit otherwise. Tiles always do so.
    """

    content_layers: Layers = (("relu4_2", 1.0),)
    style_layers: Layers = STYLE_LAYERS
    content_losses: Losses = (LossFactor("features", 1.0),)
    style_losses: Losses = (LossFactor("gram", 1.0),)
    histogram_layers: tuple[str, ...] = HISTOGRAM_LAYERS
    covariance_eps: float = 1e-4
    content_weight: float = 5.0
    style_weight: float = 100.0
    tv_weight: float = 1e-3
    pooling: Pooling = "max"
    gram_normalization: GramNormalization = "chw"
    tv_form: TVForm = "anisotropic"
    tv_order: float = 1
    tv_reduction: TVReduction = "sum"
    mse_factor: float = 1.0
    pixel_range: float = 255.0
    style_mixing: StyleMixing = "average"
    guides: Guides = "simple"
    padding: Padding = "zero"
    color: Color = "none"
    optimizer: Optimizer = "lbfgs"
    learning_rate: float | None = None
    memory_size: int | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    clip: bool = False
    preconditioner: Preconditioner = "none"
    steps: int = 1000
    min_size: int | None = None
    scale_factor: float = 2**0.5
    scale_steps: tuple[int, ...] = ()
    averaging: float = 0.0
    init: str = "content"
    noise: Noise = "normal"
    noise_scale: float = 0.001 / 255
    noise_ratio: float = 0.6
    convolution: Convolution = "auto"
    precision: Precision = "float32"
    tile: Tile = "auto"
    remat: Remat = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "content_layers", as_layers(self.content_layers))
        object.__setattr__(self, "style_layers", as_layers(self.style_layers))
        for name, allowed in (("content_losses", CONTENT_LOSSES), ("style_losses", STYLE_LOSSES)):
            object.__setattr__(self, name, as_losses(getattr(self, name), allowed=allowed))
        for name in ("scale_steps", "histogram_layers"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_config(self)

    @property
    def loss(self) -> LossConfig:
        """The part that shapes the compiled objective: of the whole picture, unless told otherwise.

        What is ``"auto"`` depends on the picture and the memory, see ``memory_plan``.
        """
        names = {field.name for field in fields(LossConfig)} & {
            field.name for field in fields(self)
        }
        given = {name: getattr(self, name) for name in names}
        given["tile"] = self.tile if isinstance(self.tile, int) else 0
        given["remat"] = self.remat == "on" and not given["tile"]
        given["content_layers"] = tuple(name for name, _ in self.content_layers)
        for name in ("style_layers", "content_losses", "style_losses"):
            given[name] = tuple(part for part, _ in getattr(self, name))
        return LossConfig(**given)
