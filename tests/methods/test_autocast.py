"""Under autocast a rotation stays a rotation, and step 0 stays the base model."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, logits
from torch import nn

from lorsa.kernels import rotation_difference
from lorsa.methods import LorsaConfig

FORMS = [("subspace", "selected"), ("ambient", "selected"), ("ambient", "all")]


def adapted(space: str, rotate: str) -> nn.Module:
    import peft

    config = LorsaConfig(target_modules=["query", "value"], k=4, r=1, space=space, rotate=rotate)
    return peft.get_peft_model(build("bert"), config).eval()


def test_a_rotation_is_orthogonal_to_float32():
    generator = torch.Generator().manual_seed(0)
    P, Q = (torch.randn(16, 2, generator=generator) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        R = torch.eye(16) + rotation_difference(P, Q)
    torch.testing.assert_close(R @ R.mT, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("space", "rotate"), FORMS)
def test_step_0_is_the_base_model_and_gradients_flow(space: str, rotate: str):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = logits(build("bert").eval())
        model = adapted(space, rotate)
        assert torch.equal(logits(model), base)
        ids = torch.randint(1, 20, (2, 6))
        model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        if "lorsa_P" in name or "lorsa_d" in name:
            assert parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0
