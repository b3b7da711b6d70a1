"""Train a slim VGG-19 that replaces the full one, as the weights of the package do.

    python scripts/distill/distill.py RUN_FOLDER --teacher vgg19.h5 --images FOLDER ...

The student starts from random weights. It is trained on crops of real images, of procedural images,
and of images that optimisations with the student itself pass through; without the last, optimisers
find patterns that fool it. The loss is in distillation.py.

RUN_FOLDER has a checkpoint, a log (log.jsonl) and the images of optimisations. The same command
resumes an interrupted run, with the same result. With other options it continues with those; the
weights file records every stage. The weights file is what ``nst-jax stylize --weights`` takes.

On accelerators use ``--precision bfloat16``, a larger ``--batch`` (divided among all local devices)
and a larger ``--crop``.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from distill_images import gather_images, make_batch, policy_images
from distill_state import (
    KEPT,
    Options,
    Training,
    add_stage,
    check_options,
    export,
    load_checkpoint,
    load_policy,
    output_path,
    save_checkpoint,
    save_policy,
)
from distillation import (
    LAYERS,
    distillation_loss,
    finish,
    init_student,
    make_optimizer,
    make_schedule,
    measure_scales,
    teacher_features,
    with_preprocessing,
)

from nst_jax.config import CHANNELS
from nst_jax.errors import InputError
from nst_jax.models import prepare_kernels
from nst_jax.types import Array, Variables
from nst_jax.weights import load_weights
from nst_jax.weights.convert import check_shapes, to_arrays

LOG_EVERY = 100


def make_step(options: Options, optimizer: optax.GradientTransformation) -> Callable:
    """Compile the step ``(training, teacher, crops, offset, pooling=) -> (training, parts)``."""
    dtype = jnp.dtype(options.precision)
    one_by_one = jax.default_backend() == "cpu"

    @partial(jax.jit, static_argnames="pooling", donate_argnums=0)
    def step(
        training: Training, teacher: Variables, crops: Array, offset: Array, *, pooling: str
    ) -> tuple[Training, dict[str, Array]]:
        trained, opt_state, scales = training
        preprocessing = teacher["preprocessing"]
        cast, images = jax.tree.map(lambda x: x.astype(dtype), (teacher, crops))
        targets = teacher_features(cast, images, pooling=pooling, one_by_one=one_by_one)

        def loss(trained):
            student = with_preprocessing(trained, preprocessing)
            return distillation_loss(
                student, targets, scales, crops, offset, pooling=pooling, dtype=dtype
            )

        (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        changed: Any = optax.apply_updates(trained, updates)
        # Muon scales any momentum to full length, also an old one, so the projections for the other
        # pooling, which have no gradient in this step, must be left out.
        lift = {**trained["lift"], pooling: changed["lift"][pooling]}
        trained = {"params": changed["params"], "lift": lift}
        return Training(trained, opt_state, scales), parts | {"loss": value}

    return step


def distill(options: Options) -> Path:
    """Train from the start or from the last checkpoint.

    Returns:
      The path of the weights file.

    Raises:
      InputError: for unusable options, images or teacher, and if the loss becomes infinite.
    """
    check_options(options)
    loaded = load_weights(options.teacher)
    shapes = {name: array.shape for name, array in to_arrays(loaded.variables).items()}
    check_shapes(shapes, channels=CHANNELS)
    images = gather_images(options)
    preprocessing = loaded.variables["preprocessing"]
    on_cpu = jax.default_backend() == "cpu"
    prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers"))
    convolution = "winograd" if on_cpu else "direct"
    teacher = prepare(loaded.variables, convolution=convolution, layers=LAYERS)

    optimizer = make_optimizer(make_schedule(options.learning_rate, steps=options.steps))
    training, start = load_checkpoint(
        options.folder, first_training(options, optimizer, teacher, images)
    )
    stages = add_stage(options, start=start, real_images=len(images.real))
    policy = load_policy(options, step=start)
    devices = jax.make_mesh(
        (jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    shards = jax.sharding.NamedSharding(devices, jax.P("batch"))
    take_step = make_step(options, optimizer)
    started, history = time.time(), []

    with ThreadPoolExecutor(1) as executor, (options.folder / "log.jsonl").open("a") as log:

        def prepare_batch(step: int):
            return executor.submit(make_batch, options, images, policy, step=step)

        coming = prepare_batch(start)
        for step in range(start, options.steps):
            every = options.policy_every
            if every and step >= options.policy_from and step % every == 0:
                student = finish(training.trained, training.scales, preprocessing)
                fresh = policy_images(options, images, student, number=step // every)
                save_policy(options.folder, fresh, number=step // every)
                policy = (policy + fresh)[-KEPT:]
                coming = prepare_batch(step)
            crops, pooling, offset = coming.result()
            coming = prepare_batch(step + 1)  # prepared during the step
            crops = jax.device_put(crops, shards)
            training, parts = take_step(training, teacher, crops, offset, pooling=pooling)
            history.append(parts)
            done = step + 1
            saving = done % options.checkpoint_every == 0 or done == options.steps
            if saving or done % LOG_EVERY == 0:
                log_means(log, history, step=done, seconds=time.time() - started)
                history = []
            if saving:
                save_checkpoint(options.folder, training, step=done)
                student = finish(training.trained, training.scales, preprocessing)
                export(options, loaded, student, step=done, stages=stages)
    if start >= options.steps:
        student = finish(training.trained, training.scales, preprocessing)
        export(options, loaded, student, step=start, stages=stages)
    return output_path(options)


def first_training(
    options: Options, optimizer: optax.GradientTransformation, teacher: Variables, images: Any
) -> Training:
    """Initialise the state before the first step."""
    crops = [make_batch(options, images, [], step=2**31 + step)[0] for step in range(8)]
    taps = jax.jit(partial(teacher_features, pooling="max", one_by_one=True))(
        teacher, np.concatenate(crops)
    )
    wide = tuple(teacher["params"][f"conv{block}_1"]["bias"].shape[0] for block in range(1, 6))
    trained = init_student(jax.random.key(options.seed), channels=options.channels, wide=wide)
    return Training(trained, jax.jit(optimizer.init)(trained), measure_scales(taps))


def log_means(log: Any, history: list[dict[str, Array]], *, step: int, seconds: float) -> None:
    """Log the means over some steps.

    Raises:
      InputError: if the loss is not finite.
    """
    means = {name: np.mean([float(parts[name]) for parts in history]) for name in history[0]}
    record = {"step": step, "seconds": seconds} | means
    print(json.dumps({key: round(float(x), 4) for key, x in record.items()}), file=log, flush=True)
    print(f"{step:6d} {seconds:7.0f} s  loss {means['loss']:.4f}", flush=True)
    if not np.isfinite(means["loss"]):
        raise InputError("the loss became infinite: choose a lower learning rate")


def main() -> int:
    try:
        print(distill(tyro.cli(Options)))
    except InputError as error:
        print(f"distill: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
