"""What is free of a device's memory, and what a compiled loop takes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nst_jax.cgroups import own_groups
from nst_jax.loop import CHUNK_SIZE
from nst_jax.solver import run
from nst_jax.types import Solver, Targets, Variables

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
GROUP_FILES = {  # of each version: the limit, what is used, what of it is given back when asked
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
LATER_PROGRAMS = 100_000_000  # bytes: of what is compiled once the run has been planned, measured
USABLE = 0.85  # of what is free: for what is not counted, and holes between blocks


class LoopMemory(NamedTuple):
    """What the compiled loop of one picture takes, in bytes.

    Attributes:
      network, state, targets: its arguments.
      scratch: what it takes while it runs, for activations above all.
    """

    network: int
    state: int
    targets: int
    scratch: int

    @property
    def own(self) -> int:
        """All but the network, which pictures of one run share."""
        return self.state + self.targets + self.scratch


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a tree.

    >>> tree_bytes({"a": jax.ShapeDtypeStruct((2, 3), "float32")})
    24
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loop_memory(
    solver: Solver, image_shape: Sequence[int], dtype: Any, variables: Variables, targets: Targets
) -> LoopMemory | None:
    """What the compiled loop of one picture takes; nothing of it is allocated.

    The loop is compiled for it, and this very program serves a run in the same process whose
    arguments are passed as ``transfer.stylize`` does.

    Args:
      solver, variables, targets: as for ``solver.run``; arrays or their shapes.
      image_shape, dtype: of the picture.

    Returns:
      The ``LoopMemory``, or None where the backend does not tell.
    """
    image = jax.ShapeDtypeStruct(tuple(image_shape), dtype)
    state = jax.eval_shape(solver.init, image, variables, targets)
    # As the host's loop calls it first; other ways to pass the same would be another program.
    lowered = run.lower(
        solver, state, variables=variables, targets=targets, num_steps=0, chunk_size=CHUNK_SIZE
    )
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        return None
    # The new state is where the old one was; the rest of the output is what the loop records.
    recorded = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return LoopMemory(
        network=tree_bytes(variables),
        state=tree_bytes(state),
        targets=tree_bytes(targets),
        scratch=analysis.temp_size_in_bytes + recorded,
    )


def in_gib(count: float, *, digits: int = 2) -> str:
    """A number of bytes in words.

    Args:
      count: of bytes.
      digits: that matter.

    >>> in_gib(3.14 * 2**30), in_gib(2**28), in_gib(0), in_gib(1.234 * 2**30, digits=3)
    ('3.1 GiB', '0.25 GiB', '0 GiB', '1.23 GiB')
    """
    gib = count / 2**30
    if 0 < gib < 0.095:
        return f"{1024 * gib:.{digits}g} MiB"
    return f"{gib:.{digits - 1}f} GiB" if gib >= 1 else f"{gib:.{digits}g} GiB"


def free_bytes(device: jax.Device) -> int | None:  # type: ignore[valid-type]
    """Memory that a device still has for this process.

    All CPU devices of a process share what is told of one. On GPUs it is the rest of the pool that
    JAX takes at its start (by default three quarters of the memory).

    Returns:
      Bytes, or None where it is not known.
    """
    if device.platform == "cpu":
        return host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "bytes_in_use" not in stats:
        return None
    return max(0, stats["bytes_limit"] - stats["bytes_in_use"])


def host_bytes() -> int | None:
    """Memory that this process may still take of the machine, or None where it is not known."""
    known = [free for free in (available_bytes(), cgroup_bytes()) if free is not None]
    return min(known, default=None)


def own_memory() -> int:
    """What this process takes of the memory that it computes in, once all is compiled.

    0 where it computes in another, a GPU's, and on other systems than Linux.
    """
    resident = _table(STATUS).get("VmRSS")
    if jax.default_backend() != "cpu" or resident is None:
        return 0
    return 1024 * resident + LATER_PROGRAMS


def peak_memory() -> int | None:
    """The most that this process has had of the memory it computes in, or None if not known."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    peak = _table(STATUS).get("VmHWM")
    return None if peak is None else 1024 * peak


def available_bytes(meminfo: Path | None = None) -> int | None:
    """Memory of the machine that Linux says is available, or None on other systems."""
    kibibytes = _table(meminfo or MEMINFO).get("MemAvailable")
    return None if kibibytes is None else 1024 * kibibytes


def cgroup_bytes(own: Path | None = None, mount: Path | None = None) -> int | None:
    """What the control groups of this process still allow: containers and queues limit memory so.

    Of the groups from that of the process up to the root of the mount the tightest counts. Files
    that are not there are passed over.

    Args:
      own, mount: as for ``cgroups.own_groups``.

    Returns:
      Bytes, or None where there is no limit.
    """
    groups = own_groups("memory", own=own, mount=mount)
    rooms = [_room(folder, *GROUP_FILES[version]) for version, folder in groups]
    return min((room for room in rooms if room is not None), default=None)


def _room(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    """What one group still allows, or None where it has no limit."""
    limit, usage = _number(folder / limit_file), _number(folder / usage_file)
    if limit is None or usage is None or limit >= 2**60:  # version 1 has no word for "no limit"
        return None
    usage -= _table(folder / "memory.stat").get(reclaimable, 0)  # files read, given back when asked
    return max(0, limit - max(0, usage))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there; "max"
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
