"""Full fine-tuning, a trained head and BitFit: which parameters train, and what is saved of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, build, logits
from torch import nn

from lorsa.methods import MethodError, SelectedConfig, apply, save
from lorsa.methods.selected import load_selected

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
BITFIT = {"parameters": ["*bias"], "fallback": ["*norm.weight"]}  # conf/method/bitfit.yaml


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_head(name: str, architecture: str) -> bool:
    return name.split(".")[0] in ARCHITECTURES[architecture].head


@every_architecture
def test_full_trains_everything(architecture: str):
    model, report = apply(build(architecture), SelectedConfig(["*"]), ARCHITECTURES[architecture].head)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert report.trainable_params == report.total_params == model.num_parameters()
    assert report.trainable_percent == 100
    assert report.components is None


@every_architecture
def test_head_trains_the_head_alone(architecture: str):
    model, report = apply(build(architecture), SelectedConfig([]), ARCHITECTURES[architecture].head)
    assert trained(model) == {name for name, _ in model.named_parameters() if of_head(name, architecture)}
    assert trained(model)
    assert report.adapter_params == 0
    assert report.head_params == sum(of.numel() for name, of in model.named_parameters() if of_head(name, architecture))


@every_architecture
def test_bitfit_trains_biases_or_where_there_are_none_the_norms_and_the_head(architecture: str):
    model = apply(build(architecture), SelectedConfig(**BITFIT), ARCHITECTURES[architecture].head)[0]
    for name, parameter in model.named_parameters():
        chosen = name.endswith("norm.weight") if architecture == "llama" else name.endswith(".bias")
        assert parameter.requires_grad == (chosen or of_head(name, architecture)), name


@every_architecture
@pytest.mark.parametrize("fields", [{"parameters": ["*"]}, {}, BITFIT], ids=["full", "head", "bitfit"])
def test_what_trained_comes_back_from_disk(architecture: str, fields: dict[str, list[str]], tmp_path: Path):
    config = SelectedConfig(**fields)
    model = apply(build(architecture), config, ARCHITECTURES[architecture].head)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    save(model, config, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "selected_parameters.safetensors")
    assert set(stored) == trained(model)
    assert json.loads((tmp_path / "adapter" / "selected_config.json").read_text()) == asdict(config)
    loaded = load_selected(build(architecture), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(build(architecture)))


def test_a_pattern_that_matches_nothing_is_refused_with_examples():
    message = r"^parameters: '\*gamma' matches no parameter of the model; there are for example bert\.[^ ]+, .*\.$"
    with pytest.raises(MethodError, match=message):
        apply(build("bert"), SelectedConfig(["*bias", "*gamma"]), ["classifier"])


def test_half_precision_is_refused_where_updates_would_round_to_nothing():
    model = build("llama").bfloat16()
    with pytest.raises(MethodError, match="is bfloat16, in which most updates round to nothing"):
        apply(model, SelectedConfig(["*"]), ["score"])
    apply(model, SelectedConfig([]), ["score"])


def test_parameters_of_another_model_are_refused(tmp_path: Path):
    config = SelectedConfig(["*"])
    save(apply(build("llama"), config, ["score"])[0], config, tmp_path)
    with pytest.raises(MethodError, match=r"holds parameters that the model lacks: model\."):
        load_selected(build("bert"), tmp_path)


def test_parameters_of_another_shape_are_refused(tmp_path: Path):
    config = SelectedConfig([])
    save(apply(build("bert"), config, ["classifier"])[0], config, tmp_path)
    file = tmp_path / "selected_parameters.safetensors"
    save_file({name: torch.zeros(5, *tensor.shape[1:]) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(MethodError, match=r"classifier\.(weight|bias).*shape"):
        load_selected(build("bert"), tmp_path)
