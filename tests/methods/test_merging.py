"""Every method of conf/method becomes a plain model, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LilyConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, logits
from torch import nn

from lorsa.methods import MethodError, SelectedConfig, apply
from lorsa.methods.merging import merge_adapter
from lorsa.runner.compose import compose
from lorsa.runner.method import build_method

CONF = Path(__file__).resolve().parents[2] / "conf" / "method"
METHODS = [
    path.stem
    for path in sorted(CONF.glob("*.yaml"))
    if path.stem != "peft" and not isinstance(build_method(compose(f"method={path.stem}").method), SelectedConfig)
]
# Wide enough for the block sizes and ranks of the YAMLs; its head has two layers.
SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "initializer_range": 0.05}


def moved(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def with_adapter(config: object) -> PeftModel:
    model = get_peft_model(build("roberta"), config)
    moved(model)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_model_is_plain_and_answers_alike(method: str):
    config = build_method(compose("model=roberta_base", f"method={method}").method)
    model, _ = apply(build("roberta", **SIZES), config, ARCHITECTURES["roberta"].head, [batch()], total_steps=100)
    moved(model)
    expected = logits(model.eval())
    merged = merge_adapter(model, batch())
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    plain = build("roberta", **SIZES)
    assert type(merged) is type(plain)
    assert [(name, type(module)) for name, module in merged.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert not hasattr(merged, "peft_config")
    assert not torch.allclose(logits(plain), expected, atol=1e-3)
    plain.load_state_dict(merged.state_dict())
    assert torch.equal(logits(plain), logits(merged))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_form_of_lorsa_merges_into_every_architecture(architecture: str, form: str):
    model = adapt(build(architecture), architecture, form)
    moved(model)
    expected = logits(model)
    merged = merge_adapter(model, batch())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    plain = build(architecture)
    assert (logits(plain) - expected).abs().max() > 0.01
    plain.load_state_dict(merged.state_dict())
    assert torch.equal(logits(plain), logits(merged))


def test_what_peft_cannot_merge_is_refused_with_its_reason():
    settings = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    lily = with_adapter(LilyConfig(target_modules=["query"], r=4, **settings))
    with pytest.raises(MethodError, match="PEFT cannot merge Lily: This method is not supported for Lily"):
        merge_adapter(lily, batch())
    prompt = with_adapter(PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(MethodError, match="PEFT cannot merge PromptTuning: it changes more than weights"):
        merge_adapter(prompt, batch())


def test_a_merge_that_changes_the_answers_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = with_adapter(LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *_, **__: None)
    with pytest.raises(MethodError, match="merge of Lora changes the model's answers, by up to"):
        merge_adapter(model, batch())


def test_a_broken_adapter_is_refused():
    broken = with_adapter(LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    with torch.no_grad():
        for name, parameter in broken.named_parameters():
            if "lora_" in name:
                parameter.fill_(torch.nan)
    with pytest.raises(MethodError, match="PEFT cannot merge Lora: NaNs detected"):
        merge_adapter(broken, batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_is_not_taken_for_a_change(dtype: torch.dtype):
    model = get_peft_model(build("llama", dtype), LoraConfig(target_modules=["q_proj", "down_proj"]))
    moved(model)
    expected = logits(model.eval())
    torch.testing.assert_close(logits(merge_adapter(model, batch())), expected, rtol=0.05, atol=0.05)
