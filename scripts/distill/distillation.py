"""The loss, the student and the optimiser for training a slim VGG-19.

    L = sum_l w_l mean (F_l - T_l)^2 / var T_l + sum_l w_l log(1 + |G(F_l) - G(T_l)|^2 / |G(T_l)|^2)

T_l are the features of the teacher in layer l, F_l = S_l K_l + b_l the projected features of the
student, and G their Gram matrices; the second sum is over the style layers. Features are compared
without normalising channels, so channels with large activations count more, as in Gram matrices.

Contract: images are float32 RGB around [0, 1], ``[B, H, W, 3]``, sides divisible by 16.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from nst_jax.config import CHANNELS, CONVS, TAPS, block_of
from nst_jax.models import ProjectedFeatures, dense, features, init_variables, network_features
from nst_jax.types import Array, Variables

LAYERS = tuple(tap for tap in TAPS if tap.startswith("relu") and tap <= "relu5_1")
STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
LOSS_LAYERS = (*STYLE, "relu4_2")
POOLINGS = ("max", "average")
# Layers that no preset uses only guide the deeper ones; relu4_1 dominates the style term of the
# usual presets.
WEIGHTS = {layer: 1.0 if layer in LOSS_LAYERS else 0.4 for layer in LAYERS} | {"relu4_1": 2.0}
SAMPLING = {1: 4, 2: 2}  # in block 1 every 4th row and column is compared, in block 2 every 2nd
# Inputs of training should be about 1; `finish` moves this factor into the first kernel.
INPUT_SCALE = 64.0


class Scales(NamedTuple):
    """For each layer of the teacher: its root mean square, and its variance in units of that."""

    rms: dict[str, Array]
    variance: dict[str, Array]


def teacher_features(
    teacher: Variables, images: Array, *, pooling: str, one_by_one: bool
) -> dict[str, Array]:
    """Features of a batch; one image after another is faster on CPUs."""
    apply = partial(features, teacher, layers=LAYERS, pooling=pooling)
    return jax.lax.map(apply, images) if one_by_one else apply(images)


def measure_scales(taps: dict[str, Array]) -> Scales:
    """Measure the scales of features of some images."""
    rms = {name: jnp.sqrt(jnp.mean(jnp.square(tap))) for name, tap in taps.items()}
    centred = {name: tap - tap.mean((0, 1, 2), keepdims=True) for name, tap in taps.items()}
    variance = {name: jnp.mean(jnp.square(centred[name])) / rms[name] ** 2 for name in taps}
    return Scales(rms, variance)


def init_student(
    key: Array, *, channels: tuple[int, ...], wide: tuple[int, ...] = CHANNELS
) -> Variables:
    """Initialise a student; its projections give features in units of ``Scales.rms``.

    Args:
      key: a PRNG key.
      channels, wide: channels of the five blocks of the student and of the teacher.
    """
    variables = init_variables(key, channels=channels)
    params = {name: variables["params"][name] for name in CONVS if name <= "conv5_1"}

    def init_projection(key: Array, layer: str) -> dict[str, Array]:
        block = block_of(layer) - 1
        shape = (channels[block], wide[block])
        kernel = 0.5 * shape[0] ** -0.5 * jax.random.normal(key, shape)
        return {"kernel": kernel, "bias": jnp.zeros(shape[1])}

    keys = jax.random.split(jax.random.fold_in(key, 1), len(LAYERS))
    projections = {
        layer: init_projection(key, layer) for key, layer in zip(keys, LAYERS, strict=True)
    }
    copies = {pooling: jax.tree.map(jnp.copy, projections) for pooling in POOLINGS}
    return {"params": params, "lift": copies}


def with_preprocessing(trained: Variables, preprocessing: dict[str, Array]) -> Variables:
    """The variables of the student during training, with a larger scale of the input."""
    wide = {"mean": preprocessing["mean"], "std": preprocessing["std"] * INPUT_SCALE}
    return {**trained, "preprocessing": wide}


def finish(trained: Variables, scales: Scales, preprocessing: dict[str, Array]) -> Variables:
    """The student to save, with the preprocessing and the units of the teacher."""
    params = dict(trained["params"])
    first = params["conv1_1"]
    params["conv1_1"] = {"kernel": first["kernel"] / INPUT_SCALE, "bias": first["bias"]}
    lift = {
        pooling: {
            layer: jax.tree.map(lambda x, layer=layer: x * scales.rms[layer], entry)
            for layer, entry in projections.items()
        }
        for pooling, projections in trained["lift"].items()
    }
    return {"params": params, "preprocessing": preprocessing, "lift": lift}


def _sample(x: Array, layer: str, offset: Array) -> Array:
    """Every n-th row and column of a layer in a shallow block, starting at ``offset``."""
    every = SAMPLING.get(block_of(layer), 1)
    batch, height, width, channels = x.shape
    shape = (batch, height // every, every, width // every, every, channels)
    return x.reshape(shape)[:, :, offset[0] % every, :, offset[1] % every]


def _gram(x: Array) -> Array:
    flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    return jnp.einsum("bpc,bpd->bcd", flat, flat) / flat.shape[1]


def distillation_loss(
    student: Variables,
    targets: dict[str, Array],
    scales: Scales,
    images: Array,
    offset: Array,
    *,
    pooling: str,
    dtype: Any = jnp.float32,
) -> tuple[Array, dict[str, Array]]:
    """Compute the loss of a batch.

    Args:
      student: variables from ``with_preprocessing``.
      targets: features of the teacher for the images.
      scales: from ``measure_scales``.
      images: ``[B, H, W, 3]``.
      offset: the row and the column at which sampling starts.
      pooling: ``"max"`` or ``"average"``.
      dtype: of the computations of the student.

    Returns:
      The loss, and its parts by name: "LAYER" is the relative error of the features, "G LAYER" that
      of the Gram matrices.
    """
    student, images = jax.tree.map(lambda x: x.astype(dtype), (student, images))
    taps = network_features(student, images, layers=LAYERS, pooling=pooling)
    total, parts = jnp.zeros(()), {}
    for layer, tap in taps.items():
        assert isinstance(tap, ProjectedFeatures)
        own = _sample(tap.own, layer, offset)
        lifted = dense(tap._replace(own=own)).astype(jnp.float32)
        target = _sample(targets[layer], layer, offset).astype(jnp.float32) / scales.rms[layer]
        error = jnp.mean(jnp.square(lifted - target)) / scales.variance[layer]
        parts[layer] = error
        total += WEIGHTS[layer] * error
        if layer in STYLE:
            gram, wanted = _gram(lifted), _gram(target)
            parts[f"G {layer}"] = jnp.sum(jnp.square(gram - wanted)) / jnp.sum(jnp.square(wanted))
            # The logarithm bounds images of one colour, which would dominate a step.
            total += WEIGHTS[layer] * jnp.log1p(parts[f"G {layer}"])
    return total, parts


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels and projections, Adam for biases.

    After 200 steps the loss was a third below that with Adam alone.
    """

    def matrices(params: Any) -> Any:
        forms = {4: MuonDimensionNumbers((0, 1, 2), 3), 2: MuonDimensionNumbers(), 1: None}
        return jax.tree.map(lambda x: forms[x.ndim], params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule,
            adam_b2=0.99,
            adam_learning_rate=lambda count: 0.15 * schedule(count),
            muon_weight_dimension_numbers=matrices,
        ),
    )


def make_schedule(
    peak: float, *, steps: int, warmup: int = 200, decay_from: int = 500
) -> optax.Schedule:
    """A linear warm-up to the peak, a constant part, then a linear decay to 0.

    Updates of Muon have the size of the learning rate, however small the gradients are. So the
    learning rate limits the precision of the result, and a long decay helps.
    """
    begin = max(warmup, min(decay_from, steps - 1))
    return optax.join_schedules(
        [
            optax.linear_schedule(0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0, max(1, steps - begin)),
        ],
        [warmup, begin],
    )
