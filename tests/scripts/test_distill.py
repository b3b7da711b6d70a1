"""The training of slim weights: its loss, its images, and a run that is interrupted."""

import json
from dataclasses import replace
from pathlib import Path

import distill
import distill_images
import distillation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_images as images
from conftest import TINY_CHANNELS
from PIL import Image
from procedural_images import KINDS, draw_image

from nst_jax.config import block_of, get_preset
from nst_jax.errors import InputError
from nst_jax.models import features
from nst_jax.transfer import loop
from nst_jax.weights import convert, load_weights

LAYERS = distillation.LAYERS


@pytest.fixture
def batch():
    return jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))


def teacher_of(variables, batch, pooling="max"):
    return {
        name: jnp.stack([tap[name] for tap in taps])
        for taps in [[features(variables, x, layers=LAYERS, pooling=pooling) for x in batch]]
        for name in LAYERS
    }


@pytest.mark.parametrize("one_by_one", [False, True])
def test_teacher_features_of_a_batch(variables, batch, one_by_one):
    found = distillation.teacher_features(
        variables, batch, pooling="average", one_by_one=one_by_one
    )
    for name, tap in teacher_of(variables, batch, "average").items():
        np.testing.assert_allclose(found[name], tap, rtol=1e-4, atol=1e-4)


def perfect_student(variables, scales):
    """The teacher itself with lifts that change nothing but the unit."""

    def lift(name):
        channels = TINY_CHANNELS[block_of(name) - 1]
        return {"kernel": jnp.eye(channels) / scales.rms[name], "bias": jnp.zeros(channels)}

    lifts = {name: lift(name) for name in LAYERS}
    return {**variables, "lift": {"max": lifts, "average": lifts}}


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_teacher_itself_has_no_loss(variables, batch, pooling):
    targets = teacher_of(variables, batch, pooling)
    scales = distillation.measure_scales(targets)
    student = perfect_student(variables, scales)

    def value(student):
        return distillation.distillation_loss(
            student, targets, scales, batch, jnp.array([1, 2]), pooling=pooling
        )

    loss, parts = value(student)
    assert float(loss) < 1e-8 and set(LAYERS) < set(parts)
    student["params"]["conv4_1"] = jax.tree.map(lambda x: 1.3 * x, variables["params"]["conv4_1"])
    loss, parts = value(student)
    assert parts["relu3_4"] < 1e-8 and parts["relu4_1"] > 0.01 and parts["G relu5_1"] > 0.01
    assert float(loss) > 0.1


