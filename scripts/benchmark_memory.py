"""Measured peaks of memory against the estimates that runs begin with.

Runs ``nst-jax stylize`` for a few steps, each in a process of its own, reads from its record what
was estimated and what the peak was, and prints one line for each: the whole image, activations
computed twice, and tiles. What does not fit is told by its estimate alone, that is by what the
compiler says of its loop.

    python scripts/benchmark_memory.py CONTENT STYLE --sizes 512 1024 --ways off remat 512 1024
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

GIB = 2**30


def flags(way: str) -> list[str]:
    """The flags of a way to compute: whole, remat, auto, or a tile's side."""
    if way == "whole":
        return ["--tile", "off", "--remat", "off"]
    return ["--tile", "off", "--remat", "on"] if way == "remat" else ["--tile", way]


def measure(command: list[str], output: Path) -> tuple[dict | None, str]:
    """The record of a run, or None and why there is none."""
    done = subprocess.run(
        [*command, "-o", str(output), "--overwrite"], capture_output=True, text=True
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["killed"])[-1]
    return json.loads(output.with_suffix(".json").read_text()), ""


def estimate(command: list[str]) -> str:
    """What a run that does not fit would need, in words; empty where that is not known either."""
    words = [word if word != "stylize" else "estimate" for word in command]
    style = words.index("--style")
    del words[style : style + 2]
    done = subprocess.run([*words, "--memory", "10000"], capture_output=True, text=True)
    found = re.search(r"^  together +(.*)$", done.stdout, re.MULTILINE)
    return f"{found[1]} estimated, does not fit" if found else ""


def line(size: int, way: str, record: dict) -> str:
    """One measurement in words."""
    parts = record["memory"]["estimated_bytes"]
    estimate, peak = sum(parts.values()), record["memory"]["peak_bytes"]
    image = record["image"]
    pixels = image["width"] * image["height"]
    seconds = record["timing"]["steps_s"] / record["steps"]
    return (
        f"{size:>6} {way:>6} {estimate / GIB:>10.2f} {peak / GIB:>10.2f} {estimate / peak:>8.2f} "
        f"{peak / pixels:>9.0f} {seconds:>8.2f} {1e6 * seconds / pixels:>8.2f}  "
        f"{record['scales'][-1]['computed']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--ways", nargs="+", default=["whole", "remat", "512", "1024"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--flags", default="--optimizer adam", help="further flags of stylize")
    options = parser.parse_args()
    print(
        f"{'size':>6} {'way':>6} {'est. GiB':>10} {'peak GiB':>10} {'ratio':>8} {'B/px':>9} "
        f"{'s/step':>8} {'us/px':>8}  computed as",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for way in options.ways:
                command = [sys.executable, "-m", "nst_jax", "stylize", options.content]
                command += ["--style", options.style, "--size", str(size)]
                command += ["--steps", str(options.steps), *options.flags.split(), *flags(way)]
                record, reason = measure(command, Path(folder) / "out.png")
                if record is None:
                    reason = estimate(command) or re.sub(r"^nst-jax: error: ", "", reason)
                    print(f"{size:>6} {way:>6} {reason}", flush=True)
                else:
                    print(line(size, way, record), flush=True)


if __name__ == "__main__":
    main()
