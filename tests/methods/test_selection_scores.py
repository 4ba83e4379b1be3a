"""The scores of the selection against real gradients: of the weight, and of the parameters that a component brings."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, batch, build
from torch import Tensor, nn
from torch.func import functional_call

from lorsa.methods import LorsaConfig
from lorsa.methods.lorsa import singular_basis
from lorsa.methods.lorsa.selection import component_scores, target_layers

RULES = [("sensitivity", "selected"), ("sensitivity", "all"), ("fisher", "selected"), ("fisher", "all")]


def rows_of(rows: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{key: value[i : i + 1] for key, value in rows.items()} for i in range(len(rows["labels"]))]


def config_for(architecture: str, selection: str, rotate: str, **changes: object) -> LorsaConfig:
    targets = list(ARCHITECTURES[architecture].targets)
    return LorsaConfig(target_modules=targets, selection=selection, rotate=rotate, k=2, **changes)


def scores_of(model: nn.Module, config: LorsaConfig, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    layers = target_layers(model, config)
    bases = {name: singular_basis(layer.weight) for name, layer in layers.items()}
    return component_scores(model, layers, bases, config, batches)


def scores_from_weight_gradients(model: nn.Module, config: LorsaConfig, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The design's formula, with dW from autograd, row by row, and LAPACK's singular vectors."""
    model = model.double().requires_grad_(True)
    result = {}
    for row in rows_of(rows):
        model.zero_grad()
        model(**row).loss.backward()
        for name, layer in target_layers(model, config).items():
            U, s, Vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
            M = U.mT @ layer.weight.grad @ Vt.mT
            score = torch.zeros(len(s), dtype=torch.float64)
            for i in range(len(s)):
                score[i] += M[i, i] ** 2
                if config.selection == "sensitivity" and config.rotate == "selected":
                    for j in range(len(s)):
                        score[i] += (s[j] * M[i, j] - s[i] * M[j, i]) ** 2
                        score[i] += (s[i] * M[i, j] - s[j] * M[j, i]) ** 2
            result[name] = result.get(name, 0) + score / len(rows["labels"])
    return result


@pytest.mark.parametrize(("selection", "rotate"), RULES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_the_formula_on_true_weight_gradients(architecture: str, selection: str, rotate: str):
    config, rows = config_for(architecture, selection, rotate), batch(3)
    scores = scores_of(build(architecture), config, [rows])
    expected = scores_from_weight_gradients(build(architecture), config, rows)
    assert list(scores) == list(expected)
    for name, score in scores.items():
        assert score.dtype == torch.float64
        torch.testing.assert_close(score, expected[name], rtol=1e-3, atol=1e-4 * expected[name].max().item())


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
def test_sensitivity_is_the_squared_gradient_of_the_parameters_a_component_brings(architecture: str):
    config, rows = config_for(architecture, "sensitivity", "selected"), batch(2)
    scores = scores_of(build(architecture), config, [rows])
    model = build(architecture).double()
    for name, layer in target_layers(model, config).items():
        spectral = Spectral(layer.weight.detach())
        expected = torch.zeros_like(spectral.s)
        for row in rows_of(rows):
            spectral.zero_grad()
            functional_call(model, {f"{name}.weight": spectral()}, (), row).loss.backward()
            expected += spectral.squared_gradients() / 2
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-4 * expected.max().item())


def test_scores_do_not_depend_on_how_rows_are_batched():
    rows = batch(4)
    whole = scores_of(build("bert"), config_for("bert", "sensitivity", "selected"), [rows])
    single = scores_of(build("bert"), config_for("bert", "sensitivity", "selected"), rows_of(rows))
    again = scores_of(build("bert"), config_for("bert", "sensitivity", "selected"), [rows])
    for name, score in whole.items():
        assert torch.equal(score, single[name])
        assert torch.equal(score, again[name])


def test_scoring_ignores_dropout_and_leaves_the_model_as_it_was():
    model = build("bert", hidden_dropout_prob=0.5)
    model.train()
    model.bert.encoder.layer[0].eval()  # a part that its owner keeps in evaluation mode
    model.bert.embeddings.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, rows = config_for("bert", "sensitivity", "selected"), batch(2)
    scores = scores_of(model, config, [rows])
    for name, score in scores_of(build("bert"), config, [rows]).items():
        assert torch.equal(score, scores[name])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_a_failing_forward_leaves_the_model_as_it_was():
    model = build("bert").train()
    config = config_for("bert", "sensitivity", "selected")
    with pytest.raises(AttributeError, match="backward"):
        scores_of(model, config, [{"input_ids": batch()["input_ids"]}])  # no labels, so no loss
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
