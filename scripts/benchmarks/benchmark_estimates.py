"""Compare the memory that a run estimates with the memory that it uses.

    python scripts/benchmarks estimates CONTENT STYLE --sizes 512 1024 --plans whole remat 512 1024

Runs ``nst-jax stylize`` for a few steps, each time in a fresh process, and prints the estimate and
the peak from its record. A plan is ``whole`` (the whole image), ``remat`` (recompute activations)
or the side of a tile. If a plan does not fit into memory, only its estimate is printed, which the
compiler gives for the loop.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

GIB = 2**30


def flags(plan: str) -> list[str]:
    """The flags for a plan: whole, remat, auto, or the side of a tile."""
    if plan == "whole":
        return ["--tile", "off", "--remat", "off"]
    return ["--tile", "off", "--remat", "on"] if plan == "remat" else ["--tile", plan]


def measure(command: list[str], output: Path) -> tuple[dict | None, str]:
    """The record of a run, or None and the reason why there is none."""
    done = subprocess.run(
        [*command, "-o", str(output), "--overwrite"], capture_output=True, text=True
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["killed"])[-1]
    return json.loads(output.with_suffix(".json").read_text()), ""


def estimate(command: list[str]) -> str:
    """The estimate for a run that does not fit, in words; empty if it is unknown."""
    words = [word if word != "stylize" else "estimate" for word in command]
    style = words.index("--style")
    del words[style : style + 2]
    done = subprocess.run([*words, "--memory", "10000"], capture_output=True, text=True)
    found = re.search(r"^  (?:together|total) +(.*)$", done.stdout, re.MULTILINE)
    return f"{found[1]} estimated, does not fit" if found else ""


def line(size: int, plan: str, record: dict) -> str:
    """One measurement in words."""
    parts = record["memory"]["estimated_bytes"]
    estimate, peak = sum(parts.values()), record["memory"]["peak_bytes"]
    image = record["image"]
    pixels = image["width"] * image["height"]
    seconds = record["timing"]["steps_s"] / record["steps"]
    return (
        f"{size:>6} {plan:>6} {estimate / GIB:>10.2f} {peak / GIB:>10.2f} {estimate / peak:>8.2f} "
        f"{peak / pixels:>9.0f} {seconds:>8.2f} {1e6 * seconds / pixels:>8.2f}  "
        f"{record['scales'][-1]['computed']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--plans", nargs="+", default=["whole", "remat", "512", "1024"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--flags", default="--optimizer adam", help="further flags of stylize")
    options = parser.parse_args()
    print(
        f"{'size':>6} {'plan':>6} {'est. GiB':>10} {'peak GiB':>10} {'ratio':>8} {'B/px':>9} "
        f"{'s/step':>8} {'us/px':>8}  computed as",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for plan in options.plans:
                command = [sys.executable, "-m", "nst_jax", "stylize", options.content]
                command += ["--style", options.style, "--size", str(size)]
                command += ["--steps", str(options.steps), *options.flags.split(), *flags(plan)]
                record, reason = measure(command, Path(folder) / "out.png")
                if record is None:
                    reason = estimate(command) or re.sub(r"^nst-jax: error: ", "", reason)
                    print(f"{size:>6} {plan:>6} {reason}", flush=True)
                else:
                    print(line(size, plan, record), flush=True)


if __name__ == "__main__":
    main()
