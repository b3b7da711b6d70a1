"""The training of slim weights: its loss, its images, and a run that is interrupted."""

import json

import distill
import distill_images as images
import distillation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CHANNELS
from PIL import Image
from procedural_images import KINDS, draw_image

from nst_jax.config import block_of
from nst_jax.errors import InputError
from nst_jax.models import features
from nst_jax.weights import convert, load_weights

LAYERS = distillation.LAYERS


@pytest.fixture(scope="module")
def batch():
    return jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))


@pytest.fixture(scope="module")
def targets(variables, batch):
    return distillation.teacher_features(variables, batch, pooling="max", one_by_one=True)


@pytest.fixture
def perfect_student(variables, targets):
    """The teacher itself, with projections that only change the unit."""
    scales = distillation.measure_scales(targets)
    projections = {}
    for name in LAYERS:
        channels = TINY_CHANNELS[block_of(name) - 1]
        kernel = jnp.eye(channels) / scales.rms[name]
        projections[name] = {"kernel": kernel, "bias": jnp.zeros(channels)}
    return jax.tree.map(lambda x: x, {**variables, "lift": {"max": projections}})


@pytest.mark.slow
def test_the_loss_is_zero_for_the_teacher_and_sees_a_changed_layer(
    variables, batch, targets, perfect_student
):
    scales = distillation.measure_scales(targets)

    def value(student):
        offset = jnp.array([1, 2])
        return distillation.distillation_loss(
            student, targets, scales, batch, offset, pooling="max"
        )

    loss, parts = value(perfect_student)
    assert float(loss) < 1e-8 and set(LAYERS) < set(parts)
    perfect_student["params"]["conv4_1"] = jax.tree.map(
        lambda x: 1.3 * x, variables["params"]["conv4_1"]
    )
    loss, parts = value(perfect_student)
    assert parts["relu3_4"] < 1e-8 and parts["relu4_1"] > 0.01 and parts["G relu5_1"] > 0.01
    assert float(loss) > 0.1


def test_parts_of_the_loss_against_numpy(batch, targets, perfect_student):
    rng = np.random.default_rng(0)
    for projection in perfect_student["lift"]["max"].values():
        projection["kernel"] += 0.1 * rng.normal(size=projection["kernel"].shape)
    _, parts = distillation.distillation_loss(
        perfect_student,
        targets,
        distillation.measure_scales(targets),
        batch,
        jnp.array([3, 1]),
        pooling="max",
    )
    for name, start, every in (("relu1_1", (3, 1), 4), ("relu2_1", (1, 1), 2), ("relu4_1", (), 1)):
        rows, columns = start or (0, 0)
        target = np.asarray(targets[name], np.float64)
        rms = np.sqrt(np.mean(target**2))
        variance = np.mean((target - target.mean((0, 1, 2))) ** 2) / rms**2
        sampled = target[:, rows::every, columns::every]
        kernel = np.asarray(perfect_student["lift"]["max"][name]["kernel"], np.float64)
        projected = sampled @ kernel
        error = np.mean((projected - sampled / rms) ** 2) / variance
        np.testing.assert_allclose(parts[name], error, rtol=1e-4)
        grams = [np.einsum("bhwc,bhwd->bcd", x, x) for x in (projected, sampled / rms)]
        relative = np.sum((grams[0] - grams[1]) ** 2) / np.sum(grams[1] ** 2)
        np.testing.assert_allclose(parts[f"G {name}"], relative, rtol=1e-4)


