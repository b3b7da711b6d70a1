"""What the command says beside its results: lines on standard error. Standard library only."""

import sys


def log(words: str) -> None:
    """Write one line to standard error, as ``nst-jax: words``.

    Words of several lines, as a file's name may hold a line break, are joined to one.
    """
    print(f"nst-jax: {' '.join(words.splitlines())}", file=sys.stderr)
