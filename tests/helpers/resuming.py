"""Commands that are interrupted and resumed."""

import json
from pathlib import Path

import pytest

from helpers.commands import Run
from nst_jax.checkpoint import store
from nst_jax.cli import main


@pytest.fixture
def run(capsys, tiny_weights_file, monkeypatch):

    def run(line):
        capsys.readouterr()
        if line[0] != "resume":
            line = [*line, "--weights", str(tiny_weights_file)]
        return Run(main([*map(str, line)]), *capsys.readouterr())

    return run


def changed(change, folder=None):
    """Change a checkpoint's record, by default the newest one's, and its checksum with it."""
    folder = folder or store.checkpoints(Path("kept"))[-1]
    path, manifest = folder / "run.json", folder / "manifest.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    files = json.loads(manifest.read_text())
    files["files"]["run.json"] = store.file_digest(path)
    manifest.write_text(json.dumps(files))
