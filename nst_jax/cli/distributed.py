"""Several processes that share a list of work: which one of how many this is.

The processes share no arrays. Each takes its part by its index and computes with its own devices,
so that they meet only at the start, by ``jax.distributed``, and one that is lost later stops no
other. The meeting is held by a child process: where peers do not come or a port is taken, JAX ends
the process that asks (it aborts in C++), and its heartbeats and its handler of SIGTERM would stay.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from nst_jax.config.checks import LARGEST_COUNT
from nst_jax.errors import InputError

TIMEOUT_S = 300  # JAX's own default: hosts of a queue do not start at once

_GRACE_S = 60  # for what follows the meeting; by then everybody has come

_ALL_OPTIONS = "expected --coordinator HOST:PORT, --process-count N and --process-index I together"


class Membership(NamedTuple):
    """One process among several.

    Attributes:
      index: its number, from 0.
      count: how many there are.
    """

    index: int
    count: int


def join(
    *,
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    timeout_s: int = TIMEOUT_S,
) -> Membership:
    """Meet the other processes and learn which one this is.

    Returns when all have come. Call it before any device is touched: where a launcher starts one
    process for each accelerator of a host, this one then sees its own only, see ``own_devices``.
    ``jax.distributed`` is not initialised afterwards, and ``jax.process_count()`` is 1.

    Args:
      coordinator: ``HOST:PORT`` of process 0, which listens there during the meeting.
      process_count, process_index: how many processes, and which one this is. Where neither of the
        three is given, JAX asks SLURM, Open MPI before version 5, Kubernetes or Cloud TPU.
      timeout_s: how long to wait for the others; some seconds more pass until it is noticed.

    Returns:
      The ``Membership``.

    Raises:
      InputError: for options that are incomplete or wrong, where no cluster is found, and where
        the others do not come.
    """
    _check(coordinator, process_count, process_index)
    answer = _meet_in_a_child(coordinator, process_count, process_index, timeout_s)
    devices = own_devices(os.environ, launched=coordinator is None)
    if devices is not None:
        jax.config.update("jax_cuda_visible_devices", devices)
        jax.config.update("jax_rocm_visible_devices", devices)
    return Membership(**answer)


def own_devices(environ: Mapping[str, str], *, launched: bool) -> str | None:
    """The accelerators of this process, as JAX's setting of visible ones has them.

    JAX gives each process of SLURM and Open MPI the one device of its number on the host. That
    would leave devices idle where a host has one process, or where the launcher has already shown
    each process its own.

    Args:
      environ: the environment.
      launched: whether SLURM or Open MPI started the process; else it has what it sees.

    Returns:
      Numbers among the devices that the process sees, or None for all of them.
    """
    if named := environ.get("JAX_LOCAL_DEVICE_IDS"):  # JAX's own variable
        return named
    masks = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    one_is_seen = any("," not in environ[name] for name in masks if environ.get(name))
    if not launched or one_is_seen:
        return None
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        alone = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return None if alone else environ["OMPI_COMM_WORLD_LOCAL_RANK"]
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES"))
    alone = environ.get("SLURM_NTASKS") == nodes
    if alone or "SLURM_GPUS_PER_TASK" in environ:
        return None
    return environ.get("SLURM_LOCALID")


def _check(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Check what was given explicitly: all or nothing."""
    given = [value is not None for value in (coordinator, count, index)]
    if not any(given):
        return
    if coordinator is None or count is None or index is None:
        raise InputError(
            f"{sum(given)} of 3 options of a process are given: {_ALL_OPTIONS}, or none of them "
            "where SLURM, Open MPI, Kubernetes or Cloud TPU start the processes"
        )
    address = re.fullmatch(r"([\w.-]+|\[[\w:.%]+\]):([0-9]{1,5})", coordinator)
    if address is None or not 0 < int(address[2]) < 2**16:
        raise InputError(
            f"the coordinator is {coordinator!r}: expected HOST:PORT of process 0, such as "
            "host1:1234"
        )
    if not 1 <= count <= LARGEST_COUNT:
        raise InputError(
            f"the process count is {count}: expected at least 1, at most {LARGEST_COUNT}"
        )
    if not 0 <= index < count:
        raise InputError(f"the process index is {index}: expected 0 to {count - 1}")


def _meet_in_a_child(
    coordinator: str | None, count: int | None, index: int | None, timeout_s: int
) -> dict[str, int]:
    """Let a child meet, and read its answer, or make an error of how it ended."""
    request = json.dumps([coordinator, count, index, timeout_s, os.getpid()])
    # The meeting is between hosts that know each other; sent through a proxy it does not happen.
    env = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", __name__, request],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s + 2 * _GRACE_S,
        )
        output, told = child.stdout, child.stderr
    except subprocess.TimeoutExpired:
        output, told = "", "DEADLINE_EXCEEDED"
    answer = _last_json(output)
    if isinstance(answer, dict) and "index" in answer:
        return answer  # what came after the answer does not matter
    if isinstance(answer, dict) and "error" in answer:
        told += "\n" + answer["error"]
    raise InputError(_explain(told, coordinator, count, index, timeout_s))


def _last_json(output: str) -> Any:
    lines = output.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _explain(
    told: str, coordinator: str | None, count: int | None, index: int | None, timeout_s: int
) -> str:
    """One line of what a child said before it ended."""
    who = "this process" if index is None else f"process {index} of {count}"
    where = "" if coordinator is None else f" at {coordinator}"
    if "should be defined" in told or "must be defined" in told:
        return f"no cluster was found that says which process this is: {_ALL_OPTIONS}"
    if "DEADLINE_EXCEEDED" in told:
        return (
            f"{who} waited {timeout_s} s for the others{where} and they did not all come: start "
            "all of them with the same address and count, see that process 0 can be reached"
            + (", and that srun or mpirun starts them" if coordinator is None else "")
        )
    if "Failed to start RPC server" in told or "Failed to add port" in told:
        return f"{who} cannot listen{where}: its port is taken or not allowed, choose another"
    if "ALREADY_EXISTS" in told:
        return f"{who} is there twice{where}: give every process an index of its own"
    if "Unexpected task" in told:
        return f"{who} is not expected{where}: give all processes the same --process-count"
    status = re.search(r"absl::Status: (.*)", told)
    lines = [status.group(1)] if status else told.strip().splitlines()
    reason = lines[-1].strip() if lines else "it said nothing"
    return f"{who} could not meet the others{where} ({reason}): {_ALL_OPTIONS}"


def _meet(request: str) -> None:
    """The child: meet by JAX, print the answer, part."""
    coordinator, count, index, timeout_s, parent = json.loads(request)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # No backend of several processes is wanted but its numbers: none of its means to communicate.
    jax.config.update("jax_cpu_collectives_implementation", None)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=[],  # see own_devices
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=timeout_s,
            shutdown_timeout_seconds=_GRACE_S,
        )
        answer = {"index": jax.process_index(), "count": jax.process_count()}
    except Exception as error:  # of cluster detection: many kinds
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(answer), flush=True)
    jax.distributed.shutdown()


def _end_with(parent: int) -> None:
    """End when the parent has ended: a port that is held would be in the way of its next start."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _meet(sys.argv[1])
