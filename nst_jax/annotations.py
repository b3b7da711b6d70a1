"""Whether values are of the types that annotations name: for data from files of others."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_type(value: Any, hint: Any, *, name: str) -> None:
    """Check a value against an annotation, and the fields of dataclasses and named tuples.

    Whole numbers are floats, too, as far as a float has all their digits; truth values are neither.

    Args:
      value: what was read.
      hint: a class, or one of ``Literal``, unions, ``tuple``, ``list`` and ``dict`` of such.
      name: of the value, for the message.

    Raises:
      TypeError: where it is of another type.

    >>> check_type((1, 2.5), tuple[float, ...], name="factors")
    >>> check_type((1, True), tuple[float, ...], name="factors")
    Traceback (most recent call last):
    TypeError: factors/1 is True, expected float
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin is Literal:
        # 1 and True are equal, but not the same setting.
        right = any(value == one and type(value) is type(one) for one in arguments)
    elif origin in (Union, UnionType):
        right = any(_is(value, one) for one in arguments)
    elif origin is tuple:
        right = isinstance(value, tuple)
        if right and arguments[-1:] == (...,):
            arguments = (arguments[0],) * len(value)
        right = right and len(value) == len(arguments)
        _check_items(zip(range(len(arguments)), value, arguments) if right else (), name)
    elif origin is list:
        right = isinstance(value, list)
        items = ((place, one, arguments[0]) for place, one in enumerate(value)) if right else ()
        _check_items(items, name)
    elif origin is dict:
        right = isinstance(value, Mapping)
        items = value.items() if right else ()
        right = right and all(_is(key, arguments[0]) for key, _ in items)
        _check_items(((key, one, arguments[1]) for key, one in items), name)
    elif hint in (None, NoneType):
        right = value is None
    elif hint is float:
        right = isinstance(value, float) or (_is(value, int) and abs(value) <= 2**53)
    elif hint is Path:
        right = isinstance(value, Path) and "\0" not in str(value)
    elif hint is int:
        right = isinstance(value, int) and not isinstance(value, bool)
    else:
        right = isinstance(value, hint)
        if right and (is_dataclass(hint) or hasattr(hint, "_fields")):
            items = ((field, getattr(value, field), one) for field, one in _hints(hint).items())
            _check_items(items, name)
    if not right:
        shown = hint.__name__ if isinstance(hint, type) and not arguments else hint
        raise TypeError(f"{name} is {value!r:.40}, expected {shown}")


def _check_items(items: Any, name: str) -> None:
    for key, value, hint in items:
        check_type(value, hint, name=f"{name}/{key}")


def _is(value: Any, hint: Any) -> bool:
    try:
        check_type(value, hint, name="")
    except TypeError:
        return False
    return True


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
