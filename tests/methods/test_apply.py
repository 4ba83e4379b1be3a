"""apply() with every method of conf/method, on a tiny Llama."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from omegaconf import OmegaConf
from peft import AdaLoraConfig, PeftModel
from tiny_models import batch, build, logits
from torch import nn

from lorsa import methods
from lorsa.methods import MethodError, SelectedConfig, apply, save
from lorsa.methods.adalora import after_update, load_training_state, training_state
from lorsa.methods.apply import config_fields, needs_calibration
from lorsa.methods.targets import in_head

CONF = Path(__file__).resolve().parents[2] / "conf" / "method"
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
MODULES = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "ia3": ["k_proj", "v_proj", "down_proj"],
    "ia3_feedforward": ["down_proj"],
}
NAMES = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "peft")  # peft.yaml leaves its class open
# Methods that rewrite the weight and add back what they took out, or multiply by an identity that rounds.
ROUNDED = {"dora", "pissa", "olora", "psoft", "oft", "boft", "hra", "randlora"}
# FourierFT's spectrum starts at random.
ELSEWHERE = {"fourierft"}


def wide_llama() -> nn.Module:
    return build("llama", **WIDE)


def method(name: str, **changes: Any) -> Any:
    """The config that conf/method/<name>.yaml describes, built as its `_target_` says."""
    composed = OmegaConf.create(
        {"seed": 0, "model": {"modules": MODULES}, "method": OmegaConf.load(CONF / f"{name}.yaml")}
    )
    fields = OmegaConf.to_container(composed.method, resolve=True)["config"]
    package, _, target = fields.pop("_target_").rpartition(".")
    return getattr({"peft": peft, "lorsa.methods": methods}[package], target)(**{**fields, **changes})


def applied(name: str, **changes: Any) -> tuple[nn.Module, methods.Report, Any]:
    config = method(name, **changes)
    torch.manual_seed(1)
    return *apply(wide_llama(), config, ["score"], [batch(2)], total_steps=40), config


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_what_its_report_says(name: str, tmp_path: Path):
    model, report, config = applied(name)
    trained = {key: of.numel() for key, of in model.named_parameters() if of.requires_grad}
    head = sum(count for key, count in trained.items() if ".score." in f".{key}")
    assert report.head_params == head == 3 * 128
    assert report.adapter_params == sum(trained.values()) - head
    assert (report.adapter_params == 0) == (name == "head")
    assert report.total_params == sum(of.numel() for of in wide_llama().parameters())
    assert report.trainable_percent == pytest.approx(100 * sum(trained.values()) / report.total_params)
    assert (report.components is not None) == name.startswith("lorsa")

    model.train()
    optimizer = torch.optim.Adam([of for of in model.parameters() if of.requires_grad], lr=1e-3)
    before = {key: of.detach().clone() for key, of in model.named_parameters()}
    for step in (1, 2):  # LoRA's A has no gradient before B has moved
        loss = model(**batch()).loss
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
        after_update(model, step)
        optimizer.zero_grad()
    changed = {key for key, of in model.named_parameters() if not torch.equal(of, before[key])}
    assert {key.rpartition(".")[0] for key in changed} - {key.rpartition(".")[0] for key in trained} == set()
    assert any(".score." in f".{key}" for key in changed)
    assert name == "head" or any(".score." not in f".{key}" for key in changed)

    save(model, config, tmp_path / "adapter")
    assert any(file.suffix == ".safetensors" for file in (tmp_path / "adapter").iterdir())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_step_0_is_the_base(name: str):
    actual, expected = logits(applied(name)[0].eval()), logits(wide_llama())
    if name in ROUNDED:
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    else:
        assert torch.equal(actual, expected)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for step in numbers:
        model(**batch(seed=step)).loss.backward()
        optimizer.step()
        after_update(model, step)
        optimizer.zero_grad()


def test_adalora_continues_from_its_training_state_identically():
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = applied("adalora", deltaT=3, init_r=4, target_r=2)[0].train()
        return model, torch.optim.Adam([of for of in model.parameters() if of.requires_grad], lr=1e-2)

    whole, whole_optimizer = start()
    steps(whole, whole_optimizer, range(1, 15))
    state = copy.deepcopy((whole.state_dict(), whole_optimizer.state_dict(), training_state(whole)))
    steps(whole, whole_optimizer, range(15, 41))

    def resumed(with_state: bool) -> nn.Module:
        model, optimizer = start()
        model.load_state_dict(state[0])
        optimizer.load_state_dict(copy.deepcopy(state[1]))
        if with_state:
            load_training_state(model, copy.deepcopy(state[2]))
        steps(model, optimizer, range(15, 41))
        return model

    continued = resumed(True).state_dict()
    assert all(torch.equal(tensor, continued[key]) for key, tensor in whole.state_dict().items())
    # The averages matter: without them another set of values is pruned.
    forgetful = resumed(False).state_dict()
    assert not all(torch.equal(tensor, forgetful[key]) for key, tensor in whole.state_dict().items())


def test_other_methods_have_no_state_between_steps():
    for name in ("lora", "lorsa", "full"):
        model = applied(name)[0]
        assert training_state(model) == {}
        load_training_state(model, {})
        after_update(model, 1)


@pytest.mark.parametrize(("fields", "total"), [({"tinit": 20, "tfinal": 20}, 40), ({}, None), ({"tfinal": 9}, 5)])
def test_adalora_in_too_short_a_run_is_refused(fields: dict[str, int], total: int | None):
    with pytest.raises(
        MethodError, match=r"^AdaLoRA prunes between tinit=\d+ and tfinal=\d+ .*lower them or train longer"
    ):
        apply(wide_llama(), method("adalora", **fields), ["score"], total_steps=total)


def test_adaloras_schedule_is_the_runs():
    config = applied("adalora")[2]
    assert isinstance(config, AdaLoraConfig)
    assert config.total_step == 40


@pytest.mark.parametrize("name", ["lora", "oft", "lorsa"])
def test_targets_that_match_nothing_are_one_sentence(name: str):
    with pytest.raises(MethodError) as error:
        applied(name, target_modules=["query"])
    assert "\n" not in str(error.value)
    assert "query" in str(error.value)


def test_only_gradient_rules_need_calibration():
    assert needs_calibration(method("lorsa"))
    assert needs_calibration(method("lorsa", selection="fisher"))
    assert not needs_calibration(method("lorsa", selection="principal"))
    assert not needs_calibration(method("lorsa", components={"layer": [0]}))
    assert not needs_calibration(method("lora"))
    assert not needs_calibration(SelectedConfig())


def test_parameters_of_the_head_are_told_by_module_name():
    assert in_head("score.weight", ["score"])
    assert in_head("base_model.model.score.modules_to_save.default.weight", ["score"])
    assert in_head("bert.pooler.dense.bias", ["classifier", "bert.pooler"])
    assert not in_head("model.layers.0.score_proj.weight", ["score"])
    assert not in_head("model.norm.weight", ["score"])


def test_config_fields_are_the_ones_a_user_sets():
    fields = config_fields(methods.LorsaConfig)
    assert {"target_modules", "k", "r", "space", "rotate", "selection", "allocation", "seed"} <= set(fields)
    assert not {"peft_type", "task_type", "revision"} & set(fields)
    assert config_fields(SelectedConfig) == ["parameters", "fallback"]


def test_a_saved_baseline_loads_with_peft_alone(tmp_path: Path):
    model, _, config = applied("lora")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    save(model, config, tmp_path)
    loaded = PeftModel.from_pretrained(wide_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model.eval()))
