"""The config refuses what cannot work, in one sentence that says what would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from tiny_models import adapt, build

from lorsa.methods import LorsaConfig, MethodError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "LoRSA: k=0 must be an integer of at least 1."),
        ({"k": -3}, "LoRSA: k=-3 must be an integer of at least 1."),
        ({"k": 2.5}, "LoRSA: k=2.5 must be an integer of at least 1."),
        ({"k": "4"}, "LoRSA: k='4' must be an integer of at least 1."),
        ({"r": 0}, "LoRSA: r=0 trains singular values alone, which needs space=subspace."),
        ({"r": 0, "rotate": "selected"}, "LoRSA: r=0 trains singular values alone, which needs space=subspace."),
        ({"r": -1}, "LoRSA: r=-1 must be an integer of at least 0."),
        ({"r": 1.0}, "LoRSA: r=1.0 must be an integer of at least 0."),
        ({"budget": 0}, "LoRSA: budget=0 must be a percentage above 0 and up to 100, or null."),
        ({"budget": -0.1}, "LoRSA: budget=-0.1 must be a percentage above 0 and up to 100, or null."),
        ({"budget": 100.5}, "LoRSA: budget=100.5 must be a percentage above 0 and up to 100, or null."),
        ({"budget": float("nan")}, "LoRSA: budget=nan must be a percentage above 0 and up to 100, or null."),
        ({"budget": "0.1"}, "LoRSA: budget='0.1' must be a percentage above 0 and up to 100, or null."),
        ({"space": "image"}, "LoRSA: space='image' is not one of subspace, ambient."),
        ({"rotation": "none"}, "LoRSA: rotation='none' is not one of cayley, linear."),
        (
            {"space": "subspace", "rotate": "selected", "rotation": "linear"},
            "LoRSA: rotation=linear needs space=ambient; in a subspace it is rotation=cayley.",
        ),
        ({"rotate": "none"}, "LoRSA: rotate='none' is not one of selected, all."),
        (
            {"selection": "best"},
            "LoRSA: selection='best' is not one of sensitivity, fisher, principal, minor, random.",
        ),
        ({"allocation": "model"}, "LoRSA: allocation='model' is not one of layer, global."),
        ({"factors": "none"}, "LoRSA: factors='none' is not one of compute, saved."),
        (
            {"space": "subspace", "rotate": "selected", "k": 5, "r": 3},
            "LoRSA: r=3 is more than half of k=5; a rotation of a 5-dimensional subspace takes r from 1 to 2.",
        ),
        (
            {"space": "subspace", "rotate": "selected", "k": 1},
            "LoRSA: space=subspace with k=1 has nothing to rotate; it takes k of at least 2, or r=0.",
        ),
        (
            {"space": "subspace", "rotate": "all"},
            "LoRSA: rotate=all turns every singular vector, which needs space=ambient; in a subspace it is "
            "rotate=selected.",
        ),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(MethodError) as error:
        LorsaConfig(**fields)
    assert str(error.value) == message


def test_singular_values_alone_take_a_single_component():
    config = LorsaConfig(space="subspace", rotate="selected", k=1, r=0, budget=100)
    assert (config.k, config.r, config.budget) == (1, 0, 100)


@pytest.mark.parametrize("form", ["selected", "all"])
def test_a_rotation_of_more_than_the_layers_width_is_refused(form: str):
    with pytest.raises(
        MethodError, match=r"^LoRSA: r=7 is more than half of the smaller side of .*\(12 x 12\); r goes"
    ):
        adapt(build("bert"), "bert", form, r=7)
    adapt(build("bert"), "bert", form, r=6)


def test_a_config_survives_its_file(tmp_path: Path):
    config = LorsaConfig(
        target_modules=["query", "key"], k=7, r=2, budget=1.5, space="ambient", rotate="selected", selection="fisher",
        allocation="global", seed=11, components={"a.query": [3, 1], "a.key": []}, modules_to_save=["classifier"],
    )  # fmt: skip
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, LorsaConfig)
    assert (config.factors, loaded.factors) == ("compute", "saved")
    for name in (
        "k",
        "r",
        "budget",
        "space",
        "rotate",
        "selection",
        "allocation",
        "seed",
        "components",
        "modules_to_save",
    ):
        assert getattr(loaded, name) == getattr(config, name), name
    assert set(loaded.target_modules) == {"query", "key"}