@pytest.mark.slow
def test_a_finished_student_has_the_units_of_the_teacher(variables, batch, targets):
    preprocessing = variables["preprocessing"]
    trained = distillation.init_student(jax.random.key(1), channels=(3, 4, 5, 6, 7))
    scales = distillation.measure_scales(targets)
    student = distillation.with_preprocessing(trained, preprocessing)
    before = features(student, batch[0], layers=LAYERS)
    finished = distillation.finish(trained, scales, preprocessing)
    assert finished["preprocessing"] is preprocessing
    for name, tap in features(finished, batch[0], layers=LAYERS).items():
        np.testing.assert_allclose(tap, before[name] * scales.rms[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("draw", KINDS)
def test_procedural_images_are_reproducible(draw):
    found = draw(np.random.default_rng(3), 48)
    assert found.shape == (48, 48, 3) and found.std() > 0.01
    assert found.min() > -1e-6 and found.max() < 1 + 1e-6
    np.testing.assert_array_equal(found, draw(np.random.default_rng(3), 48))


def test_crops_of_a_ramp_are_ramps(monkeypatch):
    """Without a rotation a ramp stays a ramp, mirrored or not, at any scale."""
    monkeypatch.setattr(images, "vary_colours", lambda rng, crop: crop)
    ramp = np.broadcast_to(np.linspace(0, 1, 120)[None, :, None], (90, 120, 3))
    straight = 0
    for seed in range(30):
        crop = images.crop_image(np.random.default_rng(seed), ramp, side=24)
        assert crop.shape == (24, 24, 3) and crop.dtype == np.float32
        inner = crop[2:-2, 2:-2, 0]
        steps = np.diff(inner, axis=1)
        if np.abs(np.diff(inner, axis=0)).max() < 1e-3:
            straight += 1
            assert np.ptp(steps) < 3e-3 and abs(steps.mean()) > 1e-3
    assert straight >= 10


def test_images_are_read_from_folders_and_reduced(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (1000, 300)).save(tmp_path / "b.png")
    Image.new("L", (70, 70)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 300)).save(tmp_path / "thin.png")
    found = images.read_images([tmp_path])
    assert [image.shape for image in found] == [(70, 70, 3), (240, 800, 3)]
    with pytest.raises(InputError, match="does not exist"):
        images.read_images([tmp_path / "nowhere"])


@pytest.mark.campaign
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, tiny_weights_file, monkeypatch):
    monkeypatch.setattr(convert, "CHANNELS", TINY_CHANNELS)
    monkeypatch.setattr(distill, "CHANNELS", TINY_CHANNELS)
    monkeypatch.setattr(images, "packaged_images", lambda: [])
    Image.fromarray(draw_image(np.random.default_rng(8), side=200)).save(tmp_path / "real.png")
    small = dict(batch=4, crop=32, procedural=2, average_share=0.0, checkpoint_every=3, steps=10)
    small |= dict(policy_every=4, policy_from=4, policy_runs=1)

    def train(name, channels=(3, 4, 5, 6, 7)):
        options = distill.Options(
            folder=tmp_path / name,
            teacher=tiny_weights_file,
            images=(tmp_path / "real.png",),
            channels=channels,
            **small,
        )
        return distill.distill(options)

    whole = load_weights(train("whole"))
    export, calls = distill.export, []

    def stop(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:  # after step 6
            raise KeyboardInterrupt
        return export(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "export", stop)
        with pytest.raises(KeyboardInterrupt):
            train("halves")
    halves = load_weights(train("halves"))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, halves.variables)
    stages = json.loads(halves.info.training)["stages"]
    assert [stage["from_step"] for stage in stages] == [0, 6]
    assert len(list((tmp_path / "whole").glob("policy_*.npy"))) == 2
    with pytest.raises(InputError, match="other channels"):
        train("halves", channels=(3, 4, 5, 6, 8))


@pytest.mark.parametrize(
    "option, value, match",
    [
        ("crop", 100, "multiple of 16, got 100"),
        ("batch", 3, "divisible by 4 devices"),
        ("channels", (1, 2, 3, 0, 4), "at least 1"),
        ("policy_runs", 0, "policy_runs of at least 1"),
    ],
)
def test_unusable_options_are_refused(tmp_path, option, value, match):
    options = {"folder": tmp_path / "run", "teacher": tmp_path, option: value}
    with pytest.raises(InputError, match=match):
        distill.check_options(distill.Options(**options))
    assert not (tmp_path / "run").exists()
