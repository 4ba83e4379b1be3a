"""The head that is fitted before the selection."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_models import ARCHITECTURES, batch, build, logits
from torch import Tensor, nn

from lorsa.methods import MethodError
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.head import PENALTY, fitted_head


def objective(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    rows = sum(len(each["labels"]) for each in batches)
    return sum(model(**each).loss * (len(each["labels"]) / rows) for each in batches)


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
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert objective(model, batches) == before


def features(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """What goes into the classifier, and the labels."""
    seen: list[Tensor] = []
    hook = model.get_submodule("classifier").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for each in batches:
            model(**each)
    hook.remove()
    return torch.cat(seen), torch.cat([each["labels"] for each in batches])


def test_a_linear_head_is_logistic_regression_on_features_of_unit_size():
    model, batches = build("bert", torch.float64), [batch(8, seed=seed) for seed in range(6)]
    with frozen_evaluation(model):
        X, y = features(model, batches)
        size = X.square().mean(0).sqrt()
        reference = LogisticRegression(C=1 / (2 * PENALTY * len(X)), tol=1e-10, max_iter=10_000).fit(X / size, y)
        with fitted_head(model, ["classifier"], batches):
            X_logits = torch.cat([model(**each).logits for each in batches])
    expected = torch.from_numpy(reference.predict_proba(X / size))
    torch.testing.assert_close(X_logits.softmax(-1), expected, rtol=0, atol=1e-4)


def test_a_linear_head_for_scores_is_ridge_regression():
    model, batches = build("bert", torch.float64), [batch(8, seed=seed) for seed in range(6)]
    model.config.num_labels, model.config.problem_type = 1, "regression"
    model.num_labels, model.classifier = 1, nn.Linear(model.config.hidden_size, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for each in batches:
        each["labels"] = torch.rand(8, generator=generator, dtype=torch.float64) * 5
    with frozen_evaluation(model):
        X, y = features(model, batches)
        mean, size = X.mean(0), X.square().mean(0)
        A = (X - mean).T @ (X - mean) / len(X) + PENALTY * torch.diag(size)
        w = torch.linalg.solve(A, (X - mean).T @ (y - y.mean()) / len(X))
        with fitted_head(model, ["classifier"], batches):
            scores = torch.cat([model(**each).logits.squeeze(-1) for each in batches])
    torch.testing.assert_close(scores, (X - mean) @ w + y.mean(), rtol=0, atol=1e-4)


def test_under_autocast_the_head_is_fitted_in_its_own_precision():
    model, batches = build("bert"), [batch(8, seed=seed) for seed in range(6)]
    with frozen_evaluation(model), torch.autocast("cpu", torch.bfloat16):
        dtypes = set()
        hook = model.classifier.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
        with fitted_head(model, ["classifier"], batches):
            hook.remove()
            assert dtypes == {torch.bfloat16, torch.float32}  # of the pass over the backbone, and of the fit
            lower = torch.cat([model(**each).logits for each in batches]).float()
    with frozen_evaluation(model), fitted_head(model, ["classifier"], batches):
        full = torch.cat([model(**each).logits for each in batches])
    torch.testing.assert_close(lower, full, rtol=0, atol=0.05)


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
