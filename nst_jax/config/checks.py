"""Checks that several settings share. Standard library only."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from nst_jax.errors import InputError

LARGEST_SIZE = 100_000  # pixels of a side

LARGEST_COUNT = 2**31 - 1  # of steps and the like: devices count them in int32

# The largest finite float32. A larger Python float becomes infinite on the device.
FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def is_count(value: object, *, maximum: int = LARGEST_COUNT) -> bool:
    # bool is a subclass of int: without the second test, True would count as 1.
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= maximum


def check_count(name: str, value: object, *, maximum: int = LARGEST_COUNT) -> None:
    if not is_count(value, maximum=maximum):
        raise InputError(
            f"{name} is {value}: expected a whole number, 1 or more, at most {maximum}"
        )


def check_positive(name: str, value: float) -> None:
    if not 0 < value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32) above 0")


def check_literals(settings: Any) -> None:
    """Check the fields of a dataclass whose type is a ``Literal``."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            expected = ", ".join(map(str, get_args(hint)))
            raise InputError(f"{name} is {getattr(settings, name)!r}: expected one of {expected}")


def set_fields(settings: Any, **values: Any) -> None:
    """Replace fields of a frozen dataclass from within its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
