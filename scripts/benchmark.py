"""Time a step of the neural-style objective here and in plain PyTorch, side by side.

Both run L-BFGS with the same pictures, weights and number of threads, interleaved in one process;
medians over the rounds and their ratios are printed, as text and, with --json, as a file.

Usage:
  python scripts/benchmark.py [--sizes 256 512] [--rounds 5] [--steps 4] [--json FILE]

Needs weights (NST_JAX_WEIGHTS or the cache) and PyTorch: pip install '.[benchmark]'.
"""

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch_reference as reference
import tyro

from nst_jax import report
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.images import load_image
from nst_jax.objective import loss_weights, make_loss
from nst_jax.optimizers import make_optimizer
from nst_jax.solver import make_solver, run
from nst_jax.transfer import compute_targets
from nst_jax.vgg import prepare_kernels
from nst_jax.weights import find_weights, load_weights

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "images"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time a step here and in PyTorch.

    Attributes:
      sizes: Longer sides in pixels.
      rounds: Rounds in which each candidate is timed once.
      steps: Steps that each candidate takes in a round.
      content: The content picture.
      style: The style picture.
      json: Write the figures into this file too.
    """

    sizes: tuple[int, ...] = (256, 512)
    rounds: int = 5
    steps: int = 4
    content: Path = PICTURES / "demo_content.jpg"
    style: Path = PICTURES / "demo_style.jpg"
    json: Path | None = None


def jax_candidates(variables, content, style, *, steps: int):
    """Functions that take so many steps, compiled and from Python, and one that tells a fault."""
    config = Config()
    loss = make_loss(config.loss)
    solver = make_solver(loss, make_optimizer("lbfgs", memory_size=100))
    weights = loss_weights(config)
    targets = compute_targets(loss, variables, content, [style], weights, None)
    start = jax.jit(solver.init)
    step = jax.jit(solver.step, donate_argnums=0)
    states = {name: start(content, variables, targets) for name in ("loop", "python")}

    def loop():
        states["loop"], info = run(solver, states["loop"], variables, targets, num_steps=steps)
        jax.block_until_ready((states["loop"], info))

    def python():
        for _ in range(steps):
            states["python"], info = step(states["python"], variables, targets)
            jax.block_until_ready((states["python"], info))

    return loop, python, lambda: any(bool(state.frozen) for state in states.values())


def torch_candidate(variables, content, style, *, steps: int):
    """A function that lets PyTorch make so many evaluations and updates."""
    start = reference.to_torch(content)
    objective = reference.NeuralStyle(reference.Vgg(variables), start, reference.to_torch(style))
    pixels = start.clone(memory_format=torch.preserve_format).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [pixels], max_iter=steps, tolerance_change=-1, tolerance_grad=-1, history_size=100
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(pixels)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def measure(options: Options, variables, size: int) -> dict[str, Any]:
    """Seconds a step of each candidate at one size, and their ratios."""
    content, style = (load_image(path, size=size) for path in (options.content, options.style))
    loop, python, diverged = jax_candidates(
        variables, jnp.asarray(content), jnp.asarray(style), steps=options.steps
    )
    torch_steps = torch_candidate(variables, content, style, steps=options.steps)
    candidates = {"nst_jax loop": loop, "nst_jax from Python": python, "PyTorch": torch_steps}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for function in candidates.values():
        function()  # compiles, and fills the caches
    for _ in range(options.rounds):
        for name, function in candidates.items():
            started = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - started) / options.steps)
    if diverged():
        raise InputError(f"the run at {size} px diverged, so its time means nothing: other sizes")
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(first: str, second: str) -> float:
        pairs = zip(seconds[first], seconds[second], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "height": content.shape[0],
        "width": content.shape[1],
        "seconds_per_step": medians,
        "ratio_to_pytorch": ratio("nst_jax loop", "PyTorch"),
        "ratio_loop_to_python": ratio("nst_jax loop", "nst_jax from Python"),
        "all_seconds_per_step": seconds,
    }


def main(options: Options) -> int:
    """Measure every size, print, and write the JSON file."""
    path = find_weights()
    if path is None:
        raise InputError("no VGG-19 weights: set NST_JAX_WEIGHTS or run 'nst-jax weights fetch'")
    variables = prepare_kernels(load_weights(path).variables)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": report.device(),
        "versions": report.versions() | {"torch": torch.__version__},
    }
    print(json.dumps(machine))
    results = []
    for size in options.sizes:
        result = measure(options, variables, size)
        results.append(result)
        print(f"\n{result['width']}x{result['height']}, L-BFGS, float32, seconds a step (median)")
        for name, value in result["seconds_per_step"].items():
            spread = result["all_seconds_per_step"][name]
            print(f"  {name:20} {value:7.3f}   ({min(spread):.3f} to {max(spread):.3f})")
        print(f"  ratio to PyTorch     {result['ratio_to_pytorch']:7.3f}")
        print(f"  loop / from Python   {result['ratio_loop_to_python']:7.3f}")
    if options.json is not None:
        report.write_json(options.json, {"machine": machine, "results": results})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except InputError as error:
        sys.exit(f"benchmark: error: {error}")
