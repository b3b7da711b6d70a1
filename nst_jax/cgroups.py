"""The control groups of this process, by which containers and queues limit it.

Standard library only.
"""

from pathlib import Path

OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def own_groups(
    controller: str, *, own: Path | None = None, mount: Path | None = None
) -> list[tuple[int, Path]]:
    """The groups that limit this process, from the root of the mount to its own.

    Folders need not be there: a container may see its own group as the root.

    Args:
      controller: what is limited, ``"memory"`` or ``"cpu"``.
      own: the list of this process's groups, by default ``/proc/self/cgroup``.
      mount: where groups are mounted, by default ``/sys/fs/cgroup``.

    Returns:
      For each the version of control groups and the folder; none on other systems than Linux.
    """
    mount = mount or CGROUPS
    try:
        lines = (own or OWN_CGROUPS).read_text().splitlines()
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
