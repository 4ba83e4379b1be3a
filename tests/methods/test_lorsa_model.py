"""The adapted model: the identity at step 0, the dense formula afterwards, merged and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, dense_weight, layers, logits, perturb
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lorsa.methods import LorsaConfig, MethodError

every_form = pytest.mark.parametrize("form", FORMS)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
VALUES = {"r": 0, "k": 4}  # of the subspace form


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


@every_architecture
def test_singular_values_alone_are_a_diagonal_in_the_base(architecture: str):
    expected = logits(build(architecture))
    model = adapt(build(architecture), architecture, "subspace", **VALUES)
    assert torch.equal(logits(model), expected)
    trained = {name: of for name, of in model.named_parameters() if of.requires_grad and "lorsa_" in name}
    assert sum(of.numel() for of in trained.values()) == 4 * len(layers(model))
    assert {name.split(".lorsa_")[1] for name, of in trained.items() if of.numel()} == {"d.default"}
    perturb(model)
    reference = build(architecture).double()
    for name, layer in layers(model).items():
        W = layer.base_layer.weight.detach().double()
        U, s, Vt = torch.linalg.svd(W, full_matrices=False)
        s[:4] += layer.lorsa_d["default"].detach()
        weight = U @ torch.diag(s) @ Vt
        torch.testing.assert_close(W + layer.get_delta_weight("default"), weight, rtol=1e-5, atol=1e-5)
        reference.get_submodule(name.removeprefix("base_model.model.")).weight.data = weight
    moved = logits(model)
    assert (moved - expected).abs().max() > 0.01
    torch.testing.assert_close(moved, logits(reference).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), moved, rtol=1e-5, atol=1e-5)


def test_singular_values_alone_train_save_and_load(tmp_path: Path):
    model = adapt(build("bert"), "bert", "subspace", "sensitivity", **VALUES).train()
    losses = train(model)
    assert losses[-1] < 0.98 * losses[0]
    model.eval().save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(build("bert"), str(tmp_path)).eval()
    assert loaded.peft_config["default"].r == 0
    assert torch.equal(logits(loaded), logits(model))


def train(model: nn.Module, updates: int = 20) -> list[float]:
    """Losses under AdamW on one batch; the head stays, so what is learned the adapter has learned."""
    trained = [of for name, of in model.named_parameters() if "lorsa_" in name and of.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(updates):
        loss = model(**batch(8)).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(of.grad is not None and torch.isfinite(of.grad).all() for of in trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def with_spectrum(weight: Tensor, spectrum: str) -> Tensor:
    """A matrix with the singular vectors of another, and values that make its decomposition ambiguous."""
    U, s, Vt = torch.linalg.svd(weight.double(), full_matrices=False)
    if spectrum == "rank 2":
        s[2:] = 0
    elif spectrum == "zero":
        s[:] = 0
    else:  # one value, all the others another
        s[1:] = s[0] / 2
    return (U * s @ Vt).to(weight.dtype)


@pytest.mark.parametrize("form", [*FORMS, "values"])
@pytest.mark.parametrize("selection", ["principal", "minor"])
@pytest.mark.parametrize("spectrum", ["rank 2", "zero", "repeated"])
def test_ambiguous_decompositions_adapt_and_train(spectrum: str, selection: str, form: str):
    base = build("bert")
    for layer in base.bert.encoder.layer:
        for linear in (layer.attention.self.query, layer.attention.self.value):
            linear.weight.data = with_spectrum(linear.weight.data, spectrum)
    expected = logits(base)
    changes = VALUES if form == "values" else {}
    model = adapt(base, "bert", "subspace" if form == "values" else form, selection, **changes)
    assert torch.equal(logits(model), expected)
    losses = train(model)
    assert losses[-1] < losses[0]
    moved = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), moved, rtol=1e-4, atol=1e-5)


@every_form
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_the_modules_name(form: str, broken: float):
    base = build("bert")
    base.bert.encoder.layer[1].attention.self.key.weight.data[0, 3] = broken
    with pytest.raises(MethodError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key has NaN or infinite entries"):
        adapt(base, "bert", form)


@every_form
def test_a_model_that_is_cast_as_a_whole_still_runs_and_merges(form: str):
    model = adapt(build("llama"), "llama", form)
    perturb(model, 0.1)
    expected = logits(model)
    model.to(torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    torch.testing.assert_close(logits(model).float(), expected, rtol=0.1, atol=0.1)
    model.merge_adapter()
    torch.testing.assert_close(logits(model).float(), expected, rtol=0.1, atol=0.1)


@every_form
def test_a_model_may_be_cast_while_it_is_merged(form: str):
    model = adapt(build("llama"), "llama", form)
    perturb(model, 0.1)
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build("llama", torch.bfloat16)))
    assert logits(model).dtype == torch.bfloat16


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_a_layer_that_has_two_names_is_not_merged():
    model = get_peft_model(Twice(), LorsaConfig(target_modules=["first"], k=3))
    with pytest.raises(MethodError, match=r"^LoRSA: first and second share one weight"):
        model.merge_adapter()


def language_model(tied: bool) -> nn.Module:
    config = {**ARCHITECTURES["llama"].config.to_dict(), "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(ARCHITECTURES["llama"].config)(**config)).eval()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    return model


@every_form
def test_a_tied_weight_is_adapted_alone_and_not_merged(form: str):
    rows = {"input_ids": batch()["input_ids"]}
    config = LorsaConfig(target_modules=["lm_head", "q_proj"], **FORMS[form])
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        model = get_peft_model(language_model(tied=True), config)
    embedding = model.get_input_embeddings().weight.detach().clone()
    before = logits(model.eval(), rows)
    assert torch.equal(before, logits(language_model(tied=True), rows))
    perturb(model)
    moved = logits(model, rows)
    assert (moved - before).abs().max() > 0.01
    sentence = (
        r"^LoRSA: model\.embed_tokens and lm_head share one weight, and merging would change both; load the model "
        r"untied, or leave the adapter unmerged\.$"
    )
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MethodError, match=sentence):
            merge()
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert torch.equal(logits(model, rows), moved)
    assert torch.equal(logits(model.unload(), rows), before)


@pytest.mark.parametrize(("tied", "targets"), [(False, ["lm_head", "q_proj"]), (True, ["q_proj"])])
def test_an_adapter_that_touches_no_tied_weight_is_merged(tied: bool, targets: list[str]):
    rows = {"input_ids": batch()["input_ids"]}
    model = get_peft_model(language_model(tied), LorsaConfig(target_modules=targets, k=4)).eval()
    perturb(model)
    moved = logits(model, rows)
    torch.testing.assert_close(logits(model.merge_and_unload(), rows), moved, rtol=1e-5, atol=1e-5)
