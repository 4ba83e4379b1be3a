"""A model held still, to be looked at before it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_evaluation(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode, keeps no keys and values, and no parameter requires a gradient."""
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval().requires_grad_(False)
        if config is not None and use_cache:
            config.use_cache = False
        yield
    finally:
        if config is not None and use_cache:
            config.use_cache = use_cache
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
