"""Settings of a run as frozen, keyword-only dataclasses. Standard library only.

``Config`` is what a person sets: the command line is generated from it and it is saved beside
every result. ``LossConfig`` is the part of it that shapes the compiled program; every number that
someone may sweep (weights, learning rate) stays outside, so that changing one does not recompile.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from nst_jax.errors import InputError
from nst_jax.layer_factors import FLOAT32_MAX, STYLE_LAYERS, Layers, as_layers, check_weight
from nst_jax.layers import LAPLACIANS
from nst_jax.loss_factors import CONTENT_LOSSES, STYLE_LOSSES, Losses, LossFactor, as_losses

Pooling = Literal["max", "average", "average-scaled", "l2"]
GramNormalization = Literal["chw", "hw"]
TVForm = Literal["anisotropic", "isotropic", "nine-point"]
TVReduction = Literal["sum", "mean"]
Optimizer = Literal["lbfgs", "lbfgs-linesearch", "adam"]
Noise = Literal["normal", "uniform"]
Preconditioner = Literal["none", "spectral"]
Convolution = Literal["auto", "direct", "winograd"]
StyleMixing = Literal["average", "sum"]
Guides = Literal["simple", "inside", "all"]
Padding = Literal["zero", "reflect", "replicate", "replicate-input", "circular"]
Precision = Literal["float32", "tf32", "bfloat16"]
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
HISTOGRAM_LAYERS = ("relu1_1", "relu4_1")  # those of Risser et al. 2017


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Structure of an objective; hashable, so that equal structures share a compiled program.

    Attributes:
      content_layers, style_layers: names of the layers compared.
      content_losses, style_losses: names of the losses that make up the two terms.
      histogram_layers, covariance_eps, pooling, gram_normalization, tv_form, tv_order,
        tv_reduction, mse_factor, pixel_range, style_mixing, guides, padding, precision: as in
        ``Config``.
      tile: the longest side of a tile where the picture is taken in tiles, else 0.
      remat: whether the gradient computes the activations within a block of the network again.
      recompute_content: whether the content's features are computed again at every step.
    """

    content_layers: tuple[str, ...] = ("relu4_2",)
    style_layers: tuple[str, ...] = tuple(name for name, _ in STYLE_LAYERS)
    content_losses: tuple[str, ...] = ("features",)
    style_losses: tuple[str, ...] = ("gram",)
    histogram_layers: tuple[str, ...] = HISTOGRAM_LAYERS
    covariance_eps: float = 1e-4
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
    precision: Precision = "float32"
    tile: int = 0
    remat: bool = False
    recompute_content: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that are asked for; one of both terms stands once."""
        return tuple(dict.fromkeys(self.content_layers + self.style_layers))

    @property
    def aligned_layers(self) -> tuple[str, ...]:
        """Layers whose strides pieces of the picture must keep to.

        Those of the network, and for each Laplacian one with the stride of its squares.
        """
        squares = {side: f"relu{block}_1" for block, side in enumerate((1, 2, 4, 8, 16), start=1)}
        return self.layers + tuple(squares[side] for side in self.laplacians.values())

    @property
    def laplacians(self) -> dict[str, int]:
        """The Laplacians that are compared, with the sides of their squares."""
        return {name: LAPLACIANS[name] for name in self.content_losses if name in LAPLACIANS}

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Content layers that are compared position by position."""
        return self.content_layers if "features" in self.content_losses else ()

    @property
    def similar_layers(self) -> tuple[str, ...]:
        """Content layers whose self-similarity is compared."""
        return self.content_layers if "self-similarity" in self.content_losses else ()

    @property
    def matched_layers(self) -> tuple[str, ...]:
        """Style layers whose histograms are compared."""
        matched = self.histogram_layers if "histogram" in self.style_losses else ()
        return tuple(name for name in self.style_layers if name in matched)

    @property
    def network(self) -> dict[str, Any]:
        """How the network computes, as ``vgg.network_features`` takes it."""
        return {"pooling": self.pooling, "padding": self.padding, "precision": self.precision}


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
        _check(self)

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


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_scales(config: Config) -> None:
    """Check what concerns the sizes of the scales and their steps."""
    if not 1.05 <= config.scale_factor <= FLOAT32_MAX:  # each scale is compiled for itself
        raise InputError(
            f"scale_factor is {config.scale_factor}: expected a finite number from 1.05 on"
        )
    if config.scale_factor != Config.scale_factor and config.min_size is None:
        raise InputError("scale_factor has no meaning for one scale: name its coarsest by min_size")
    if not isinstance(config.scale_steps, tuple) or not all(map(_is_count, config.scale_steps)):
        raise InputError(f"scale_steps is {config.scale_steps}: expected whole numbers, 1 or more")
    if config.scale_steps and config.min_size is None:
        raise InputError("scale_steps has no meaning for one scale: name its coarsest by min_size")
    if not 0 <= config.averaging <= 0.9999:
        raise InputError(f"averaging is {config.averaging}: expected 0 to 0.9999")


