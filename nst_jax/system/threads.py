"""Set the number of CPU threads to compute on, before JAX starts.

XLA divides sums among its threads, so the number of threads determines the last bits of a result.
"""

import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from nst_jax.errors import InputError
from nst_jax.system.memory import CGROUP_FILE, CGROUP_MOUNT, process_cgroups

MAX_THREADS = 256  # XLA uses no more

# XLA reads the size of its thread pools from the first of these that is set.
XLA_VARIABLES = ("PJRT_NPROC", "NPROC")

# Threads of the OpenBLAS of NumPy and SciPy, through which JAX calls LAPACK. These threads wait for
# each other in busy loops: beside other work, a decomposition takes tens of times as long.
BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"


def set_threads(*, threads: int | None = None) -> int | None:
    """Set the number of CPU threads that this process computes on.

    By itself XLA uses one thread per CPU of the affinity mask and ignores the CPU quota of a
    container or job queue. This function sets environment variables, which JAX reads when it
    creates the first array, and NumPy when it is imported: call it at the beginning of a script.
    The command line calls it. Results are equal bit for bit only on equal numbers of threads.

    Args:
      threads: the number of threads, which overrides ``PJRT_NPROC`` and ``NPROC``. None takes these
        variables, or else ``usable_cpus``.

    Returns:
      The number of threads that XLA will use, or None on systems other than Linux, where nothing
      is set.

    Raises:
      InputError: if the number is not from 1 to ``MAX_THREADS``, if it is given on a system other
        than Linux, or if JAX has already started on a different number.
    """
    if threads is not None:
        check_threads(threads)
    if not can_set_threads():
        return None
    started = threads_in_use() if jax_has_started() else None
    return name_threads(os.environ, threads=threads, usable=usable_cpus(), started=started)


def name_threads(
    environ: MutableMapping[str, str], *, threads: int | None, usable: int, started: int | None
) -> int:
    """Set the environment variables of ``set_threads``, unless JAX has started.

    Args:
      environ: the environment.
      threads: as for ``set_threads``.
      usable: the number from ``usable_cpus``.
      started: the number of threads that JAX has started on, or None.

    Returns:
      The number of threads that XLA will use.

    Raises:
      InputError: if JAX has started on a different number.
    """
    set_by_user = _environment_threads(environ)
    wanted = min(MAX_THREADS, threads or set_by_user or usable)
    if started is not None:
        if started != wanted:
            raise InputError(
                f"expected JAX to start on {wanted} threads, but it has already started on "
                f"{started}: call set_threads before creating the first array"
            )
        return started
    if threads is not None or set_by_user is None:
        environ[XLA_VARIABLES[0]] = str(wanted)
    if threads is not None or not environ.get(BLAS_VARIABLE):
        environ[BLAS_VARIABLE] = "1"
    return wanted


def check_threads(threads: int) -> None:
    """Check a number of threads.

    Raises:
      InputError: if it is out of range, or cannot be set on this system.
    """
    is_int = isinstance(threads, int) and not isinstance(threads, bool)
    if not is_int or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads is {threads}: expected 1 to {MAX_THREADS}")
    if not can_set_threads():
        raise InputError(
            "threads can only be set on Linux: leave it out, this system chooses the number itself"
        )


def can_set_threads() -> bool:
    """Whether the number of threads can be set: only on Linux, where this was tested."""
    return sys.platform.startswith("linux")


def jax_has_started() -> bool:
    """Whether JAX has initialised its backends, which starts XLA's threads."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    return started is not None and started()


def threads_in_use(*, devices: int = 1, environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads that XLA uses, or will use.

    Args:
      devices: CPU devices of the process; XLA starts at least one thread for each.
      environ: the environment.
    """
    threads = _environment_threads(environ)
    return min(MAX_THREADS, max(devices, affinity_cpus() if threads is None else threads))


def usable_cpus(
    *, affinity: int | None = None, cgroup_file: Path = CGROUP_FILE, mount: Path = CGROUP_MOUNT
) -> int:
    """Return how many CPUs this process may use: the minimum of its affinity mask and CPU quotas.

    A quota is rounded up to whole CPUs. The tightest quota on the path from the root control group
    to the process's group applies.

    Args:
      affinity: the number of CPUs in the affinity mask; by default that of this process.
      cgroup_file, mount: as for ``memory.process_cgroups``.
    """
    cpus = affinity_cpus() if affinity is None else affinity
    quotas = [
        _quota(version, folder)
        for version, folder in process_cgroups("cpu", cgroup_file=cgroup_file, mount=mount)
    ]
    tightest = min((quota for quota in quotas if quota is not None), default=cpus)
    return max(1, min(cpus, math.ceil(tightest)))


def affinity_cpus() -> int:
    """Return the number of CPUs in the affinity mask, or in the machine if there are no masks."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(version: int, folder: Path) -> float | None:
    """Return the CPUs that one control group allows, or None if it has no limit."""
    # A quota and a period in microseconds: in one file in version 2, in two files in version 1.
    if version == 2:
        files = ["cpu.max"]
    else:
        files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
    except (OSError, ValueError):  # missing, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1: -1 is no limit


def _environment_threads(environ: Mapping[str, str]) -> int | None:
    """Return the number of threads set in the environment, parsed as XLA does, or None."""
    for name in XLA_VARIABLES:
        try:
            return max(1, int(environ[name]))
        except (KeyError, ValueError):
            continue
    return None
