"""Train a slim VGG-19 to stand in for the full one: the weights that are shipped.

    python scripts/distill.py RUN_FOLDER --teacher vgg19.h5 --pictures FOLDER ...

The student is trained from random weights on crops of real pictures, of procedural ones, and of the
pictures that an optimisation passes through with the student as it is: without those it would be
fooled by what it has never seen. The loss is described in distillation.py, the pictures in
training_pictures.py. RUN_FOLDER keeps checkpoints, a log (log.jsonl) and those pictures; the same
command goes on where a run was interrupted, to the same result. ``--steps`` may be changed while
the learning rate is still at its peak. The end writes OUTPUT, a file of weights that ``nst-jax
stylize --weights`` takes.

On accelerators: ``--precision bfloat16``, a larger ``--batch`` (shared by all local devices) and
``--crop``.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from distillation import (
    LAYERS,
    POOLINGS,
    distillation_loss,
    finish,
    init_student,
    make_optimizer,
    make_schedule,
    measure_scales,
    teacher_features,
    with_preprocessing,
)
from safetensors.numpy import load_file, save_file
from training_pictures import (
    crop_picture,
    draw_picture,
    packaged_pictures,
    plain_crop,
    read_pictures,
)

from nst_jax.errors import InputError
from nst_jax.files import atomic_write
from nst_jax.presets import get_preset
from nst_jax.transfer import Progress, stylize
from nst_jax.vgg import prepare_kernels
from nst_jax.weights import Weights, WeightsInfo, load_weights, save_weights

KEPT = 400  # pictures of optimisations
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
ATTRIBUTION = (
    "Trained by the nst_jax project to imitate VGG-19 by Karen Simonyan and Andrew Zisserman, "
    "Visual Geometry Group, University of Oxford, "
    "https://www.robots.ox.ac.uk/~vgg/research/very_deep/ (CC BY 4.0)."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train slim weights.

    Attributes:
      folder: Where the run is kept.
      teacher: The full VGG-19, in any form that nst-jax loads.
      output: The file of weights to write; by default FOLDER/vgg19-slim.safetensors.
      pictures: Folders or files of real pictures beside those of scikit-image and scikit-learn.
      channels: Channels of the five blocks.
      steps: Steps of training.
      batch: Crops in a step.
      crop: Their side in pixels, a multiple of 16.
      learning_rate: Its peak.
      procedural: How many procedural pictures are drawn.
      average_share: Share of steps with average pooling.
      policy_every: Steps after which pictures of optimisations are made anew; 0 for none.
      policy_from: Steps before the first of them.
      policy_runs: Optimisations each time.
      checkpoint_every: Steps between checkpoints.
      precision: Of the student's and the teacher's convolutions.
      seed: Of everything random.
    """

    folder: tyro.conf.Positional[Path]
    teacher: Path
    output: Path | None = None
    pictures: tuple[Path, ...] = ()
    channels: tuple[int, int, int, int, int] = (16, 64, 96, 192, 192)
    steps: int = 8000
    batch: int = 4
    crop: int = 128
    learning_rate: float = 0.006
    procedural: int = 300
    average_share: float = 0.25
    policy_every: int = 200
    policy_from: int = 1000
    policy_runs: int = 6
    checkpoint_every: int = 500
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


class Pictures:
    """The pictures to train on; those of optimisations are kept in the run's folder."""

    def __init__(self, options: Options):
        self.options = options
        self.real = read_pictures([*packaged_pictures(), *options.pictures])
        rng = np.random.default_rng([options.seed, 1])
        self.drawn = [draw_picture(rng) for _ in range(options.procedural)]
        if not self.real:
            raise InputError("no real pictures: install scikit-image, or name --pictures")

    def varied(self, rng: np.random.Generator, *, side: int) -> np.ndarray:
        """A varied crop of a real or procedural picture."""
        group = self.real if rng.random() < 0.7 else self.drawn
        return crop_picture(rng, group[rng.integers(len(group))], side=side)

    def crop(self, rng: np.random.Generator, policy: list[np.ndarray]) -> np.ndarray:
        """A crop to train on."""
        side, draw = self.options.crop, rng.random()
        if not policy or draw > 0.5:
            return self.varied(rng, side=side)
        # Half of them of late: what fooled an earlier student tells less.
        group = policy[-60:] if draw < 0.25 else policy
        # Pixel for pixel: what fools a student are fine patterns, which a change of scale removes.
        return plain_crop(rng, group[rng.integers(len(group))], side=side)

    def batch(self, step: int, policy: list[np.ndarray]) -> tuple[np.ndarray, str, np.ndarray]:
        """Crops, pooling and sampling offset of a step, all by its number alone."""
        options = self.options
        rng = np.random.default_rng([options.seed, 2, step])
        pooling = POOLINGS[int(rng.random() < options.average_share)]
        crops = np.stack([self.crop(rng, policy) for _ in range(options.batch)])
        return crops, pooling, rng.integers(0, 4, 2)


