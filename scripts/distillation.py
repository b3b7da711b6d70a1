"""Teach a slim VGG-19 to stand in for the full one: its losses and its training step.

    L = sum_l w_l mean (F_l - T_l)^2 / var T_l + sum_l w_l log(1 + |G(F_l) - G(T_l)|^2 / |G(T_l)|^2)

T_l are the teacher's features of layer l, F_l = S_l K_l + b_l the student's lifted ones, G their
Gram matrices; the second sum is over the layers of style. Features are compared in their natural
scale: channels with much energy count for much, as they do in the Gram matrices.

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
# The layers between those of the losses only guide the deeper ones; relu4_1 rules the style term
# of the usual presets.
WEIGHTS = {layer: 1.0 if layer in LOSS_LAYERS else 0.4 for layer in LAYERS} | {"relu4_1": 2.0}
SAMPLING = {1: 4, 2: 2}  # of blocks 1 and 2 every 4th or 2nd row and column is compared
# Training wants inputs of about 1. The factor moves into the first kernel in the end.
INPUT_SCALE = 64.0


class Scales(NamedTuple):
    """Of each of the teacher's layers: the root mean square, and the variance in its units."""

    rms: dict[str, Array]
    variance: dict[str, Array]


def teacher_features(
    teacher: Variables, images: Array, *, pooling: str, one_by_one: bool
) -> dict[str, Array]:
    """The teacher's features of a batch; one image after another is faster on CPUs."""
    apply = partial(features, teacher, layers=LAYERS, pooling=pooling)
    return jax.lax.map(apply, images) if one_by_one else apply(images)


def measure_scales(taps: dict[str, Array]) -> Scales:
    """Scales of the teacher's features of some images."""
    rms = {name: jnp.sqrt(jnp.mean(jnp.square(tap))) for name, tap in taps.items()}
    centred = {name: tap - tap.mean((0, 1, 2), keepdims=True) for name, tap in taps.items()}
    variance = {name: jnp.mean(jnp.square(centred[name])) / rms[name] ** 2 for name in taps}
    return Scales(rms, variance)


def init_student(
    key: Array, *, channels: tuple[int, ...], wide: tuple[int, ...] = CHANNELS
) -> Variables:
    """A student of random weights; its lifts give features in units of ``Scales.rms``.

    Args:
      key: a PRNG key.
      channels, wide: channels of the five blocks of student and teacher.
    """
    variables = init_variables(key, channels=channels)
    params = {name: variables["params"][name] for name in CONVS if name <= "conv5_1"}

    def init_lift(key: Array, layer: str) -> dict[str, Array]:
        block = block_of(layer) - 1
        shape = (channels[block], wide[block])
        kernel = 0.5 * shape[0] ** -0.5 * jax.random.normal(key, shape)
        return {"kernel": kernel, "bias": jnp.zeros(shape[1])}

    keys = jax.random.split(jax.random.fold_in(key, 1), len(LAYERS))
    lifts = {layer: init_lift(key, layer) for key, layer in zip(keys, LAYERS, strict=True)}
    copies = {pooling: jax.tree.map(jnp.copy, lifts) for pooling in POOLINGS}
    return {"params": params, "lift": copies}


def with_preprocessing(trained: Variables, preprocessing: dict[str, Array]) -> Variables:
    """The student's collections while it is trained."""
    wide = {"mean": preprocessing["mean"], "std": preprocessing["std"] * INPUT_SCALE}
    return {**trained, "preprocessing": wide}


def finish(trained: Variables, scales: Scales, preprocessing: dict[str, Array]) -> Variables:
    """The student as it is saved: the teacher's preprocessing, lifts in the teacher's units."""
    params = dict(trained["params"])
    first = params["conv1_1"]
    params["conv1_1"] = {"kernel": first["kernel"] / INPUT_SCALE, "bias": first["bias"]}
    lift = {
        pooling: {
            layer: jax.tree.map(lambda x, layer=layer: x * scales.rms[layer], entry)
            for layer, entry in lifts.items()
        }
        for pooling, lifts in trained["lift"].items()
    }
    return {"params": params, "preprocessing": preprocessing, "lift": lift}


def _sample(x: Array, layer: str, offset: Array) -> Array:
    """Every n-th row and column of a layer of a shallow block, from a random one on."""
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
    """The loss of a batch.

    Args:
      student: collections of ``with_preprocessing``.
      targets: the teacher's features of the images.
      scales: from ``measure_scales``.
      images: ``[B, H, W, 3]``.
      offset: two numbers, the rows and columns at which sampling starts.
      pooling: ``"max"`` or ``"average"``.
      dtype: of the student's computations.

    Returns:
      The loss, and its parts: layer -> relative error of features, G layer -> of Gram matrices.
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
            total += WEIGHTS[layer] * jnp.log1p(
                parts[f"G {layer}"]
            )  # without bound a dull image rules a step
    return total, parts


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels and lifts, Adam for biases.

    After 200 steps its loss was a third below that of Adam alone.
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
    """Up to the peak, constant for a while, then linearly down to nothing.

    Muon's updates have the size of the learning rate however small the gradients are, so that it
    decides how fine the result can be: a long way down pays.
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
