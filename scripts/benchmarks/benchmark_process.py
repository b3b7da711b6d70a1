"""Measurements that need a fresh process: start-up, memory, time to a loss.

As a script this is a worker, ``python benchmark_process.py WORKER JSON-OPTIONS``, which prints one
line of JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nst_jax.system import keep_freed_memory
from nst_jax.weights import find_weights

HERE = Path(__file__).resolve()


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB, without memory of the device.

    It is read from /proc: ``getrusage`` would include the memory of the parent before ``exec``.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return peaks[0] * 1024 / 1e6 if peaks else float("nan")


def _jax_worker(options: dict[str, Any]) -> dict[str, Any]:
    """Stylize until a given loss is reached, or for the steps of the preset."""
    import nst_jax

    weights = nst_jax.load_weights(options["weights"])
    content, style = (
        nst_jax.load_image(options[name], size=options["size"]) for name in ("content", "style")
    )
    config = nst_jax.get_preset(options["preset"]).config
    config = config.but(steps=options.get("steps") or config.steps)
    best, reached = [float("inf")], []

    def watch(progress):
        best[0] = min(best[0], float(progress.info.loss))
        if best[0] <= options.get("loss", 0.0):
            reached.append(time.time() - options["started"])
            return False

    # A report after every step, which makes ours slower than it is for users.
    every = 1 if "loss" in options else None
    result = nst_jax.stylize(
        weights.variables, content, [style], config=config, callback=nst_jax.Callback(watch, every)
    )
    steps = len(result.history.loss)
    return {"seconds": reached[0] if reached else None, "steps": steps, "loss": result.loss}


def _torch_worker(options: dict[str, Any]) -> dict[str, Any]:
    """Run torch.optim.LBFGS for a number of evaluations; report the lowest loss."""
    import torch
    import torch_reference as reference

    from nst_jax.images import load_image
    from nst_jax.weights.convert import convert, to_tree

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = convert(options["weights"])
    start, style = (
        reference.to_torch(load_image(options[name], size=options["size"])).to(device)
        for name in ("content", "style")
    )
    vgg = reference.Vgg(to_tree(found.arrays, found.record.preprocessing), device=device)
    objective = reference.NeuralStyle(vgg, start, style)
    pixels = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [pixels],
        max_iter=options["steps"],
        tolerance_change=-1,
        tolerance_grad=-1,
        history_size=100,
    )
    losses, times = [], []

    def closure():
        optimizer.zero_grad()
        loss = objective(pixels)
        loss.backward()
        losses.append(loss.item())
        times.append(time.time() - options["started"])
        return loss

    optimizer.step(closure)
    best = min(losses)
    return {"seconds": times[losses.index(best)], "steps": len(losses), "loss": best}


WORKERS = {"jax": _jax_worker, "torch": _torch_worker}


def run_worker(name: str, **options: Any) -> dict[str, Any]:
    """Run a worker in a fresh process; return its result with its peak memory."""
    options |= {"started": time.time(), "weights": find_weights(model="vgg19")}
    command = [sys.executable, str(HERE), name, json.dumps(options, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks: error: worker {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_to_loss(content: Path, style: Path, *, size: int, evaluations: int) -> dict[str, Any]:
    """Seconds from the start of a process to the loss that PyTorch's L-BFGS reaches."""
    images = {"content": content, "style": style, "size": size}
    theirs = run_worker("torch", steps=evaluations, **images)
    ours = run_worker("jax", preset="fast", loss=theirs["loss"], steps=2 * evaluations, **images)
    seconds = ours["seconds"]
    return {
        "images": f"{content.stem} x {style.stem}",
        "loss": theirs["loss"],
        "PyTorch": theirs,
        "fast": ours,
        "ratio": seconds / theirs["seconds"] if seconds else None,
    }


def classic(content: Path, style: Path, *, size: int, steps: int) -> dict[str, float]:
    """Seconds of a whole run of neural-style's L-BFGS, including the start of the process."""
    started = time.perf_counter()
    result = run_worker(
        "jax", preset="neural-style", content=content, style=style, size=size, steps=steps
    )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "steps": result["steps"], "loss": result["loss"]}


def memory(content: Path, style: Path, *, size: int) -> dict[str, float]:
    """Peak memory in MB of processes that take 12 steps of neural-style's L-BFGS."""
    images = {"content": content, "style": style, "size": size, "steps": 12}
    return {
        "nst_jax": run_worker("jax", preset="neural-style", **images)["memory_mb"],
        "PyTorch": run_worker("torch", **images)["memory_mb"],
    }


def _seconds(*command: str, **environment: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    return time.perf_counter() - started


def start_up(content: Path, style: Path, *, size: int) -> dict[str, float]:
    """Seconds of --help, of the import, and of a first step without and with cached programs."""
    python, repeats = sys.executable, range(5)
    found = {
        "--help": statistics.median(_seconds(python, "-m", "nst_jax", "--help") for _ in repeats),
        "import nst_jax": statistics.median(
            _seconds(python, "-c", "import nst_jax; nst_jax.stylize") for _ in repeats
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first run", "second run"):
            output = Path(folder) / f"{name}.png"
            command = [python, "-m", "nst_jax", "stylize", str(content), "--style", str(style)]
            command += ["--size", str(size), "--steps", "1", "--output", str(output)]
            command += ["--weights", str(find_weights(model="vgg19"))]
            total = _seconds(*command, NST_JAX_CACHE=folder, JAX_COMPILATION_CACHE_DIR="")
            timing = json.loads(output.with_suffix(".json").read_text())["timing"]
            found[f"{name}: one step, all in all"] = total
            found[f"{name}: targets and compilation"] = timing["plan_s"] + timing["compile_s"]
            found[f"{name}: the step"] = timing["steps_s"]
    return found


if __name__ == "__main__":
    keep_freed_memory()  # as the command does; for both sides
    result = WORKERS[sys.argv[1]](json.loads(sys.argv[2]))
    process = {"memory_mb": peak_memory_mb(), "has_jax": "jax" in sys.modules}
    print(json.dumps(result | process))
