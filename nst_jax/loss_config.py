"""The structure of an objective as a frozen, keyword-only dataclass. Standard library only."""

from dataclasses import dataclass
from typing import Any, Literal

from nst_jax.layer_factors import STYLE_LAYERS
from nst_jax.layers import LAPLACIANS

Pooling = Literal["max", "average", "average-scaled", "l2"]
GramNormalization = Literal["chw", "hw"]
TVForm = Literal["anisotropic", "isotropic", "nine-point"]
TVReduction = Literal["sum", "mean"]
StyleMixing = Literal["average", "sum"]
Guides = Literal["simple", "inside", "all"]
Padding = Literal["zero", "reflect", "replicate", "replicate-input", "circular"]
Precision = Literal["float32", "tf32", "bfloat16"]

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
