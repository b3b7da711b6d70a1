"""VGG-19 and its poolings, as a function from an image to named features.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``, unbatched (use ``jax.vmap``). Features
are ``[h, w, C]``. Only this file imports ``flax.linen``.

Reference:
  Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
  ICLR, table 1, column E.
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

# Our precision -> JAX's precision of products on accelerators; CPUs always multiply in full.
MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}

# Padding -> indices of the rows (and columns) to place before the first and after the last one.
BORDERS = {"reflect": (1, -2), "replicate": (0, -1), "circular": (-1, 0)}


def _pad_by_one(x: Array, *, padding: str) -> Array:
    """Pad features by one on each side, ``[1, H, W, C]`` to ``[1, H + 2, W + 2, C]``."""
    before, after = BORDERS[padding]
    for axis in (1, 2):  # not jnp.pad: the gradient of its mode "edge" takes 1.5 times the memory
        first, last = (jax.lax.index_in_dim(x, index, axis) for index in (before, after))
        x = jnp.concatenate([first, x, last], axis)
    return x


def _linen_conv(
    x: Array,
    kernel: Array,
    *_,
    prepared: dict[str, Array] | None,
    padding: str,
    conv_precision: str,
    **__,
) -> Array:
    """``conv`` with the signature of ``lax.conv_general_dilated``, for ``nn.Conv``.

    ``nn.Conv`` also passes strides, dilations and its own ``precision`` (None), which are ignored:
    hence the other name of ``conv_precision``.
    """
    if prepared is None:
        prepared = {"forward": kernel, "backward": transpose_kernel(kernel)}
    pair = {name: k.astype(x.dtype) for name, k in prepared.items()}
    if padding == "zero":
        return conv(x, kernel, **pair, precision=conv_precision)
    # Pad explicitly, convolve with zero padding, and drop the border that saw those zeros.
    x = _pad_by_one(x, padding=padding)
    return cast(Array, conv(x, kernel, **pair, precision=conv_precision))[:, 1:-1, 1:-1]


class VGG19(nn.Module):
    """The convolutional part of VGG-19 with named taps.

    Attributes:
      layers: taps to return, ``convB_I`` (before the ReLU) or ``reluB_I``; nothing beyond the
        deepest is computed.
      pooling: ``"max"`` (as trained), ``"average"`` (Gatys et al. 2016, section 2),
        ``"average-scaled"`` or ``"l2"``, see ``pool``.
      channels: channels of the five blocks.
      padding: padding of every convolution: ``"zero"`` (as trained), ``"reflect"`` (mirrored,
        without the border itself), ``"replicate"``, ``"circular"``, or ``"replicate-input"``, which
        replicates the border of the image for ``conv1_1`` and is zero in later layers.
      precision: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, see ``ExecutionConfig``.

    The variables hold the collections ``params`` (``convB_I`` -> ``kernel [3, 3, in, out]``,
    ``bias [out]``, for RGB) and ``preprocessing`` (``mean [3]``, ``std [3]``, for an image in
    [0, 1]). The mean cannot be folded into the first bias, because zero padding comes after the
    normalisation. With the optional collection ``prepared``, convolutions use its kernels, see
    ``prepare_kernels``.
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
                conv_precision=MATMUL_PRECISION[self.precision],
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
        """The input of the first block, ``[1, ..., H, W, 3]``."""
        spread = (1,) * (image.ndim - 1) + (3,)
        return ((image - self.mean.value.reshape(spread)) / self.std.value.reshape(spread))[None]

    def block(self, x: Array, index: int) -> tuple[Array, Taps]:
        """Compute a block (1 to 5): the input of the next block, and the taps of this one."""
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


