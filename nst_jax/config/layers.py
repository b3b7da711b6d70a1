"""Names and geometry of VGG-19's layers (Simonyan and Zisserman 2015, table 1, column E).

Standard library only, so that options are checked before JAX is imported.

``convB_I`` is the output of the I-th convolution of block B, before the ReLU, ``reluB_I`` that
after it. Both are called taps. Each block but the last ends in a 2x2 pooling with stride 2.
"""

from collections.abc import Iterable

from nst_jax.errors import InputError

CONVS_PER_BLOCK = (2, 2, 4, 4, 4)

CHANNELS = (64, 128, 256, 512, 512)

CONVS: tuple[str, ...] = tuple(
    f"conv{block}_{index}"
    for block, count in enumerate(CONVS_PER_BLOCK, start=1)
    for index in range(1, count + 1)
)

# Laplacian loss -> side of the squares over which it averages the image first (Li et al. 2017,
# "Laplacian-Steered Neural Style Transfer").
LAPLACIANS = {"laplacian4": 4, "laplacian16": 16}

TAPS: tuple[str, ...] = tuple(tap for conv in CONVS for tap in (conv, conv.replace("conv", "relu")))


def block_of(tap: str) -> int:
    """Block (1 to 5) of a tap.

    >>> block_of("relu4_2")
    4
    """
    return int(tap[4])


def deepest(taps: tuple[str, ...]) -> str:
    """The tap that the network computes last.

    >>> deepest(("relu4_2", "relu1_1"))
    'relu4_2'
    """
    return max(taps, key=TAPS.index)


def stride(tap: str) -> int:
    """Distance in pixels between neighbouring features: 1, 2, 4, 8, 16 for blocks 1 to 5.

    >>> stride("relu1_2"), stride("relu5_1")
    (1, 16)
    """
    return 2 ** (block_of(tap) - 1)


def shortest_side(tap: str, *, padding: str = "zero") -> int:
    """The shortest side of an image, in pixels, for which a tap can be computed.

    One feature along each axis is enough, except with ``padding="reflect"``: it repeats the
    neighbour of the border, not the border itself, and so needs two.

    >>> shortest_side("relu5_1"), shortest_side("relu5_1", padding="reflect")
    (16, 32)
    """
    return (2 if padding == "reflect" else 1) * stride(tap)


def convs_to(tap: str) -> tuple[str, ...]:
    """The convolutions up to a tap, in order.

    >>> convs_to("relu2_1")
    ('conv1_1', 'conv1_2', 'conv2_1')
    """
    return CONVS[: CONVS.index(tap.replace("relu", "conv")) + 1]


def reach(tap: str) -> int:
    """How far the receptive field of a feature extends beyond its own square.

    The feature at (i, j) of a tap with stride s belongs to the square of s x s pixels that starts
    at (s i, s j). It depends on ``reach`` more pixels on each side of that square.

    >>> reach("relu1_1"), reach("relu4_2"), reach("relu5_1")
    (1, 38, 70)
    """
    # Backwards from the tap to the image: a 3x3 convolution adds one feature on each side. A 2x2
    # pooling precedes the first convolution of blocks 2 to 5 and doubles the number of features.
    pixels = 0
    for name in reversed(convs_to(tap)):
        pixels += 1
        if name.endswith("_1") and block_of(name) > 1:
            pixels *= 2
    return pixels


def check_tap(name: str) -> str:
    """Return ``name`` if it is a tap of VGG-19.

    >>> check_tap("relu4_2")
    'relu4_2'

    Raises:
      InputError: for any other name.
    """
    if name not in TAPS:
        raise InputError(
            f"unknown layer {name!r}: expected convB_I or reluB_I of VGG-19, "
            "from conv1_1 to relu5_4, for example relu4_2"
        )
    return name


def check_sides(
    height: int,
    width: int,
    taps: tuple[str, ...],
    *,
    what: str = "image",
    padding: str = "zero",
) -> None:
    """Check that an image is large enough for the deepest of ``taps``.

    Raises:
      InputError: if a side is shorter than the ``shortest_side`` of the deepest tap.
    """
    tap = deepest(taps)
    least = shortest_side(tap, padding=padding)
    if min(height, width) < least:
        reflected = padding == "reflect"
        raise InputError(
            f"the {what} is {width}x{height} px, but {'with reflect padding ' * reflected}layer "
            f"{tap} needs a shorter side of at least {least} px: use a larger size"
            f"{', another padding' * reflected} or shallower layers"
        )


def check_squares(
    height: int, width: int, laplacians: Iterable[str], *, what: str = "image"
) -> None:
    """Check that an image is at least as large as the squares that the Laplacians average.

    Raises:
      InputError: if it is smaller.
    """
    for name in laplacians:
        if min(height, width) < LAPLACIANS[name]:
            raise InputError(
                f"the {what} is {width}x{height} px, but {name} averages squares of "
                f"{LAPLACIANS[name]} px: use a larger size, or leave it out"
            )


def check_multiple(height: int, width: int, taps: tuple[str, ...]) -> None:
    """Check that circular padding can wrap an image: the deepest stride divides its sides.

    Raises:
      InputError: if it does not; the message suggests the nearest size of the same aspect ratio.
    """
    tap = deepest(taps)
    step = stride(tap)
    if height % step or width % step:
        longer, shorter = max(height, width), min(height, width)
        # Longer sides for which the shorter one, rounded to the aspect ratio, is a multiple too.
        sizes = [
            size
            for size in range(step, 4 * longer, step)
            if round(shorter * size / longer) % step == 0 and round(shorter * size / longer)
        ]
        nearest = min(sizes, key=lambda size: abs(size - longer), default=None)
        size = "" if nearest is None else f"choose a longer side of {nearest} px, "
        raise InputError(
            f"the image is {width}x{height} px, but with circular padding layer {tap} needs "
            f"multiples of {step} px: {size}crop it, or use shallower layers"
        )
