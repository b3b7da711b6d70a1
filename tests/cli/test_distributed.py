"""Processes that connect at the start and are independent afterwards, on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from nst_jax.cli.distributed import join, visible_devices
from nst_jax.errors import InputError

# Joins, waits for a line of input, computes on all of its devices, and prints the results.
PROGRAM = """
import json, sys
import jax
import numpy as np
from nst_jax.cli.distributed import join

member = join(**json.loads(sys.argv[1]), timeout_s=90)
assert not jax.distributed.is_initialized()
print("joined", flush=True)
sys.stdin.readline()
double = jax.jit(lambda x: 2 * x)
sums = [
    float(double(jax.device_put(np.full(3, member.index + 1.0, np.float32), device)).sum())
    for device in jax.devices()
]
visible = jax.config.read("jax_cuda_visible_devices")
print(json.dumps([*member, jax.process_count(), sums, visible]))
"""
NOTHING = {"coordinator": None, "process_count": None, "process_index": None}
CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_", "CUDA_VISIBLE", "PYTHONWARNINGS")


@pytest.fixture
def environ(monkeypatch):
    """An environment without the variables of a launcher."""
    for name in list(os.environ):
        if name.startswith(CLUSTERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    return os.environ


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(environ):
    """Start a process that joins, and end it with the test."""
    processes = []

    def start(options=NOTHING, **variables):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(options)],
            env={**environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def explicit(port, index, count=2):
    return {"coordinator": f"localhost:{port}", "process_count": count, "process_index": index}


def joined(process):
    line = process.stdout.readline()
    assert line == "joined\n", line + process.stderr.read()


def finish(process):
    """Let a process compute, and return what it printed."""
    output, errors = process.communicate("go on\n", timeout=120)
    assert process.returncode == 0, errors
    assert not errors
    return json.loads(output)


def test_processes_compute_on_their_own_devices(start, port):
    processes = [start(explicit(port, index)) for index in range(2)]
    for process in processes:
        joined(process)
    assert finish(processes[0]) == [0, 2, 1, [6.0, 6.0], "all"]
    assert finish(processes[1]) == [1, 2, 1, [12.0, 12.0], "all"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_continues_when_another_is_killed(start, port, lost):
    processes = [start(explicit(port, index)) for index in range(2)]
    for process in processes:
        joined(process)
    processes[lost].send_signal(signal.SIGKILL)
    assert processes[lost].wait(60) == -signal.SIGKILL
    assert finish(processes[1 - lost])[:2] == [1 - lost, 2]


# JAX derives the port of the coordinator from the number of the job.
SLURM_JOB = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
SLURM_JOB |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
OMPI_JOB = {"OMPI_MCA_orte_hnp_uri": f"{os.getpid() * 4096}.0;tcp://127.0.0.1:34911"}
OMPI_JOB |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "job, ranks",
    [
        (SLURM_JOB, ("SLURM_PROCID", "SLURM_LOCALID")),
        (
            OMPI_JOB | {"JAX_COORDINATOR_PORT": ""},
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ),
    ],
    ids=["SLURM", "Open MPI"],
)
def test_launchers_are_detected(start, job, ranks):
    processes = [start(**job, **dict.fromkeys(ranks, index)) for index in "01"]
    for process in processes:
        joined(process)
    assert finish(processes[0]) == [0, 2, 1, [6.0, 6.0], "0"]
    assert finish(processes[1]) == [1, 2, 1, [12.0, 12.0], "1"]


def test_the_port_is_free_after_a_waiting_process_was_killed(start, port):
    def listening():
        with socket.socket() as probe:
            return probe.connect_ex(("localhost", port)) == 0

    def wait_until(wanted):
        deadline = time.monotonic() + 60
        while listening() != wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        assert listening() == wanted

    process = start(explicit(port, 0))
    wait_until(True)
    process.kill()
    wait_until(False)


@pytest.mark.parametrize(
    "given, match",
    [
        ({"coordinator": "host:1"}, "1 of 3 options .* expected --coordinator HOST:PORT"),
        ({"process_count": 2, "process_index": 0}, "2 of 3 options"),
        (explicit(1, 2), "process index is 2: expected 0 to 1"),
        (explicit(1, -1), "process index is -1: expected 0 to 1"),
        (explicit(1, 0, count=0), "process count is 0: expected at least 1"),
        (explicit(1, 0, count=10**19), "process count is 10+: expected .*at most 2147483647"),
        *[
            (explicit(1, 0) | {"coordinator": address}, "expected HOST:PORT of process 0")
            for address in ("host", ":1", "host:x", "host:70000", "http://host:1")
        ],
        (explicit(1, 0) | {"coordinator": "fe80::1:1234"}, "expected HOST:PORT of process 0"),
    ],
)
def test_bad_options_are_refused_at_once(given, match):
    with pytest.raises(InputError, match=match):
        join(**NOTHING | given)


def test_without_a_cluster_the_options_are_required(environ):
    with pytest.raises(InputError, match="no cluster was detected: .* --coordinator HOST:PORT"):
        join(**NOTHING)


def test_broken_variables_of_a_cluster(environ, monkeypatch):
    names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    for name in names:
        monkeypatch.setenv(f"SLURM_{name}", "several")
    with pytest.raises(InputError, match="could not connect to the others .*several"):
        join(**NOTHING)


def test_taken_port(environ):
    with socket.socket(socket.AF_INET6) as server:
        server.bind(("::", 0))
        server.listen()
        with pytest.raises(InputError, match="process 0 of 2 cannot listen .* the port is taken"):
            join(**explicit(server.getsockname()[1], 0))


def test_one_process_too_many(start, port):
    start(explicit(port, 0, count=2))
    with pytest.raises(InputError, match="process 2 of 3 is not expected .* same --process-count"):
        join(**explicit(port, 2, count=3))


@pytest.mark.slow
def test_timeout(environ, port):
    with pytest.raises(InputError, match="process 0 of 2 waited 1 s .* not all .* conn") as caught:
        join(**explicit(port, 0), timeout_s=1)
    assert "\n" not in str(caught.value)


SLURM = {"SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
OMPI = {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    "environ, devices",
    [
        ({}, None),
        ({"JAX_LOCAL_DEVICE_IDS": "0,1"} | SLURM, "0,1"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, "1"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, "1"),
        # A process has all devices that it sees if it is alone on its host, or sees only its own.
        (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "3"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_PER_TASK": "2"}, None),
        (OMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "1"),
        (OMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None),
    ],
)
def test_processes_share_the_devices_of_a_host(environ, devices):
    assert visible_devices(environ, launched=True) == devices


def test_processes_that_are_started_by_hand_see_all_devices():
    assert visible_devices(SLURM, launched=False) is None
    assert visible_devices({"JAX_LOCAL_DEVICE_IDS": "1"} | SLURM, launched=False) == "1"
