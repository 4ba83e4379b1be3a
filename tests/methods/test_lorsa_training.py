"""What trains, how many there are of it, and that its gradients are right."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from tiny_models import ARCHITECTURES, FORMS, adapt, batch, build, dense_rotation, layers, logits, perturb
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from lorsa.methods import LorsaConfig, apply
from lorsa.methods.lorsa import LorsaLinear

every_form = pytest.mark.parametrize("form", FORMS)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def size(form: str, m: int, n: int, k: int, r: int) -> int:
    return 4 * k * r + k if form == "subspace" else 2 * r * (m + n) + k


@every_form
@every_architecture
def test_parameter_counts_are_the_formulas(architecture: str, form: str, capsys: pytest.CaptureFixture[str]):
    of = ARCHITECTURES[architecture]
    config = LorsaConfig(target_modules=list(of.targets), **FORMS[form])
    model, report = apply(build(architecture), config, of.head)
    shapes = [layer.base_layer.weight.shape for layer in layers(model).values()]
    expected = sum(size(form, m, n, config.k, config.r) for m, n in shapes)
    head = sum(
        parameter.numel() for name, parameter in build(architecture).named_parameters() if name.split(".")[0] in of.head
    )
    assert (report.adapter_params, report.head_params) == (expected, head)
    assert report.total_params == build(architecture).num_parameters()
    assert model.get_nb_trainable_parameters()[0] == expected + head == report.trainable_params
    model.print_trainable_parameters()
    assert f"trainable params: {expected + head:,} " in capsys.readouterr().out
    assert report.components == config.components
    assert set(report.components) == {name.removeprefix("base_model.model.") for name in layers(model)}


def test_minilm_has_the_documented_number_of_adapter_parameters():
    """6 layers of width 384, four attention modules, k = 64, r = 1: 24 (2 * 768 + 64) = 38,400."""
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    targets = ["query", "key", "value", "attention.output.dense"]
    components = {
        name: list(range(64)) for name, _ in model.named_modules() if any(name.endswith(f".{each}") for each in targets)
    }
    # A weight on the meta device has no decomposition, and the count needs none.
    lorsa = LorsaConfig(target_modules=targets, k=64, r=1, components=components, factors="saved", seed=0)
    assert apply(model, lorsa, ["classifier"])[1].adapter_params == 38_400


@every_form
@every_architecture
def test_gradients_at_step_0_are_alive_where_they_should_be(architecture: str, form: str):
    model = adapt(build(architecture), architecture, form, "sensitivity").train()
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lorsa_" in name or "modules_to_save" in name), name
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert torch.isfinite(parameter.grad).all(), name
        if "lorsa_Q" in name:  # the rotation is the identity for every Q while P is zero
            assert parameter.grad.count_nonzero() == 0, name
        else:
            assert parameter.grad.abs().max() > 0, name
    perturb(model, 0.1)
    model.zero_grad()
    model(**batch()).loss.backward()
    for layer in layers(model).values():
        for part in layer.adapter_layer_names:
            assert getattr(layer, part)["default"].grad.abs().max() > 0


@every_form
@pytest.mark.parametrize("bias", [True, False])
def test_a_layers_gradients_agree_with_finite_differences(form: str, bias: bool):
    torch.manual_seed(0)
    config = LorsaConfig(components={"layer": [0, 2, 3, 4]}, **FORMS[form])
    layer = LorsaLinear(nn.Linear(6, 5, bias=bias, dtype=torch.float64), "default", config, "layer")
    perturb(nn.ModuleList([layer]))
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    parts = [f"{part}.default" for part in layer.adapter_layer_names]
    values = [layer.get_parameter(part).detach().clone().requires_grad_() for part in parts]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parts, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@every_form
@every_architecture
def test_gradient_checkpointing_gives_the_same_gradients(architecture: str, form: str):
    plain = adapt(build(architecture), architecture, form).train()
    perturb(plain)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.modules())
    for model in (plain, saving):
        model(**batch()).loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-8)


@every_form
@every_architecture
def test_thirty_steps_of_adam_lower_the_loss(architecture: str, form: str):
    model = adapt(build(architecture), architecture, form).train()
    base = {name: layer.base_layer.weight.detach().clone() for name, layer in layers(model).items()}
    # The head stays: what is learned, the adapter has learned.
    trained = [
        parameter for name, parameter in model.named_parameters() if "lorsa_" in name and parameter.requires_grad
    ]
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    rows, losses = batch(8), []
    for _ in range(30):
        loss = model(**rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(layer.base_layer.weight, base[name]) for name, layer in layers(model).items())


def test_rotations_stay_rotations_however_far_they_train():
    model = adapt(build("bert"), "bert", "all")
    perturb(model, 30.0)
    layer = next(iter(layers(model).values()))
    with torch.no_grad():
        layer.lorsa_d["default"].zero_()
    weight = layer.base_layer.weight.detach()
    turned = weight + layer.get_delta_weight("default")
    expected = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(turned), expected, rtol=1e-3, atol=1e-3 * expected[0].item())
    P, Q = (layer.get_parameter(f"lorsa_{part}_out.default").detach().double() for part in "PQ")
    torch.testing.assert_close(dense_rotation(P, Q) @ dense_rotation(P, Q).mT, torch.eye(12, dtype=torch.float64))


@every_form
def test_global_allocation_serves_layers_with_few_or_no_components(form: str, tmp_path: object):
    names = [f"bert.encoder.layer.{i}.attention.self.{part}" for i in range(2) for part in ("query", "value")]
    shares = dict(zip(names, ([0, 1, 2, 3, 4], [5], [], [2, 7]), strict=True))
    config = {"target_modules": ["query", "value"], "components": shares, "allocation": "global"}
    model = adapt(build("bert"), "bert", form, **config)
    assert torch.equal(logits(model), logits(build("bert")))
    r = FORMS[form]["r"]
    rotations = {name: 4 * min(r, len(part) // 2) * len(part) for name, part in shares.items()}
    if form != "subspace":
        # Rotations of the whole space need no component, but turning none of the vectors needs no rotation.
        rotations = {name: 2 * r * 24 if part or form in ("all", "linear") else 0 for name, part in shares.items()}
    trained = sum(of.numel() for name, of in model.named_parameters() if "lorsa_" in name and of.requires_grad)
    assert trained == sum(rotations.values()) + 8
    perturb(model)
    moved = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = type(model).from_pretrained(build("bert"), str(tmp_path)).eval()
    assert torch.equal(logits(loaded), moved)
    model.train()(**batch()).loss.backward()
    torch.testing.assert_close(logits(model.eval().merge_and_unload()), moved, rtol=1e-5, atol=1e-5)


def test_global_allocation_by_score_trains_its_whole_budget():
    config = LorsaConfig(
        target_modules=["query", "value"], k=3, r=1, space="subspace", rotate="selected",
        selection="sensitivity", allocation="global",
    )  # fmt: skip
    model, report = apply(build("bert"), config, ["classifier"], [batch(2)])
    shares = [len(part) for part in report.components.values()]
    assert sum(shares) == 12
    assert len(set(shares)) > 1
    assert report.adapter_params == sum(k + 4 * k * min(1, k // 2) for k in shares)
    assert torch.equal(logits(model.eval()), logits(build("bert")))


def test_peft_wraps_other_architectures_without_a_task():
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    x = torch.randn(3, 6)
    expected = plain(x)
    model = get_peft_model(plain, LorsaConfig(target_modules=["0", "2"], k=3))
    assert torch.equal(model(x), expected)


def test_a_linear_rotation_stretches_what_it_turns_and_is_not_bounded():
    """I + A has the singular values sqrt(1 + w^2), twice for each of its planes, and 1."""
    model = adapt(build("bert"), "bert", "linear")
    layer = next(iter(layers(model).values()))
    P, Q = (layer.get_parameter(f"lorsa_{part}_in.default") for part in "PQ")
    with torch.no_grad():
        P.add_(3 * torch.linalg.qr(torch.cat([Q, torch.ones_like(Q)], dim=1))[0][:, 1:])  # across Q: w = 3
    weight = layer.base_layer.weight.detach()
    R = torch.linalg.lstsq(weight, weight + layer.get_delta_weight("default")).solution
    expected = torch.tensor([10**0.5] * 2 + [1.0] * 10)
    torch.testing.assert_close(torch.linalg.svdvals(R), expected, rtol=1e-3, atol=1e-3)
