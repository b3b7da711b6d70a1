"""Settings in words, steps of equal time, and what a comparison writes."""

import json
import re
import sys
from dataclasses import replace

import compare_looks
import look_settings
import numpy as np
import pytest
from look_report import fitted, summary
from look_settings import parse_setting, planned
from PIL import Image

from nst_jax.config import Adam, Config, get_preset
from nst_jax.errors import InputError
from nst_jax.images import save_image

PLAIN = Config.of(
    content_layers=(("relu2_2", 1.0),),
    style_layers=(("relu1_1", 1.0), ("relu3_1", 1.0)),
    tv_weight=0.0,
)


@pytest.fixture
def arguments(tmp_path, monkeypatch, tiny_weights_file, slim_file, content, style):
    preset = replace(get_preset("neural-style"), config=PLAIN)
    monkeypatch.setattr(look_settings, "get_preset", lambda name: preset)
    monkeypatch.setattr(look_settings, "PILOT_STEPS", 2)
    for name, image in (("photo", content), ("tall", style), ("wide", content[::-1])):
        save_image(tmp_path / f"{name}.png", image)
    files = [str(tmp_path / f"{name}.png") for name in ("photo", "tall", "wide")]
    words = f"--contents {files[0]} --styles {files[1]} {files[2]} --size 32 --rounds 1"
    words += f" --output {tmp_path / 'out'} --weights {tiny_weights_file} --slim {slim_file}"
    return words.split() + ["--seconds", "0.05"]


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare_looks.py", *arguments])
    return compare_looks.main()


def test_a_setting_is_a_preset_with_changes():
    assert parse_setting("fast").config == get_preset("fast").config
    found = parse_setting(
        "soft=gatys:optimizer=adam,style_losses=gram+mean-std=10,seed=3,init=noise"
    )
    assert (found.label, found.seed, found.config.initial.init) == ("soft", 3, "noise")
    assert found.config.loss.style_losses == (("gram", 1.0), ("mean-std", 10.0))
    assert found.config.optimizer == Adam()  # nothing of L-BFGS is taken over
    assert parse_setting("gatys:steps=7").label == "gatys:steps=7"
    with pytest.raises(InputError, match="unknown preset 'none'"):
        parse_setting("label=none:steps=3")
    with pytest.raises(InputError, match="^odd: names 'step': expected seed or one of"):
        parse_setting("odd=gatys:step=3")


def test_steps_fill_the_time_in_the_proportion_of_the_scales():
    assert planned(Config(), (0.4,), seconds=10).steps == 25
    assert planned(Config(), (40.0,), seconds=10).steps == 1
    own = Config.of(min_size=64, steps=10, scale_steps=(40, 20))
    found = planned(own, (0.05, 0.1, 0.2, 0.5), seconds=22)  # 40, 20, 20, 10 take 2 + 2 + 4 + 5 s
    assert (found.pyramid.scale_steps, found.steps) == ((68, 34, 34), 17)
    assert found.but(steps=10, scale_steps=(40, 20)) == own


def test_a_style_of_another_shape_is_fitted_onto_white():
    found = fitted(np.zeros((40, 20, 3)), (30, 50))
    assert found.shape == (30, 50, 3)
    black = np.argwhere(found[..., 0] == 0)
    assert black.min(axis=0).tolist() == [0, 17] and black.max(axis=0).tolist() == [29, 31]
    assert (found[:, :17] == 1).all() and (found[:, 32:] == 1).all()


@pytest.mark.slow
def test_what_a_comparison_writes(arguments, monkeypatch, tmp_path):
    settings = ["--settings", "plain=x", "strong=x:style_weight=10000"]
    assert run([*arguments, *settings], monkeypatch) == 0
    out = tmp_path / "out"
    record = json.loads((out / "looks.json").read_text())
    assert record["judge"]["network"] == "full" and record["notes"] == []
    results = record["results"]
    keys = {(r["style_image"], r["network"], r["setting"]) for r in results}
    assert len(results) == len(keys) == 2 * 2 * 2
    for found in results:
        assert found["status"] == "done" and found["steps"] >= 1
        assert 0 < found["style"] and 0 < found["content_change"]
        with Image.open(out / found["image"]) as image:
            assert image.size == (32, 24)
    assert len(list(out.glob("sheet_photo__*.png"))) == 2
    first = record["summary"][0]
    group = [r for r in results if (r["network"], r["setting"]) == ("full", "plain")]
    assert len(group) == 2 and first == summary(group)[0]
    assert first["style"] == pytest.approx(np.mean([r["style"] for r in group]))
    assert first["content_change_worst"] == max(r["content_change"] for r in group)
    table = (out / "looks.md").read_text()
    assert f"| slim | photo | wide | {results[-2]['style']:.3f} / " in table


def test_what_cannot_be_compared_is_refused_before_the_work(
    arguments, monkeypatch, capsys, tmp_path
):
    cases = {
        "--settings a=x a=x:steps=3": "different ones",
        "--settings x:style_layers=relu4_1": "x:style_layers=relu4_1, slim: .*relu4_1",
        f"--settings x --styles {tmp_path / 'photo.png'}": "told by their names",
        f"--settings x --styles {tmp_path / 'none.png'}": "does not exist",
    }
    for words, message in cases.items():
        assert run([*arguments, *words.split()], monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.startswith("compare_looks: error: ") and len(error.splitlines()) == 1
        assert re.search(message, error), error
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_setting_that_optimises_what_judges_is_told():
    settings = [parse_setting("gatys"), parse_setting("x=gatys:style_layers=relu2_2+relu2_1")]
    (note,) = compare_looks.check(settings, {}, {})
    assert note == "x optimises relu2_2, at which it is judged, too"
    (note,) = compare_looks.check([parse_setting("y=fast:content_layers=relu3_3")], {}, {})
    assert note.startswith("y optimises relu3_3")
