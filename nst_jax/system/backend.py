"""JAX's devices, its process-wide settings and its cache of compiled programs.

JAX is imported by the functions that need it, because ``--help`` does not.
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
    """Let JAX show the CPU as one device per thread.

    Sets the whole process, before JAX starts; only the command line calls it. Has no effect if the
    user has set a number of CPU devices.

    Args:
      most: the largest number of devices.
    """
    import jax

    set_by_user = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if set_by_user or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_num_cpu_devices", min(most, threads_in_use()))


def make_deterministic() -> None:
    """Make GPUs add in the same order each time, which is slower.

    CPUs do so without this, on an equal number of threads; see ``threads``.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def machine_fingerprint(*, cpuinfo: Path = CPUINFO) -> str:
    """Return a hash of the processor, its instruction sets and the version of jaxlib.

    Compiled programs must only run on the kind of machine that compiled them, and machines of
    several kinds may share a home folder.

    Args:
      cpuinfo: Linux's description of the processor.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    # x86 has "model name" and "flags", ARM "Features" and "CPU part". The first lines describe the
    # first core.
    kinds = ("model name", "flags", "Features", "CPU part")
    facts = [line for line in lines if line.startswith(kinds)][: len(kinds)] or lines[:1]
    text = "\n".join(
        [platform.system(), platform.machine(), importlib.metadata.version("jaxlib"), *facts]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def use_compilation_cache() -> Path | None:
    """Let JAX store compiled programs in the per-user cache.

    Sets the whole process; only the command line calls it. The next run executes the stored machine
    code, so only the user may write to the folder. Has no effect if others may write to it, if it
    cannot be created, or if the user has set ``JAX_COMPILATION_CACHE_DIR`` or disabled JAX's cache.
    Programs are never evicted, and take about 400 kB for each image size; the folder ``compiled``
    may be deleted at any time.

    Returns:
      The folder, or None if the cache is not used.
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
    # Also store programs that compile quickly: together they take longer than the loop.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the packages that determine its results."""
    packages = ("nst_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | found


def device() -> dict[str, Any]:
    """Return the platform, kind and number of JAX's devices, and the number of CPU threads."""
    import jax

    first = jax.devices()[0]
    known = {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}
    if first.platform != "cpu":
        return known
    return known | {"threads": threads_in_use(devices=jax.local_device_count())}
