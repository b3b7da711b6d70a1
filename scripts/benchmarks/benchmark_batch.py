"""Time batches against single images, and one command for many images against many commands.

    python scripts/benchmarks batch                                 8 images of 128 px, 50 steps
    python scripts/benchmarks batch --sizes 256 --batches 1 4 16 64 --steps 300 \
        --precisions float32 tf32 bfloat16 --parts steps --json gpu.json               on a GPU

Seconds of steps are those that a run reports, without compilation; batches are timed in turn in one
process. The medians over the rounds, and the medians of their ratios, are printed. The start and
end of a command is its whole time minus its steps. It needs weights (NST_JAX_WEIGHTS or the cache)
and pip install '.[benchmark]'.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from benchmark_steps import matmul_peak, neural_style, step_flops

from nst_jax.cli import record as report
from nst_jax.config.loss import Precision
from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image
from nst_jax.system import device, keep_freed_memory, use_cpu_devices, versions
from nst_jax.transfer import Execution, check_inputs, make_mesh, problem_maker, run_batch
from nst_jax.transfer.batch_programs import Element
from nst_jax.weights import find_weights, load_weights

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time batches.

    Attributes:
      parts: What to measure: steps in one process, or whole commands (jobs).
      models: vgg19, vgg19-slim.
      optimizers: lbfgs, adam.
      precisions: float32, tf32, bfloat16; tf32 on NVIDIA GPUs only.
      sizes: Sides of the square images in pixels.
      batches: Numbers of images at once.
      steps: Steps of a run.
      rounds: Rounds; each batch is timed once in a round.
      together: On a CPU, also compute all images in one step (vmap).
      json: Also write the figures into this file.
    """

    parts: tuple[Literal["steps", "jobs"], ...] = ("steps", "jobs")
    models: tuple[Literal["vgg19", "vgg19-slim"], ...] = ("vgg19", "vgg19-slim")
    optimizers: tuple[Literal["lbfgs", "adam"], ...] = ("lbfgs", "adam")
    precisions: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32",)
    sizes: tuple[int, ...] = (128,)
    batches: tuple[int, ...] = (1, 8)
    steps: int = 50
    rounds: int = 3
    together: bool = False
    json: Path | None = None


def square_images(count: int, *, size: int) -> np.ndarray:
    """Different crops of the content image of the demo, ``[count, size, size, 3]``."""
    content = load_image(IMAGES / "demo_content.jpg", size=2 * size)
    rows, columns = (side - size for side in content.shape[:2])
    return np.stack(
        [
            content[(y := 3 * i % (rows + 1)) : y + size, (x := 7 * i % (columns + 1)) : x + size]
            for i in range(count)
        ]
    )


def make_elements(
    variables: Any, *, size: int, optimizer: str, precision: Precision, options: Options
):
    """Elements for the largest batch, and the mesh of devices."""
    config = neural_style(optimizer=optimizer, precision=precision)
    config = config.but(steps=options.steps)
    style = load_image(IMAGES / "demo_style.jpg", size=size)
    mesh = make_mesh() if jax.local_device_count() > 1 else None
    make = problem_maker(variables, config=config, execution=Execution(mesh=mesh))
    contents = square_images(max(options.batches), size=size)
    inputs = [check_inputs(content, style, config=config) for content in contents]
    return [Element(make(each, ["style"]), config) for each in inputs], mesh


