"""Candidates that take steps, ours and PyTorch's, and the limits of the device."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch_reference as reference

from nst_jax.config import CHANNELS, CONVS, Config, as_layers, block_of, stride
from nst_jax.config.loss import Precision
from nst_jax.errors import InputError
from nst_jax.models import features, prepare_kernels
from nst_jax.models.vgg import MATMUL_PRECISION
from nst_jax.optim import run, set_learning_rate
from nst_jax.transfer import check_inputs, make_problem
from nst_jax.transfer.planner import kernel_options
from nst_jax.transfer.problem import check_run, start


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something to time.

    Attributes:
      steps: takes the steps of one round and waits for them.
      sound: whether the run has stayed finite; if not, its time means nothing.
    """

    steps: Callable[[], Any]
    sound: Callable[[], bool]


def torch_device() -> str:
    """The device for PyTorch: the same as JAX uses."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def step_flops(height: int, width: int, config: Config = Config()) -> float:
    """Multiplications and additions of a step: direct convolutions, one product per Gram matrix.

    The forward pass and the gradient to the pixels cost the same; elementwise work is left out.
    """
    names = config.loss.content_names + config.loss.style_names
    last = max(CONVS.index(name.replace("relu", "conv")) for name in names)
    total, channels = 0, 3
    for name in CONVS[: last + 1]:
        positions = (height // stride(name)) * (width // stride(name))
        wide = CHANNELS[block_of(name) - 1]
        total += 2 * 9 * positions * channels * wide
        if name.replace("conv", "relu") in config.loss.style_names:
            total += 2 * positions * wide**2
        channels = wide
    return 2 * total


def matmul_peak(*, precision: Precision, side: int | None = None) -> float:
    """FLOP/s of the fastest of three large matrix products in JAX."""
    side = side or (16384 if jax.default_backend() == "gpu" else 3072)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    x = jnp.ones((side, side), dtype)
    product = jax.jit(partial(jnp.matmul, precision=MATMUL_PRECISION[precision]))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def jax_candidates(
    variables, content, style, *, config: Config, steps: int
) -> dict[str, Candidate]:
    """Ours: the compiled loop, with direct convolution if that differs, and steps from Python."""

    def make(config: Config, looped: bool = True) -> Candidate:
        inputs = check_inputs(content, style, config=config)
        check_run(variables, config=config)
        problem = make_problem(variables, inputs, config=config)
        solver, given = problem.solver, (problem.variables, problem.targets)
        state = start(solver, content, *given)
        holder = [state._replace(opt_state=set_learning_rate(state.opt_state, config))]
        step = jax.jit(solver.step, donate_argnums=0)

        def loop():
            holder[0], info = run(solver, holder[0], *given, num_steps=steps)
            jax.block_until_ready((holder[0], info))

        def python():
            for _ in range(steps):
                holder[0], info = step(holder[0], *given)
                jax.block_until_ready((holder[0], info))

        return Candidate(steps=loop if looped else python, sound=lambda: not bool(holder[0].frozen))

    found = {"nst_jax": make(config), "nst_jax from Python": make(config, looped=False)}
    if kernel_options(config)["convolution"] != "direct":
        found["nst_jax direct"] = make(config.but(convolution="direct"))
    return found


def torch_candidates(
    variables, content, style, *, config: Config, steps: int, compiled: bool
) -> dict[str, Candidate]:
    """PyTorch's, eager and, if wanted, with the objective compiled by ``torch.compile``."""
    device = torch_device()
    torch.backends.cuda.matmul.allow_tf32 = config.execution.precision != "float32"
    torch.backends.cudnn.allow_tf32 = config.execution.precision != "float32"
    torch.backends.cudnn.benchmark = True
    start = reference.to_torch(content).to(device)
    objective = reference.NeuralStyle(
        reference.Vgg(variables, device=device), start, reference.to_torch(style).to(device)
    )

    def make(function) -> Candidate:
        pixels = start.clone(memory_format=torch.preserve_format).requires_grad_()
        if config.optimizer.name == "adam":
            optimizer: Any = torch.optim.Adam([pixels], lr=10.0)
        else:
            optimizer = torch.optim.LBFGS(
                [pixels], max_iter=steps, tolerance_change=-1, tolerance_grad=-1, history_size=100
            )
        last = [0.0]

        def closure():
            optimizer.zero_grad()
            with torch.autocast(
                device, torch.bfloat16, enabled=config.execution.precision == "bfloat16"
            ):
                loss = function(pixels)
            loss.backward()
            last[0] = loss.detach()
            return loss

        def take():
            for _ in range(steps if config.optimizer.name == "adam" else 1):
                optimizer.step(closure)
            if device == "cuda":
                torch.cuda.synchronize()

        return Candidate(steps=take, sound=lambda: math.isfinite(float(last[0])))

    found = {"PyTorch": make(objective)}
    if compiled:
        found["PyTorch compiled"] = make(torch.compile(objective.__call__))
    return found


def neural_style(*, optimizer: str, precision: Precision) -> Config:
    """The preset's settings with one of its two optimisers, on whole images as in PyTorch."""
    if optimizer not in ("lbfgs", "adam"):
        raise InputError(
            f"expected the optimizer lbfgs or adam, which PyTorch has too, got {optimizer!r}"
        )
    memory_size = 100 if optimizer == "lbfgs" else None
    return Config.of(
        optimizer=optimizer, memory_size=memory_size, precision=precision, tile="off", remat="off"
    )


def network_seconds(variables, *, config: Config, size: int, batch: int, rounds: int) -> float:
    """Median seconds of the forward pass and the gradient to the pixels of a batch."""
    (layer,) = config.loss.content_names
    prepared = prepare_kernels(variables, **kernel_options(config))

    @jax.jit
    def gradients(variables, images):
        def value(image):
            taps = features(variables, image, layers=(layer,), precision=config.execution.precision)
            return jnp.sum(taps[layer].astype(jnp.float32))

        return jax.vmap(jax.grad(value))(images)

    images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3))
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jax.block_until_ready(gradients(prepared, images))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def network(
    variables, *, size: int, batch: int, precision: Precision, rounds: int
) -> dict[str, float]:
    """Speed of the network alone, by direct convolution, and its fraction of products' peak."""
    config = Config.of(
        content_layers=as_layers(("relu5_1",)),
        style_layers=(),
        precision=precision,
        convolution="direct",
    )
    seconds = network_seconds(variables, config=config, size=size, batch=batch, rounds=rounds)
    speed = batch * step_flops(size, size, config) / seconds
    peak = matmul_peak(precision=precision)
    return {"seconds": seconds, "TFLOP/s": speed / 1e12, "of peak, %": 100 * speed / peak}
