"""The head that is fitted before the selection."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, batch, build, logits
from torch import Tensor, nn

from lorsa.methods import MethodError
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.head import LOGIT_PENALTY, fitted_head


def objective(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    rows = sum(len(each["labels"]) for each in batches)
    results = [(model(**each), len(each["labels"]) / rows) for each in batches]
    return sum((result.loss + LOGIT_PENALTY * result.logits.square().mean()) * share for result, share in results)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_is_at_a_minimum_within_and_as_it_was_afterwards(architecture: str):
    model = build(architecture, torch.float64)
    head = ARCHITECTURES[architecture].head
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [batch(3), batch(5, seed=1)]
    before = objective(model, batches)
    with frozen_evaluation(model), fitted_head(model, head, batches):
        assert objective(model, batches) < 0.9 * before
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for name, tensor in model.state_dict().items():
            inside = any(name.startswith(f"{module}.") for module in head)
            assert inside or torch.equal(tensor, weights[name])
        if architecture in ("bert", "llama"):  # a linear head: the minimum is one point, and it is reached
            parameters = [p for name, p in model.named_parameters() if name.split(".")[0] in head]
            gradients = torch.autograd.grad(objective(model.requires_grad_(True), batches), parameters)
            assert max(gradient.abs().max() for gradient in gradients) < 1e-3
            model.requires_grad_(False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert objective(model, batches) == before


def test_a_failure_within_still_restores_the_model():
    model = build("bert")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), fitted_head(model, ["classifier"], [batch()]):
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_without_a_head_nothing_is_fitted():
    model = build("bert")
    before = logits(model)
    with fitted_head(model, [], [batch()]):
        assert torch.equal(logits(model), before)


def test_a_model_that_does_not_name_its_backbone_is_refused():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(3, 2)

    message = r"Plain does not name its backbone .* classifier cannot be fitted"
    with pytest.raises(MethodError, match=message), fitted_head(Plain(), ["classifier"], [batch()]):
        pass