def measure_steps(options: Options, *, model: str, **case: Any) -> dict[str, Any]:
    """Time one network, size, optimiser and precision; print and return the figures."""
    path = find_weights(model=model)
    if path is None:
        raise InputError(f"no weights of {model}: set NST_JAX_WEIGHTS or run nst-jax weights fetch")
    variables = load_weights(path).variables
    print(f"\n{model}, {case['size']} px, {case['optimizer']}, {case['precision']}", flush=True)
    elements, mesh = make_elements(variables, options=options, **case)
    batches: dict[str, tuple[int, bool | None]] = {str(n): (n, None) for n in options.batches}
    if options.together:
        batches |= {f"{n} by vmap": (n, True) for n in options.batches}

    def seconds(size: int, together: bool | None) -> float:
        """Seconds per image and step."""
        one = mesh is not None and (size == 1 or together)
        devices = make_mesh(devices=jax.local_devices()[:1]) if one else mesh
        result = run_batch(elements[:size], execution=Execution(mesh=devices, together=together))
        if set(result.status) != {"done"}:
            raise InputError("a run diverged, so its time means nothing: choose another size")
        return result.timing["steps_s"] / size / options.steps

    for batch in batches.values():
        seconds(*batch)  # compiles
    found: dict[str, list[float]] = {name: [] for name in batches}
    for index in range(options.rounds):
        order = list(batches.items())
        shift = index % len(order)  # so that none always follows the same one
        for name, batch in order[shift:] + order[:shift]:
            found[name].append(seconds(*batch))
    peak = matmul_peak(precision=case["precision"])
    flops = step_flops(case["size"], case["size"])
    first, ratios = next(iter(found.values())), {}
    for name, times in found.items():
        median = statistics.median(times)
        ratios[name] = statistics.median(a / b for a, b in zip(first, times, strict=True))
        known = model == "vgg19" and jax.default_backend() != "cpu"  # Winograd needs fewer products
        fraction = f", {flops / median / peak:.0%} of the peak of products" if known else ""
        print(
            f"  {name:12}{1e3 * median:8.2f} ms per image and step, "
            f"{1 / median / options.steps:8.3f} images/s, {ratios[name]:.2f} times one{fraction}",
            flush=True,
        )
    figures = {"seconds_per_image_and_step": found, "throughput_to_one": ratios}
    return {"model": model} | case | figures | {"matmul_flops_per_s": peak}


def measure_jobs(options: Options, *, model: str, optimizer: str, size: int) -> dict[str, Any]:
    """Time one command per image, and one command for all, with cached programs."""
    count = max(options.batches)
    common = ["--size", str(size), "--steps", str(options.steps), "--model", model]
    common += ["--optimizer", optimizer, "--style", str(IMAGES / "demo_style.jpg")]

    def command(*arguments: str) -> float:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nst_jax", *arguments, *common, "--overwrite"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise InputError(f"nst-jax {arguments[0]} failed: {done.stderr[-500:]}")
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = [folder / f"{index}.png" for index in range(count)]
        for path, image in zip(contents, square_images(count, size=size), strict=True):
            save_image(path, image)
        for cold in (True, False):
            singles, single_steps = 0.0, 0.0
            for index, path in enumerate(contents[: 1 if cold else count]):
                singles += command("stylize", str(path), "-o", str(folder / f"out{index}.png"))
                record = json.loads((folder / f"out{index}.json").read_text())
                single_steps += record["timing"]["steps_s"]
            batch = command("batch", *map(str, contents), "-o", str(folder / f"batch{cold}"))
        lines = (folder / "batchFalse" / "manifest.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
    # Each record has the time of the whole batch that its image was in.
    steps = sum(record["timing"]["steps_s"] / record["timing"]["images"] for record in records)
    found = {
        f"{count} commands": singles,
        f"start and end of {count} commands": singles - single_steps,
        "one batch": batch,
        "start and end of one batch": batch - steps,
        "ratio of all": batch / singles,
        "ratio of start and end": (batch - steps) / (singles - single_steps),
    }
    print(f"\n{model}, {size} px, {optimizer}, whole commands")
    for key, value in found.items():
        print(f"  {key:32}{value:8.2f}", flush=True)
    return {"model": model, "optimizer": optimizer, "size": size} | found


def main(options: Options) -> int:
    """Measure the parts and write the JSON file; return the exit code."""
    if min(options.batches, default=0) < 1 or options.rounds < 1 or options.steps < 1:
        raise InputError("expected batches, rounds and steps of at least 1")
    use_cpu_devices()
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": device(),
            "versions": versions(),
        }
    }
    print(json.dumps(results["machine"]))
    networks = [
        (m, o, s) for m in options.models for o in options.optimizers for s in options.sizes
    ]
    if "steps" in options.parts:
        results["steps"] = [
            measure_steps(options, model=m, optimizer=o, size=s, precision=precision)
            for m, o, s in networks
            for precision in options.precisions
        ]
    if "jobs" in options.parts:
        results["jobs"] = [
            measure_jobs(options, model=m, optimizer=o, size=s) for m, o, s in networks
        ]
    if options.json is not None:
        report.write_json(options.json, results)
    return 0


if __name__ == "__main__":
    keep_freed_memory()  # as the command does
    try:
        sys.exit(main(tyro.cli(Options)))
    except InputError as error:
        sys.exit(f"benchmarks: error: {error}")
