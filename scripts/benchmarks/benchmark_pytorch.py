"""Time the neural-style objective here and in plain PyTorch.

    python scripts/benchmarks steps
    python scripts/benchmarks loss                  time to the loss of PyTorch's 100 evaluations
    python scripts/benchmarks steps --sizes 128 --rounds 3 --max-ratio 1.5      fails if too slow
    python scripts/benchmarks pytorch --parts steps network classic start memory loss --compiled \
        --sizes 512 1024 --optimizers lbfgs adam --precisions float32 tf32 bfloat16 \
        --json gpu.json --profile trace             all parts, on a GPU

Both sides use the same images, weights and threads. Steps of both are taken in turn in one process;
the medians over the rounds, and the median of their ratios, are printed. It needs the weights of
VGG-19 (NST_JAX_WEIGHTS or the cache) and PyTorch: pip install '.[benchmark]'.
"""

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import benchmark_process as process
import benchmark_steps as steps
import jax
import jax.numpy as jnp
import torch
import tyro

from nst_jax.cli import record
from nst_jax.errors import InputError
from nst_jax.images import load_image
from nst_jax.system import device, keep_freed_memory, versions
from nst_jax.weights import find_weights, load_weights

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


Part = Literal["steps", "network", "classic", "start", "memory", "loss"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time style transfer here and in PyTorch.

    Attributes:
      parts: What to measure.
      sizes: Longer sides in pixels, for steps.
      optimizers: lbfgs, adam.
      precisions: float32, tf32, bfloat16; tf32 on NVIDIA GPUs only.
      rounds: Rounds; each candidate is timed once in a round.
      steps: Steps of a candidate in a round.
      compiled: Also time PyTorch's objective with torch.compile.
      content: Content images.
      style: Style images, one for each content image.
      size: Longer side in pixels, for start, memory and loss.
      evaluations: Evaluations that PyTorch takes, for loss.
      batch: Number of images, for network.
      network_size: Side of the images in pixels, for network.
      classic_size: Longer side in pixels, for classic.
      classic_steps: Steps of L-BFGS, for classic.
      json: Also write the figures into this file.
      profile: Write a trace of one more round into this folder, for XProf or Perfetto.
      max_ratio: Fail if a step takes longer than this multiple of PyTorch's.
    """

    parts: tuple[Part, ...] = ("steps", "start", "memory")
    sizes: tuple[int, ...] = (256, 512)
    optimizers: tuple[Literal["lbfgs", "adam"], ...] = ("lbfgs",)
    precisions: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32",)
    rounds: int = 5
    steps: int = 4
    compiled: bool = False
    content: tuple[Path, ...] = (IMAGES / "demo_content.jpg",)
    style: tuple[Path, ...] = (IMAGES / "demo_style.jpg",)
    size: int = 512
    evaluations: int = 100
    batch: int = 8
    network_size: int = 1024
    classic_size: int = 900
    classic_steps: int = 1000
    json: Path | None = None
    profile: Path | None = None
    max_ratio: float | None = None


def interleave(candidates: dict[str, steps.Candidate], options: Options) -> dict[str, Any]:
    """Seconds per step of each candidate in every round, and seconds of its first round."""
    first, seconds = {}, {name: [] for name in candidates}
    for name, candidate in list(candidates.items()):
        started = time.perf_counter()
        try:
            candidate.steps()  # compiles, and fills the caches
        except Exception as error:  # the back ends of torch.compile raise any type
            if name != "PyTorch compiled":
                raise
            print(f"  {name} does not work here: {type(error).__name__}")
            del candidates[name], seconds[name]
            continue
        first[name] = time.perf_counter() - started
    order = list(candidates.items())
    for index in range(options.rounds):
        # Each round starts with another candidate, so that none always follows the same one.
        shift = index % len(order)
        for name, candidate in order[shift:] + order[:shift]:
            started = time.perf_counter()
            candidate.steps()
            seconds[name].append((time.perf_counter() - started) / options.steps)
    for name, candidate in candidates.items():
        if not candidate.sound():
            raise InputError(f"{name} diverged, so its time means nothing: choose another size")
    return {"first_round_s": first, "seconds_per_step": seconds}


def measure_steps(options: Options, variables, **case: Any) -> dict[str, Any]:
    """Time one size, optimiser and precision; print and return the figures."""
    content, style = (load_image(p[0], size=case["size"]) for p in (options.content, options.style))
    settings: dict[str, Any] = dict(
        config=steps.neural_style(optimizer=case["optimizer"], precision=case["precision"]),
        steps=options.steps,
    )
    height, width, _ = content.shape
    print(
        f"\n{width}x{height}, {case['optimizer']}, {case['precision']}; median of a step",
        flush=True,
    )
    images = jnp.asarray(content), jnp.asarray(style)
    candidates = steps.jax_candidates(variables, *images, **settings)
    candidates |= steps.torch_candidates(
        variables, content, style, compiled=options.compiled, **settings
    )
    found = interleave(candidates, options)
    if options.profile is not None:
        with jax.profiler.trace(str(options.profile)):
            candidates["nst_jax"].steps()
    flops, peak = steps.step_flops(height, width), steps.matmul_peak(precision=case["precision"])
    ours, ratios = found["seconds_per_step"]["nst_jax"], {}
    for name, seconds in found["seconds_per_step"].items():
        median = statistics.median(seconds)
        ratios[name] = statistics.median(a / b for a, b in zip(ours, seconds, strict=True))
        print(
            f"  {name:22}{median:8.4f} s ({min(seconds):.4f} to {max(seconds):.4f})"
            f"{flops / median / 1e9:9.0f} GFLOP/s{flops / median / peak:6.0%} of products' peak"
            f"   nst_jax takes {ratios[name]:.3f} of this time"
        )
    return (
        case
        | found
        | {
            "height": height,
            "width": width,
            "flops_per_step": flops,
            "matmul_flops_per_s": peak,
            "ratio_of_nst_jax_to": ratios,
        }
    )


def print_figures(title: str, figures: dict[str, Any], unit: str) -> None:
    """Print a title and a line for each figure."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name:45}{value:9.2f} {unit}", flush=True)


