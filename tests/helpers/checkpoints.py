"""Checkpoints of every kind of run, and damage to them, for fuzz tests."""

import json
import math
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.images import smooth_image
from nst_jax.checkpoint import store
from nst_jax.cli import main
from nst_jax.images import save_image
from nst_jax.system.files import file_digest

ARRAYS, INPUTS, RECORD, MANIFEST = (
    "arrays.safetensors",
    "checkpoint-inputs",
    "run.json",
    "manifest.json",
)
NAMES = {"arrays": ARRAYS, "record": RECORD, "manifest": MANIFEST, "inputs": INPUTS}
LAYERS = "--content-layers relu2_1 --style-layers relu1_1"
RUNS = {
    "adam": f"stylize content.png {LAYERS} --optimizer adam --save-every 4 --animation out.gif "
    "--content-mask mask.png --color keep-lab -o out.png",
    "lbfgs": f"stylize content.png {LAYERS} --min-size 10 --scale-factor 2.4 --scale-steps 4 "
    "--tile 16 -o out.png",
    "batch": f"batch in --optimizer adam {LAYERS} --batch-size 2 -o out",
}
VALUES = [
    *(None, True, False, -1, 0, 1, 2, 0.5, 10**30, -(2**31), 2**63, 1e308, math.nan, math.inf),
    *(10**19, 10**400, -(10**400)),
    *("", "x", "-", "\0", "a" * 300, "../victim.txt", "victim.txt", "victim.png", "auto", "off"),
    *([], {}, [[]], [1], [None, "x"], {"map": {}}, {"array": "x"}, {"path": 1}, {"x": {"y": []}}),
    {"path": "victim.txt"},
    {"path": ""},
    {"path": "\0"},
]
SLOW = {"steps", "scale_steps"}  # not edited: large numbers make long runs


def correct_manifest(path):
    """Give the manifest of a checkpoint the checksums of the files as they are."""
    manifest = json.loads((path / MANIFEST).read_text())
    files = {name: path / name for name in (ARRAYS, RECORD)}
    files |= {f"{INPUTS}/{copy.name}": copy for copy in sorted((path.parent / INPUTS).glob("*"))}
    manifest["files"] = {name: file_digest(file) for name, file in files.items()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def edit_arrays(path, change):
    """Change a file of arrays in place; its checksum in the manifest stays."""
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_weights_file):
    """For each run a folder, as if the run had been killed between two steps."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHECKPOINTS_KEPT", 9)
        patch.setattr("nst_jax.config.presets.DEFAULT_PRESET", "neural-style")
        for name, words in RUNS.items():
            desk = folder / name
            (desk / "in").mkdir(parents=True)
            save_image(desk / "content.png", smooth_image(18, 24, seed=1))
            save_image(desk / "style.png", smooth_image(20, 16, seed=2))
            save_image(desk / "mask.png", np.ones((18, 24, 3), np.float32) / 2)
            for seed in (3, 4):
                save_image(desk / "in" / f"{seed}.png", smooth_image(18, 24, seed=seed))
            (desk / "victim.txt").write_text("of someone else")
            patch.chdir(desk)
            words = f"{words} --style style.png --size 24 --steps 6 --weights {tiny_weights_file}"
            if name != "batch":
                words += " --checkpoint-every 1"
            assert main([*words.split(), "--checkpoint", "ck"]) == 0

            found = store.checkpoints(Path("ck"))
            kept = found if name == "batch" else found[3:5]  # a batch has one
            for path in set(found) - set(kept):
                shutil.rmtree(path)
            for path in [*Path().glob("out*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def places(value, path=()):
    """Yield the path of keys to every place in nested lists and dicts."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


def edit_plain(value, rng):
    """Replace, remove, add or move something in nested lists and dicts; describe the edit."""
    found = [place for place in places(value) if not SLOW & set(map(str, place))]
    (*above, key), (*others, other) = rng.choice(found), rng.choice(found)
    inside = value
    for one in above:
        inside = inside[one]
    kind = rng.choice(("replace",) * 6 + ("remove", "add", "move"))
    if kind == "replace":
        inside[key] = deepcopy(rng.choice(VALUES))
    elif kind == "remove":
        del inside[key]
    elif kind == "add" and isinstance(inside, dict):
        inside[rng.choice(("x", "array", "map", "path", ""))] = deepcopy(rng.choice(VALUES))
    elif kind == "add":
        inside.extend(deepcopy(rng.choice(([None], inside[:2], [[]] * 9))))
    else:
        for one in others:
            value = value[one]
        inside[key] = deepcopy(value[other])
    return f"{kind} {'/'.join(map(str, (*above, key)))}"


