"""The figures of slim weights: how they are computed, and how they get into a weights file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import slim_quality

from nst_jax.config import Config, get_preset
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.weights import Weights, WeightsInfo, load_weights, save_weights

SMALL = Config.of(content_layers=("relu2_2",), style_layers=("relu1_1", "relu3_1"), tv_weight=0.0)


@pytest.mark.slow
def test_figures_of_slim_weights(
    tmp_path, monkeypatch, slim_variables, tiny_weights_file, content, style
):
    preset = replace(get_preset("neural-style"), config=SMALL)
    monkeypatch.setattr(slim_quality, "get_preset", lambda name: preset)
    for name, image in {"photo": content, "a": style[::-1], "b": style}.items():
        save_image(tmp_path / f"{name}.png", image)
    info = WeightsInfo(name="s", preprocessing="caffe", training=json.dumps({"steps": 5}))
    slim = save_weights(tmp_path / "slim.safetensors", Weights(slim_variables, info), half=True)
    options = slim_quality.Options(
        teacher=tiny_weights_file,
        slim=(slim,),
        contents=(tmp_path / "photo.png",),
        styles=(tmp_path / "a.png", tmp_path / "b.png"),
        output=tmp_path / "out",
        size=32,
        steps=4,
        speed_size=32,
        speed_rounds=2,
    )
    with pytest.raises(InputError, match="different names"):
        slim_quality.compare(replace(options, slim=(slim, slim)))
    result = slim_quality.compare(options)
    ratios = []
    for row in result["pairs"]:
        found = row["slim"]["slim"]
        ratios.append((found["loss"] - row["full"]) / (row["content"] - row["full"]))
        assert found["r"] == pytest.approx(ratios[-1]) and row["full"] < row["content"]
    summary = result["slim"]["slim"]
    assert summary["median"] == pytest.approx(np.mean(ratios)) and summary["speedup"] > 0
    assert summary["worst"] == pytest.approx(max(ratios))
    assert (options.output / "sheet.png").exists()

    shipped = tmp_path / "shipped.safetensors"
    slim_quality.ship(result, slim, shipped)
    training = json.loads(load_weights(shipped).info.training)
    assert training["steps"] == 5 and training["figures"]["worst"] == summary["worst"]
    assert [pair["pair"] for pair in training["figures"]["pairs"]] == ["photo__a", "photo__b"]


def test_weights_without_a_record_of_training_are_not_shipped(tmp_path, slim_file):
    options = slim_quality.Options(
        teacher=slim_file, slim=(slim_file,), contents=(), styles=(), output=tmp_path
    )
    with pytest.raises(InputError, match="no record of its training"):
        slim_quality.check_ship(replace(options, ship=tmp_path / "x"))