def measure_losses(options: Options) -> list[dict[str, Any]]:
    """Measure the time to PyTorch's loss for every pair of images; print and return the figures."""
    print(f"\ntime to the loss that PyTorch reaches in {options.evaluations} evaluations")
    found = []
    for content, style in zip(options.content, options.style, strict=True):
        result = process.time_to_loss(
            content, style, size=options.size, evaluations=options.evaluations
        )
        found.append(result)
        theirs, ours, ratio = result["PyTorch"], result["fast"], result["ratio"]
        reached = f"{ours['seconds']:.1f} s, {ours['steps']} steps" if ratio else "not reached"
        print(
            f"  {result['images']}, {options.size} px: loss {result['loss']:.4g}; "
            f"PyTorch {theirs['seconds']:.1f} s, fast {reached}, ratio {ratio or float('nan'):.2f}",
            flush=True,
        )
    return found


def main(options: Options) -> int:
    """Measure the parts, write the JSON file, and compare with the limit; return the exit code."""
    path = find_weights(model="vgg19")
    if path is None:
        raise InputError("no VGG-19 weights: set NST_JAX_WEIGHTS or run 'nst-jax weights fetch'")
    if len(options.content) != len(options.style):
        raise InputError("expected one style image for each content image")
    if options.max_ratio is not None and "steps" not in options.parts:
        raise InputError("--max-ratio compares steps: add steps to --parts")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device(),
        "versions": versions() | {"torch": torch.__version__},
    }
    print(json.dumps(machine))
    results: dict[str, Any] = {"machine": machine}
    images = options.content[0], options.style[0]
    if "steps" in options.parts:
        variables = load_weights(path).variables
        results["steps"] = [
            measure_steps(options, variables, size=size, optimizer=optimizer, precision=precision)
            for size in options.sizes
            for optimizer in options.optimizers
            for precision in options.precisions
        ]
    if "network" in options.parts:
        shape = {"size": options.network_size, "batch": options.batch}
        results["network"] = [
            shape
            | {"precision": precision}
            | steps.network(
                load_weights(path).variables, precision=precision, rounds=options.rounds, **shape
            )
            for precision in options.precisions
        ]
        for figures in results["network"]:
            print(f"\nnetwork, forward and gradient: {figures}", flush=True)
    if "classic" in options.parts:
        results["classic"] = process.classic(
            *images, size=options.classic_size, steps=options.classic_steps
        )
        print(
            f"\n{options.classic_size} px, neural-style's L-BFGS: {results['classic']}", flush=True
        )
    if "start" in options.parts:
        results["start"] = process.start_up(*images, size=options.size)
        print_figures(f"start-up, {options.size} px", results["start"], "s")
    if "memory" in options.parts:
        results["memory"] = process.memory(*images, size=options.size)
        print_figures(f"peak memory of the process, {options.size} px", results["memory"], "MB")
    if "loss" in options.parts:
        results["loss"] = measure_losses(options)
    if options.json is not None:
        record.write_json(options.json, results)
    ratios = [result["ratio_of_nst_jax_to"]["PyTorch"] for result in results.get("steps", ())]
    if options.max_ratio is not None and max(ratios, default=0.0) > options.max_ratio:
        print(f"benchmarks: a step takes {max(ratios):.2f} of PyTorch's time, more than allowed")
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for PyTorch
    keep_freed_memory()  # as the command does; for both sides
    try:
        sys.exit(main(tyro.cli(Options)))
    except InputError as error:
        sys.exit(f"benchmarks: error: {error}")
