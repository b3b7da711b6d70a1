"""Settings of the whole process for the command line's devices, before any of them is touched."""

import os

import jax

from nst_jax.threads import threads_in_use


def use_cpu_devices(most: int = 4) -> None:
    """Let JAX see a CPU as so many devices as it has threads to compute on, up to a number.

    A setting of the whole process, for the command line, before any device is touched. What users
    have set by themselves stays.
    """
    own = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if own or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_num_cpu_devices", min(most, threads_in_use()))


def make_deterministic() -> None:
    """Let GPUs sum in the same order each time, at some cost of speed; CPUs always do.

    On CPUs it takes the same number of threads, see ``threads``.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
