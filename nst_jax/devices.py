"""Settings of the whole process for the command line's devices, before any of them is touched."""

import os

import jax


def use_cpu_devices(most: int = 4) -> None:
    """Let JAX see a CPU of several cores as so many devices, up to a number.

    A setting of the whole process, for the command line, before any device is touched. What users
    have set by themselves stays.
    """
    own = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if own or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", min(most, cores or 1))


def make_deterministic() -> None:
    """Let GPUs sum in the same order each time, at some cost of speed; CPUs always do."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
