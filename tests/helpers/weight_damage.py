"""Reproducible damage to weights files, of the kinds that disks and networks do."""

import numpy as np

KINDS = ("flip", "flip early", "cut", "swap", "length", "run", "move")
_LENGTHS = (0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def damaged(data: bytes, *, seed: int, other: bytes) -> tuple[str, bytes]:
    """Damage data; returns the kind of damage and the damaged data.

    Args:
      data: a sound file.
      seed: decides the damage; successive seeds go through all ``KINDS``.
      other: a sound file of another format, whose head may replace this one's.
    """
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    broken = bytearray(data)
    size = len(data)

    def place(limit: int = size) -> int:
        """A position; half of them are near one of the ends, where the structure is."""
        near = min(limit, 2000)
        quarter = rng.integers(4)
        if quarter == 0:
            return int(rng.integers(near))
        return int(rng.integers(limit - near, limit) if quarter == 1 else rng.integers(limit))

    if kind == "flip":
        for _ in range(rng.integers(1, 9)):
            broken[place()] ^= 1 << int(rng.integers(8))
    elif kind == "flip early":
        for _ in range(rng.integers(1, 4)):
            broken[int(rng.integers(min(size, 800)))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del broken[place() :]
    elif kind == "swap":
        count = int(rng.choice([4, 8, 16, 128, 512]))
        broken[:count] = other[:count]
    elif kind == "length":
        width = int(rng.choice([2, 4, 8]))
        start = place(size - width)
        value = int(rng.choice(np.array(_LENGTHS, object))) % 2 ** (8 * width)
        broken[start : start + width] = value.to_bytes(width, "little")
    elif kind == "run":
        start = place()
        count = min(int(rng.integers(1, 200)), size - start)
        broken[start : start + count] = bytes([int(rng.choice([0, 255, 65]))]) * count
    else:
        start, length = place(), int(rng.integers(1, 500))
        piece = data[start : start + length]
        at = place()
        broken[at : at if rng.integers(2) else at + len(piece)] = piece
    return kind, bytes(broken)
