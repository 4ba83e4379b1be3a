"""One entry for every method: a pretrained model and a config in, a model with few trainable parameters out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.config import CALIBRATED, LorsaConfig
from lorsa.methods.lorsa.selection import select_components
from lorsa.methods.selected import SelectedConfig, save_selected, select_parameters
from lorsa.methods.targets import target_modules

MethodConfig = PeftConfig | SelectedConfig


@dataclass(frozen=True)
class Report:
    """What trains.

    Attributes:
        adapter_params: trained parameters without the head's; the number that PEFT papers give.
        head_params: trained parameters of the head.
        total_params: parameters of the base model, head included.
        components: for LoRSA, the selected components of each module.
    """

    adapter_params: int
    head_params: int
    total_params: int
    components: dict[str, list[int]] | None

    @property
    def trainable_params(self) -> int:
        """Everything that trains."""
        return self.adapter_params + self.head_params

    @property
    def trainable_percent(self) -> float:
        """Share of the base model's parameters, in percent."""
        return 100 * self.trainable_params / self.total_params


def needs_calibration(config: MethodConfig) -> bool:
    """Whether `apply` wants calibration batches for this config."""
    return isinstance(config, LorsaConfig) and config.components is None and config.selection in CALIBRATED


def apply(
    model: nn.Module,
    config: MethodConfig,
    head: list[str],
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    total_steps: int | None = None,
) -> tuple[nn.Module, Report]:
    """Adapt a sequence-classification model.

    Args:
        model: the pretrained model; changed in place.
        config: what to do to it.
        head: names of the modules that make up the head. They train, and are saved, under every method.
        calibration: batches with labels, where `needs_calibration(config)`.
        total_steps: updates that the training will take; AdaLoRA's schedule is made of them.

    Returns:
        The adapted model and what trains in it.

    Raises:
        MethodError: the config does not fit the model.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(config, SelectedConfig):
        model = select_parameters(model, config, head)
    else:
        # Before the selection, for which they keep the head out of `target_modules="all-linear"`.
        if getattr(config, "target_modules", None) is not None:
            target_modules(model, config)
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = list(head)
        if needs_calibration(config):
            select_components(model, config, calibration)
        if isinstance(config, AdaLoraConfig):
            if total_steps is None or config.tinit + config.tfinal >= total_steps:
                raise MethodError(
                    f"AdaLoRA prunes between tinit={config.tinit} and tfinal={config.tfinal} updates before the end, "
                    f"and the run has only {total_steps}; lower them or train longer."
                )
            config.total_step = total_steps
        try:
            model = get_peft_model(model, config)
        except MethodError:
            raise
        except (ValueError, TypeError) as error:
            # PEFT's own checks of a config against a model; their words name the module and the field.
            raise MethodError(f"{type(config).__name__} does not fit this model: {str(error).strip()}") from error
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    head_params = sum(count for name, count in trained.items() if in_head(name, head))
    components = config.components if isinstance(config, LorsaConfig) else None
    return model, Report(sum(trained.values()) - head_params, head_params, total, components)


def in_head(name: str, head: list[str]) -> bool:
    """Whether the parameter `name`, of the model before or after adaptation, belongs to one of the head's modules."""
    path = f".{name}"
    return any(f".{module}." in path for module in head)


def save(model: nn.Module, config: MethodConfig, folder: Path) -> None:
    """Write the trained adapter and head to `folder`, in PEFT's format where the method is PEFT's or ours."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder))
    else:
        assert isinstance(config, SelectedConfig)
        save_selected(model, config, folder)


def config_fields(target: type) -> list[str]:
    """Return the names of the arguments that a method's config class takes."""
    bookkeeping = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    accepted = inspect.signature(target).parameters
    return [field.name for field in fields(target) if field.name in accepted and field.name not in bookkeeping]


def after_update(model: nn.Module, step: int) -> None:
    """Do what a method does between the optimizer's step and the zeroing of the gradients.

    Args:
        model: the adapted model.
        step: updates done, this one included.
    """
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, AdaLoraConfig):
        model.base_model.update_and_allocate(step)


def training_state(model: nn.Module) -> dict[str, Any]:
    """Return what a method keeps between updates besides parameters and buffers, for a checkpoint."""
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, AdaLoraConfig):
        allocator = model.base_model.rankallocator
        averages = {name: getattr(allocator, name) for name in _ADALORA_AVERAGES}
        return {**averages, "rank_pattern": model.active_peft_config.rank_pattern}
    return {}


def load_training_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `training_state` returned."""
    if state:
        for name in _ADALORA_AVERAGES:
            setattr(model.base_model.rankallocator, name, state[name])
        model.active_peft_config.rank_pattern = state["rank_pattern"]


_ADALORA_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
