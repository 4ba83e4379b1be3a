"""Apply, save and load a `SelectedConfig`."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorsa.methods.errors import MethodError
from lorsa.methods.selected.config import SelectedConfig

CONFIG_FILE = "selected_config.json"
WEIGHTS_FILE = "selected_parameters.safetensors"


def select_parameters(model: nn.Module, config: SelectedConfig, head: list[str]) -> nn.Module:
    """Let the selected parameters and the head train, and nothing else; returns the model itself.

    Args:
        model: the model, changed in place.
        config: the selection.
        head: names of the modules that make up the head.

    Raises:
        MethodError: a pattern matches no parameter, or what it matches is of half precision.
    """
    names = [name for name, _ in model.named_parameters()]
    matched = {pattern: fnmatch.filter(names, pattern) for pattern in config.parameters}
    if not any(matched.values()) and config.fallback:
        matched = {pattern: fnmatch.filter(names, pattern) for pattern in config.fallback}
    for pattern, found in matched.items():
        if not found:
            raise MethodError(
                f"parameters: '{pattern}' matches no parameter of the model; there are for example "
                f"{', '.join(names[:4])}."
            )
    selected = {name for found in matched.values() for name in found}
    for name, parameter in model.named_parameters():
        in_head = any(name.startswith(f"{module}.") for module in head)
        if name in selected and not in_head and parameter.dtype in (torch.bfloat16, torch.float16):
            raise MethodError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}, in which most updates round to nothing; "
                "load the model in float32 to train its own parameters."
            )
        parameter.requires_grad_(in_head or name in selected)
    return model


def save_selected(model: nn.Module, config: SelectedConfig, folder: Path) -> None:
    """Write the trained parameters and the selection to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file({name: tensor.contiguous() for name, tensor in trained.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=2))


def load_selected(model: nn.Module, folder: Path) -> nn.Module:
    """Put the parameters saved in `folder` into `model`, the same base model; returns the model itself.

    Raises:
        MethodError: the folder's parameters are not the model's.
    """
    trained = load_file(folder / WEIGHTS_FILE)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in trained.items():
        if name in shapes and tensor.shape != shapes[name]:
            raise MethodError(
                f"{folder} holds {name} with shape {tuple(tensor.shape)}; the model's has shape {tuple(shapes[name])}."
            )
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise MethodError(f"{folder} holds parameters that the model lacks: {', '.join(sorted(unexpected)[:3])}.")
    return model
