"""JAX's devices: settings of the whole process, the cache of compiled programs, what computes.

JAX is imported by the functions that need it, as ``--help`` needs none.
"""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from nst_jax.system.files import cache_dir
from nst_jax.system.threads import threads_in_use

CPUINFO = Path("/proc/cpuinfo")


def use_cpu_devices(most: int = 4) -> None:
    """Let JAX see a CPU as so many devices as it has threads to compute on, up to a number.

    A setting of the whole process, for the command line, before any device is touched. What users
    have set by themselves stays.
    """
    import jax

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


def machine_fingerprint(*, cpuinfo: Path = CPUINFO) -> str:
    """A short name of processor, its instructions and jaxlib: programs of others must not run here.

    A home folder may be shared by machines of several kinds.

    Args:
      cpuinfo: where Linux tells of the processor.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # another system
        lines = [platform.processor()]
    kinds = ("model name", "flags", "Features", "CPU part")
    facts = [line for line in lines if line.startswith(kinds)][: len(kinds)] or lines[:1]
    text = "\n".join(
        [platform.system(), platform.machine(), importlib.metadata.version("jaxlib"), *facts]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def use_compilation_cache() -> Path | None:
    """Let JAX keep what it compiles in the per-user cache.

    A setting of the whole process, for the command line. What is kept is machine code that the next
    run executes, so the folder belongs to its user alone: nothing is done where others may write to
    it, where it cannot be made, or where the user has set ``JAX_COMPILATION_CACHE_DIR`` or turned
    JAX's cache off. Nothing is ever evicted, about 400 kB for a size of images; the folder
    ``compiled`` may be deleted at any time.

    Returns:
      The folder, or None.
    """
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "compiled" / machine_fingerprint()
    try:
        for path in (cache_dir(), folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.stat()
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                return None
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: together they take longer to compile than the loop.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def versions() -> dict[str, str]:
    """Versions of Python, this package and those that decide about its numbers."""
    packages = ("nst_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | found


def device() -> dict[str, Any]:
    """The devices that JAX computes on, and of CPUs on how many threads."""
    import jax

    first = jax.devices()[0]
    known = {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}
    if first.platform != "cpu":
        return known
    return known | {"threads": threads_in_use(devices=jax.local_device_count())}
