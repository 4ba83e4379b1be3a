"""The gradients that the selection ranks by, against autograd: of the weights, and of what a component would bring."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny_models import ARCHITECTURES, batch, build
from torch import Tensor, nn
from torch.func import functional_call

from lorsa.methods import LorsaConfig, MethodError
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.lorsa import Basis, sensitivity, singular_basis, target_layers
from lorsa.methods.lorsa.selection import own_gains, pair_gains, value_gains
from lorsa.methods.lorsa.sensitivity import check_finite, mean_gradients, squared_gradients


def rows_of(rows: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{key: value[i : i + 1] for key, value in rows.items()} for i in range(len(rows["labels"]))]


def layers_of(model: nn.Module, architecture: str) -> dict[str, nn.Linear]:
    return target_layers(model, LorsaConfig(target_modules=list(ARCHITECTURES[architecture].targets)))


class Bases:
    """The bases of some layers, in memory."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        self.of = {name: singular_basis(layer.weight) for name, layer in layers.items()}

    def __call__(self, name: str, device: torch.device) -> Basis:
        return self.of[name]


def streamed(
    model: nn.Module, architecture: str, batches: list[dict[str, Tensor]], diagonal: bool = False
) -> dict[str, Tensor]:
    layers = layers_of(model, architecture)
    with frozen_evaluation(model):
        return mean_gradients(model, layers, Bases(layers), batches, diagonal, lambda name, M: M)


def weight_gradients(model: nn.Module, architecture: str, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """M = U^T G V in float64, with G from autograd and the singular vectors of the basis."""
    bases = Bases(layers_of(model, architecture))
    model = model.double().requires_grad_(True)
    model.zero_grad()
    model(**rows).loss.backward()
    result = {}
    for name, layer in layers_of(model, architecture).items():
        basis = bases(name, torch.device("cpu")).to(torch.float64)
        result[name] = basis.U.mT @ layer.weight.grad @ basis.V
    return result


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item()
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mean_gradients_are_those_of_the_weights_in_the_basis(architecture: str):
    rows = batch(5)
    expected = weight_gradients(build(architecture), architecture, rows)
    split = [{key: value[:3] for key, value in rows.items()}, {key: value[3:] for key, value in rows.items()}]
    names = list(layers_of(build(architecture), architecture))
    for batches in ([rows], split, rows_of(rows)):
        found = streamed(build(architecture), architecture, batches)
        assert_near({name: found[name] for name in names}, {name: expected[name] for name in names})
        diagonal = streamed(build(architecture), architecture, batches, diagonal=True)
        assert_near({name: diagonal[name] for name in names}, {name: expected[name].diagonal() for name in names})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_squared_gradients_are_row_by_row(architecture: str):
    rows = batch(3)
    model = build(architecture)
    layers = layers_of(model, architecture)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: passes.append(len(kwargs["labels"])), with_kwargs=True)
    with frozen_evaluation(model):
        found = squared_gradients(model, layers, Bases(layers), [rows])
    # DeBERTa's positions are projected once for all rows of a batch, which therefore must pass one by one.
    assert passes == ([3, 1, 1, 1] if architecture == "deberta" else [3])
    expected = {name: torch.zeros(min(layer.weight.shape), dtype=torch.float64) for name, layer in layers.items()}
    for row in rows_of(rows):
        for name, M in weight_gradients(build(architecture), architecture, row).items():
            expected[name] += M.diagonal() ** 2 / 3
    assert_near({name: found[name] for name in expected}, expected)


