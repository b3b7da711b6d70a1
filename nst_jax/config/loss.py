"""The objective's settings as a frozen, keyword-only dataclass. Standard library only."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from nst_jax.config.checks import check_positive, check_words, set_fields
from nst_jax.config.factors import (
    CONTENT_LOSSES,
    STYLE_LAYERS,
    STYLE_LOSSES,
    Layers,
    Losses,
    LossFactor,
    as_layers,
    as_losses,
    check_weight,
)
from nst_jax.config.layers import LAPLACIANS
from nst_jax.errors import InputError

Pooling = Literal["max", "average", "average-scaled", "l2"]

GramNormalization = Literal["chw", "hw"]

TVForm = Literal["anisotropic", "isotropic", "nine-point"]

TVReduction = Literal["sum", "mean"]

StyleMixing = Literal["average", "sum"]

Guides = Literal["simple", "inside", "all"]

Padding = Literal["zero", "reflect", "replicate", "replicate-input", "circular"]

Precision = Literal["float32", "tf32", "bfloat16"]

Color = Literal[
    "none",
    "keep-yiq",
    "keep-lab",
    "match-cholesky",
    "match-pca",
    "match-symmetric",
    "match-histogram",
    "luminance",
]

HISTOGRAM_LAYERS = ("relu1_1", "relu4_1")  # those of Risser et al. 2017


class Evaluation(NamedTuple):
    """How an objective is computed; hashable, so that equal ones share a compiled program.

    Attributes:
      tile: the longest side of a tile where the image is taken in tiles, else 0.
      remat: whether the gradient computes the activations within a block of the network again.
      recompute_content: whether the content's features are computed again at every step.
      precision: of the network, as in ``ExecutionConfig``.
    """

    tile: int = 0
    remat: bool = False
    recompute_content: bool = False
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: neural-style-pt's by default.

    Layers and losses are pairs of a name and a factor; plain names have the factor 1.

    Attributes:
      content_layers: Layers of the content term; with factors as NAME=FACTOR.
      style_layers: Layers of the style term; with factors as NAME=FACTOR, or after the name of a
        scheme: equal, 1/C2, geometric, course.
      content_losses: What the content term compares, with factors as NAME=FACTOR: features, the
        self-similarity of features (STROTSS), and Laplacians of the image averaged over
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
      padding: What the network sees beyond an image's border, the styles' too: zero, the mirrored
        image (reflect), the border repeated (replicate, or replicate-input at the first layer
        alone), or (circular) the opposite border, so that the result tiles; its sides must then be
        multiples of the deepest layer's stride, and those of styles are cropped to such.
      color: Colours of the result: the content's kept afterwards (keep-...: its chroma under the
        result's luminance), the style's matched to the content's before (match-...), or (luminance)
        transfer of luminance only.
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

    def __post_init__(self) -> None:
        set_fields(
            self,
            content_layers=as_layers(self.content_layers),
            style_layers=as_layers(self.style_layers),
            content_losses=as_losses(self.content_losses, allowed=CONTENT_LOSSES),
            style_losses=as_losses(self.style_losses, allowed=STYLE_LOSSES),
        )
        if isinstance(self.histogram_layers, list):  # as JSON has it
            set_fields(self, histogram_layers=tuple(self.histogram_layers))
        for name in ("content_weight", "style_weight", "tv_weight"):
            check_weight(name, getattr(self, name))
        for name in ("mse_factor", "pixel_range", "covariance_eps"):
            check_positive(name, getattr(self, name))
        if not 1e-15 <= self.pixel_range <= 1e15:  # float32 is to have its square, and one over it
            raise InputError(f"pixel_range is {self.pixel_range}: expected 1e-15 to 1e15")
        check_words(self)
        self._check_tv_order()
        self._check_losses()
        if not self.content_layers and not self.style_layers:
            raise InputError("no layers: expected at least one content or style layer")

    def _check_tv_order(self) -> None:
        order, orders = self.tv_order, {"anisotropic": (1, 2), "nine-point": (2,)}
        if self.tv_form in orders:
            expected = "one of " + ", ".join(map(str, orders[self.tv_form]))
            right = order in orders[self.tv_form]
        else:
            expected, right = "1 to 4", isinstance(order, int | float) and 1 <= order <= 4
        if not right:
            shown = f"{order:g}" if isinstance(order, float) else repr(order)
            raise InputError(f"tv_order is {shown}: expected {expected} for tv_form {self.tv_form}")

    def _check_losses(self) -> None:
        given = [name for name, _ in self.style_losses]
        for setting, loss in (("histogram_layers", "histogram"), ("covariance_eps", "wasserstein")):
            if loss not in given and getattr(self, setting) != getattr(LossConfig, setting):
                raise InputError(f"{setting} has no meaning without {loss} among the style losses")
        layers = self.style_names
        if "histogram" in given and layers:
            other = [name for name in self.histogram_layers if name not in layers]
            default = self.histogram_layers == HISTOGRAM_LAYERS and len(other) < 2
            if (other and not default) or not self.histogram_layers:
                raise InputError(
                    f"histogram_layers are {', '.join(self.histogram_layers) or 'none'}: expected "
                    f"some of the style layers, {', '.join(layers)}"
                )

    @property
    def structure(self) -> "LossConfig":
        """What shapes the compiled program: every number that may change without, set to 1.

        Colours are the concern of what comes before and after the objective.

        >>> LossConfig(style_weight=2.0).structure == LossConfig(tv_weight=3.0).structure
        True
        """
        return replace(
            self,
            content_layers=self.content_names,
            style_layers=self.style_names,
            content_losses=tuple(name for name, _ in self.content_losses),
            style_losses=tuple(name for name, _ in self.style_losses),
            content_weight=1.0,
            style_weight=1.0,
            tv_weight=1.0,
            color="none",
        )

    @property
    def content_names(self) -> tuple[str, ...]:
        """Names of the content layers."""
        return tuple(name for name, _ in self.content_layers)

    @property
    def style_names(self) -> tuple[str, ...]:
        """Names of the style layers."""
        return tuple(name for name, _ in self.style_layers)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that are asked for; one of both terms stands once."""
        return tuple(dict.fromkeys(self.content_names + self.style_names))

    @property
    def aligned_layers(self) -> tuple[str, ...]:
        """Layers whose strides pieces of the image must keep to.

        Those of the network, and for each Laplacian one with the stride of its squares.
        """
        squares = {side: f"relu{block}_1" for block, side in enumerate((1, 2, 4, 8, 16), start=1)}
        return self.layers + tuple(squares[side] for side in self.laplacians.values())

    @property
    def laplacians(self) -> dict[str, int]:
        """The Laplacians that are compared, with the sides of their squares."""
        return {name: LAPLACIANS[name] for name, _ in self.content_losses if name in LAPLACIANS}

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Content layers that are compared position by position."""
        return self.content_names if "features" in dict(self.content_losses) else ()

    @property
    def similar_layers(self) -> tuple[str, ...]:
        """Content layers whose self-similarity is compared."""
        return self.content_names if "self-similarity" in dict(self.content_losses) else ()

    @property
    def matched_layers(self) -> tuple[str, ...]:
        """Style layers whose histograms are compared."""
        matched = self.histogram_layers if "histogram" in dict(self.style_losses) else ()
        return tuple(name for name in self.style_names if name in matched)

    @property
    def network(self) -> dict[str, Any]:
        """How the network computes, as ``vgg.network_features`` takes it, but its precision."""
        return {"pooling": self.pooling, "padding": self.padding}
