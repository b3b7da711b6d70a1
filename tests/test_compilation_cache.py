"""The compilation cache of the command line, in processes of its own."""

import os
import stat
import subprocess
import sys

import jax
import pytest

from nst_jax import compilation_cache
from nst_jax.compilation_cache import machine_fingerprint, use_compilation_cache
from nst_jax.images import save_image


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder, and JAX's settings as they were before."""
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "compiled" / machine_fingerprint()
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_user_s_alone(cache):
    assert use_compilation_cache() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(cache)


@pytest.mark.parametrize("level", range(3))
def test_a_folder_that_others_may_write_to_is_not_used(cache, level):
    cache.mkdir(parents=True)
    (cache, *cache.parents)[level].chmod(0o777)
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_done_without(cache):
    cache.parent.parent.write_text("a file in the folder's place")
    assert use_compilation_cache() is None


def test_the_user_s_own_cache_is_left(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_another_processor_has_another_folder(tmp_path, monkeypatch):
    own = machine_fingerprint()
    (tmp_path / "cpuinfo").write_text("model name : another\nflags : sse2\n")
    monkeypatch.setattr(compilation_cache, "CPUINFO", tmp_path / "cpuinfo")
    assert machine_fingerprint() != own


@pytest.mark.slow
def test_the_second_run_compiles_nothing(cache, tmp_path, tiny_weights_file, content, style):
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
