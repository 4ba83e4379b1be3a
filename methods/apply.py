"""One entry for every method: a pretrained model and a config in, a model with few trainable parameters out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from peft import AdaLoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from lorsa.methods.adalora import set_schedule
from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.config import CALIBRATED, LorsaConfig
from lorsa.methods.lorsa.selection import select_components
from lorsa.methods.partitioned import size
from lorsa.methods.selected import SelectedConfig, save_selected, select_parameters
from lorsa.methods.targets import in_head, target_modules

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
    """Whether `select` wants calibration batches for this config."""
    return isinstance(config, LorsaConfig) and config.components is None and config.selection in CALIBRATED


def select(
    model: nn.Module,
    config: LorsaConfig,
    head: list[str],
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    head_is_fitted: bool = False,
) -> None:
    """Choose LoRSA's components, in `config`, unless it names them; `apply` does it where it is not done.

    Args:
        model: the pretrained model; left as it was.
        config: what to choose for.
        head: names of the modules that make up the head.
        calibration: batches with labels, where `needs_calibration(config)`.
        head_is_fitted: whether `fit_head` was here already; otherwise the head is fitted to `calibration` meanwhile.

    Raises:
        MethodError: the config does not fit the model.
    """
    name_head(config, head)
    if config.components is None:
        select_components(model, config, calibration, head_is_fitted)


def name_head(config: PeftConfig, head: list[str]) -> None:
    """Write to a config that the head trains whole, which also keeps it out of `target_modules="all-linear"`."""
    config.task_type = TaskType.SEQ_CLS
    asked = list(getattr(config, "modules_to_save", None) or ())
    config.modules_to_save = [*head, *(name for name in asked if name not in head)]  # type: ignore[attr-defined]


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
    total = sum(map(size, model.parameters()))
    if isinstance(config, SelectedConfig):
        model = select_parameters(model, config, head)
    else:
        name_head(config, head)  # before anything asks for the targets
        if config.is_prompt_learning:
            raise MethodError(f"{type(config).__name__} adds tokens to the text, after which a model pools elsewhere.")
        if getattr(config, "target_modules", None) is not None:
            targets = target_modules(model, config)
            _check_block_size(config, targets)
        if isinstance(config, LorsaConfig):
            select(model, config, head, calibration)
        if isinstance(config, AdaLoraConfig):
            set_schedule(config, total_steps)
        try:
            model = get_peft_model(model, config)
        except MethodError:
            raise
        except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
            # PEFT's own checks of a config against a model; their words name the module and the field.
            raise MethodError(f"{type(config).__name__} does not fit this model: {str(error).strip()}") from error
    trained = {name: size(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    head_params = sum(count for name, count in trained.items() if in_head(name, head))
    components = config.components if isinstance(config, LorsaConfig) else None
    return model, Report(sum(trained.values()) - head_params, head_params, total, components)


def _check_block_size(config: PeftConfig, targets: Mapping[str, nn.Module]) -> None:
    """Refuse what PEFT would change on its own: OFT takes the next block size that fits."""
    size = getattr(config, "oft_block_size", 0)
    for name, module in targets.items():
        width = getattr(module, "in_features", None)
        if size and width and width % size:
            raise MethodError(f"oft_block_size={size} does not divide the width {width} of {name}.")


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