def _check_losses(config: Config) -> None:
    """Check what concerns single losses."""
    order, orders = config.tv_order, {"anisotropic": (1, 2), "nine-point": (2,)}
    if config.tv_form in orders:
        expected = "one of " + ", ".join(map(str, orders[config.tv_form]))
        right = order in orders[config.tv_form]
    else:
        expected, right = "1 to 4", isinstance(order, int | float) and 1 <= order <= 4
    if not right:
        shown = f"{order:g}" if isinstance(order, int | float) else repr(order)
        raise InputError(f"tv_order is {shown}: expected {expected} for tv_form {config.tv_form}")
    given = [name for name, _ in config.content_losses + config.style_losses]
    for setting, loss in (("histogram_layers", "histogram"), ("covariance_eps", "wasserstein")):
        if loss not in given and getattr(config, setting) != getattr(Config, setting):
            raise InputError(f"{setting} has no meaning without {loss} among the style losses")
    _check_positive("covariance_eps", config.covariance_eps)
    layers = [name for name, _ in config.style_layers]
    if "histogram" in given and layers:
        other = [name for name in config.histogram_layers if name not in layers]
        default = config.histogram_layers == HISTOGRAM_LAYERS and len(other) < 2
        if (other and not default) or not config.histogram_layers:
            raise InputError(
                f"histogram_layers are {', '.join(config.histogram_layers) or 'none'}: expected "
                f"some of the style layers, {', '.join(layers)}"
            )


def _check_adam(config: Config) -> None:
    """Check Adam's own settings."""
    own = ("adam_beta1", "adam_beta2", "adam_epsilon", "clip")
    given = [name for name in own if getattr(config, name) != getattr(Config, name)]
    if config.optimizer != "adam" and given:
        raise InputError(
            f"{given[0]} has no meaning for {config.optimizer}: leave it out, or choose adam"
        )
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) <= 0.999999:
            raise InputError(f"{name} is {getattr(config, name)}: expected 0 to 0.999999")
    _check_positive("adam_epsilon", config.adam_epsilon)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32) above 0")


def _check(config: Config) -> None:
    """Check values and combinations; the dataclass's types cover the rest."""
    for name in ("content_weight", "style_weight", "tv_weight", "noise_scale"):
        check_weight(name, getattr(config, name))
    for name in ("mse_factor", "pixel_range", "learning_rate"):
        value = getattr(config, name)
        if value is not None:
            _check_positive(name, value)
    choices = {
        "pooling": Pooling,
        "gram_normalization": GramNormalization,
        "tv_form": TVForm,
        "tv_reduction": TVReduction,
        "style_mixing": StyleMixing,
        "guides": Guides,
        "padding": Padding,
        "color": Color,
        "optimizer": Optimizer,
        "noise": Noise,
        "preconditioner": Preconditioner,
        "convolution": Convolution,
        "precision": Precision,
        "remat": Remat,
    }
    for name, literal in choices.items():
        allowed = get_args(literal)
        if getattr(config, name) not in allowed:
            expected = ", ".join(map(str, allowed))
            raise InputError(f"{name} is {getattr(config, name)!r}: expected one of {expected}")
    _check_losses(config)
    _check_adam(config)
    if not config.content_layers and not config.style_layers:
        raise InputError("no layers: expected at least one content or style layer")
    for name in ("steps", "memory_size", "min_size"):
        value = getattr(config, name)
        if value is not None and not _is_count(value):
            raise InputError(f"{name} is {value}: expected a whole number, 1 or more")
    _check_scales(config)
    if config.tile not in ("auto", "off") and not _is_count(config.tile):
        raise InputError(f"tile is {config.tile!r}: expected auto, off, or a side in pixels")
    if _is_count(config.tile) and config.remat == "on":
        raise InputError(
            "remat on has no meaning with tiles, which compute all activations twice: leave one out"
        )
    if config.precision == "bfloat16" and config.convolution == "winograd":
        raise InputError(
            "convolution winograd is too coarse in bfloat16: choose direct, or another precision"
        )
    if not 0 <= config.noise_ratio <= 1:
        raise InputError(f"noise_ratio is {config.noise_ratio}: expected 0 to 1")
    if config.optimizer == "adam" and config.memory_size is not None:
        raise InputError("memory_size has no meaning for adam: leave it out, or choose lbfgs")
    if config.optimizer == "lbfgs-linesearch" and config.learning_rate is not None:
        raise InputError(
            "learning_rate has no meaning for lbfgs-linesearch, which searches its step: "
            "leave it out, or choose lbfgs or adam"
        )