def test_parts_against_numpy(variables, batch):
    targets = teacher_of(variables, batch)
    scales = distillation.measure_scales(targets)
    student = jax.tree.map(lambda x: x, perfect_student(variables, scales))
    rng = np.random.default_rng(0)
    for lift in student["lift"]["max"].values():
        lift["kernel"] += 0.1 * rng.normal(size=lift["kernel"].shape)
    offset = jnp.array([3, 1])
    _, parts = distillation.distillation_loss(
        student, targets, scales, batch, offset, pooling="max"
    )
    for name, start, every in (("relu1_1", (3, 1), 4), ("relu2_1", (1, 1), 2), ("relu4_1", (), 1)):
        rows, columns = start or (0, 0)
        target = np.asarray(targets[name], np.float64)
        rms = np.sqrt(np.mean(target**2))
        variance = np.mean((target - target.mean((0, 1, 2))) ** 2) / rms**2
        sampled = target[:, rows::every, columns::every]
        lifted = sampled @ np.asarray(student["lift"]["max"][name]["kernel"], np.float64)
        error = np.mean((lifted - sampled / rms) ** 2) / variance
        np.testing.assert_allclose(parts[name], error, rtol=1e-4)
        grams = [np.einsum("bhwc,bhwd->bcd", x, x) for x in (lifted, sampled / rms)]
        relative = np.sum((grams[0] - grams[1]) ** 2) / np.sum(grams[1] ** 2)
        np.testing.assert_allclose(parts[f"G {name}"], relative, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same_loss(variables, batch):
    targets = teacher_of(variables, batch)
    scales = distillation.measure_scales(targets)
    trained = distillation.init_student(
        jax.random.key(1), channels=(3, 4, 5, 6, 7), wide=TINY_CHANNELS
    )
    student = distillation.with_preprocessing(trained, variables["preprocessing"])
    losses = [
        distillation.distillation_loss(
            student, targets, scales, batch, jnp.array([0, 0]), pooling="max", dtype=dtype
        )[0]
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert losses[1].dtype == jnp.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)


def test_finished_student_has_the_teachers_units(variables, batch):
    preprocessing = variables["preprocessing"]
    trained = distillation.init_student(jax.random.key(1), channels=(3, 4, 5, 6, 7))
    scales = distillation.measure_scales(teacher_of(variables, batch))
    before = features(
        distillation.with_preprocessing(trained, preprocessing), batch[0], layers=LAYERS
    )
    finished = distillation.finish(trained, scales, preprocessing)
    assert finished["preprocessing"] is preprocessing
    for name, tap in features(finished, batch[0], layers=LAYERS).items():
        np.testing.assert_allclose(tap, before[name] * scales.rms[name], rtol=1e-3, atol=1e-3)


def test_schedule():
    schedule = distillation.make_schedule(0.01, steps=1000, warmup=100, decay_from=400)
    found = [float(schedule(step)) for step in (0, 50, 100, 400, 700, 1000)]
    np.testing.assert_allclose(found, [0, 0.005, 0.01, 0.01, 0.005, 0], atol=1e-6)


@pytest.mark.parametrize("draw", KINDS)
def test_procedural_images(draw):
    found = draw(np.random.default_rng(3), 48)
    assert found.shape == (48, 48, 3) and found.std() > 0.01
    assert found.min() > -1e-6 and found.max() < 1 + 1e-6
    np.testing.assert_array_equal(found, draw(np.random.default_rng(3), 48))


def test_crops():
    image = draw_image(np.random.default_rng(0), side=100)
    assert image.dtype == np.uint8
    crops = [
        images.crop_image(np.random.default_rng(seed), source, side=32)
        for seed in range(20)
        for source in (image, image.astype(np.float32) / 255)
    ]
    assert all(crop.shape == (32, 32, 3) and crop.dtype == np.float32 for crop in crops)
    assert min(crop.min() for crop in crops) >= -0.31 and max(c.max() for c in crops) <= 1.31
    for of_bytes, of_floats in zip(crops[::2], crops[1::2], strict=True):
        np.testing.assert_allclose(of_bytes, of_floats, atol=1e-5)
    assert len({crop.tobytes() for crop in crops}) > 19


def test_a_crop_keeps_straight_images_straight(monkeypatch):
    """Without a turn a ramp stays a ramp, mirrored or not, at any scale."""
    monkeypatch.setattr(images, "vary_colours", lambda rng, crop: crop)
    ramp = np.broadcast_to(np.linspace(0, 1, 120)[None, :, None], (90, 120, 3))
    straight = 0
    for seed in range(30):
        crop = images.crop_image(np.random.default_rng(seed), ramp, side=24)[2:-2, 2:-2, 0]
        steps = np.diff(crop, axis=1)
        if np.abs(np.diff(crop, axis=0)).max() < 1e-3:
            straight += 1
            assert np.ptp(steps) < 3e-3 and abs(steps.mean()) > 1e-3
    assert straight >= 10


def test_reading_images(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (1000, 300)).save(folder / "b.png")
    Image.new("L", (70, 70)).save(folder / "a.png")
    Image.new("RGB", (20, 300)).save(folder / "thin.png")
    found = images.read_images([folder])
    assert [image.shape for image in found] == [(70, 70, 3), (240, 800, 3)]
    with pytest.raises(InputError, match="does not exist"):
        images.read_images([tmp_path / "nowhere"])


@pytest.mark.campaign
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, tiny_weights_file, monkeypatch):
    monkeypatch.setattr(convert, "CHANNELS", TINY_CHANNELS)
    monkeypatch.setattr(distill, "CHANNELS", TINY_CHANNELS)
    real = tmp_path / "real.png"
    Image.fromarray(draw_image(np.random.default_rng(8), side=200)).save(real)
    monkeypatch.setattr(distill_images, "packaged_images", lambda: [])

    def train(name, **options):
        return distill.distill(
            distill.Options(
                folder=tmp_path / name,
                teacher=tiny_weights_file,
                images=(real,),
                batch=4,
                crop=32,
                procedural=2,
                policy_every=4,
                policy_from=4,
                policy_runs=1,
                average_share=0.0,
                checkpoint_every=3,
                steps=10,
                **{"channels": (3, 4, 5, 6, 7)} | options,
            )
        )

    whole = load_weights(train("whole"))
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:  # after step 6
            raise KeyboardInterrupt
        return export(*args, **kwargs)

    export = distill.export
    with monkeypatch.context() as patch:
        patch.setattr(distill, "export", stop)
        with pytest.raises(KeyboardInterrupt):
            train("halves")
    halves = load_weights(train("halves"))
    for one, two in zip(
        jax.tree.leaves(whole.variables), jax.tree.leaves(halves.variables), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    stages = json.loads(halves.info.training)["stages"]
    assert [stage["from_step"] for stage in stages] == [0, 6]
    assert sorted(path.name for path in Path(tmp_path / "whole").glob("*.npy")) == [
        "policy_0001.npy",
        "policy_0002.npy",
    ]
    halves_file = tmp_path / "halves" / "vgg19-slim.safetensors"
    kept = halves_file.read_bytes()
    halves_file.unlink()
    train("halves")  # is finished: it only writes the file again
    assert halves_file.read_bytes() == kept
    with pytest.raises(InputError, match="of other channels"):
        train("halves", channels=(3, 4, 5, 6, 8))


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(crop=100), "multiple of 16"),
        (dict(batch=3), "multiple of 4 devices"),
        (dict(channels=(1, 2, 3, 0, 4)), "at least 1"),
        (dict(policy_runs=0), "policy_runs is 0"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        distill.distill(distill.Options(folder=tmp_path / "run", teacher=tmp_path, **options))
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for folder, match in (("run", "cannot read the weights"), ("file", "cannot make")):
        line = ["distill.py", str(tmp_path / folder), "--teacher", str(tmp_path / "nothing")]
        monkeypatch.setattr("sys.argv", [*line, "--batch", "4"])
        assert distill.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("distill: error: ") and match in error and error.count("\n") == 1


def test_a_narrow_network_is_no_teacher(tmp_path, tiny_weights_file):
    with pytest.raises(InputError, match="expected .*64"):
        distill.distill(distill.Options(folder=tmp_path / "run", teacher=tiny_weights_file))


@pytest.mark.slow
def test_images_of_optimisations_do_not_depend_on_the_clock(monkeypatch, slim_variables):
    """However long a step takes, the same images are kept."""
    drawn = [draw_image(np.random.default_rng(k), side=100) for k in range(2)]
    config = get_preset("neural-style").config
    config = config.but(content_layers=(("relu2_2", 1.0),), style_layers=(("relu3_1", 1.0),))
    preset = replace(get_preset("neural-style"), config=config)
    monkeypatch.setattr(distill_images, "get_preset", lambda name: preset)
    options = distill.Options(folder=Path(), teacher=Path(), crop=32, policy_runs=1)
    found = []
    for seconds in (1e-9, 100.0):
        monkeypatch.setattr(loop, "CHUNK_SECONDS", seconds)
        gathered = distill_images.Images(drawn, drawn)
        found.append(distill_images.policy_images(options, gathered, slim_variables, number=3))
    assert len(found[0]) in (2, 3) and found[0][0].shape == (48, 48, 3)
    np.testing.assert_array_equal(found[0], found[1])
