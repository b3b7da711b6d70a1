"""VGG-19 (Simonyan and Zisserman 2015) as a function from an image to named features.

Its poolings are here, too.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``, unbatched (use ``jax.vmap``). Features
are ``[h, w, C]``. Only this file imports ``flax.linen``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config.layers import (
    CHANNELS,
    CONVS,
    TAPS,
    block_of,
    check_sides,
    check_tap,
    convs_to,
    deepest,
)
from nst_jax.models.convolution import conv, transpose_kernel
from nst_jax.models.projection import Features, ProjectedFeatures, check_projected, dense, widened
from nst_jax.types import Array, Taps, Variables

# How exactly accelerators multiply, in JAX's words; CPUs always do it in full.
MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}

# The rows, and columns, that lie before the first and behind the last where these are not zero.
BORDERS = {"reflect": (1, -2), "replicate": (0, -1), "circular": (-1, 0)}


def _surrounded(x: Array, *, padding: str) -> Array:
    """Features ``[1, H, W, C]`` with what lies beyond their borders, ``[1, H + 2, W + 2, C]``."""
    before, behind = BORDERS[padding]
    for axis in (1, 2):  # not jnp.pad: the gradient of its "edge" takes half as much memory more
        first, last = (jax.lax.index_in_dim(x, index, axis) for index in (before, behind))
        x = jnp.concatenate([first, x, last], axis)
    return x


def _linen_conv(
    x: Array,
    kernel: Array,
    *_,
    prepared: dict[str, Array] | None,
    padding: str,
    precise: str,
    **__,
) -> Array:
    """``conv`` in the place of ``lax.conv_general_dilated``, whose other arguments are fixed."""
    if prepared is None:
        prepared = {"forward": kernel, "backward": transpose_kernel(kernel)}
    pair = {name: k.astype(x.dtype) for name, k in prepared.items()}
    if padding == "zero":
        return conv(x, kernel, **pair, precision=precise)
    # Of an image with what lies beyond its borders only the inside is right, and wanted.
    x = _surrounded(x, padding=padding)
    return cast(Array, conv(x, kernel, **pair, precision=precise))[:, 1:-1, 1:-1]


class VGG19(nn.Module):
    """The convolutional part of VGG-19 with named taps.

    Attributes:
      layers: taps to return, of ``convB_I`` (before the ReLU) and ``reluB_I``; nothing beyond the
        deepest is computed.
      pooling: ``"max"`` (as trained), ``"average"`` (Gatys et al. 2016, section 2),
        ``"average-scaled"`` or ``"l2"``, see ``pool``.
      channels: channels of the five blocks.
      padding: what every convolution sees beyond the border: ``"zero"`` (as trained), the mirrored
        features without the border itself (``"reflect"``), the border repeated (``"replicate"``),
        or the opposite border (``"circular"``); ``"replicate-input"`` repeats the image's border
        for ``conv1_1`` and is zero beyond.
      precision: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, see ``ExecutionConfig``.

    The variables hold the collections ``params`` (``convB_I`` -> ``kernel [3, 3, in, out]``,
    ``bias [out]``, for RGB) and ``preprocessing`` (``mean [3]``, ``std [3]``, in units of an
    image in [0, 1]). The mean stays apart from the first bias because zero padding comes after
    the normalisation. The collection ``prepared`` is optional; where
    it is, features are computed with it, see ``prepare_kernels``.
    """

    layers: tuple[str, ...] = TAPS
    pooling: str = "max"
    channels: tuple[int, ...] = CHANNELS
    padding: str = "zero"
    precision: str = "float32"

    def setup(self) -> None:
        self.mean = self.variable("preprocessing", "mean", jnp.zeros, (3,))
        self.std = self.variable("preprocessing", "std", jnp.ones, (3,))
        for name in convs_to(deepest(self.layers)):
            has_prepared = self.has_variable("prepared", name)
            padding = self.padding
            if padding == "replicate-input":
                padding = "replicate" if name == "conv1_1" else "zero"
            apply = partial(
                _linen_conv,
                prepared=self.get_variable("prepared", name) if has_prepared else None,
                padding=padding,
                precise=MATMUL_PRECISION[self.precision],
            )
            channels = self.channels[block_of(name) - 1]
            dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
            setattr(self, name, nn.Conv(channels, (3, 3), dtype=dtype, conv_general_dilated=apply))

    def __call__(self, image: Array) -> Taps:
        """Map ``[..., H, W, 3]`` in [0, 1] to ``{layer: [..., h, w, C]}``."""
        taps: Taps = {}
        x = self.normalize(image)
        for block in range(1, block_of(deepest(self.layers)) + 1):
            x, found = self.block(x, block)
            taps |= found
        return {layer: taps[layer] for layer in self.layers}

    def normalize(self, image: Array) -> Array:
        """What the first block takes, ``[1, ..., H, W, 3]``."""
        spread = (1,) * (image.ndim - 1) + (3,)
        return ((image - self.mean.value.reshape(spread)) / self.std.value.reshape(spread))[None]

    def block(self, x: Array, index: int) -> tuple[Array, Taps]:
        """From what a block (1 to 5) takes to what the next one takes, and the block's taps."""
        last = deepest(self.layers)
        taps: Taps = {}
        for name in CONVS:
            if block_of(name) != index:
                continue
            x = getattr(self, name)(x)
            taps[name] = x[0]
            if name == last:
                break
            x = nn.relu(x)
            relu = name.replace("conv", "relu")
            taps[relu] = x[0]
            if relu == last:
                break
        if index < block_of(last):
            x = pool(x, pooling=self.pooling)
        return x, {name: tap for name, tap in taps.items() if name in self.layers}