def _checkpoint_block(apply_block: Callable[..., Any], *, never: Array) -> Callable[..., Any]:
    """Checkpoint a block: the backward pass recomputes its inner activations.

    ``jax.checkpoint`` alone has no effect on CPUs: XLA's CPU backend removes its barriers and then
    merges the two identical computations. It does not look into the branches of a conditional, so
    the block becomes one branch.

    Args:
      apply_block: ``(x, block) -> tree``.
      never: a condition that is always false, but not known to the compiler; if it were true, all
        results would be NaN.
    """

    def conditional(x: Array, index: int) -> Any:
        def compute(x: Array) -> Any:
            return apply_block(x, index)

        def fill(x: Array) -> Any:
            shapes = jax.eval_shape(compute, x)
            return jax.tree.map(lambda y: jnp.full(y.shape, jnp.nan, y.dtype), shapes)

        return jax.lax.cond(never, fill, compute, x)

    return jax.checkpoint(conditional, static_argnums=1)


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
    """Compute features of an image; those of a slim network are products.

    Args:
      variables: VGG-19's collections, see ``VGG19``. A slim network also has ``lift``, its
        projections: pooling -> layer -> ``kernel [c, C]``, ``bias [C]``.
      image: ``[H, W, 3]`` in [0, 1]; training passes a batch, ``[B, H, W, 3]``.
      layers: names of the taps to return.
      pooling, padding: see ``VGG19``.
      precision: ``"float32"``, ``"tf32"`` or ``"bfloat16"``, see ``ExecutionConfig``.
      remat: gradient checkpointing: keep only the activations between blocks for the backward pass
        and recompute the others (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
        Cost"). On CPUs this takes 0.7 of the memory, since the first block has most of it, and 1.5
        times the time.
      reduce: ``(layer, features) -> tree``, applied to each tap; its results are returned instead
        of the features. With ``remat`` it is part of the block, so that features are not kept.

    Returns:
      ``{layer: [h, w, C]}`` with h = H // stride, w = W // stride of the layer; for a slim network
      ``ProjectedFeatures``.

    Raises:
      InputError: for an unknown layer, a layer or pooling for which a slim network was not trained,
        or an image too small for the deepest layer and the padding.
    """
    if not layers:
        return {}
    for layer in layers:
        check_tap(layer)
    check_sides(image.shape[-3], image.shape[-2], layers, padding=padding)
    projections = None
    if "lift" in variables:  # the name of the projections in weights files
        check_projected(variables["lift"], layers=layers, pooling=pooling)
        projections = variables["lift"][pooling]
    params = variables["params"]
    firsts = (f"conv{block}_1" for block in range(1, block_of(deepest(layers)) + 1))
    channels = tuple(params[name]["kernel"].shape[-1] for name in firsts)
    model = VGG19(layers, pooling, channels, padding, precision)

    def apply_block(x: Array, index: int) -> tuple[Array, dict[str, Any]]:
        x, taps = cast(Any, model.apply(variables, x, index, method="block"))
        if projections is not None:
            taps = {n: ProjectedFeatures(tap, **projections[n]) for n, tap in taps.items()}
        return x, taps if reduce is None else {n: reduce(n, tap) for n, tap in taps.items()}

    apply: Callable[..., Any] = apply_block
    if remat:
        # Weights files are checked to be finite, which the compiler cannot know.
        apply = _checkpoint_block(apply_block, never=jnp.isnan(params["conv1_1"]["bias"][0]))
    found: dict[str, Any] = {}
    x = cast(Array, model.apply(variables, image, method="normalize"))
    for index in range(1, len(channels) + 1):
        x, taps = apply(x, index)
        found |= taps
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
    """Compute features of an image in the channels of VGG-19, with projections multiplied out.

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
    """Random variables for tests and experiments (He et al. 2015 initialisation).

    Args:
      key: a PRNG key.
      channels: channels of the five blocks.

    Returns:
      The collections ``params`` and ``preprocessing`` (with Caffe's mean and range).
    """
    blocks = [block_of(name) for name in CONVS]
    widths = (3, *(channels[block - 1] for block in blocks))
    shapes = [(3, 3, *pair) for pair in zip(widths, widths[1:], strict=False)]
    sizes = [math.prod(shape) for shape in shapes]
    # One draw for all layers, since each shape of a draw is a program to compile.
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    params = {
        name: {
            # He et al. 2015: variance 2 / fan-in, and fan-in is 9 times the input channels.
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


def _scaled_norm(windows: Array, axis: tuple[int, ...]) -> Array:
    """0.78 times the root of the sum of squares; the gradient at 0 is 0."""
    squares = jnp.sum(jnp.square(widened(windows)), axis)
    positive = squares > 0
    # Two selections: the gradient of the root at 0 is infinite, and times the 0 of the outer
    # selection alone it would be NaN.
    norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    return (0.78 * norms).astype(windows.dtype)


# Keys: ``Pooling`` in config/loss.py.
POOLINGS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "max": jnp.max,
    "average": jnp.mean,
    "average-scaled": lambda windows, axis: 2 * jnp.mean(windows, axis),
    "l2": _scaled_norm,
}


def pool(x: Array, *, pooling: str) -> Array:
    """2x2 pooling with stride 2; an odd last row or column is dropped, as in Caffe and PyTorch.

        max x_i    sum x_i / 4    2 * sum x_i / 4    0.78 * (sum x_i^2)^(1/2)

    for ``"max"``, ``"average"``, ``"average-scaled"`` and ``"l2"``. The factors of the last two are
    those of style-transfer-pytorch. They more than compensate for the smaller activations of an
    average: at relu5_1 of photographs, activations are 0.2 times those of max pooling with
    ``"average"``, but 3.2 and 1.8 times with the last two. The gradient of ``"l2"`` is 0 if all
    four values are 0.

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
    # Two axes of windows and a plain reduction: faster than ``reduce_window``, whose gradient
    # scatters.
    windows = x.reshape(*batch, height // 2, 2, width // 2, 2, channels)
    return POOLINGS[pooling](windows, (-4, -2))
