"""Plain data and arrays apart: what JSON holds, and what a file of arrays holds.

Contract: values are None, booleans, numbers, strings, paths, arrays, and lists, tuples and
dictionaries with strings for keys of such. Tuples come back as lists.
"""

from pathlib import Path
from typing import Any

import numpy as np

DEEPEST = 50  # level of what is unpacked; packing it again takes the same room on the stack


def pack(value: Any, arrays: dict[str, np.ndarray], *, name: str) -> Any:
    """A value as JSON has it; its arrays are added to ``arrays`` under names that begin so.

    Raises:
      TypeError: for what is no such value.

    >>> arrays = {}
    >>> pack({"a": [np.ones(2), Path("b")]}, arrays, name="x")
    {'map': {'a': [{'array': 'x/a/0'}, {'path': 'b'}]}}
    >>> arrays
    {'x/a/0': array([1., 1.])}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, dict):
        items = {key: pack(item, arrays, name=f"{name}/{key}") for key, item in value.items()}
        return {"map": items}
    if isinstance(value, (list, tuple)):
        return [pack(item, arrays, name=f"{name}/{index}") for index, item in enumerate(value)]
    if not hasattr(value, "__array__"):
        raise TypeError(f"{name} is {type(value).__name__}: expected plain data or an array")
    arrays[name] = np.asarray(value)
    return {"array": name}


def unpack(plain: Any, arrays: dict[str, np.ndarray], *, deepest: int = DEEPEST) -> Any:
    """The value that ``pack`` has packed.

    Raises:
      KeyError, TypeError: for what ``pack`` does not make.
      ValueError: for lists in lists of more than ``deepest`` levels.

    >>> unpack({"map": {"a": [{"array": "x"}]}}, {"x": np.ones(2)})
    {'a': [array([1., 1.])]}
    """
    if not deepest:
        raise ValueError("it is nested too deep")
    if isinstance(plain, list):
        return [unpack(item, arrays, deepest=deepest - 1) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        return arrays[plain["array"]]
    if "path" in plain:
        return Path(plain["path"])
    items = plain["map"].items()
    return {key: unpack(item, arrays, deepest=deepest - 1) for key, item in items}


def as_tuples(value: Any) -> Any:
    """Lists as tuples, at any depth, as settings have them.

    >>> as_tuples([["a", 1.0]])
    (('a', 1.0),)
    """
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
