"""On how many threads CPUs compute, to be set before JAX starts.

The number decides about the bits of a result: XLA divides sums among its threads.
"""

import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from nst_jax.errors import InputError
from nst_jax.system.memory import CGROUPS, OWN_CGROUPS, own_groups

MOST_THREADS = 256  # XLA computes on no more

# What XLA reads for the size of its pools, the first of them first.
XLA_VARIABLES = ("PJRT_NPROC", "NPROC")

# NumPy's and SciPy's OpenBLAS, through which JAX calls LAPACK: its threads wait for each other in
# busy loops, so that with other work beside them a decomposition takes tens of times as long.
BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"


def set_threads(*, threads: int | None = None) -> int | None:
    """Let this process compute on as many threads as it has CPUs for.

    XLA takes as many as the affinity mask has, whatever the CPU quota of a container or a queue.
    This sets environment variables that are read when JAX starts its backend, with its first
    array, and when NumPy is imported: call it at the beginning of a script. The command line does.
    The same number of threads gives the same bits, another number others.

    Args:
      threads: how many; by default what ``usable_cpus`` says, unless the user has set
        ``PJRT_NPROC`` or ``NPROC``. A given number overrides these variables.

    Returns:
      How many threads XLA will have; None on other systems than Linux, where nothing is set.

    Raises:
      InputError: for a number below 1 or above ``MOST_THREADS``, or any on another system than
        Linux; where JAX has started already, on another number.
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
    """Set the variables of ``set_threads``, unless JAX has started.

    Args:
      environ: the environment.
      threads: how many, or None for what is named there, or else the usable CPUs.
      usable: from ``usable_cpus``.
      started: on how many threads JAX has started, or None.

    Returns:
      How many threads XLA will have.

    Raises:
      InputError: where JAX has started on another number.
    """
    named = _named(environ)
    wanted = min(MOST_THREADS, threads or named or usable)
    if started is not None:
        if started != wanted:
            raise InputError(
                f"JAX has started on {started} threads already, {wanted} are wanted: call "
                "set_threads before the first array is made"
            )
        return started
    if threads is not None or named is None:
        environ[XLA_VARIABLES[0]] = str(wanted)
    if threads is not None or not environ.get(BLAS_VARIABLE):
        environ[BLAS_VARIABLE] = "1"
    return wanted


def check_threads(threads: int) -> None:
    """Check a number of threads.

    Raises:
      InputError: where it is out of range, or cannot be set on this system.
    """
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}: expected 1 to {MOST_THREADS}")
    if not can_set_threads():
        raise InputError(
            "threads can be set on Linux only: leave it out, here the system decides about them"
        )


def can_set_threads() -> bool:
    """Whether threads are set here: on Linux, where it was tried."""
    return sys.platform.startswith("linux")


def jax_has_started() -> bool:
    """Whether JAX has looked for its devices, after which XLA's threads are there."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    return started is not None and started()


def threads_in_use(*, devices: int = 1, environ: Mapping[str, str] = os.environ) -> int:
    """On how many threads XLA computes, or will, by the environment and the affinity mask.

    Args:
      devices: CPU devices of the process; XLA takes a thread for each at least.
      environ: the environment.
    """
    named = _named(environ)
    return min(MOST_THREADS, max(devices, affinity_cpus() if named is None else named))


def usable_cpus(
    *, affinity: int | None = None, own: Path = OWN_CGROUPS, mount: Path = CGROUPS
) -> int:
    """How many CPUs this process may use: the least of its affinity mask and its CPU quotas.

    A part of a CPU counts as a whole one. Of the control groups from that of the process up to the
    root of the mount the tightest counts.

    Args:
      affinity: how many CPUs the process may run on, by default those of its mask.
      own, mount: as for ``memory.own_groups``.
    """
    cpus = affinity_cpus() if affinity is None else affinity
    quotas = [
        _quota(version, folder) for version, folder in own_groups("cpu", own=own, mount=mount)
    ]
    tightest = min((quota for quota in quotas if quota is not None), default=cpus)
    return max(1, min(cpus, math.ceil(tightest)))


def affinity_cpus() -> int:
    """How many CPUs this process may run on; all of the machine where the system has no masks."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(version: int, folder: Path) -> float | None:
    """CPUs that one group allows, or None where it has no limit."""
    if version == 2:
        files = ["cpu.max"]
    else:
        files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
    except (OSError, ValueError):  # not there; "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 says -1 for no limit


def _named(environ: Mapping[str, str]) -> int | None:
    """The number of threads that the environment names, as XLA reads it."""
    for name in XLA_VARIABLES:
        try:
            return max(1, int(environ[name]))
        except (KeyError, ValueError):
            continue
    return None
