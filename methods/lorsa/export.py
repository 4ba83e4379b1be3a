"""From LoRSA to a LoRA adapter that PEFT loads on its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.config import LorsaConfig
from lorsa.methods.lorsa.layer import LorsaLinear
from lorsa.methods.lorsa.low_rank import LowRank, low_rank_difference


@dataclass(frozen=True)
class LoraExport:
    """A LoRA adapter in PEFT's terms.

    Attributes:
        config: scaling is 1 everywhere: lora_alpha = r, also where `rank_pattern` has another r.
        state: the tensors of adapter_model.safetensors by their names there, the trained head included.
        ranks: {module name: rank} of every module that LoRSA adapts; a module of rank 0 has no LoRA.
        relative_error: Frobenius norm of all that a `rank` cut off, over that of all differences; 0 without one.
    """

    config: LoraConfig
    state: dict[str, Tensor]
    ranks: dict[str, int]
    relative_error: float

    def save(self, folder: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors to `folder`."""
        self.config.save_pretrained(str(folder))
        save_file(self.state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def lorsa_to_lora(model: PeftModel, adapter: str | None = None, rank: int | None = None) -> LoraExport:
    """Return LoRSA's difference to the base model as a LoRA adapter; the model is left as it is.

    Args:
        model: a model with LoRSA adapters.
        adapter: name of the adapter; default, the active ones, whose differences add up.
        rank: keep at most so many directions per module, the best in the Frobenius norm; default, all there are. What
            is zero to float64 is never kept.

    Returns:
        Tensors in the dtype of the base weights, or in float32 where that is of half precision, on the CPU.

    Raises:
        MethodError: no such adapter, one that is not LoRSA, values that are not finite, or a quantised base weight.
    """
    if rank is not None and rank < 1:
        raise MethodError(f"LoRA has a rank of at least 1; asked for {rank}.")
    adapters = model.active_adapters if adapter is None else [adapter]
    configs = [_lorsa_config(model, name) for name in adapters]
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LorsaLinear)}
    parts: dict[str, LowRank] = {}
    for name, layer in layers.items():
        present = [each for each in adapters if each in layer.lorsa_d]
        if present:
            parts[name] = low_rank_difference(layer, present, name, rank)
    ranks = {name: part.rank for name, part in parts.items()}
    if not any(ranks.values()):
        # PEFT knows no adapter without a module: one of them gets a LoRA of zeros.
        name, part = next(iter(parts.items()))
        parts[name] = LowRank(part.B.new_zeros(len(part.B), 1), part.A.new_zeros(1, part.A.shape[1]), 0.0, 0.0)
    kept = {name: part for name, part in parts.items() if part.rank}

    state = {}
    for name, part in kept.items():
        dtype = torch.promote_types(layers[name].get_base_layer().weight.dtype, torch.float32)  # type: ignore[arg-type]
        for side in ("A", "B"):
            state[f"base_model.model.{name}.lora_{side}.weight"] = getattr(part, side).to("cpu", dtype).contiguous()
    for each in adapters:
        saved = get_peft_model_state_dict(model, adapter_name=each)
        state |= {key: tensor.detach().cpu().clone() for key, tensor in saved.items() if ".lorsa_" not in key}
    config = _lora_config(configs, {name: part.rank for name, part in kept.items()})
    norm, cut = (sum(getattr(part, of) ** 2 for part in parts.values()) ** 0.5 for of in ("norm", "cut"))
    return LoraExport(config, state, ranks, cut / norm if norm else 0.0)


def _lorsa_config(model: PeftModel, name: str) -> LorsaConfig:
    if name not in model.peft_config:
        raise MethodError(f"There is no adapter '{name}'; the model has {', '.join(model.peft_config)}.")
    config = model.peft_config[name]
    if not isinstance(config, LorsaConfig):
        raise MethodError(f"Adapter '{name}' is {type(config).__name__}; only LoRSA adapters are made LoRA.")
    return config


def _lora_config(configs: list[LorsaConfig], ranks: dict[str, int]) -> LoraConfig:
    """Return the config of a LoRA with these ranks, on the base and with the head of the LoRSA configs."""
    # The rank that most modules have; the others are listed.
    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != r}
    head = list(dict.fromkeys(module for config in configs for module in config.modules_to_save or ()))
    return LoraConfig(
        task_type=configs[0].task_type,
        base_model_name_or_path=configs[0].base_model_name_or_path,
        revision=configs[0].revision,
        inference_mode=True,
        target_modules=list(ranks),
        modules_to_save=head or None,
        r=r,
        lora_alpha=r,
        rank_pattern=others,
        alpha_pattern=dict(others),
        lora_dropout=0.0,
    )
