"""Which styles go with which contents. Standard library only."""

from typing import Literal

from nst_jax.errors import InputError

Pairing = Literal["all", "pairs", "grid"]


def pair(contents: int, styles: int, *, pairing: Pairing) -> list[tuple[int, tuple[int, ...]]]:
    """For each image its content and its styles, by index.

    Raises:
      InputError: for an unknown pairing, pairs of unequal numbers, or a grid without styles.

    >>> pair(2, 2, pairing="grid")
    [(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]
    """
    if pairing == "all":
        return [(content, tuple(range(styles))) for content in range(contents)]
    if pairing == "pairs":
        if styles != contents:
            raise InputError(
                f"{styles} styles for {contents} contents: to pair them, give as many of both"
            )
        return [(index, (index,)) for index in range(contents)]
    if pairing == "grid":
        if not styles:
            raise InputError("no style image: expected at least one")
        return [(content, (style,)) for content in range(contents) for style in range(styles)]
    raise InputError(f"pairing is {pairing!r}: expected all, pairs or grid")
