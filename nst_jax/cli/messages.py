"""Messages of the command on standard error. Standard library only."""

import sys


def log(words: str) -> None:
    """Write one line to standard error, as ``nst-jax: words``.

    Line breaks, which file names may contain, become spaces.
    """
    print(f"nst-jax: {' '.join(words.splitlines())}", file=sys.stderr)
