"""Control groups of Linux in a temporary folder."""

import pytest


@pytest.fixture
def lay_out(tmp_path):
    """Write ``/proc/self/cgroup`` and files of control groups; return the arguments for them."""

    def lay_out(cgroup_file, files):
        (tmp_path / "cgroup").write_bytes(cgroup_file.encode("latin-1"))
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return {"cgroup_file": tmp_path / "cgroup", "mount": tmp_path / "mount"}

    return lay_out