def policy_pictures(student: Any, pictures: Pictures, *, number: int) -> list[np.ndarray]:
    """Pictures that optimisations under the student pass through, early and late.

    Contents and styles are crops of all pictures; objective and optimiser are those of a preset,
    with either pooling, from the content or from noise.
    """
    options, side = pictures.options, 3 * pictures.options.crop // 2
    rng = np.random.default_rng([options.seed, 3, number])
    kept: list[np.ndarray] = []
    for run in range(options.policy_runs):
        content, style = (np.clip(pictures.varied(rng, side=side), 0, 1) for _ in range(2))
        config = replace(
            get_preset("neural-style").config,
            steps=int(rng.choice([30, 60, 100])),
            init="noise" if rng.random() < 0.2 else "content",
            pooling=POOLINGS[int(rng.random() < 0.3)],
            style_weight=float(100 * np.exp(rng.normal())),
        )
        wanted = set(rng.integers(1, config.steps + 1, 2).tolist()) | {config.steps}

        def keep(progress: Progress, wanted: set[int] = wanted) -> None:
            if any(progress.step >= step for step in wanted):
                image = np.asarray(progress.image)
                if np.isfinite(image).all():
                    kept.append(np.clip(image, -0.3, 1.3).astype(np.float32))
                wanted -= {step for step in wanted if progress.step >= step}

        key = jax.random.key(1000 * number + run)
        stylize(student, content, style, config=config, key=key, callback=keep, callback_every=5)
    return kept


def save_tree(path: Path, tree: Any, **metadata: str) -> None:
    """A pytree's leaves as a .safetensors file that appears whole."""
    leaves = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with atomic_write(path) as temporary:
        save_file(leaves, temporary, metadata)


def load_tree(path: Path, like: Any) -> Any:
    """The pytree that ``save_tree`` wrote."""
    arrays = load_file(path)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in sorted(arrays)])


def make_step(teacher: Any, scales: Any, preprocessing: Any, options: Options) -> Callable:
    """The compiled step: ``(trained, opt_state, teacher, crops, offset, pooling)``."""
    dtype = jnp.dtype(options.precision)
    one_by_one = jax.default_backend() == "cpu"
    optimizer = make_optimizer(make_schedule(options.learning_rate, steps=options.steps))

    @partial(jax.jit, static_argnames="pooling", donate_argnums=(0, 1))
    def step(trained, opt_state, teacher, crops, offset, *, pooling):
        cast = jax.tree.map(lambda x: x.astype(dtype), teacher)
        targets = teacher_features(
            cast, crops.astype(dtype), pooling=pooling, one_by_one=one_by_one
        )

        def loss(trained):
            student = with_preprocessing(trained, preprocessing)
            return distillation_loss(
                student, targets, scales, crops, offset, pooling=pooling, dtype=dtype
            )

        (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        return trained, opt_state, parts | {"loss": value}

    return step


def tell_stage(options: Options, *, start: int, pictures: Pictures) -> list[dict[str, Any]]:
    """All stages of the run so far, this one included, which is added to them."""
    path = options.folder / "stages.json"
    stages = json.loads(path.read_text()) if path.exists() else []
    places = ("folder", "teacher", "output", "pictures")
    stage = {key: value for key, value in asdict(options).items() if key not in places}
    stage |= {"from_step": start, "real_pictures": len(pictures.real)}
    stages = [other for other in stages if other["from_step"] < start] + [stage]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(stages))
    return stages


def export(
    options: Options, teacher: Weights, student: Any, *, step: int, stages: list[dict[str, Any]]
) -> None:
    """Write the student as a file of weights."""
    training = {
        "script": "scripts/distill.py",
        "steps": step,
        "stages": stages,
        "teacher": teacher.info.name,
        "teacher_sha256": teacher.info.sha256,
    }
    info = WeightsInfo(
        name="vgg19-slim",
        preprocessing=teacher.info.preprocessing,
        source=f"distilled from {teacher.info.name}",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        training=json.dumps(training),
    )
    save_weights(output_path(options), Weights(student, info), overwrite=True, half=True)


