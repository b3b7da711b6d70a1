"""Losses that are added up within a term, with a factor each. Standard library only."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nst_jax.errors import InputError
from nst_jax.layer_factors import check_weight

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
