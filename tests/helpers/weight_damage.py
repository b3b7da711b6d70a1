"""Damage done to files of weights, reproducible by a seed: what disks, networks and people do."""

import numpy as np

KINDS = ("flip", "flip early", "cut", "swap", "length", "run", "move")
_LENGTHS = (0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def damaged(data: bytes, *, seed: int, other: bytes) -> tuple[str, bytes]:
    """A kind of damage, each in its turn, and the data with it.

    Args:
      data: a sound file.
      seed: which damage.
      other: a sound file of another form, whose head is put in the place of this one's.
    """
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    broken = bytearray(data)
    size = len(data)

    def place(limit: int = size) -> int:
        """A position, of which half are near one of the ends, where the structure is."""
        near = min(limit, 2000)
        execution_plan = rng.integers(4)
        if execution_plan == 0:
            return int(rng.integers(near))
        return int(
            rng.integers(limit - near, limit) if execution_plan == 1 else rng.integers(limit)
        )

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
