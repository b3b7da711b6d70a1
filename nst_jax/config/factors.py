"""Weighted layers and losses: parsing, checks, weighting schemes. Standard library only."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nst_jax.config.checks import FLOAT32_MAX
from nst_jax.config.layers import CHANNELS, block_of, check_tap
from nst_jax.errors import InputError

Layers = tuple[tuple[str, float], ...]

STYLE_LAYERS: Layers = tuple((f"relu{block}_1", 1.0) for block in range(1, 6))

SCHEMES = ("equal", "1/C2", "geometric", "course")


def check_weight(name: str, value: float) -> None:
    """Check that a number is a valid weight: at least 0 and finite in float32.

    Raises:
      InputError: if it is not.
    """
    if not 0 <= value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32), 0 or more")


def as_layers(layers: Mapping[str, float] | Iterable[str | tuple[str, float]]) -> Layers:
    """Weighted layers from names (of weight 1), pairs of name and weight, or a mapping.

    >>> as_layers(["relu1_1", "relu2_1"])
    (('relu1_1', 1.0), ('relu2_1', 1.0))
    >>> as_layers({"relu1_1": 0.5})
    (('relu1_1', 0.5),)

    Raises:
      InputError: for an unknown or repeated layer, or an invalid weight.
    """
    items = layers.items() if isinstance(layers, Mapping) else layers
    pairs: list[Any] = [(item, 1.0) if isinstance(item, str) else item for item in items]
    result = tuple((name, float(weight)) for name, weight in pairs)
    names = [check_tap(name) for name, _ in result]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"layer {name} is given twice: name each layer once")
    for name, weight in result:
        check_weight(f"the weight of layer {name}", weight)
    return result


def weigh_layers(names: Iterable[str], *, scheme: str) -> Layers:
    """Weight n layers by a scheme.

    The weight w_i of the i-th layer, with C_i channels, is

    * ``"equal"``: w_i = 1 (neural-style),
    * ``"1/C2"``: w_i = 1 / C_i^2 (Gatys' code),
    * ``"geometric"``: w_i proportional to 4^-i, with sum 1 (style-transfer-pytorch),
    * ``"course"``: w_i = 1 / n (the proportions of the course version).

    >>> weigh_layers(["relu1_1", "relu2_1"], scheme="course")
    (('relu1_1', 0.5), ('relu2_1', 0.5))
    >>> weigh_layers(["relu1_1", "relu2_1"], scheme="geometric")
    (('relu1_1', 0.8), ('relu2_1', 0.2))

    Raises:
      InputError: for an unknown scheme, and as ``as_layers``.
    """
    layers = [name for name, _ in as_layers(names)]
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    raw = {
        "equal": lambda i, name: 1.0,
        "1/C2": lambda i, name: 1 / CHANNELS[block_of(name) - 1] ** 2,
        "geometric": lambda i, name: 0.25**i,
        "course": lambda i, name: 1.0,
    }[scheme]
    weights = [raw(i, name) for i, name in enumerate(layers)]
    total = sum(weights) if scheme in ("geometric", "course") else 1.0
    return tuple((name, weight / total) for name, weight in zip(layers, weights, strict=True))


def parse_layers(text: str) -> Layers:
    """Parse layers from ``NAME[=WEIGHT],...`` or ``SCHEME[,NAME...]``.

    A scheme without names applies to the five default style layers.

    >>> parse_layers("relu1_1=1,relu3_1=0.5")
    (('relu1_1', 1.0), ('relu3_1', 0.5))
    >>> parse_layers("course,relu3_1,relu4_1")
    (('relu3_1', 0.5), ('relu4_1', 0.5))

    Raises:
      InputError: if the text has another form, or combines a scheme with a weight.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    scheme = items.pop(0) if items and items[0] in SCHEMES else None
    if items and not items[0].startswith(("conv", "relu")):
        raise InputError(
            f"unknown layer {items[0]!r}: expected convB_I or reluB_I of VGG-19, from conv1_1 to "
            f"relu5_4, for example relu4_2, or a scheme first, one of {', '.join(SCHEMES)}"
        )
    pairs: list[tuple[str, float]] = []
    for item in items:
        name, equals, weight = item.partition("=")
        if equals and scheme:
            raise InputError(
                f"layer weight {item!r} contradicts the scheme {scheme}: leave one of them out"
            )
        try:
            pairs.append((name, float(weight) if equals else 1.0))
        except ValueError:
            raise InputError(
                f"layer weight {item!r} is not a number: expected NAME or NAME=WEIGHT"
            ) from None
    if scheme is None:
        return as_layers(pairs)
    return weigh_layers([name for name, _ in pairs or STYLE_LAYERS], scheme=scheme)


CONTENT_LOSSES = ("features", "self-similarity", "laplacian4", "laplacian16")

STYLE_LOSSES = ("gram", "covariance", "mean-std", "wasserstein", "histogram")


class WeightedLoss(NamedTuple):
    """A loss of the content or style term and its weight within that term."""

    name: str
    weight: float


Losses = tuple[WeightedLoss, ...]


def as_losses(
    losses: Mapping[str, float] | Iterable[str | tuple[str, float]], *, allowed: tuple[str, ...]
) -> Losses:
    """Weighted losses from names (of weight 1), pairs of name and weight, or a mapping.

    >>> [tuple(loss) for loss in as_losses(["gram", ("mean-std", 10)], allowed=STYLE_LOSSES)]
    [('gram', 1.0), ('mean-std', 10.0)]

    Args:
      losses: the losses.
      allowed: names of the term's losses.

    Raises:
      InputError: for no losses, an unknown or repeated name, or an invalid weight.
    """
    items = losses.items() if isinstance(losses, Mapping) else losses
    pairs: list[Any] = [(item, 1.0) if isinstance(item, str) else item for item in items]
    result = tuple(WeightedLoss(name, float(weight)) for name, weight in pairs)
    expected = ", ".join(allowed)
    if not result:
        raise InputError(f"no losses: expected at least one of {expected}")
    names = [loss.name for loss in result]
    for name in names:
        if name not in allowed:
            raise InputError(f"unknown loss {name!r}: expected one of {expected}")
        if names.count(name) > 1:
            raise InputError(f"loss {name} is given twice: name each loss once")
    for name, weight in result:
        check_weight(f"the weight of loss {name}", weight)
    return result


def parse_losses(text: str) -> Losses:
    """Parse losses from ``NAME[=WEIGHT],...``; ``LossConfig`` checks the names.

    >>> [tuple(loss) for loss in parse_losses("gram, mean-std=10")]
    [('gram', 1.0), ('mean-std', 10.0)]

    Raises:
      InputError: for a weight that is not a number.
    """
    pairs: list[WeightedLoss] = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, weight = item.partition("=")
        try:
            pairs.append(WeightedLoss(name, float(weight) if equals else 1.0))
        except ValueError:
            raise InputError(
                f"loss weight {item!r} is not a number: expected NAME or NAME=WEIGHT"
            ) from None
    return tuple(pairs)
