"""The arithmetic of the benchmarks, and one small run."""

import json

import pytest

pytest.importorskip("torch")

import benchmark_process as process
import benchmark_pytorch as benchmark
import benchmark_steps as steps

from nst_jax.config import get_preset
from nst_jax.errors import InputError


def test_operations_of_a_step():
    """One convolution by hand, and the known 95 GFLOP of a step at 256 px without Gram matrices."""
    config = steps.Config.of(content_layers=("conv1_1",), style_layers=())
    assert steps.step_flops(10, 20, config) == 2 * (2 * 9 * 200 * 3 * 64)
    assert 0 < steps.step_flops(256, 256) / 1e9 - 95 < 6


def test_settings_are_those_of_the_preset_on_whole_images():
    given = dict(optimizer="adam", precision="bfloat16")
    expected = get_preset("neural-style").config.but(**given, tile="off", remat="off")
    assert steps.neural_style(**given) == expected
    with pytest.raises(InputError, match="expected the optimizer lbfgs or adam"):
        steps.neural_style(optimizer="lbfgs-linesearch", precision="float32")


def candidate(*, sound=True, error=None):
    def take():
        if error:
            raise error

    return steps.Candidate(steps=take, sound=lambda: sound)


def test_only_compiled_pytorch_may_fail(capsys):
    candidates = {"nst_jax": candidate(), "PyTorch compiled": candidate(error=RuntimeError())}
    found = benchmark.interleave(candidates, benchmark.Options(rounds=2))
    assert [len(seconds) for seconds in found["seconds_per_step"].values()] == [2]
    assert "PyTorch compiled does not work here" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        benchmark.interleave({"PyTorch": candidate(error=RuntimeError())}, benchmark.Options())
    with pytest.raises(InputError, match="nst_jax diverged"):
        benchmark.interleave({"nst_jax": candidate(sound=False)}, benchmark.Options(rounds=1))


@pytest.mark.slow
@pytest.mark.weights
def test_a_small_run_writes_its_figures(tmp_path):
    small = dict(parts=("steps",), sizes=(32,), rounds=1, steps=1, optimizers=("adam",))
    options = benchmark.Options(**small, json=tmp_path / "figures.json", max_ratio=1e-6)
    assert benchmark.main(options) == 1  # no step is this fast
    figures = json.loads(options.json.read_text())
    assert figures["steps"][0]["ratio_of_nst_jax_to"]["PyTorch"] > 0


@pytest.mark.campaign
@pytest.mark.weights
@pytest.mark.optimized
def test_workers_measure_in_processes_of_their_own():
    images = [benchmark.IMAGES / f"demo_{name}.jpg" for name in ("content", "style")]
    found = process.time_to_loss(*images, size=48, evaluations=12)
    assert found["PyTorch"]["steps"] == 12 and 0 < found["fast"]["steps"] <= 24
    assert found["fast"]["seconds"] is None or found["fast"]["loss"] <= found["loss"]
    assert found["PyTorch"]["memory_mb"] > 100 and not found["PyTorch"]["has_jax"]
