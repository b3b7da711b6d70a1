"""How many threads: on laid-out control groups and environments; what XLA makes of it."""

import os
import subprocess
import sys

import jax
import pytest
from helpers.commands import desk, record, words  # noqa: F401
from helpers.resuming import changed, run  # noqa: F401

from nst_jax.errors import InputError
from nst_jax.system import device, set_threads, usable_cpus
from nst_jax.system.threads import affinity_cpus, name_threads, threads_in_use

LINUX = sys.platform.startswith("linux")
on_linux = pytest.mark.skipif(not LINUX, reason="nothing is set on other systems")


@pytest.fixture
def allowed(tmp_path):
    """Lay out control groups; how many of eight CPUs they allow."""

    def lay_out(own, files, *, affinity=8):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        own, mount = tmp_path / "own", tmp_path / "mount"
        return usable_cpus(affinity=affinity, own=own, mount=mount)

    return lay_out


def version_1(quota, period=100_000, *, folder="."):
    return {f"cpu/{folder}/cpu.cfs_quota_us": quota, f"cpu/{folder}/cpu.cfs_period_us": period}


class TestUsable:
    @pytest.mark.parametrize(
        "limit, cpus",
        [
            ("100000 100000", 1),
            ("150000 100000", 2),
            ("20000 100000", 1),
            ("300000 100000", 3),
            ("90000 30000", 3),
            ("1600000 100000", 8),
            ("max 100000", 8),
        ],
    )
    def test_a_part_of_a_cpu_counts_as_one(self, allowed, limit, cpus):
        assert allowed("0::/a\n", {"a/cpu.max": limit}) == cpus

    def test_the_tightest_of_the_way_to_the_root_counts(self, allowed):
        files = {"cpu.max": "700000 100000", "a/cpu.max": "250000 100000", "a/b/cpu.max": "max 5"}
        assert allowed("0::/a/b/c\n", files | {"elsewhere/cpu.max": "1 1"}) == 3

    def test_a_container_sees_its_own_group_as_the_root(self, allowed):
        for own in ("0::/\n", "0::/system/docker-1\n", "0::/../../other\n"):
            assert allowed(own, {"cpu.max": "200000 100000"}) == 2

    def test_version_1(self, allowed):
        own = "5:cpu,cpuacct:/slurm/job\n4:memory:/x\n3:cpuset:/y\n0::/\n"
        files = version_1(-1) | version_1(400_000, folder="slurm")
        assert allowed(own, files) == 4
        assert allowed(own, version_1(220_000, folder="slurm/job")) == 3

    def test_the_affinity_mask(self, allowed):
        assert allowed("0::/\n", {"cpu.max": "300000 100000"}, affinity=2) == 2
        assert allowed("0::/\n", {"cpu.max": "max 100000"}, affinity=5) == 5

    @pytest.mark.parametrize(
        "own, files",
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
        ],
    )
    def test_what_says_nothing_limits_nothing(self, allowed, own, files):
        assert allowed(own, files) == 8

    def test_where_there_are_no_groups(self, tmp_path):
        assert usable_cpus(affinity=3, own=tmp_path / "nothing", mount=tmp_path) == 3
        (tmp_path / "own").write_bytes(b"\xff\xfe0::/\n")
        assert usable_cpus(affinity=3, own=tmp_path / "own", mount=tmp_path) == 3


def named(environ, *, threads=None, usable=3, started=None):
    """How many threads XLA will have, which is what ``environ`` then says."""
    count = name_threads(environ, threads=threads, usable=usable, started=started)
    assert started is not None or threads_in_use(environ=environ) == count
    return count


class TestSet:
    def test_as_many_as_there_are_cpus_for(self):
        environ = {}
        assert named(environ) == 3
        assert environ == {"PJRT_NPROC": "3", "OPENBLAS_NUM_THREADS": "1"}

    def test_what_the_user_has_set_stays(self):
        given = {"NPROC": "5", "OPENBLAS_NUM_THREADS": "4"}
        environ = dict(given)
        assert named(environ) == 5 and environ == given

    def test_but_not_where_a_number_is_given(self):
        environ = {"PJRT_NPROC": "2", "OPENBLAS_NUM_THREADS": "4"}
        assert named(environ, threads=5) == 5
        assert environ == {"PJRT_NPROC": "5", "OPENBLAS_NUM_THREADS": "1"}

    @pytest.mark.parametrize("value, count", [("0", 1), ("", 3), ("two", 3), ("999", 256)])
    def test_what_xla_makes_of_odd_values(self, value, count):
        assert named({"PJRT_NPROC": value}) == count

    @pytest.mark.parametrize("system", ["darwin", "win32"])
    def test_other_systems(self, monkeypatch, system):
        monkeypatch.setattr(sys, "platform", system)
        before = dict(os.environ)
        assert set_threads() is None
        with pytest.raises(InputError, match="threads can be set on Linux only: leave it out"):
            set_threads(threads=2)
        assert os.environ == before

    @pytest.mark.parametrize("count", [0, -1, 257, 2**31, True, 1.5])
    def test_what_is_no_number_of_threads(self, count):
        with pytest.raises(InputError, match=f"threads is {count}: expected 1 to 256"):
            set_threads(threads=count)

    def test_too_late(self):
        environ = {}
        with pytest.raises(InputError, match="JAX has started on 6 threads .*, 3 are wanted: call"):
            named(environ, started=6)
        assert named(environ, threads=6, started=6) == 6
        assert environ == {}


def test_xla_has_a_thread_for_every_device():
    assert threads_in_use(devices=4, environ={"PJRT_NPROC": "1"}) == 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="threads are named for CPUs")
def test_a_record_names_them():
    assert device()["threads"] == max(affinity_cpus(), len(jax.devices()))


@on_linux
def test_what_xla_and_the_libraries_take():
    """The variables still mean what they did, in time where a script begins with the call."""
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


def test_a_run_that_goes_on_on_another_number_is_told(run, desk):  # noqa: F811
    run([*words(steps=2), "--checkpoint", "kept"])
    here, told = record()["device"]["threads"], "nst-jax: the run was on 7 threads before and is on"
    assert "threads" not in run(["resume", "kept"]).err
    changed(lambda r: r["device"].update(threads=7))
    code, _, err = run(["resume", "kept"])
    assert code == 0 and f"{told} {here} now: the bits of its result will differ" in err
    changed(lambda r: r["device"].pop("threads"))  # as earlier programs saved
    code, _, err = run(["resume", "kept"])
    assert code == 0 and "threads" not in err
    changed(lambda r: r["arguments"].extend(["--threads", "300"]))
    code, _, err = run(["resume", "kept"])
    assert code == 2 and "threads is 300: expected 1 to 256" in err  # what was asked for holds
