"""Versions and devices in records, and the cache of compiled programs."""

import os
import stat
import subprocess
import sys

import jax
import numpy as np
import pytest

from nst_jax.images import save_image
from nst_jax.system import device, use_compilation_cache, versions
from nst_jax.system.backend import machine_fingerprint


def test_versions_and_device_of_a_record():
    found = versions()
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert {"python", "nst_jax", "jaxlib", "flax", "optax", "pillow"} <= set(found)
    assert device()["platform"] == jax.default_backend()
    assert device()["count"] == len(jax.devices())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Point to an empty cache folder, and restore JAX's settings afterwards."""
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    names = "compilation_cache_dir", "persistent_cache_min_compile_time_secs"
    names = [f"jax_{name}" for name in (*names, "enable_compilation_cache")]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "compiled" / machine_fingerprint()
    for name, value in before.items():
        jax.config.update(name, value)


def test_only_the_user_may_write_to_the_folder(cache):
    assert use_compilation_cache() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(cache)


@pytest.mark.parametrize("level", range(3))
def test_folder_writable_by_others_is_not_used(cache, level):
    cache.mkdir(parents=True)
    (cache, *cache.parents)[level].chmod(0o777)
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_settings_of_the_user_stay(cache, tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    assert use_compilation_cache() is None and not cache.exists()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_folder_that_cannot_be_created_is_no_error(cache):
    cache.parent.parent.write_text("a file in place of the folder")
    assert use_compilation_cache() is None


def test_each_processor_has_its_own_folder(tmp_path):
    other = tmp_path / "cpuinfo"
    other.write_text("model name : another\nflags : sse2\n")
    found = {machine_fingerprint(), machine_fingerprint(cpuinfo=other)}
    other.write_text("model name : another\nflags : sse2 avx\n")
    assert len(found | {machine_fingerprint(cpuinfo=other)}) == 3


@pytest.mark.slow
def test_second_run_compiles_nothing(cache, tmp_path, tiny_weights_file, content, style):
    save_image(tmp_path / "content.png", content)
    save_image(tmp_path / "style.png", style)

    def run(output):
        subprocess.run(
            [sys.executable, "-m", "nst_jax", "stylize", "content.png", "--style", "style.png"]
            + ["--output", output, "--weights", tiny_weights_file, "--size", "32", "--steps", "2"]
            + ["--style-layers", "relu1_1", "--content-layers", "relu2_1"],
            cwd=tmp_path,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""},
            check=True,
        )
        return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}

    first = run("one.png")
    assert any(name.startswith("jit_run-") for name in first)
    assert run("two.png") == first
