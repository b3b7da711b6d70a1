"""The benchmark's own arithmetic, and one small run of it."""

import json

import pytest

pytest.importorskip("torch")

import benchmark
import benchmark_steps as steps
import jax
import jax.numpy as jnp

from nst_jax.config import get_preset
from nst_jax.errors import InputError


def test_flops_of_a_step():
    """One convolution by hand, and the known 95 GFLOP of a step at 256 px without its Grams."""
    config = steps.Config.of(content_layers=("conv1_1",), style_layers=())
    assert steps.step_flops(10, 20, config) == 2 * (2 * 9 * 200 * 3 * 64)
    grams = steps.step_flops(256, 256) / 1e9 - 95
    assert 0 < grams < 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_settings_are_those_of_the_preset_in_whole_images(precision):
    for optimizer in ("lbfgs", "adam"):
        config = steps.neural_style(optimizer=optimizer, precision=precision)
        given = dict(optimizer=optimizer, precision=precision, tile="off", remat="off")
        given |= {"memory_size": 100} if optimizer == "lbfgs" else {}
        assert config == get_preset("neural-style").config.but(**given)
    with pytest.raises(InputError, match="optimizer is 'lbfgs-linesearch': expected lbfgs or adam"):
        steps.neural_style(optimizer="lbfgs-linesearch", precision=precision)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="for CPUs' convolutions")
@pytest.mark.slow
def test_candidates_of_each_precision(variables, content, style, monkeypatch):
    """Ours take the setting itself: its rounding, and no Winograd beside it."""
    losses = []

    def run(*args, **options):
        state, info = loop(*args, **options)
        losses.append(float(info.loss[0]))
        return state, info

    loop = steps.run
    monkeypatch.setattr(steps, "run", run)
    images = jnp.asarray(content), jnp.asarray(style)
    names = {"float32": {"nst_jax", "nst_jax from Python", "nst_jax direct"}}
    names["bfloat16"] = names["float32"] - {"nst_jax direct"}
    for precision, expected in names.items():
        config = steps.neural_style(optimizer="adam", precision=precision)
        config = config.but(content_layers=("relu2_1",), style_layers=("relu1_1",))
        found = steps.jax_candidates(variables, *images, config=config, steps=2)
        assert set(found) == expected
        for one in found.values():
            one.steps()
            assert one.sound()
    plain, direct, narrow = losses
    assert direct == pytest.approx(plain, rel=1e-5)
    assert 1e-5 < abs(narrow / plain - 1) < 0.05
    config = steps.neural_style(optimizer="adam", precision="tf32")
    with pytest.raises(InputError, match="precision tf32 needs an NVIDIA GPU"):
        steps.jax_candidates(variables, *images, config=config, steps=2)


def candidate(*, sound=True, error=None):
    def take():
        if error:
            raise error

    return steps.Candidate(steps=take, sound=lambda: sound)


def test_a_diverged_candidate_is_told():
    with pytest.raises(InputError, match="nst_jax diverged"):
        benchmark.interleave({"nst_jax": candidate(sound=False)}, benchmark.Options(rounds=1))


def test_only_compiled_pytorch_may_fail(capsys):
    candidates = {"nst_jax": candidate(), "PyTorch compiled": candidate(error=RuntimeError())}
    found = benchmark.interleave(candidates, benchmark.Options(rounds=2))
    assert [len(seconds) for seconds in found["seconds_per_step"].values()] == [2]
    assert "PyTorch compiled does not work here" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        benchmark.interleave({"PyTorch": candidate(error=RuntimeError())}, benchmark.Options())


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.optimized
def test_a_small_run(tmp_path):
    path = tmp_path / "figures.json"
    small = dict(parts=("steps", "network"), sizes=(32,), rounds=1, steps=1, json=path)
    options = benchmark.Options(
        **small,
        optimizers=("adam",),
        precisions=("float32", "bfloat16"),
        network_size=32,
        batch=2,
        max_ratio=1e-6,
    )
    assert benchmark.main(options) == 1  # no step is so fast
    figures = json.loads(path.read_text())
    assert set(figures) == {"machine", "steps", "network"}
    for part in ("steps", "network"):
        found = [case["precision"] for case in figures[part]]
        assert found == ["float32", "bfloat16"]
    assert min(case["ratio_of_nst_jax_to"]["PyTorch"] for case in figures["steps"]) > 0
    assert min(case["seconds"] for case in figures["network"]) > 0


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.optimized
def test_workers():
    """Both in processes of their own, PyTorch's without JAX; ours stops where it has that loss."""
    images = [benchmark.IMAGES / f"demo_{name}.jpg" for name in ("content", "style")]
    found = benchmark.process.time_to_loss(*images, size=48, evaluations=12)
    assert found["PyTorch"]["steps"] == 12 and 0 < found["fast"]["steps"] <= 24
    assert found["fast"]["seconds"] is None or found["fast"]["loss"] <= found["loss"]
    assert found["PyTorch"]["memory_mb"] > 100 and not found["PyTorch"]["has_jax"]
