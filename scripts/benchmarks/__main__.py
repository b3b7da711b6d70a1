"""Benchmarks: ``python scripts/benchmarks PART [options]``; each part has ``--help``.

steps      seconds of a step here and in PyTorch
network    speed of the network alone, as a fraction of the peak of matrix products
classic    one long run of neural-style's L-BFGS
start      seconds until the first step, with and without cached programs
memory     peak memory here and in PyTorch
loss       seconds until the loss that PyTorch reaches
pytorch    several of the parts above, given by --parts
batch      batches against single images, and one command against many
presets    a step of one preset against a step of another
scales     a run from coarse to fine against a run at one scale
estimates  estimated against measured memory of a run
"""

import runpy
import sys

OF_PYTORCH = ("steps", "network", "classic", "start", "memory", "loss")
MODULES = ("pytorch", "batch", "presets", "scales", "estimates")

if __name__ == "__main__":
    part, *options = sys.argv[1:] or ["--help"]
    if part in OF_PYTORCH:
        part, options = "pytorch", ["--parts", part, *options]
    if part not in MODULES:
        print((__doc__ or "").strip())
        sys.exit(0 if part in ("-h", "--help") else 2)
    sys.argv = [f"benchmarks {part}", *options]
    runpy.run_module(f"benchmark_{part}", run_name="__main__")