def output_path(options: Options) -> Path:
    return options.output or options.folder / "vgg19-slim.safetensors"


def check_options(options: Options) -> None:
    """Raise ``InputError`` for sizes that do not fit the network or the devices."""
    if options.crop < 16 or options.crop % 16:
        raise InputError(f"crop is {options.crop}: expected a multiple of 16")
    devices = jax.device_count()
    if options.batch < 1 or options.batch % devices:
        raise InputError(f"batch is {options.batch}: expected a multiple of {devices} devices")
    if min(options.channels) < 1:
        raise InputError(f"channels are {options.channels}: expected at least 1 in each block")


def distill(options: Options) -> Path:
    """Train, from the start or from the last checkpoint.

    Returns:
      The file of weights.
    """
    check_options(options)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(options)
    loaded = load_weights(options.teacher)
    teacher, preprocessing = loaded.variables, loaded.variables["preprocessing"]
    on_cpu = jax.default_backend() == "cpu"
    prepare = jax.jit(prepare_kernels, static_argnames=("convolution", "layers"))
    teacher = prepare(teacher, convolution="winograd" if on_cpu else "direct", layers=LAYERS)
    first = np.concatenate([pictures.batch(-step % 2**31, [])[0] for step in range(1, 9)])
    scales = jax.jit(
        lambda teacher, x: measure_scales(
            teacher_features(teacher, x, pooling="max", one_by_one=on_cpu)
        )
    )(teacher, first)

    wide = tuple(loaded.variables["params"][f"conv{b}_1"]["bias"].shape[0] for b in range(1, 6))
    trained = init_student(jax.random.key(options.seed), channels=options.channels, wide=wide)
    optimizer = make_optimizer(make_schedule(options.learning_rate, steps=options.steps))
    opt_state = jax.jit(optimizer.init)(trained)
    start, policy = 0, []
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        start = int(json.loads((folder / "checkpoint.json").read_text())["step"])
        trained, opt_state = load_tree(checkpoint, (trained, opt_state))
    stages = tell_stage(options, start=start, pictures=pictures)
    every = options.policy_every
    for number in range(1, (start - 1) // every + 1 if every and start else 1):
        if (path := folder / f"policy_{number:03d}.npy").exists():  # else of another stage
            policy = (policy + list(np.load(path)))[-KEPT:]

    mesh = jax.make_mesh(
        (jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    shards = jax.sharding.NamedSharding(mesh, jax.P("batch"))
    step_function = make_step(teacher, scales, preprocessing, options)
    begun, history = time.time(), []
    with ThreadPoolExecutor(1) as executor, (folder / "log.jsonl").open("a") as log:
        coming = executor.submit(pictures.batch, start, policy)
        for step in range(start, options.steps):
            if every and step >= options.policy_from and step % every == 0:
                number = step // every
                coming.result()
                student = finish(trained, scales, preprocessing)
                fresh = policy_pictures(student, pictures, number=number)
                with atomic_write(folder / f"policy_{number:03d}.npy") as temporary:
                    np.save(temporary, np.stack(fresh).astype(np.float16))
                policy = (policy + [x.astype(np.float16) for x in fresh])[-KEPT:]
                coming = executor.submit(pictures.batch, step, policy)
            crops, pooling, offset = coming.result()
            coming = executor.submit(pictures.batch, step + 1, policy)
            crops = jax.device_put(crops, shards)
            trained, opt_state, parts = step_function(
                trained, opt_state, teacher, crops, offset, pooling=pooling
            )
            history.append(parts)
            done = step + 1
            if done % 100 == 0 or done == options.steps:
                means = {
                    name: float(np.mean([float(parts[name]) for parts in history]))
                    for name in history[0]
                }
                record = {"step": done, "seconds": time.time() - begun} | means
                print(json.dumps({k: round(v, 4) for k, v in record.items()}), file=log, flush=True)
                print(f"{done:6d} {record['seconds']:7.0f} s  loss {means['loss']:.4f}", flush=True)
                history = []
                if not np.isfinite(means["loss"]):
                    raise InputError("the loss became infinite: choose a lower learning rate")
            if done % options.checkpoint_every == 0 or done == options.steps:
                save_tree(checkpoint, (trained, opt_state))
                with atomic_write(folder / "checkpoint.json") as temporary:
                    temporary.write_text(json.dumps({"step": done}))
                student = finish(trained, scales, preprocessing)
                export(options, loaded, student, step=done, stages=stages)
    return output_path(options)


def main() -> int:
    try:
        print(distill(tyro.cli(Options)))
    except InputError as error:
        print(f"distill: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
