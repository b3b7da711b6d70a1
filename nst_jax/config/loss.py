"""The settings of the objective. Standard library only."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from nst_jax.config.checks import check_literals, check_positive, set_fields
from nst_jax.config.factors import (
    CONTENT_LOSSES,
    STYLE_LAYERS,
    STYLE_LOSSES,
    Layers,
    Losses,
    WeightedLoss,
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

# As in Risser, Wilmot and Barnes 2017, "Stable and Controllable Neural Texture Synthesis and Style
# Transfer Using Histogram Losses".
HISTOGRAM_LAYERS = ("relu1_1", "relu4_1")


class Evaluation(NamedTuple):
    """How an objective is computed; hashable, so that equal values share a compiled program.

    Attributes:
      tile: the longest side of a tile in pixels, or 0 for the whole image.
      remat: whether the backward pass recomputes the activations within each block of the network.
      recompute_content: whether each step recomputes the features of the content image.
      precision: precision of the network, as in ``ExecutionConfig``.
    """

    tile: int = 0
    remat: bool = False
    recompute_content: bool = False
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective; the defaults are those of neural-style-pt.

    Layers and losses are pairs of a name and a weight; a name alone has weight 1.

    Attributes:
      content_layers: Layers of the content term; NAME=WEIGHT weights a layer.
      style_layers: Layers of the style term; NAME=WEIGHT weights a layer, and a scheme (equal,
        1/C2, geometric, course) in first place weights all.
      content_losses: What the content term compares: features, self-similarity of features
        (STROTSS), or Laplacians of the image averaged over squares of 4 or 16 pixels (laplacian4,
        laplacian16). NAME=WEIGHT weights a loss.
      style_losses: What the style term compares: Gram matrices (gram), Gram matrices of centred
        features (covariance), means and standard deviations (mean-std), Gaussians by their
        2-Wasserstein distance (wasserstein), or histograms (histogram). NAME=WEIGHT weights a loss.
      histogram_layers: Style layers of the histogram loss. Default: relu1_1 and relu4_1, as far as
        they are style layers.
      covariance_eps: Added to the diagonals of the covariance matrices of the wasserstein loss, in
        squared units of the features.
      content_weight: Weight of the content term.
      style_weight: Weight of the style term.
      tv_weight: Weight of the total variation, for pixels in [0, pixel_range].
      pooling: Pooling of the network: maximum, average, twice the average (average-scaled), or
        0.78 times the root of the sum of squares (l2). The last two more than compensate for the
        smaller activations of an average.
      gram_normalization: Divisor of the Gram matrices of a layer with C channels of h times w
        features: h*w (hw) or C*h*w (chw).
      tv_form: Total variation of horizontal and vertical differences separately (anisotropic), of
        gradient lengths (isotropic), or of differences to all eight neighbours (nine-point).
      tv_order: Power p of the total variation: |d|^p / p with p = 1 or 2 (anisotropic),
        (dx^2 + dy^2)^(p/2) with p from 1 to 4 (isotropic), squares only, p = 2 (nine-point).
      tv_reduction: Reduction of the total variation: sum over pixels, or mean over all values.
      mse_factor: Factor of every mean squared error; 1/4 in the course version.
      pixel_range: Pixels are in [0, pixel_range] for the total variation and the optimiser.
      style_mixing: Combine several styles by averaging their Gram matrices, or by summing their
        losses. With the same style weights both have the same gradient.
      guides: How masks reduce to a layer: averages (simple), only features that see nothing
        outside the region (inside), or all features that see any of it (all).
      padding: How the network pads images at their border: zero, reflect, replicate,
        replicate-input (replicate at the first layer, then zero), or circular. With circular the
        result tiles seamlessly; its sides must be multiples of the stride of the deepest layer, and
        styles are cropped to such multiples.
      color: Colours of the result: the content's chroma with the result's luminance (keep-...),
        the colours of the style matched to the content beforehand (match-...), or transfer of
        luminance only (luminance).
    """

    content_layers: Layers = (("relu4_2", 1.0),)
    style_layers: Layers = STYLE_LAYERS
    content_losses: Losses = (WeightedLoss("features", 1.0),)
    style_losses: Losses = (WeightedLoss("gram", 1.0),)
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
        if isinstance(self.histogram_layers, list):  # from JSON
            set_fields(self, histogram_layers=tuple(self.histogram_layers))
        for name in ("content_weight", "style_weight", "tv_weight"):
            check_weight(name, getattr(self, name))
        for name in ("mse_factor", "pixel_range", "covariance_eps"):
            check_positive(name, getattr(self, name))
        # Its square and the inverse of its square must be finite in float32.
        if not 1e-15 <= self.pixel_range <= 1e15:
            raise InputError(f"pixel_range is {self.pixel_range}: expected 1e-15 to 1e15")
        check_literals(self)
        self._check_tv_order()
        self._check_losses()
        if not self.content_layers and not self.style_layers:
            raise InputError("no layers: expected at least one content or style layer")

    def _check_tv_order(self) -> None:
        order, orders = self.tv_order, {"anisotropic": (1, 2), "nine-point": (2,)}
        if self.tv_form in orders:
            expected = "one of " + ", ".join(map(str, orders[self.tv_form]))
            valid = order in orders[self.tv_form]
        else:
            expected, valid = "1 to 4", isinstance(order, int | float) and 1 <= order <= 4
        if not valid:
            # An int as repr: formatting one beyond the range of a float overflows.
            shown = f"{order:g}" if isinstance(order, float) else repr(order)
            raise InputError(f"tv_order is {shown}: expected {expected} for tv_form {self.tv_form}")

    def _check_losses(self) -> None:
        given = [name for name, _ in self.style_losses]
        for setting, loss in (("histogram_layers", "histogram"), ("covariance_eps", "wasserstein")):
            if loss not in given and getattr(self, setting) != getattr(LossConfig, setting):
                raise InputError(f"{setting} has no meaning without {loss} among the style losses")
        layers = self.style_names
        if "histogram" in given and layers:
            # Of the default, one of the two layers need not be a style layer.
            others = [name for name in self.histogram_layers if name not in layers]
            default = self.histogram_layers == HISTOGRAM_LAYERS and len(others) < 2
            if (others and not default) or not self.histogram_layers:
                raise InputError(
                    f"histogram_layers are {', '.join(self.histogram_layers) or 'none'}: expected "
                    f"some of the style layers, {', '.join(layers)}"
                )

    @property
    def structure(self) -> "LossConfig":
        """These settings without those that are traced, as the key of the compiled program.

        Weights are traced arguments of the program and therefore set to 1. ``color`` is set to
        its default, since colours are handled before and after the optimisation.

        >>> LossConfig(style_weight=2.0).structure == LossConfig(tv_weight=3.0).structure
        True
        """
        # Names alone get weight 1 in __post_init__.
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
        """Content and style layers, without duplicates."""
        return tuple(dict.fromkeys(self.content_names + self.style_names))

    @property
    def aligned_layers(self) -> tuple[str, ...]:
        """Layers whose strides constrain how the image is cut into pieces.

        Besides the layers of the objective these are, for each Laplacian, a layer whose stride
        equals the side of its squares.
        """
        squares = {side: f"relu{block}_1" for block, side in enumerate((1, 2, 4, 8, 16), start=1)}
        return self.layers + tuple(squares[side] for side in self.laplacians.values())

    @property
    def laplacians(self) -> dict[str, int]:
        """Names of the Laplacian losses, with the sides of their squares in pixels."""
        return {name: LAPLACIANS[name] for name, _ in self.content_losses if name in LAPLACIANS}

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Content layers of the feature loss."""
        return self.content_names if "features" in dict(self.content_losses) else ()

    @property
    def similar_layers(self) -> tuple[str, ...]:
        """Content layers of the self-similarity loss."""
        return self.content_names if "self-similarity" in dict(self.content_losses) else ()

    @property
    def matched_layers(self) -> tuple[str, ...]:
        """Style layers of the histogram loss."""
        matched = self.histogram_layers if "histogram" in dict(self.style_losses) else ()
        return tuple(name for name in self.style_names if name in matched)

    @property
    def network(self) -> dict[str, Any]:
        """Keyword arguments for ``vgg.network_features``, except precision."""
        return {"pooling": self.pooling, "padding": self.padding}
