"""The figures of slim weights: how they are made, and how they come into a file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import slim_quality

from nst_jax.config import Config, get_preset
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.weights import Weights, WeightsInfo, load_weights, save_weights

PLAIN = Config.of(
    content_layers=(("relu2_2", 1.0),),
    style_layers=(("relu1_1", 1.0), ("relu3_1", 1.0)),
    tv_weight=0.0,
)


@pytest.fixture
def options(tmp_path, monkeypatch, slim_variables, tiny_weights_file, content, style):
    preset = replace(get_preset("neural-style"), config=PLAIN)
    monkeypatch.setattr(slim_quality, "get_preset", lambda name: preset)
    save_image(tmp_path / "photo.png", content)
    for name in ("a", "b"):
        save_image(tmp_path / f"{name}.png", style[::-1] if name == "a" else style)
    info = WeightsInfo(name="s", preprocessing="caffe", training=json.dumps({"steps": 5}))
    save_weights(tmp_path / "slim.safetensors", Weights(slim_variables, info), half=True)
    return slim_quality.Options(
        teacher=tiny_weights_file,
        slim=(tmp_path / "slim.safetensors",),
        contents=(tmp_path / "photo.png",),
        styles=(tmp_path / "a.png", tmp_path / "b.png"),
        output=tmp_path / "out",
        size=32,
        steps=4,
        speed_size=32,
        speed_rounds=2,
    )


@pytest.mark.slow
def test_figures_and_their_way_into_a_file(options, tmp_path, capsys):
    slim_quality.check_ship(replace(options, ship=tmp_path / "shipped.safetensors"))
    result = slim_quality.compare(options)
    rows = result["pairs"]
    assert [row["pair"] for row in rows] == ["photo__a", "photo__b"]
    shares = []
    for row in rows:
        found = row["slim"]["slim"]
        shares.append((found["loss"] - row["full"]) / (row["content"] - row["full"]))
        assert found["r"] == pytest.approx(shares[-1]) and row["full"] < row["content"]
    summary = result["slim"]["slim"]
    assert summary["median"] == pytest.approx(np.mean(shares))
    assert summary["worst"] == pytest.approx(max(shares)) and summary["speedup"] > 0
    assert (options.output / "sheet.png").exists()

    # Kept images of the full network are taken, and not those of other settings.
    kept = sorted(options.output.glob("*.npy"))
    assert len(kept) == 2
    again = slim_quality.compare(replace(options, speed_size=0))
    assert again["pairs"] == rows and sorted(options.output.glob("*.npy")) == kept
    slim_quality.compare(replace(options, speed_size=0, steps=2))
    assert len(list(options.output.glob("*.npy"))) == 4

    shipped = tmp_path / "shipped.safetensors"
    slim_quality.ship(result, options.slim[0], shipped)
    training = json.loads(load_weights(shipped).info.training)
    assert training["steps"] == 5 and training["figures"]["worst"] == summary["worst"]
    assert training["figures"]["pairs"][1]["pair"] == "photo__b"


def test_what_cannot_be_compared(options, tmp_path, slim_file):
    with pytest.raises(InputError, match="told by their names"):
        slim_quality.compare(replace(options, slim=options.slim * 2))
    untold = replace(options, slim=(slim_file,), ship=tmp_path / "x")
    with pytest.raises(InputError, match="no record of a training"):
        slim_quality.check_ship(untold)
    with pytest.raises(InputError, match="does not exist"):
        slim_quality.check_ship(replace(options, ship=tmp_path / "no" / "x"))
