"""The small matrices are computed once per forward pass, are never out of date, and change nothing that is learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import FORMS, adapt, batch, build, layers, logits, perturb
from torch import nn

from lorsa.kernels import dispatch
from lorsa.methods.lorsa import cores

every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each call of the two operators makes."""
    calls: list[int] = []
    for name in ("rotation_core", "subspace_core"):
        operator = getattr(cores, name)

        def count(*args: Any, operator: Any = operator) -> Any:
            calls.append(len(args[-1]))
            return operator(*args)

        monkeypatch.setattr(cores, name, count)
        monkeypatch.setattr(f"lorsa.methods.lorsa.layer.{name}", count)
    return calls


@every_form
def test_one_call_serves_all_layers(form: str, counted: list[int]):
    model = adapt(build("llama"), "llama", form)
    logits(model)
    assert counted == [len(layers(model)) * (1 if form == "subspace" else 2)]


@every_form
def test_a_layer_on_its_own_computes_its_own(form: str, counted: list[int]):
    model = adapt(build("llama"), "llama", form)
    layer = next(iter(layers(model).values()))
    perturb(model)
    shared = layer(torch.ones(2, layer.in_features))
    assert counted == ([1] if form == "subspace" else [1, 1])
    assert shared.requires_grad


@every_form
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(form: str, reentrant: bool):
    def gradients(model: nn.Module) -> list[torch.Tensor]:
        model.train()
        model(**batch()).loss.backward()
        return [of.grad for name, of in model.named_parameters() if "lorsa_" in name and of.grad is not None]

    model = adapt(build("llama"), "llama", form)
    perturb(model)
    again = copy.deepcopy(model)
    expected = gradients(model)
    assert expected
    again.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again.enable_input_require_grads()
    for _ in range(2):  # the second time there is something left over from the first
        again.zero_grad()
        for mine, theirs in zip(gradients(again), expected, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    copy.deepcopy(again)  # what is left over is not copied, which autograd would refuse


@every_form
def test_a_changed_parameter_is_noticed(form: str):
    model = adapt(build("llama"), "llama", form)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})  # under which the matrices stay
    model.enable_input_require_grads()
    model(**batch())
    layer = next(iter(layers(model).values()))
    assert layer.shared_cores
    perturb(model)
    x = torch.ones(2, layer.in_features)
    kept = layer(x)
    layer.shared_cores.clear()
    assert torch.equal(kept, layer(x))


def test_what_was_computed_without_gradients_does_not_serve_training():
    model = adapt(build("llama"), "llama", "subspace")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.no_grad():
        model(**batch())
    layer = next(iter(layers(model).values()))
    assert layer.shared_cores
    assert layer(torch.ones(2, layer.in_features)).requires_grad


@every_form
def test_compiled_operators_and_the_reference_train_alike(form: str, monkeypatch: pytest.MonkeyPatch):
    """50 steps in float32: losses equal to 1e-4 of their size, and the compiled ones are another computation."""
    if dispatch.implementation() == "reference (PyTorch)":
        pytest.skip("the kernels are not built here: make kernels")
    curves = []
    for compiled in (True, False):
        monkeypatch.setitem(dispatch._compiled, "cpu", compiled)
        model = adapt(build("llama"), "llama", form)
        trained = [of for of in model.parameters() if of.requires_grad]
        optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
        for step in range(50):
            loss = model(**batch(8, seed=step)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert not torch.equal(*curves)
    assert ((curves[0] - curves[1]).abs() / curves[1]).max() < 1e-4


@every_form
def test_torch_compile_gives_the_same(form: str):
    model = adapt(build("llama"), "llama", form)
    perturb(model)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(logits(compiled), logits(model), atol=1e-5)
    compiled(**batch()).loss.backward()
    trained = [of for name, of in model.named_parameters() if "lorsa_" in name]
    assert all(of.grad is not None and torch.isfinite(of.grad).all() for of in trained)
