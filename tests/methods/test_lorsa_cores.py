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

# A linear one has nothing to compute.
every_form = pytest.mark.parametrize("form", [form for form in FORMS if form != "linear"])


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


def assert_same_gradients(mine: nn.Module, theirs: nn.Module) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        if "lorsa_" in name:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6), name


@every_form
def test_one_call_serves_all_layers(form: str, counted: list[int]):
    model = adapt(build("llama"), "llama", form)
    model(**batch())
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
def test_checkpointing_survives_another_forward_pass_before_the_backward_pass(form: str):
    """As of a reference model in DPO: with the adapters off, without gradients."""
    model = adapt(build("llama"), "llama", form)
    perturb(model)
    again = copy.deepcopy(model)
    model(**batch()).loss.backward()
    again.train()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    loss = again(**batch()).loss
    with torch.no_grad():
        again(**batch(seed=3))
        with again.disable_adapter():
            again(**batch(seed=3))
    loss.backward()
    assert_same_gradients(again, model)


@every_form
def test_checkpointing_that_is_nobodys_attribute_works_too(form: str):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = adapt(build("llama"), "llama", form)
    perturb(model)
    again = copy.deepcopy(model)
    model(**batch()).loss.backward()
    again.config.use_cache = False  # keys and values would be appended a second time
    decoder = again.base_model.model.model
    decoder.layers = nn.ModuleList(checkpoint_wrapper(layer) for layer in decoder.layers)
    again(**batch()).loss.backward()
    assert_same_gradients(again, model)


@every_form
def test_what_is_left_over_does_not_serve_a_forward_pass_that_bypasses_the_tuner(form: str):
    model = adapt(build("llama"), "llama", form)
    model(**batch()).loss.backward()
    with torch.no_grad():
        for layer in layers(model).values():
            layer.lorsa_d["default"].data += 0.5  # which autograd's count of versions does not see
    inner = model.base_model.model
    assert torch.allclose(logits(inner), logits(model), atol=1e-6)
    inner(**batch()).loss.backward()  # and not through a graph that is gone


@every_form
def test_gradients_accumulate_over_forward_passes(form: str):
    model = adapt(build("llama"), "llama", form)
    perturb(model)
    again = copy.deepcopy(model)
    (model(**batch()).loss + model(**batch(seed=1)).loss).backward()
    for seed in (0, 1):
        again(**batch(seed=seed)).loss.backward()
    assert_same_gradients(again, model)


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