def _computed_again(of_block: Callable[..., Any], *, unless: Array) -> Callable[..., Any]:
    """A block whose inner activations are not kept for the gradient.

    XLA's CPU backend removes the barriers of ``jax.checkpoint`` and then finds that both
    computations are the same. It does not look into the branches of a conditional.

    Args:
      of_block: ``(x, block) -> tree``.
      unless: a condition that never holds, as the compiler cannot know; results are then NaN.
    """

    def hidden(x: Array, index: int) -> Any:
        def something(x: Array) -> Any:
            return of_block(x, index)

        def nothing(x: Array) -> Any:
            shapes = jax.eval_shape(something, x)
            return jax.tree.map(lambda y: jnp.full(y.shape, jnp.nan, y.dtype), shapes)

        return jax.lax.cond(unless, nothing, something, x)

    return jax.checkpoint(hidden, static_argnums=1)


def network_features(
    variables: Variables,
    image: Array,
    *,
    layers: tuple[str, ...],
    pooling: str = "max",
    padding: str = "zero",
    precision: str = "float32",
    remat: bool = False,
    reduce: Callable[[str, Features], Any] | None = None,
) -> dict[str, Any]:
    """Features of an image in the form in which the network has them.

    Args:
      variables: VGG-19's collections, see ``VGG19``, or those of a slim network with one more,
        ``lift``: pooling -> layer -> ``kernel [c, C]``, ``bias [C]``.
      image: ``[H, W, 3]`` in [0, 1]; training gives a batch, ``[B, H, W, 3]``.
      layers: names of the taps to return.
      pooling, padding: see ``VGG19``.
      precision: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, see ``ExecutionConfig``.
      remat: keep only what goes from block to block for the gradient and compute the rest again:
        on CPUs 0.7 of the memory, for the first block has most of it, for half as much time more
        (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
      reduce: ``(layer, features) -> tree``, whose results take the features' place. With ``remat``
        it belongs to the block, so that nothing keeps the features themselves.

    Returns:
      ``{layer: [h, w, C]}`` with h = H // stride, w = W // stride of the layer; of a slim network
      products, see ``projection``.

    Raises:
      InputError: for an unknown layer, a layer or a pooling that a slim network has not learned,
        or an image too small for the deepest layer and the padding.
    """
    if not layers:
        return {}
    for layer in layers:
        check_tap(layer)
    check_sides(image.shape[-3], image.shape[-2], layers, padding=padding)
    lift = None
    if "lift" in variables:
        check_projected(variables["lift"], layers=layers, pooling=pooling)
        lift = variables["lift"][pooling]
    params = variables["params"]
    firsts = (f"conv{block}_1" for block in range(1, block_of(deepest(layers)) + 1))
    channels = tuple(params[name]["kernel"].shape[-1] for name in firsts)
    model = VGG19(layers, pooling, channels, padding, precision)

    def of_block(x: Array, index: int) -> tuple[Array, dict[str, Any]]:
        x, taps = cast(Any, model.apply(variables, x, index, method="block"))
        found = (
            taps
            if lift is None
            else {n: ProjectedFeatures(tap, **lift[n]) for n, tap in taps.items()}
        )
        return x, found if reduce is None else {name: reduce(name, f) for name, f in found.items()}

    take: Callable[..., Any] = of_block
    if remat:
        take = _computed_again(of_block, unless=jnp.isnan(params["conv1_1"]["bias"][0]))
    found: dict[str, Any] = {}
    x = cast(Array, model.apply(variables, image, method="normalize"))
    for index in range(1, len(channels) + 1):
        x, of_this = take(x, index)
        found |= of_this
    return {layer: found[layer] for layer in layers}


