"""The adapted model: the identity at step 0, the dense formula afterwards, merged and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, dense_weight, layers, logits, perturb
from torch import nn

every_form = pytest.mark.parametrize("form", FORMS)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@every_form
@every_architecture
@pytest.mark.parametrize("selection", ["principal", "sensitivity"])
def test_step_0_is_bit_identical_to_the_base(architecture: str, form: str, selection: str):
    expected = logits(build(architecture))
    model = adapt(build(architecture), architecture, form, selection)
    assert layers(model)
    assert torch.equal(logits(model), expected)
    model.merge_adapter()
    assert torch.equal(logits(model), expected)


@every_form
@every_architecture
@pytest.mark.parametrize("selection", ["principal", "minor"])
def test_a_moved_adapter_is_the_dense_formula(architecture: str, form: str, selection: str):
    model = adapt(build(architecture), architecture, form, selection)
    perturb(model)
    components = model.peft_config["default"].components
    reference = build(architecture).double()
    for name, layer in layers(model).items():
        name = name.removeprefix("base_model.model.")
        weight = dense_weight(layer, components[name])
        base = layer.base_layer
        assert (weight - base.weight).abs().max() > 0.05  # there is something to be right about
        torch.testing.assert_close(
            base.weight + layer.get_delta_weight("default"), weight.float(), rtol=1e-5, atol=1e-5
        )
        x = torch.randn(2, 5, base.in_features, generator=torch.Generator().manual_seed(0))
        expected = nn.functional.linear(x.double(), weight, None if base.bias is None else base.bias.double())
        torch.testing.assert_close(layer(x), expected.float(), rtol=1e-4, atol=1e-5)
        reference.get_submodule(name).weight.data = weight
    torch.testing.assert_close(logits(model), logits(reference).float(), rtol=1e-4, atol=1e-5)


@every_form
@every_architecture
def test_merging_changes_no_logits_and_unmerging_no_bits(architecture: str, form: str):
    model = adapt(build(architecture), architecture, form)
    perturb(model)
    before = logits(model)
    weights = {name: layer.base_layer.weight.detach().clone() for name, layer in layers(model).items()}
    model.merge_adapter(safe_merge=True)
    assert not any(torch.equal(layer.base_layer.weight, weights[name]) for name, layer in layers(model).items())
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(layer.base_layer.weight, weights[name]) for name, layer in layers(model).items())
    assert torch.equal(logits(model), before)


@every_form
@every_architecture
def test_unloading_returns_the_plain_class_which_saves_and_loads(architecture: str, form: str, tmp_path: Path):
    base = build(architecture)
    model = adapt(build(architecture), architecture, form)
    perturb(model)
    with torch.no_grad():  # as if the head, a copy of the base's, had been trained
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter += 0.1
    before = logits(model)
    plain = model.merge_and_unload()
    assert type(plain) is type(base)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in base.named_parameters()]
    assert {type(module) for module in plain.modules()} == {type(module) for module in base.modules()}
    torch.testing.assert_close(logits(plain), before, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(plain))


@every_form
def test_unload_without_merging_gives_the_base_back(form: str):
    model = adapt(build("bert"), "bert", form, modules_to_save=None)
    perturb(model)
    assert torch.equal(logits(model.unload()), logits(build("bert")))


@every_form
@every_architecture
def test_disabling_the_adapter_is_the_base(architecture: str, form: str):
    model = adapt(build(architecture), architecture, form)
    perturb(model)
    expected, moved = logits(build(architecture)), logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), moved)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


def test_safe_merge_refuses_broken_adapters_and_keeps_the_weight():
    model = adapt(build("bert"), "bert", "all")
    layer = next(iter(layers(model).values()))
    weight = layer.base_layer.weight.detach().clone()
    with torch.no_grad():
        layer.lorsa_d["default"][0] = float("nan")
    with pytest.raises(ValueError, match=r"Merging adapter default gives NaN or infinite weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    assert not layer.merged


@every_form
def test_bfloat16_base_is_exact_at_step_0_and_near_float32_later(form: str):
    half = adapt(build("llama", torch.bfloat16), "llama", form)
    assert torch.equal(logits(half), logits(build("llama", torch.bfloat16)))
    for layer in layers(half).values():
        assert layer.lorsa_U["default"].dtype == layer.lorsa_V["default"].dtype == torch.bfloat16
        assert layer.lorsa_s["default"].dtype == torch.float32
        assert {getattr(layer, part)["default"].dtype for part in layer.adapter_layer_names} == {torch.float32}
    # The same rounded weights in float32, so that only the arithmetic differs.
    full = adapt(build("llama", torch.bfloat16).float(), "llama", form)
    perturb(half, 0.1)
    perturb(full, 0.1)
    assert logits(half).dtype == torch.bfloat16
    assert (logits(half).float() - logits(full)).norm() < 0.1 * logits(full).norm()
    merged = logits(half.merge_and_unload())
    assert merged.dtype == torch.bfloat16
    assert (merged.float() - logits(full)).norm() < 0.1 * logits(full).norm()


@every_form
def test_float64_base_is_adapted_in_float64(form: str):
    model = adapt(build("bert", torch.float64), "bert", form)
    perturb(model)
    name, layer = next(iter(layers(model).items()))
    weight = dense_weight(layer, model.peft_config["default"].components[name.removeprefix("base_model.model.")])
    torch.testing.assert_close(layer.base_layer.weight + layer.get_delta_weight("default"), weight)
    before = logits(model)
    assert before.dtype == torch.float64
    torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=1e-12, atol=1e-12)


def test_seeds_draw_different_rotations_and_modules_do_too():
    first, second, other = (
        {
            name: layer.lorsa_Q_out["default"].detach()
            for name, layer in layers(adapt(build("bert"), "bert", "all", seed=seed)).items()
        }
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    Q, another = list(first.values())[:2]
    assert not torch.equal(Q, another)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(Q.shape[1]))


def test_wide_and_tall_layers_without_bias_take_every_form():
    for form in FORMS:
        model = adapt(build("llama"), "llama", form, target_modules=["down_proj", "gate_proj"])
        shapes = {tuple(layer.base_layer.weight.shape) for layer in layers(model).values()}
        assert shapes == {(12, 20), (20, 12)}
        assert torch.equal(logits(model, batch(2, seed=3)), logits(build("llama"), batch(2, seed=3)))
