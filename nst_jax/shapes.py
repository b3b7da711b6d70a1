"""Names and shapes of the arrays that make a VGG-19, full or slim."""

import itertools
from collections.abc import Iterable, Mapping

from nst_jax.errors import InputError
from nst_jax.layers import CHANNELS, CONVS, TAPS, block_of, convs_to, deepest

_VGG16 = {conv for conv in CONVS if conv not in ("conv3_4", "conv4_4", "conv5_4")}


def expected_shapes(
    channels: tuple[int, ...], *, lifts: Iterable[tuple[str, str]] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of a VGG-19.

    Args:
      channels: of the five blocks.
      lifts: of slim weights, the pairs (pooling, layer) that they have learned; they end with the
        deepest of these layers.

    >>> expected_shapes((64, 128, 256, 512, 512))["conv2_1/kernel"]
    (3, 3, 64, 128)
    """
    lifts = tuple(lifts)
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for conv in array_convs(lifts):
        outputs = channels[block_of(conv) - 1]
        shapes[f"{conv}/kernel"] = (3, 3, inputs, outputs)
        shapes[f"{conv}/bias"] = (outputs,)
        inputs = outputs
    for pooling, layer in lifts:
        block = block_of(layer) - 1
        shapes[f"lift/{pooling}/{layer}/kernel"] = (channels[block], CHANNELS[block])
        shapes[f"lift/{pooling}/{layer}/bias"] = (CHANNELS[block],)
    return shapes


def array_convs(lifts: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The convolutions of a network, of a slim one those up to its deepest lifted layer."""
    layers = tuple(layer for _, layer in lifts)
    return convs_to(deepest(layers)) if layers else CONVS


def check_shapes(shapes: Mapping[str, tuple[int, ...]], *, slim: bool = False) -> None:
    """Check that arrays of these shapes make a VGG-19.

    Args:
      shapes: shapes by name.
      slim: whether each block may have any number of channels, and lifts beside them.

    Raises:
      InputError: names the first array that is missing, too many or of a wrong shape.
    """
    if {name.split("/")[0] for name in shapes} == _VGG16:
        raise InputError("this is VGG-16 (13 convolutions), expected VGG-19 (16): use that file")
    lifts = find_lifts(shapes) if slim else ()
    expected_names = expected_shapes(CHANNELS, lifts=lifts)
    missing = [name for name in expected_names if name not in shapes]
    if missing:
        raise InputError(
            f"{missing[0]} is missing, and {len(missing) - 1} more of {len(expected_names)}: "
            "expected the convolutions of VGG-19, use a file of that network"
        )
    extra = sorted(set(shapes) - set(expected_names))
    if extra:
        raise InputError(f"{extra[0]!r} is no array of VGG-19: convert the original again")
    channels = CHANNELS
    if slim:
        biases = (shapes.get(f"conv{block}_1/bias", ())[-1:] for block in range(1, 6))
        channels = tuple(size[0] if size else 0 for size in biases)
    for name, expected in expected_shapes(channels, lifts=lifts).items():
        if tuple(shapes[name]) != expected:
            raise InputError(
                f"{name} has shape {tuple(shapes[name])}, expected {expected}: use a file of VGG-19"
            )


def find_lifts(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The pairs (pooling, layer) that slim weights have learned, in the network's order."""
    pairs = {tuple(parts[1:3]) for name in names if len(parts := name.split("/")) == 4}
    return tuple(pair for pair in itertools.product(("max", "average"), TAPS) if pair in pairs)
