"""Transport maps between Gaussians by matrix products, against SciPy on real features."""

import os
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.records import make_problem
from scipy import linalg

from nst_jax.config import get_preset
from nst_jax.images import load_image
from nst_jax.losses import wasserstein_loss
from nst_jax.losses.gaussian import FALLBACK, ROUNDING, STAGE_STARTS, STAGES
from nst_jax.losses.gram import gram_sum
from nst_jax.models import compact, dense, network_features
from nst_jax.optim import run
from nst_jax.transfer.problem import start
from nst_jax.weights import load_weights

ROOT = Path(__file__).parents[2]
PRESET = get_preset("wasserstein")
LAYERS = PRESET.config.loss.style_names
EPS = 1e-4


def test_each_stage_maps_its_interval_into_that_of_the_next():
    """Up to 1.01, which rounding may reach."""
    following = STAGE_STARTS[1:]
    for (a, b, c), begin, end in zip(STAGES[:-1], STAGE_STARTS, following, strict=False):
        x = np.linspace(max(begin, 0.01112), 1.01, 100_001)
        found = x * (a + b * x**2 + c * x**4)
        assert end < found.min() and found.max() < 1 + 1e-6
        x = np.linspace(0, 0.01112, 1001)[1:]
        assert (x * (a + b * x**2 + c * x**4) > 2 * x).all()  # smaller ones grow
    x = np.linspace(STAGE_STARTS[-2], 1, 1001)
    found = x * np.polyval(STAGES[-1][::-1], x**2)
    assert (1 - found < 2.6 * (1 - x) ** 3 + 1e-15).all()


@pytest.fixture(scope="module")
def images():
    """The demo's content at steps 0, 10 and 100; the content grey and flat; the style."""
    content = load_image(ROOT / "docs/images/demo_content.jpg", size=192)
    steps = [load_image(ROOT / f"tests/data/demo_step_{step}.png") for step in (10, 100)]
    grey = np.repeat(content.mean(-1, keepdims=True), 3, -1)
    style = load_image(ROOT / "docs/images/demo_style.jpg", size=192)
    return [content, *steps, grey, np.full_like(content, 0.5), style]


def scipys_loss(moments, features, *, rounding):
    """W C and its gradient with respect to the first features, by decompositions in float64."""
    covariances = []
    for mean, gram in moments:
        spread = gram - np.outer(mean, mean)
        size, identity = np.trace(gram), np.eye(len(mean))
        spread = (spread + spread.T) / 2 + (EPS + rounding * size) * identity
        if np.linalg.eigvalsh(spread)[0] <= 0:  # of rounding
            spread = spread + FALLBACK * size * identity
        covariances.append(spread)
    spread, target = covariances
    root, target_root = (linalg.cholesky(x, lower=True) for x in covariances)
    left, values, right = linalg.svd(target_root.T @ root)
    there = linalg.solve_triangular(root, (target_root @ left @ right).T, lower=True, trans=1)
    shift = moments[0][0] - moments[1][0]
    value = shift @ shift + np.trace(spread) + np.trace(target) - 2 * values.sum()
    centred = features - moments[0][0]
    moved = centred - centred @ (there + there.T) / 2
    return value, 2 / len(features) * (shift + moved)


@pytest.mark.parametrize(
    "network, precision, bound",
    [
        ("slim", "float32", 1e-4),
        ("slim", "float64", 1e-9),
        pytest.param("full", "float32", 1e-4, marks=[pytest.mark.weights, pytest.mark.slow]),
    ],
)
def test_loss_and_gradient_of_real_features_are_scipys(network, precision, bound, images, x64):
    """For images during a run, grey and flat images, similar and different styles."""
    slim = ROOT / "weights/vgg19-slim.safetensors"
    variables = load_weights(slim if network == "slim" else os.environ["NST_JAX_WEIGHTS"]).variables
    taps_of = jax.jit(partial(network_features, layers=LAYERS))
    ours = jax.jit(jax.value_and_grad(partial(wasserstein_loss, eps=EPS), argnums=(0, 1)))
    moments_of = jax.jit(lambda x: (jnp.mean(x, 0), gram_sum(x[None]) / len(x)))
    features = []
    for image in images:
        taps = {name: dense(compact(tap)) for name, tap in taps_of(variables, image).items()}
        features.append(
            {n: np.asarray(x, precision).reshape(-1, x.shape[-1]) for n, x in taps.items()}
        )
    for layer in LAYERS:
        for own, style in ((0, 5), (2, 5), (3, 5), (4, 5), (5, 4), (1, 2)):
            x = features[own][layer]
            given = [moments_of(f) for f in (x, features[style][layer])]
            value, (by_mean, by_gram) = ours(*given[0], *given[1])
            exact = [tuple(np.float64(part) for part in pair) for pair in given]
            x, (by_mean, by_gram) = np.float64(x), (np.float64(g) for g in (by_mean, by_gram))
            rounding = ROUNDING * float(np.finfo(precision).eps)
            expected, gradient = scipys_loss(exact, x, rounding=rounding)
            found = x.shape[1] * (by_mean + x @ (by_gram + by_gram.T)) / len(x)
            what = f"{layer} of image {own} and style {style}"
            # Covariances of flat images, and of fewer positions than channels, are singular: their
            # smallest eigenvalues are rounding errors, or EPS in double precision, where results
            # of SciPy by Cholesky factors and by matrix roots differ by 1e-8 themselves.
            singular = 4 in (own, style) or len(x) < x.shape[1]
            limit = (10 if precision == "float32" else 100) * bound if singular else bound
            assert abs(x.shape[1] * float(value) / expected - 1) < limit, what
            assert linalg.norm(found - gradient) < limit * linalg.norm(gradient), what


@pytest.mark.slow
@pytest.mark.parametrize("network", ["full", "slim"])
def test_no_step_decomposes_a_matrix(network, variables, slim_variables, content, style):
    """Neither the compiled loop nor the one lowered for accelerators calls a decomposition."""
    layers = {"style_layers": ("relu1_1", "relu2_2"), "content_layers": ("relu2_2",)}
    config = PRESET.config.but(**layers, steps=2)
    tree = variables if network == "full" else slim_variables
    problem = make_problem(tree, content, [style], config=config)
    state = start(problem.solver, content, problem.variables, problem.targets)
    given = state, problem.variables, problem.targets
    compiled = run.lower(problem.solver, *given, num_steps=2).compile().as_text()
    assert "dot" in compiled and "lapack" not in compiled.lower()

    def loop(*given):
        return run(problem.solver, *given, num_steps=2)

    for platform in ("cuda", "tpu"):
        text = jax.export.export(jax.jit(loop), platforms=[platform])(*given).mlir_module()
        assert "stablehlo.while" in text
        assert not re.findall(
            r"cholesky|triangular_solve|custom_call @\w*(?:svd|eigh|qr|lu)", text, re.I
        )
