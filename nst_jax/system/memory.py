"""Memory: how much there is and is taken, and freed memory that stays with the process.

What Linux tells of the machine, the process and the control groups that limit it, and what JAX
tells of its devices; JAX is imported only where a device is asked.
"""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")

STATUS = Path("/proc/self/status")

OWN_CGROUPS = Path("/proc/self/cgroup")

CGROUPS = Path("/sys/fs/cgroup")

GROUP_FILES = {  # of each version: the limit, what is used, what of it is given back when asked
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}

LATER_PROGRAMS = 100_000_000  # bytes: of what is compiled once the run has been planned, measured

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8

_LARGE = 2**25  # bytes, the most that glibc takes for its threshold

PAGE, PROBES = mmap.PAGESIZE, 256

ALIGNMENT = 64  # of XLA's blocks

_SLACK = 2**26  # for small things that come and go beside a run's large ones


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


def free_bytes(device: Any, **paths: Path) -> int | None:
    """Memory that a device still has for this process.

    All CPU devices of a process share what is told of one. On GPUs it is the rest of the pool that
    JAX takes at its start (by default three quarters of the memory).

    Args:
      device: of JAX.
      paths: as for ``host_bytes``.

    Returns:
      Bytes, or None where it is not known.
    """
    if device.platform == "cpu":
        return host_bytes(**paths)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "bytes_in_use" not in stats:
        return None
    return max(0, stats["bytes_limit"] - stats["bytes_in_use"])


def host_bytes(
    *, meminfo: Path = MEMINFO, own: Path = OWN_CGROUPS, mount: Path = CGROUPS
) -> int | None:
    """Memory that this process may still take of the machine, or None where it is not known.

    Args:
      meminfo: where Linux tells of the machine's memory.
      own, mount: as for ``own_groups``.
    """
    known = [available_bytes(meminfo), cgroup_bytes(own=own, mount=mount)]
    return min((free for free in known if free is not None), default=None)


def own_memory(*, device: Any = None, status: Path = STATUS) -> int:
    """What this process takes of the memory that it computes in, once all is compiled.

    0 where it computes in another, a GPU's, and on other systems than Linux.

    Args:
      device: of JAX, by default the first of the process.
      status: where Linux tells of the process.
    """
    resident = _table(status).get("VmRSS")
    if (device or _first_device()).platform != "cpu" or resident is None:
        return 0
    return 1024 * resident + LATER_PROGRAMS


def peak_memory(*, device: Any = None, status: Path = STATUS) -> int | None:
    """The most that this process has had of the memory it computes in, or None if not known.

    Args:
      device, status: as for ``own_memory``.
    """
    device = device or _first_device()
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    peak = _table(status).get("VmHWM")
    return None if peak is None else 1024 * peak


def available_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Memory of the machine that Linux says is available, or None on other systems."""
    kibibytes = _table(meminfo).get("MemAvailable")
    return None if kibibytes is None else 1024 * kibibytes


def cgroup_bytes(*, own: Path = OWN_CGROUPS, mount: Path = CGROUPS) -> int | None:
    """What the control groups of this process still allow: containers and queues limit memory so.

    Of the groups from that of the process up to the root of the mount the tightest counts. Files
    that are not there are passed over.

    Args:
      own, mount: as for ``own_groups``.

    Returns:
      Bytes, or None where there is no limit.
    """
    groups = own_groups("memory", own=own, mount=mount)
    rooms = [_room(folder, *GROUP_FILES[version]) for version, folder in groups]
    return min((room for room in rooms if room is not None), default=None)


def own_groups(
    controller: str, *, own: Path = OWN_CGROUPS, mount: Path = CGROUPS
) -> list[tuple[int, Path]]:
    """The control groups that limit this process, from the root of the mount to its own.

    Folders need not be there: a container may see its own group as the root.

    Args:
      controller: what is limited, ``"memory"`` or ``"cpu"``.
      own: the list of this process's groups.
      mount: where groups are mounted.

    Returns:
      For each the version of control groups and the folder; none on other systems than Linux.
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    groups: list[tuple[int, Path]] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version, root = 2, mount
        elif controller in controllers.split(","):
            version, root = 1, mount / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        groups += [(version, root.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return groups


def _first_device() -> Any:
    import jax

    return jax.local_devices()[0]


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


def keep_freed_memory(*, large: bool = True, libc: Any = None) -> bool:
    """Let glibc keep freed memory instead of giving it back to the system.

    A chunk of steps takes its scratch memory anew, half a gigabyte at 512 px; once given back, all
    its pages are cleared and mapped again, which takes 0.2 s a chunk. One arena, because only the
    main one can hold such blocks. Has no effect after other threads have allocated, so call it
    first; only the command line does, for it is a setting of the whole process.

    Args:
      large: whether also large blocks are kept. Where memory is scarce, call it again without: each
        is then given back when it is freed, so that none is ever there twice.
      libc: the C library, by default that of the process.

    Returns:
      Whether there is a glibc that took the settings.
    """
    libc = libc or _glibc()
    if libc is None:
        return False
    settings = {M_MMAP_MAX: 0 if large else 2**16, M_MMAP_THRESHOLD: _LARGE}
    settings |= {M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
    return all([libc.mallopt(option, value) for option, value in settings.items()])


def reserve(size: int, *, libc: Any = None) -> bool:
    """Make room in one piece for what will be allocated, where freed memory is kept.

    Nothing is used up until it is written to. Without it a small thing may get into a large block
    that was freed, which then is no longer large enough to be used again: the largest blocks of a
    run would be there twice.

    Args:
      size: of all that will be there at the same time, in bytes.
      libc: the C library, by default that of the process.

    Returns:
      Whether there is a glibc that made room.
    """
    libc = libc or _glibc()
    if libc is None:
        return False
    room = libc.malloc(size + _SLACK)
    libc.malloc(2**20)  # never freed: it keeps the room apart from what is yet to be taken
    libc.free(room)
    return room is not None


def keep_to_place(size: int, *, libc: Any = None) -> bool:
    """Prepare that a large block will be taken again that has just been freed.

    It may get another place: something small that has come to lie in the old one, or a few bytes
    beside it for its alignment, suffice. Then the old one's pages are given back first, or both
    would count. To see it, as much is taken and freed again. (What other threads take before the
    block itself is taken may still change its place: seldom, on a busy machine.)

    Args:
      size: of the block.
      libc: the C library, by default that of the process.

    Returns:
      Whether it will be where its pages are.
    """
    libc = libc or _glibc()
    if libc is None:
        return True
    block = libc.aligned_alloc(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
    if block is None:
        return True
    step = max(1, size // PAGE // PROBES) * PAGE
    resident, state = 0, ctypes.c_ubyte()
    for place in range(block - block % PAGE, block + size, step):
        libc.mincore(place, PAGE, ctypes.byref(state))
        resident += state.value & 1
    libc.free(block)
    there = resident * step > size // 2
    if not there:
        libc.malloc_trim(0)
    return there


def bytes_in_use() -> int | None:
    """What this process has allocated and not freed, or None where there is no glibc that tells."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):  # glibc 2.33
        return None
    libc.mallinfo2.restype = _MallocInfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt
    except (AttributeError, OSError):  # another C library
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc
