"""What is known of weights whose activations were normalised, in the header of a canonical file.

How they are normalised: ``activation_scale.py``. Standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from nst_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How weights were scaled to a mean activation of 1, see ``activation_scale.py``.

    Attributes:
      pictures: over how many pictures the means were taken.
      pooling: with which pooling; with another the means are others.
      inactive: layer -> number of its channels that were not active, and are as they were.
    """

    pictures: int
    pooling: str
    inactive: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not self.pooling.isprintable() or len(self.pooling) > 40:
            raise InputError("activations normalised with no pooling: expected its name")
        if self.pictures < 1:
            raise InputError(f"activations normalised over {self.pictures} pictures: expected some")


def in_words(normalized: Normalization) -> str:
    """One line of what was done.

    >>> in_words(Normalization(pictures=2, pooling="max", inactive={"relu5_4": 3}))
    'mean activations 1 over 2 pictures with max pooling, but of 3 inactive channels'
    """
    pictures, inactive = normalized.pictures, sum(normalized.inactive.values())
    line = f"mean activations 1 over {pictures} picture{'s' * (pictures > 1)} with "
    line += f"{normalized.pooling} pooling"
    return line + f", but of {inactive} inactive channel{'s' * (inactive > 1)}" * bool(inactive)


def to_entry(normalized: Normalization | None) -> dict[str, str]:
    """The header's entry, none for weights as trained; the inverse of ``parse_normalization``."""
    return {"normalized": json.dumps(asdict(normalized))} if normalized else {}


def parse_normalization(header: Mapping[str, str]) -> Normalization | None:
    """How the weights of a canonical file's header were normalised, None where they were not.

    Raises:
      InputError: for an entry that is malformed.
    """
    if "normalized" not in header:
        return None
    try:
        entry = json.loads(header["normalized"])
        inactive = {str(layer): int(count) for layer, count in entry["inactive"].items()}
        return Normalization(
            pictures=int(entry["pictures"]), pooling=str(entry["pooling"]), inactive=inactive
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"the header's entry of normalised activations is wrong ({error!r}), expected "
            "pictures, pooling and inactive: normalise the original again"
        ) from error