def features(
    variables: Variables,
    image: Array,
    *,
    layers: tuple[str, ...],
    pooling: str = "max",
    padding: str = "zero",
    precision: str = "float32",
) -> Taps:
    """Features of an image in VGG-19's channels, with the network's width read from its variables.

    Args:
      variables, image, layers, pooling, padding, precision: as for ``network_features``.

    Returns:
      ``{layer: [h, w, C]}`` with h = H // stride, w = W // stride of the layer.

    Raises:
      InputError: as ``network_features``.
    """
    taps = network_features(
        variables, image, layers=layers, pooling=pooling, padding=padding, precision=precision
    )
    return {name: dense(tap) for name, tap in taps.items()}


def init_variables(key: Array, *, channels: tuple[int, ...] = CHANNELS) -> Variables:
    """Random variables of the given width (He initialisation), for tests and experiments.

    Args:
      key: a PRNG key.
      channels: channels of the five blocks.

    Returns:
      The collections ``params`` and ``preprocessing`` (Caffe's mean and range).
    """
    blocks = [block_of(name) for name in CONVS]
    widths = (3, *(channels[block - 1] for block in blocks))
    shapes = [(3, 3, *pair) for pair in zip(widths, widths[1:], strict=False)]
    sizes = [math.prod(shape) for shape in shapes]
    # One draw for all layers: a draw for each would compile as many programs.
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    params = {
        name: {
            "kernel": draw.reshape(shape) * (2 / (9 * shape[2])) ** 0.5,
            "bias": jnp.zeros(shape[3]),
        }
        for name, shape, draw in zip(CONVS, shapes, draws, strict=True)
    }
    mean = np.array([123.68, 116.779, 103.939], np.float32) / 255
    std = np.full(3, 1 / 255, np.float32)
    return {
        "params": params,
        "preprocessing": {"mean": jnp.asarray(mean), "std": jnp.asarray(std)},
    }


def _scaled_length(windows: Array, axis: tuple[int, ...]) -> Array:
    """0.78 times the root of the sum of squares; where that is 0 so is its gradient."""
    squares = jnp.sum(jnp.square(widened(windows)), axis)
    some = squares > 0
    # Twice: the root's gradient at 0 is infinite, and NaN where its result alone is left out.
    lengths = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)
    return (0.78 * lengths).astype(windows.dtype)


# By the names of ``Pooling`` in config/loss.py.
POOLINGS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "max": jnp.max,
    "average": jnp.mean,
    "average-scaled": lambda windows, axis: 2 * jnp.mean(windows, axis),
    "l2": _scaled_length,
}


def pool(x: Array, *, pooling: str) -> Array:
    """2x2 pooling with stride 2; an odd last row or column is dropped, as in Caffe and PyTorch.

        max x_i    sum x_i / 4    2 * sum x_i / 4    0.78 * (sum x_i^2)^(1/2)

    The factors of the last two are style-transfer-pytorch's, against an average's smaller
    activations: at relu5_1 of photographs these have 0.2 of the size under max, with the factors
    3.2 and 1.8 times that. The root's gradient is taken to be 0 where all four values are.

    Args:
      x: ``[..., H, W, C]``.
      pooling: ``"max"``, ``"average"``, ``"average-scaled"`` or ``"l2"``.

    Returns:
      ``[..., H // 2, W // 2, C]``.

    >>> pool(jnp.arange(4.0).reshape(2, 2, 1), pooling="average").tolist()
    [[[1.5]]]
    >>> pool(jnp.arange(4.0).reshape(2, 2, 1), pooling="average-scaled").tolist()
    [[[3.0]]]
    """
    *batch, height, width, channels = x.shape
    x = x[..., : height // 2 * 2, : width // 2 * 2, :]
    # Faster than ``reduce_window`` and its scattering gradient.
    windows = x.reshape(*batch, height // 2, 2, width // 2, 2, channels)
    return POOLINGS[pooling](windows, (-4, -2))
