"""Several processes that share a list of work: find this one's index and their number.

The processes share no arrays. Each computes its part of the list on its own devices. They
communicate only at the start, through ``jax.distributed``, so a process that dies later does not
stop the others.

``jax.distributed`` runs in a child process for two reasons. If peers do not arrive or a port is
taken, JAX aborts the process in C++. And its heartbeats and its SIGTERM handler would outlive the
start.
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

TIMEOUT_S = 300  # JAX's default: hosts of a job queue do not start at the same time

_GRACE_S = 60  # for the shutdown after all processes have connected

_ALL_OPTIONS = "expected --coordinator HOST:PORT, --process-count N and --process-index I together"


class Membership(NamedTuple):
    """The place of a process among several.

    Attributes:
      index: of the process, from 0.
      count: number of processes.
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
    """Connect to the other processes and find out which one this is.

    Returns when all processes have connected. Call this before any device is used: if a launcher
    starts one process for each accelerator of a host, it restricts this process to its own
    accelerator, see ``visible_devices``. Afterwards ``jax.distributed`` is not initialised, and
    ``jax.process_count()`` is 1.

    Args:
      coordinator: ``HOST:PORT`` of process 0, which listens there until all have connected.
      process_count, process_index: number of processes, and index of this one, from 0. If all three
        are None, JAX detects SLURM, Open MPI before version 5, Kubernetes or Cloud TPU.
      timeout_s: seconds to wait for the other processes; a timeout is noticed a few seconds late.

    Returns:
      The ``Membership``.

    Raises:
      InputError: if options are incomplete or wrong, no cluster is detected, or the other
        processes do not connect.
    """
    _check(coordinator, process_count, process_index)
    membership = _join_in_child(coordinator, process_count, process_index, timeout_s)
    devices = visible_devices(os.environ, launched=coordinator is None)
    if devices is not None:
        jax.config.update("jax_cuda_visible_devices", devices)
        jax.config.update("jax_rocm_visible_devices", devices)
    return Membership(**membership)


def visible_devices(environ: Mapping[str, str], *, launched: bool) -> str | None:
    """The accelerators of this process, as a value for ``jax_cuda_visible_devices``.

    By default JAX gives a process of SLURM or Open MPI one device, chosen by its local rank. That
    leaves devices idle if a host runs only one process, or if the launcher already restricts each
    process to its own device.

    Args:
      environ: the environment.
      launched: whether SLURM or Open MPI started the process; otherwise it uses all devices that it
        can see.

    Returns:
      Indices among the devices that the process can see, or None for all of them.
    """
    if explicit := environ.get("JAX_LOCAL_DEVICE_IDS"):  # a variable of JAX
        return explicit
    masks = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    sees_one = any("," not in environ[name] for name in masks if environ.get(name))
    if not launched or sees_one:
        return None
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        alone = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return None if alone else environ["OMPI_COMM_WORLD_LOCAL_RANK"]
    # As many tasks as nodes: one process for each host. With --gpus-per-task SLURM itself restricts
    # each process to its devices.
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES"))
    alone = environ.get("SLURM_NTASKS") == nodes
    if alone or "SLURM_GPUS_PER_TASK" in environ:
        return None
    return environ.get("SLURM_LOCALID")


def _check(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Check the explicit options, of which all or none must be given."""
    given = [value is not None for value in (coordinator, count, index)]
    if not any(given):
        return
    if coordinator is None or count is None or index is None:
        raise InputError(
            f"{sum(given)} of 3 options of a process are given: {_ALL_OPTIONS}, or none of them if "
            "SLURM, Open MPI, Kubernetes or Cloud TPU starts the processes"
        )
    # A host name or IPv4 address, or an IPv6 address in brackets.
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


def _join_in_child(
    coordinator: str | None, count: int | None, index: int | None, timeout_s: int
) -> dict[str, int]:
    """Run ``_join`` in a child process and return its answer.

    Raises:
      InputError: if the child fails, with a message made from its output.
    """
    request = json.dumps([coordinator, count, index, timeout_s, os.getpid()])
    # gRPC obeys proxy variables, but the hosts of a cluster connect directly.
    env = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    try:
        child = subprocess.run(
            # -P keeps the current folder, whose files might shadow modules, off the path.
            [sys.executable, "-P", "-m", __name__, request],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s + 2 * _GRACE_S,
        )
        output, errors = child.stdout, child.stderr
    except subprocess.TimeoutExpired:
        output, errors = "", "DEADLINE_EXCEEDED"
    answer = _last_json(output)  # libraries may print other lines before it
    if isinstance(answer, dict) and "index" in answer:
        return answer  # even if the child failed after that
    if isinstance(answer, dict) and "error" in answer:
        errors += "\n" + answer["error"]
    raise InputError(_error_message(errors, coordinator, count, index, timeout_s))


def _last_json(output: str) -> Any:
    lines = output.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _error_message(
    errors: str, coordinator: str | None, count: int | None, index: int | None, timeout_s: int
) -> str:
    """A message of one line, found by known phrases in the errors of JAX and gRPC."""
    who = "this process" if index is None else f"process {index} of {count}"
    where = "" if coordinator is None else f" at {coordinator}"
    if "should be defined" in errors or "must be defined" in errors:
        return f"no cluster was detected: {_ALL_OPTIONS}"
    if "DEADLINE_EXCEEDED" in errors:
        return (
            f"{who} waited {timeout_s} s{where}, and not all processes connected: start all of "
            "them with the same address and count, check that process 0 can be reached"
            + (", and that srun or mpirun starts them" if coordinator is None else "")
        )
    if "Failed to start RPC server" in errors or "Failed to add port" in errors:
        return f"{who} cannot listen{where}: the port is taken or not allowed, choose another"
    if "ALREADY_EXISTS" in errors:
        return f"{who} is already connected{where}: give every process a different index"
    if "Unexpected task" in errors:
        return f"{who} is not expected{where}: give all processes the same --process-count"
    status = re.search(r"absl::Status: (.*)", errors)
    lines = [status.group(1)] if status else errors.strip().splitlines()
    reason = lines[-1].strip() if lines else "no error message"
    return f"{who} could not connect to the others{where} ({reason}): {_ALL_OPTIONS}"


def _join(request: str) -> None:
    """The child process: connect through JAX, print the answer as JSON, disconnect."""
    coordinator, count, index, timeout_s, parent = json.loads(request)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    # Only the indices are needed, so the CPU backend needs no collectives.
    jax.config.update("jax_cpu_collectives_implementation", None)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=[],  # see visible_devices
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=timeout_s,
            shutdown_timeout_seconds=_GRACE_S,
        )
        answer = {"index": jax.process_index(), "count": jax.process_count()}
    except Exception as error:  # cluster detection raises many types
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    # Printed before the shutdown, which may fail if a peer dies meanwhile.
    print(json.dumps(answer), flush=True)
    jax.distributed.shutdown()


def _exit_with(parent: int) -> None:
    """Exit when the parent process ends, so that the port is free when it starts again."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _join(sys.argv[1])
