"""The number of threads, from made-up control groups and environments, and how XLA uses it."""

import os
import subprocess
import sys

import jax
import pytest
from helpers.control_groups import lay_out  # noqa: F401

from nst_jax.errors import InputError
from nst_jax.system import device, set_threads, usable_cpus
from nst_jax.system.threads import affinity_cpus, name_threads, threads_in_use


@pytest.fixture
def allowed(lay_out):
    """How many of eight CPUs control groups allow."""
    return lambda cgroup_file, files: usable_cpus(affinity=8, **lay_out(cgroup_file, files))


def version_1(quota, period=100_000, *, folder="."):
    return {f"cpu/{folder}/cpu.cfs_quota_us": quota, f"cpu/{folder}/cpu.cfs_period_us": period}


class TestUsableCpus:
    @pytest.mark.parametrize(
        "limit, cpus",
        [("150000 100000", 2), ("20000 100000", 1), ("90000 30000", 3), ("1600000 100000", 8)]
        + [("max 100000", 8)],
    )
    def test_quota_is_rounded_up(self, allowed, limit, cpus):
        assert allowed("0::/a\n", {"a/cpu.max": limit}) == cpus

    def test_tightest_quota_on_the_path_from_the_root_applies(self, allowed):
        files = {"cpu.max": "700000 100000", "a/cpu.max": "250000 100000", "a/b/cpu.max": "max 5"}
        assert allowed("0::/a/b/c\n", files | {"elsewhere/cpu.max": "1 1"}) == 3

    def test_version_1(self, allowed):
        cgroup_file = "5:cpu,cpuacct:/slurm/job\n4:memory:/x\n3:cpuset:/y\n0::/\n"
        files = version_1(-1) | version_1(400_000, folder="slurm")
        assert allowed(cgroup_file, files) == 4
        assert allowed(cgroup_file, version_1(220_000, folder="slurm/job")) == 3

    @pytest.mark.parametrize(
        "cgroup_file, files",
        [
            ("", {}),
            ("0::/a\n", {"a/cpu.max": ""}),
            ("0::/a\n", {"a/cpu.max": "many"}),
            ("0::/a\n", {"a/cpu.max": "0 0"}),
            ("0::/a\n", {"a/cpu.max": "100000"}),
            ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000"}),
            ("3:cpu:/\n", version_1(100_000, 0)),
            ("3:cpuset:/\n", version_1(100_000)),
            ("no groups\n:\n\n", {"cpu/cpu.max": "1 1"}),
            ("\xff\xfe0::/\n", {}),
        ],
    )
    def test_malformed_files_limit_nothing(self, allowed, cgroup_file, files):
        assert allowed(cgroup_file, files) == 8

    def test_affinity_mask(self, tmp_path, lay_out):
        assert usable_cpus(affinity=3, cgroup_file=tmp_path / "missing", mount=tmp_path) == 3
        assert usable_cpus(affinity=2, **lay_out("0::/\n", {"cpu.max": "300000 100000"})) == 2


class TestSetThreads:
    @pytest.mark.parametrize(
        "environ, threads, count, expected",
        [
            ({}, None, 3, {"PJRT_NPROC": "3", "OPENBLAS_NUM_THREADS": "1"}),
            # The user's variables stay, unless a number is given.
            ({"NPROC": "5", "OPENBLAS_NUM_THREADS": "4"}, None, 5, {}),
            (
                {"PJRT_NPROC": "2", "OPENBLAS_NUM_THREADS": "4"},
                *(5, 5, {"PJRT_NPROC": "5", "OPENBLAS_NUM_THREADS": "1"}),
            ),
            # Numbers that XLA parses in its own way.
            ({"PJRT_NPROC": "0"}, None, 1, {"OPENBLAS_NUM_THREADS": "1"}),
            ({"PJRT_NPROC": "two"}, None, 3, {"PJRT_NPROC": "3", "OPENBLAS_NUM_THREADS": "1"}),
            ({"PJRT_NPROC": "999"}, None, 256, {"OPENBLAS_NUM_THREADS": "1"}),
        ],
    )
    def test_environment_variables(self, environ, threads, count, expected):
        after = dict(environ)
        assert name_threads(after, threads=threads, usable=3, started=None) == count
        assert after == environ | expected and threads_in_use(environ=after) == count

    def test_after_jax_has_started(self):
        environ = {}
        match = "expected JAX to start on 3 threads, but it has already started on 6: call set_th"
        with pytest.raises(InputError, match=match):
            name_threads(environ, threads=None, usable=3, started=6)
        assert name_threads(environ, threads=6, usable=3, started=6) == 6
        assert environ == {}

    def test_other_systems(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        before = dict(os.environ)
        assert set_threads() is None
        with pytest.raises(InputError, match="threads can only be set on Linux: leave it out"):
            set_threads(threads=2)
        assert os.environ == before

    @pytest.mark.parametrize("count", [0, 257, True, 1.5])
    def test_invalid_numbers(self, count):
        with pytest.raises(InputError, match=f"threads is {count}: expected 1 to 256"):
            set_threads(threads=count)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="threads are of CPUs")
def test_xla_has_a_thread_for_every_device():
    assert threads_in_use(devices=4, environ={"PJRT_NPROC": "1"}) == 4
    assert device()["threads"] == max(affinity_cpus(), len(jax.devices()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is set on other systems")
def test_xla_and_openblas_start_this_many_threads():
    """The undocumented variables still work in the installed versions."""
    code = (
        "import os, nst_jax, nst_jax.system.threads as threads\n"
        "from nst_jax.system import use_cpu_devices\n"
        "assert nst_jax.set_threads(threads=3) == 3 and not threads.jax_has_started()\n"
        "use_cpu_devices()\n"
        "import jax, scipy.linalg\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "jax.numpy.zeros(3).block_until_ready()\n"
        "assert threads.jax_has_started()\n"
        "tasks = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir("
        "'/proc/self/task')]\n"
        "print(before, sum(name.startswith('tf_XLAEigen') for name in tasks), len(jax.devices()))\n"
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "XLA_FLAGS")}
    environ |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "3", "3"]
