"""Candidates of the benchmark that take steps: ours and PyTorch's, and the device's limits."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch_reference as reference

from nst_jax.config import Config
from nst_jax.convolution import prepare_kernels
from nst_jax.errors import InputError
from nst_jax.layers import CHANNELS, CONVS, block_of, stride
from nst_jax.objective import loss_weights, make_loss
from nst_jax.optimizers import make_optimizer, set_learning_rate
from nst_jax.problem import compute_targets
from nst_jax.solver import make_solver, run
from nst_jax.types import Loss
from nst_jax.vgg import features

# How each precision is called: JAX's matmul precision, and whether PyTorch may use TF32.
PRECISIONS = {"float32": ("highest", False), "tf32": ("tensorfloat32", True)}
PRECISIONS["bfloat16"] = ("default", True)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something to time.

    Attributes:
      steps: take the steps of one round, and wait for them.
      sound: whether the run stayed finite, so that its time means something.
    """

    steps: Callable[[], Any]
    sound: Callable[[], bool]


def torch_device() -> str:
    """Where PyTorch shall run: where JAX does."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def step_flops(height: int, width: int, config: Config = Config()) -> float:
    """Multiplications and additions of one step by direct convolution and one product a Gram.

    Forward and gradient to the pixels cost the same; elementwise work is left out.
    """
    names = config.loss.content_layers + config.loss.style_layers
    last = max(CONVS.index(name.replace("relu", "conv")) for name in names)
    total, channels = 0, 3
    for name in CONVS[: last + 1]:
        positions = (height // stride(name)) * (width // stride(name))
        wide = CHANNELS[block_of(name) - 1]
        total += 2 * 9 * positions * channels * wide
        if name.replace("conv", "relu") in config.loss.style_layers:
            total += 2 * positions * wide**2
        channels = wide
    return 2 * total


def matmul_peak(*, precision: str, side: int | None = None) -> float:
    """FLOP/s of the best of three large matrix products by JAX."""
    side = side or (16384 if jax.default_backend() == "gpu" else 3072)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    x = jnp.ones((side, side), dtype)
    product = jax.jit(partial(jnp.matmul, precision=PRECISIONS[precision][0]))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def in_bfloat16(loss: Loss) -> Loss:
    """The objective on a network and picture of bfloat16; the optimiser's pixels are float32."""

    def statistics(variables, image, targets):
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
        return loss.statistics(narrow, image.astype(jnp.bfloat16), targets)

    return loss._replace(statistics=statistics)


def jax_candidates(
    variables, content, style, *, config: Config, precision: str, steps: int
) -> dict[str, Candidate]:
    """Ours: the compiled loop, by either convolution where it matters, and steps from Python."""
    plain = make_loss(config.loss)
    loss = in_bfloat16(plain) if precision == "bfloat16" else plain
    optimizer = make_optimizer(config.optimizer, memory_size=config.memory_size)
    solver = make_solver(loss, optimizer)
    targets = compute_targets(plain, variables, content, [style], loss_weights(config), {})
    default = "winograd" if jax.default_backend() == "cpu" else "direct"

    def make(convolution: str, looped: bool) -> Candidate:
        prepared = jax.jit(partial(prepare_kernels, convolution=convolution))(variables)
        state = jax.jit(solver.init)(content, prepared, targets)
        holder = [state._replace(opt_state=set_learning_rate(state.opt_state, config))]
        step = jax.jit(solver.step, donate_argnums=0)

        def loop():
            with jax.default_matmul_precision(PRECISIONS[precision][0]):
                holder[0], info = run(solver, holder[0], prepared, targets, num_steps=steps)
            jax.block_until_ready((holder[0], info))

        def python():
            with jax.default_matmul_precision(PRECISIONS[precision][0]):
                for _ in range(steps):
                    holder[0], info = step(holder[0], prepared, targets)
                    jax.block_until_ready((holder[0], info))

        return Candidate(steps=loop if looped else python, sound=lambda: not bool(holder[0].frozen))

    found = {"nst_jax": make(default, True), "nst_jax from Python": make(default, False)}
    if default != "direct":
        found["nst_jax direct"] = make("direct", True)
    return found


def torch_candidates(
    variables, content, style, *, config: Config, precision: str, steps: int, compiled: bool
) -> dict[str, Candidate]:
    """PyTorch's, eager and, where wanted, its objective through ``torch.compile``."""
    device = torch_device()
    torch.backends.cuda.matmul.allow_tf32 = PRECISIONS[precision][1]
    torch.backends.cudnn.allow_tf32 = PRECISIONS[precision][1]
    torch.backends.cudnn.benchmark = True
    start = reference.to_torch(content).to(device)
    objective = reference.NeuralStyle(
        reference.Vgg(variables, device=device), start, reference.to_torch(style).to(device)
    )

    def make(function) -> Candidate:
        pixels = start.clone(memory_format=torch.preserve_format).requires_grad_()
        if config.optimizer == "adam":
            optimizer: Any = torch.optim.Adam([pixels], lr=10.0)
        else:
            optimizer = torch.optim.LBFGS(
                [pixels], max_iter=steps, tolerance_change=-1, tolerance_grad=-1, history_size=100
            )
        last = [0.0]

        def closure():
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = function(pixels)
            loss.backward()
            last[0] = loss.detach()
            return loss

        def take():
            for _ in range(steps if config.optimizer == "adam" else 1):
                optimizer.step(closure)
            if device == "cuda":
                torch.cuda.synchronize()

        return Candidate(steps=take, sound=lambda: math.isfinite(float(last[0])))

    found = {"PyTorch": make(objective)}
    if compiled:
        found["PyTorch compiled"] = make(torch.compile(objective.__call__))
    return found


def with_optimizer(name: str) -> Config:
    """neural-style's settings with one of its two optimisers."""
    if name not in ("lbfgs", "adam"):
        raise InputError(f"optimizer is {name!r}: expected lbfgs or adam, which PyTorch has too")
    memory_size = 100 if name == "lbfgs" else None
    return replace(Config(), optimizer=name, memory_size=memory_size)


def network_seconds(variables, *, size: int, batch: int, precision: str, rounds: int) -> float:
    """Median seconds of the network's forward pass and gradient to the pixels, for a batch."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    prepared = jax.tree.map(lambda leaf: leaf.astype(dtype), prepare_kernels(variables))

    @jax.jit
    def gradients(variables, images):
        def value(image):
            taps = features(variables, image, layers=("relu5_1",))
            return jnp.sum(taps["relu5_1"].astype(jnp.float32))

        return jax.vmap(jax.grad(value))(images)

    images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3), dtype)
    seconds = []
    with jax.default_matmul_precision(PRECISIONS[precision][0]):
        for _ in range(rounds + 1):
            started = time.perf_counter()
            jax.block_until_ready(gradients(prepared, images))
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def network(variables, *, size: int, batch: int, precision: str, rounds: int) -> dict[str, float]:
    """Speed of the network alone and its share of the products' peak."""
    seconds = network_seconds(variables, size=size, batch=batch, precision=precision, rounds=rounds)
    plain = replace(Config(), content_layers=(), style_layers=("conv5_1",))
    speed = batch * step_flops(size, size, plain) / seconds
    peak = matmul_peak(precision=precision)
    return {"seconds": seconds, "TFLOP/s": speed / 1e12, "share of peak, %": 100 * speed / peak}
