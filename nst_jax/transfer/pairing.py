"""Pairing of contents with styles. Standard library only."""

from typing import Literal

from nst_jax.errors import InputError

Pairing = Literal["all", "pairs", "grid"]


def pair(contents: int, styles: int, *, pairing: Pairing) -> list[tuple[int, tuple[int, ...]]]:
    """Pair contents with styles.

    Args:
      contents, styles: numbers of contents and styles.
      pairing: ``"all"``: every content with all styles at once; ``"pairs"``: content i with style
        i; ``"grid"``: every content with every single style.

    Returns:
      For each image to make, the index of its content and the indices of its styles.

    Raises:
      InputError: for an unknown pairing, unequal numbers of pairs, or a grid without styles.

    >>> pair(2, 2, pairing="grid")
    [(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]
    """
    if pairing == "all":
        return [(content, tuple(range(styles))) for content in range(contents)]
    if pairing == "pairs":
        if styles != contents:
            raise InputError(
                f"{styles} styles for {contents} contents: to pair them, give equal numbers"
            )
        return [(index, (index,)) for index in range(contents)]
    if pairing == "grid":
        if not styles:
            raise InputError("no style image: expected at least one")
        return [(content, (style,)) for content in range(contents) for style in range(styles)]
    raise InputError(f"pairing is {pairing!r}: expected all, pairs or grid")