def edit_one_array(arrays, rng):
    """Change the values, shape or type of an array, or remove or add one; describe the edit."""
    name = rng.choice(sorted(arrays)) if arrays else "x"
    array = arrays.get(name, np.zeros(3, np.float32))
    kind = rng.randrange(11)
    changed = [
        lambda: np.full_like(array, np.nan if array.dtype.kind == "f" else 0),
        lambda: np.full_like(array, 1e30 if array.dtype.kind == "f" else 99),
        lambda: np.zeros_like(array),
        lambda: array.astype(np.float64),
        lambda: array.astype(bool),
        lambda: array[:0] if array.ndim else array[None],
        lambda: array.reshape(-1),
        lambda: np.zeros((0, 3), np.float32),
        lambda: np.zeros((3, 1000, 1000), np.float32),
        lambda: array.astype(np.complex64),
        lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
    ][kind]
    if rng.random() < 0.1:
        arrays.pop(name, None)
    elif rng.random() < 0.1:
        arrays["y"] = changed()
    else:
        arrays[name] = np.ascontiguousarray(changed())
    return f"{name} {kind}"


def damage(folder, rng):
    """Damage the checkpoints of a folder, mostly the newest; describe the damage."""
    older, *_, newest = 2 * store.checkpoints(folder)  # a batch has one
    kind = rng.choice(("bits", "cut", "file", "swap", "record", "record", "record", "arrays"))
    if kind == "record":
        if rng.random() < 0.1:
            manifest = json.loads((newest / MANIFEST).read_text())
            done = edit_plain(manifest, rng)
            (newest / MANIFEST).write_text(json.dumps(manifest))
            return f"manifest: {done}"
        record = json.loads((newest / RECORD).read_text())
        done = [edit_plain(record, rng) for _ in range(rng.choice((1, 1, 1, 3)))]
        (newest / RECORD).write_text(json.dumps(record))
        correct_manifest(newest)
        return f"record: {done}"
    if kind == "arrays":
        done = []
        edit_arrays(newest / ARRAYS, lambda arrays: done.append(edit_one_array(arrays, rng)))
        correct_manifest(newest)
        return f"arrays: {done}"
    name = rng.choice(sorted(NAMES))
    copies = sorted((folder / INPUTS).glob("*"))
    path = rng.choice(copies) if name == "inputs" and copies else newest / RECORD
    path = path if name == "inputs" else newest / NAMES[name]
    data = bytearray(path.read_bytes())
    if kind == "bits":
        for _ in range(rng.choice((1, 1, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "swap":
        other = rng.choice([older / one for one in (ARRAYS, RECORD, MANIFEST)])
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
        what = rng.choice(("missing", "folder", "itself", "nowhere", "pipe", "both"))
        if what == "folder":
            path.mkdir()
        elif what in ("itself", "nowhere"):
            path.symlink_to(path.name if what == "itself" else "nowhere")
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "both":
            shutil.rmtree(older)
        kind = what
    if rng.random() < 0.2:  # so that the checksums do not reveal it
        try:
            correct_manifest(newest)
        except (OSError, ValueError):
            pass
    return f"{kind} {name}"


def take_base(bases, folder, rng):
    """Copy one of the bases, as if its run had been in the new folder; return its name."""
    name = rng.choice(sorted(RUNS))
    shutil.copytree(bases / name, folder)
    for path in store.checkpoints(folder / "ck"):
        text = (path / RECORD).read_text().replace(str(bases / name), str(folder))
        (path / RECORD).write_text(text)
        correct_manifest(path)
    return name


@pytest.fixture
def newest(bases, tmp_path, monkeypatch):
    """Give a function that copies one of the bases and returns its newest checkpoint."""

    def take(name):
        shutil.copytree(bases / name, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        return store.checkpoints(Path("ck"))[-1]

    return take