class Experts(nn.Module):
    """A linear layer that sees tokens one under another, without rows, as the experts of a mixture do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).view(*x.shape[:-1], -1)


def test_a_module_that_sees_tokens_without_rows_scores_alike():
    found = []
    for hidden in (False, True):
        model = build("bert")
        layers = layers_of(model, "bert")
        if hidden:
            attention = model.bert.encoder.layer[0].attention.self
            attention.query = Experts(attention.query)
        with frozen_evaluation(model):
            found.append(squared_gradients(model, layers, Bases(layers), [batch(3)]))
    assert_near(found[1], {name: scores.double() for name, scores in found[0].items()})
    assert all(scores.max() > 0 for scores in found[1].values())


def test_several_passes_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch):
    whole = streamed(build("bert"), "bert", [batch(3)])
    monkeypatch.setattr(sensitivity, "BYTES_PER_PASS", 2 * 8 * 12 * 12)  # two modules at a time
    assert len(sensitivity._groups(layers_of(build("bert"), "bert"), diagonal=False)) == 4
    alive: list[weakref.ref[Tensor]] = []

    def reduce(name: str, M: Tensor) -> Tensor:
        alive.append(weakref.ref(M))
        assert sum(each() is not None for each in alive) <= 2
        return M.sum(1)

    model = build("bert")
    layers = layers_of(model, "bert")
    with frozen_evaluation(model):
        parts = mean_gradients(model, layers, Bases(layers), [batch(3)], False, reduce)
    for name, M in whole.items():
        assert torch.equal(M.sum(1), parts[name])


class Spectral(nn.Module):
    """W' of the subspace form over all components, with every pair's rotation angle as a parameter of its own."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        U, s, Vt = torch.linalg.svd(W, full_matrices=False)
        self.W, self.U, self.s, self.V = W, U, s, Vt.mT
        k = len(s)
        self.upper = torch.triu_indices(k, k, offset=1)
        self.d = nn.Parameter(torch.zeros(k, dtype=W.dtype))
        self.out = nn.Parameter(torch.zeros(self.upper.shape[1], dtype=W.dtype))
        self.inward = nn.Parameter(torch.zeros(self.upper.shape[1], dtype=W.dtype))

    def rotation(self, angles: Tensor) -> Tensor:
        k = len(self.s)
        upper = torch.zeros(k, k, dtype=angles.dtype).index_put(tuple(self.upper), angles)
        A, eye = upper - upper.mT, torch.eye(k, dtype=angles.dtype)
        return torch.linalg.solve(eye - A / 2, eye + A / 2)

    def forward(self) -> Tensor:
        turned = self.rotation(self.out) @ torch.diag(self.s + self.d) @ self.rotation(self.inward).mT
        return self.W + self.U @ (turned - torch.diag(self.s)) @ self.V.mT

    def squared_gradients(self) -> Tensor:
        """For each component, the squares of its value's gradient and of all its pairs'."""
        score = self.d.grad**2
        for gradient in (self.out.grad, self.inward.grad):
            for end in self.upper:
                score = score.index_add(0, end, gradient**2)
        return score


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gains_are_the_squared_gradients_of_the_parameters_that_a_component_brings(architecture: str):
    rows = batch(2)
    found = streamed(build(architecture), architecture, [rows])
    model = build(architecture).double()
    for name, layer in layers_of(model, architecture).items():
        spectral = Spectral(layer.weight.detach())
        functional_call(model, {f"{name}.weight": spectral()}, (), rows).loss.backward()
        expected = spectral.squared_gradients()
        gains = pair_gains(found[name].double(), spectral.s)
        torch.testing.assert_close(gains, expected, rtol=1e-3, atol=1e-4 * expected.max().item())


def test_own_gains_are_the_squared_gradients_of_a_value_and_of_turning_its_vectors_to_any_other():
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    U, s, Vt = torch.linalg.svd(W)
    gains = own_gains(U.mT @ G @ Vt.mT, s)
    for i in range(6):
        u, v = U[:, i].clone().requires_grad_(), Vt[i].clone().requires_grad_()
        value = s[i].clone().requires_grad_()
        (G * (value * torch.outer(u, v))).sum().backward()
        # A rotation moves a unit vector within its tangent space.
        turned_u = u.grad - (u.grad @ U[:, i]) * U[:, i]
        turned_v = v.grad - (v.grad @ Vt[i]) * Vt[i]
        torch.testing.assert_close(gains[i], value.grad**2 + turned_u.square().sum() + turned_v.square().sum())
    values = torch.tensor([3.0, -2.0])
    torch.testing.assert_close(value_gains(values, s[:2].float()), values.square())


def test_gradients_ignore_dropout_and_leave_the_model_as_it_was():
    model = build("bert", hidden_dropout_prob=0.5)
    model.train()
    model.bert.encoder.layer[0].eval()  # a part that its owner keeps in evaluation mode
    model.bert.embeddings.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = streamed(model, "bert", [batch(2)])
    for name, M in streamed(build("bert"), "bert", [batch(2)]).items():
        assert torch.equal(M, found[name])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_a_failing_forward_leaves_the_model_as_it_was():
    model = build("bert").train()
    with pytest.raises((AttributeError, TypeError)):
        streamed(model, "bert", [{"input_ids": batch()["input_ids"]}])  # no labels, so no loss
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_that_are_not_finite_are_refused_by_name():
    with pytest.raises(MethodError, match=r"gradients of second on the calibration rows are not finite"):
        check_finite({"first": torch.ones(2), "second": torch.tensor([1.0, torch.nan])})
