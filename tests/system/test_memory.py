"""What is free and what is taken, on laid-out files and devices made up."""

from types import SimpleNamespace

import jax
import pytest

from nst_jax.system import free_bytes, peak_memory
from nst_jax.system.memory import LATER_PROGRAMS, STATUS, available_bytes, cgroup_bytes, own_memory

UNLIMITED = 9223372036854771712  # as version 1 says it


@pytest.fixture
def groups(tmp_path):
    """Lay out control groups; what they still allow."""

    def lay_out(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return cgroup_bytes(own=tmp_path / "own", mount=tmp_path / "mount")

    return lay_out


def version_2(limit, usage, *, inactive=0, folder="."):
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": usage,
        f"{folder}/memory.stat": f"anon 5\nfile 7\ninactive_file {inactive}\nactive_file 3",
    }


def version_1(limit, usage, *, inactive=0, folder="."):
    return {
        f"memory/{folder}/memory.limit_in_bytes": limit,
        f"memory/{folder}/memory.usage_in_bytes": usage,
        f"memory/{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}",
    }


class TestGroups:
    def test_version_2(self, groups):
        files = version_2(1000, 600, inactive=150, folder="a/b")
        assert groups("0::/a/b\n", files) == 1000 - (600 - 150)

    def test_the_tightest_of_the_way_to_the_root_counts(self, groups):
        files = version_2("max", 600, folder="a/b") | version_2(1000, 900, folder="a")
        files |= version_2(5000, 1000) | version_2(10, 10, folder="elsewhere")
        assert groups("0::/a/b\n", files) == 100

    def test_a_container_sees_its_own_group_as_the_root(self, groups):
        assert groups("0::/\n", version_2(1000, 400)) == 600
        assert groups("0::/system/docker-1\n", version_2(1000, 400)) == 600
        assert groups("0::/../../other\n", version_2(1000, 400)) == 600

    def test_version_1(self, groups):
        own = "5:cpu,cpuacct:/x\n4:memory:/slurm/job\n0::/\n"
        files = version_1(2000, 700, inactive=100, folder="slurm/job")
        assert groups(own, files | version_1(UNLIMITED, 9000)) == 1400

    @pytest.mark.parametrize(
        "own, files",
        [
            ("0::/a\n", {}),
            ("0::/a\n", version_2("max", 600, folder="a")),
            ("4:memory:/\n", version_1(UNLIMITED, 600)),
            ("5:cpu:/\n", version_1(1000, 600)),
        ],
    )
    def test_no_limit(self, groups, own, files):
        assert groups(own, files) is None

    def test_more_used_than_allowed_is_nothing(self, groups):
        assert groups("0::/\n", version_2(1000, 1400)) == 0

    def test_another_system(self, tmp_path):
        assert cgroup_bytes(own=tmp_path / "nothing", mount=tmp_path) is None
        assert available_bytes(tmp_path / "nothing") is None


class TestFree:
    def test_cpu_has_the_smaller_of_machine_and_group(self, tmp_path):
        device = SimpleNamespace(platform="cpu")
        meminfo, own = tmp_path / "meminfo", tmp_path / "own"

        def free():
            return free_bytes(device, meminfo=meminfo, own=own, mount=tmp_path)

        assert free() is None
        meminfo.write_text("MemTotal:  90 kB\nMemFree:   1 kB\nMemAvailable:   8 kB\nHuge: 0\n")
        assert free() == 8192
        own.write_text("0::/\n")
        for name, text in version_2(6000, 1000).items():
            (tmp_path / name).write_text(f"{text}\n")
        assert free() == 5000

    def test_this_machine_tells(self):
        free = free_bytes(jax.local_devices(backend="cpu")[0])
        assert free is None or 2**20 < free < 2**50

    @pytest.mark.parametrize(
        "stats, free",
        [
            ({"bytes_limit": 100, "bytes_in_use": 30, "num_allocs": 1}, 70),
            ({"bytes_limit": 100, "bytes_in_use": 130}, 0),
            ({"bytes_in_use": 30}, None),
            ({}, None),
            (None, None),
        ],
    )
    def test_accelerators_tell_of_their_pool(self, stats, free):
        assert free_bytes(SimpleNamespace(platform="gpu", memory_stats=lambda: stats)) == free


class TestOwn:
    def found(self, tmp_path, text, *, device=SimpleNamespace(platform="cpu")):
        """What the process takes and has had, by what Linux tells of it."""
        status = tmp_path / "status"
        if text is not None:
            status.write_text(text)
        given = dict(device=device, status=status)
        return own_memory(**given), peak_memory(**given)

    def test_what_linux_tells(self, tmp_path):
        text = "Name:\tnst\nVmPeak:\t  99 kB\nVmHWM:\t   7 kB\nVmRSS:\t   5 kB\n"
        assert self.found(tmp_path, text) == (5 * 1024 + LATER_PROGRAMS, 7 * 1024)

    @pytest.mark.parametrize("text", [None, "", "Name:\tVmHWM\nVmHWM:\nVmRSS:\tmuch kB\n"])
    def test_other_systems(self, tmp_path, text):
        assert self.found(tmp_path, text) == (0, None)

    @pytest.mark.parametrize(
        "stats, peak", [({"peak_bytes_in_use": 9}, 9), ({}, None), (None, None)]
    )
    def test_accelerators_have_their_own(self, tmp_path, stats, peak):
        device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
        assert self.found(tmp_path, "VmHWM: 7 kB\nVmRSS: 5 kB\n", device=device) == (0, peak)

    @pytest.mark.skipif(not STATUS.exists(), reason="not Linux")
    @pytest.mark.skipif(jax.default_backend() != "cpu", reason="another memory")
    def test_this_process(self):
        block = b"x" * 50_000_000
        peak, own = peak_memory(), own_memory()
        assert own - LATER_PROGRAMS > len(block) and peak > len(block)
        assert own - LATER_PROGRAMS <= 1.1 * peak < 2**50
