"""Checks that settings have in common. Standard library only."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from nst_jax.errors import InputError

LARGEST_SIZE = 100_000  # pixels of a side

LARGEST_COUNT = 2**31 - 1  # of steps and the like, which devices count in int32


FLOAT32_MAX = (2 - 2**-23) * 2.0**127  # above it a number is infinite where it is used


def is_count(value: object, *, most: int = LARGEST_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def check_count(name: str, value: object, *, most: int = LARGEST_COUNT) -> None:
    if not is_count(value, most=most):
        raise InputError(f"{name} is {value}: expected a whole number, 1 or more, at most {most}")


def check_positive(name: str, value: float) -> None:
    if not 0 < value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32) above 0")


def check_words(settings: Any) -> None:
    """Check the fields that have a word of several."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            expected = ", ".join(map(str, get_args(hint)))
            raise InputError(f"{name} is {getattr(settings, name)!r}: expected one of {expected}")


def set_fields(settings: Any, **values: Any) -> None:
    """Give fields of a frozen dataclass that is being made their one form."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
