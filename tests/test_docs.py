"""The documents' code runs, and what they say of options is true."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import smooth_image

import nst_jax
from nst_jax.config import PRESETS

ROOT = Path(__file__).parent.parent


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_weights_file):
    """A folder with the files that the documents speak of."""
    nst_jax.save_image(tmp_path / "photo.jpg", smooth_image(48, 64, seed=1))
    nst_jax.save_image(tmp_path / "painting.jpg", smooth_image(64, 56, seed=2))
    shutil.copy(tiny_weights_file, tmp_path / "vgg19.safetensors")
    monkeypatch.setenv("NST_JAX_WEIGHTS", str(tiny_weights_file))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, count", [("docs/experiments.md", 9), ("README.md", 1)])
def test_code_of_documents_runs(workplace, name, count):
    blocks = python_blocks(ROOT / name)
    assert len(blocks) == count
    namespace = {}
    for block in blocks:
        # Long runs are shortened; what the code does stays the same.
        exec(compile(re.sub(r"steps=\d{2,}", "steps=4", block), name, "exec"), namespace)
    assert list(workplace.glob("*.png"))


def test_the_readme_names_every_preset_and_script():
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in PRESETS)
    assert "bash scripts/demo.sh" in text and "bash scripts/test.sh" in text
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), f"the README links to {link}, which is not there"
