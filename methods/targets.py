"""Which modules of a model a PEFT config names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from torch import Tensor, nn

from lorsa.methods.errors import MethodError
from lorsa.methods.partitioned import shape

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def target_modules(model: nn.Module, config: PeftConfig) -> dict[str, nn.Module]:
    """Return the modules that `config.target_modules` matches, by name; adapted ones as what they wrap.

    `"all-linear"` is resolved in `config`, in place, as PEFT does it.

    Raises:
        MethodError: nothing matches; the message lists the linear modules that exist.
    """
    _maybe_include_all_linear_layers(config, model)
    found: dict[str, nn.Module] = {}
    linear: set[str] = set()
    for name, module in model.named_modules():
        inside_adapter = name.rpartition(".")[0] in found
        inside_head = ".modules_to_save." in name or ".original_module" in name
        if inside_adapter or inside_head:
            continue
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear):
            linear.add(name.rpartition(".")[2])
        try:
            matches = check_target_module_exists(config, name)
        except re.error as error:
            raise MethodError(f"target_modules is no regular expression: {error}.") from error
        if matches:
            found[name] = layer
    if not found:
        targets = getattr(config, "target_modules", None)
        asked = targets if isinstance(targets, str) else sorted(targets or ())
        raise MethodError(
            f"target_modules={asked} matches no module; linear modules are named {', '.join(sorted(linear))}."
        )
    return found


def in_head(name: str, head: Sequence[str]) -> bool:
    """Whether the parameter `name`, of the model before or after adaptation, belongs to one of the head's modules."""
    path = f".{name}"
    return any(f".{module}." in path for module in head)


def is_quantized(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is stored in other than plain floating-point numbers.

    bitsandbytes' layers are subclasses of `nn.Linear`; their weights give them away, by an integer or 8-bit dtype or by
    the shape they are packed in. torchao's are tensors of a class of their own, which look like plain ones.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or not isinstance(weight, Tensor) or weight.dtype not in FLOATS:
        return True
    if type(weight.data) is not Tensor or hasattr(weight, "quant_state"):
        return True
    return shape(weight) != (layer.out_features, layer.in_features)
