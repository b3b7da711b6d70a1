"""Layers and losses with a factor each, also by a scheme's name. Standard library only."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nst_jax.config.checks import FLOAT32_MAX
from nst_jax.config.layers import CHANNELS, block_of, check_tap
from nst_jax.errors import InputError

Layers = tuple[tuple[str, float], ...]

STYLE_LAYERS: Layers = tuple((f"relu{block}_1", 1.0) for block in range(1, 6))

SCHEMES = ("equal", "1/C2", "geometric", "course")


def check_weight(name: str, value: float) -> None:
    """Check that a number can be the factor of a loss term.

    Raises:
      InputError: for a negative one, and one that float32 cannot hold.
    """
    if not 0 <= value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32), 0 or more")


def as_layers(layers: Mapping[str, float] | Iterable[str | tuple[str, float]]) -> Layers:
    """Layers with their factors, from names, pairs or a mapping.

    >>> as_layers(["relu1_1", "relu2_1"])
    (('relu1_1', 1.0), ('relu2_1', 1.0))
    >>> as_layers({"relu1_1": 0.5})
    (('relu1_1', 0.5),)

    Raises:
      InputError: for an unknown or repeated layer, or a factor that is no weight.
    """
    items = layers.items() if isinstance(layers, Mapping) else layers
    pairs: list[Any] = [(item, 1.0) if isinstance(item, str) else item for item in items]
    result = tuple((name, float(factor)) for name, factor in pairs)
    names = [check_tap(name) for name, _ in result]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"layer {name} is given twice: name each layer once")
    for name, weight in result:
        check_weight(f"the factor of layer {name}", weight)
    return result


def weigh_layers(names: Iterable[str], *, scheme: str) -> Layers:
    """Layers with the factors of a scheme.

    ``"equal"``: 1 each (neural-style). ``"1/C2"``: 1/C^2 for C channels (Gatys' code).
    ``"geometric"``: a quarter of the layer before's, with sum 1 (style-transfer-pytorch).
    ``"course"``: 1/n each for n layers (the course version's proportions).

    >>> weigh_layers(["relu1_1", "relu2_1"], scheme="course")
    (('relu1_1', 0.5), ('relu2_1', 0.5))
    >>> weigh_layers(["relu1_1", "relu2_1"], scheme="geometric")
    (('relu1_1', 0.8), ('relu2_1', 0.2))

    Raises:
      InputError: for another scheme, and as ``as_layers``.
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
    factors = [raw(i, name) for i, name in enumerate(layers)]
    total = sum(factors) if scheme in ("geometric", "course") else 1.0
    return tuple((name, factor / total) for name, factor in zip(layers, factors, strict=True))


def parse_layers(text: str) -> Layers:
    """Layers from ``NAME[=FACTOR],...`` or ``SCHEME[,NAME...]``.

    A scheme alone is that of the five style layers.

    >>> parse_layers("relu1_1=1,relu3_1=0.5")
    (('relu1_1', 1.0), ('relu3_1', 0.5))
    >>> parse_layers("course,relu3_1,relu4_1")
    (('relu3_1', 0.5), ('relu4_1', 0.5))

    Raises:
      InputError: where the text has another form, or a scheme and a factor contradict each other.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    scheme = items.pop(0) if items and items[0] in SCHEMES else None
    if items and not items[0].startswith(("conv", "relu")):
        raise InputError(
            f"unknown layer {items[0]!r}: expected convB_I or reluB_I of VGG-19, from conv1_1 to "
            f"relu5_4, for example relu4_2, or first a scheme, one of {', '.join(SCHEMES)}"
        )
    pairs: list[tuple[str, float]] = []
    for item in items:
        name, equals, factor = item.partition("=")
        if equals and scheme:
            raise InputError(
                f"layer factor {item!r} contradicts the scheme {scheme}: leave one of them out"
            )
        try:
            pairs.append((name, float(factor) if equals else 1.0))
        except ValueError:
            raise InputError(
                f"layer factor {item!r} is not a number: expected NAME or NAME=FACTOR"
            ) from None
    if scheme is None:
        return as_layers(pairs)
    return weigh_layers([name for name, _ in pairs or STYLE_LAYERS], scheme=scheme)


CONTENT_LOSSES = ("features", "self-similarity", "laplacian4", "laplacian16")

STYLE_LOSSES = ("gram", "covariance", "mean-std", "wasserstein", "histogram")


class LossFactor(NamedTuple):
    """A loss of a term and its factor."""

    name: str
    factor: float


Losses = tuple[LossFactor, ...]


def as_losses(
    losses: Mapping[str, float] | Iterable[str | tuple[str, float]], *, allowed: tuple[str, ...]
) -> Losses:
    """Losses with their factors, from names, pairs or a mapping.

    >>> [tuple(loss) for loss in as_losses(["gram", ("mean-std", 10)], allowed=STYLE_LOSSES)]
    [('gram', 1.0), ('mean-std', 10.0)]

    Args:
      losses: what was asked for.
      allowed: names that the term knows.

    Raises:
      InputError: for an unknown or repeated name, a factor that is no weight, and for none at all.
    """
    items = losses.items() if isinstance(losses, Mapping) else losses
    pairs: list[Any] = [(item, 1.0) if isinstance(item, str) else item for item in items]
    result = tuple(LossFactor(name, float(factor)) for name, factor in pairs)
    expected = ", ".join(allowed)
    if not result:
        raise InputError(f"no losses: expected at least one of {expected}")
    names = [loss.name for loss in result]
    for name in names:
        if name not in allowed:
            raise InputError(f"unknown loss {name!r}: expected one of {expected}")
        if names.count(name) > 1:
            raise InputError(f"loss {name} is given twice: name each loss once")
    for name, factor in result:
        check_weight(f"the factor of loss {name}", factor)
    return result


def parse_losses(text: str) -> Losses:
    """Losses from ``NAME[=FACTOR],...``; their names are checked where they are used.

    >>> [tuple(loss) for loss in parse_losses("gram, mean-std=10")]
    [('gram', 1.0), ('mean-std', 10.0)]

    Raises:
      InputError: for a factor that is no number.
    """
    pairs: list[LossFactor] = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, factor = item.partition("=")
        try:
            pairs.append(LossFactor(name, float(factor) if equals else 1.0))
        except ValueError:
            raise InputError(
                f"loss factor {item!r} is not a number: expected NAME or NAME=FACTOR"
            ) from None
    return tuple(pairs)
