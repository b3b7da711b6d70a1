"""The code in the documents runs, and their links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.images import smooth_image

import nst_jax
from nst_jax.cli import main
from nst_jax.config import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Why a line of a block is not run here. Whole blocks and pages say so in a comment, see ``blocks``.
NOT_RUN = {
    "bash scripts/": "installs, or runs these tests",
    "source .venv": "the tests are in that environment already",
    "nst-jax weights fetch": "downloads 80 MB",
    "python scripts/": "benchmarks and training, run by hand",
}


def blocks(path, language):
    """The fenced blocks of a page, without those that a comment says are not run, and why."""
    text = path.read_text("utf-8")
    if re.search(r"<!-- no block is run: [^>]+ -->", text):
        return []
    pattern = rf"(<!-- not run: [^>]+ -->\n)?```{language}\n(.*?)```"
    found = re.findall(pattern, text, flags=re.DOTALL)
    return [block for reason, block in found if not reason]


def commands(path):
    """The words of every line of the page's bash blocks."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and not line.startswith(tuple(NOT_RUN)):
                yield words


def shortened(words):
    """The same command for two steps at 32 px, or from 32 to 64 px."""
    side = "64" if "--min-size" in words else "32"
    line = re.sub(r"--size \d+", f"--size {side}", shlex.join(words))
    line = re.sub(r"--steps \d+", "--steps 2", re.sub(r"--min-size \d+", "--min-size 32", line))
    if words[1] in ("stylize", "batch", "sweep", "texture", "reconstruct"):
        line += ("" if "--size" in line else " --size 32") + (
            "" if "--steps" in line else " --steps 2"
        )
    return shlex.split(line)[1:]


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_weights_file):
    """A folder with the files that the documents name."""
    for number, name in enumerate(
        (
            "photo",
            "painting",
            "a",
            "b",
            "more",
            "photos/1",
            "photos/2",
            "paintings/1",
            "paintings/2",
        )
    ):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        nst_jax.save_image(path, smooth_image(48, 64, seed=number))
    upper = np.zeros((48, 64, 3), np.float32)
    upper[:24] = 1
    for name, mask in {"sky": upper, "ground": 1 - upper, "labels": upper}.items():
        nst_jax.save_image(tmp_path / f"{name}.png", mask)
    (tmp_path / "contents.txt").write_text("photo.jpg\nmore.jpg\n")
    (tmp_path / "styles.txt").write_text("a.jpg\nb.jpg\n")
    shutil.copy(tiny_weights_file, tmp_path / "vgg19.safetensors")
    monkeypatch.setenv("NST_JAX_WEIGHTS", str(tiny_weights_file))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_blocks_run(workplace, path):
    namespace = {}
    for block in blocks(path, "python"):
        # Long runs are shortened; what the code does stays the same.
        exec(compile(re.sub(r"steps=\d{2,}", "steps=4", block), path.name, "exec"), namespace)
    assert list(workplace.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if any(commands(p))], ids=lambda p: p.stem)
def test_bash_blocks_run(workplace, path):
    for words in commands(path):
        assert words[0] == "nst-jax", f"{words} is not run: say why in a comment above its block"
        assert main(shortened(words)) == 0, words


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\((?!http)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / link).exists(), f"{path.name} links to {link}, which is not there"


def test_reference_pages_are_current(monkeypatch):
    monkeypatch.setattr("nst_jax.config.presets.DEFAULT_PRESET", "wasserstein")
    from nst_jax.cli.reference import presets_markdown, reference_markdown

    text = (ROOT / "docs/presets.md").read_text("utf-8")
    assert text == presets_markdown() and all(f"\n## {name}\n" in text for name in PRESETS)
    assert (ROOT / "docs/flags.md").read_text("utf-8") == reference_markdown()
