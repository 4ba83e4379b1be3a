"""What AdaLoRA wants of a training loop: PEFT leaves its schedule and its pruning to the caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import AdaLoraConfig, PeftModel
from torch import nn

from lorsa.methods.errors import MethodError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def set_schedule(config: AdaLoraConfig, total_steps: int | None) -> None:
    """Tell AdaLoRA how many updates there will be.

    Raises:
        MethodError: its phases do not fit into them.
    """
    if total_steps is None or config.tinit + config.tfinal >= total_steps:
        raise MethodError(
            f"AdaLoRA prunes between tinit={config.tinit} and tfinal={config.tfinal} updates before the end, "
            f"and the run has only {total_steps}; lower them or train longer."
        )
    config.total_step = total_steps


def after_update(model: nn.Module, step: int) -> None:
    """Prune, between the optimizer's step and the zeroing of the gradients; nothing on another method's model.

    Args:
        model: the adapted model.
        step: updates done, this one included.
    """
    if _is_adalora(model):
        _tuner(model).update_and_allocate(step)


def training_state(model: nn.Module) -> dict[str, Any]:
    """Return what is kept between updates besides parameters, for a checkpoint; empty for other methods."""
    if not _is_adalora(model):
        return {}
    tuner = _tuner(model)
    averages = {name: getattr(tuner.rankallocator, name) for name in _AVERAGES}
    return {**averages, "rank_pattern": tuner.peft_config["default"].rank_pattern}


def load_training_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `training_state` returned."""
    if state:
        tuner = _tuner(model)
        for name in _AVERAGES:
            setattr(tuner.rankallocator, name, state[name])
        tuner.peft_config["default"].rank_pattern = state["rank_pattern"]


def _is_adalora(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.active_peft_config, AdaLoraConfig)


def _tuner(model: nn.Module) -> Any:
    return model.base_model
