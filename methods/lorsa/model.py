"""The LoRSA tuner: PEFT's interface around `LorsaLinear`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.budget import resolve_budget
from lorsa.methods.lorsa.config import CALIBRATED, PEFT_TYPE, PREFIX, LorsaConfig
from lorsa.methods.lorsa.cores import share_cores
from lorsa.methods.lorsa.layer import LorsaLinear
from lorsa.methods.lorsa.selection import select_components, target_layers


class LorsaModel(BaseTuner):
    """A model whose target modules carry LoRSA adapters; made by `peft.get_peft_model(model, LorsaConfig(...))`.

    Args:
        model: the model to adapt, in place.
        config: a `LorsaConfig`.
        adapter_name: name of the adapter.

    Raises:
        MethodError: the configuration does not fit the model, or its selection needs gradients and
            `select_components` was not called.
    """

    prefix = PREFIX
    tuner_layer_cls = LorsaLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the adapted model; the layers' small matrices are computed first, all together."""
        layers = [module for module in self.model.modules() if isinstance(module, LorsaLinear)]
        with share_cores(layers):
            return super().forward(*args, **kwargs)

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        config = cast(LorsaConfig, peft_config)
        # Of PEFT's hooks before the injection this is the one that runs for every adapter, not the first alone.
        if any(isinstance(module, LorsaLinear) and module.merged for module in model.modules()):
            raise MethodError("LoRSA: unmerge the adapters before adding one; its basis is that of the base weights.")
        resolve_budget(model, config)
        if config.components is None:
            if config.selection in CALIBRATED:
                raise MethodError(
                    f"LoRSA: selection={config.selection} ranks components by gradients: call "
                    "lorsa.methods.select_components(model, config, batches) before get_peft_model, or use "
                    "selection='principal'."
                )
            select_components(model, config)
        else:
            target_layers(model, config)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = cast(LorsaConfig, peft_config)
        components = config.components or {}
        if current_key not in components:
            raise MethodError(
                f"LoRSA: no components are given for the target module {current_key}; `components` names "
                f"{', '.join(sorted(components)[:3])}…"
            )
        if not components[current_key] and config.rotate == "selected":
            return  # a global allocation gave this module nothing to train
        if isinstance(target, LorsaLinear):
            target.update_layer(adapter_name, config, current_key)
            return
        layer = LorsaLinear(cast(nn.Linear, target), adapter_name, config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # BaseTuner copies `.weight` from what it replaces, which a classification head of several layers lacks.
        if isinstance(child, AuxiliaryTrainingWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a tied weight: PEFT warns of one by the module's name, and merges.

        Raises:
            MethodError: another module has the same weight, and would change with it.
        """
        owners = defaultdict(list)
        for name, module in self.model.named_modules(remove_duplicate=False):  # one module may have two names
            for parameter in module.parameters(recurse=False):
                owners[parameter].append(name.removesuffix(".base_layer"))
        for module in self.model.modules():
            if isinstance(module, LorsaLinear):
                first, *others = owners[cast(nn.Linear, module.get_base_layer()).weight]
                if others:
                    raise MethodError(
                        f"LoRSA: {first} and {', '.join(others)} share one weight, and merging would change both; "
                        "load the model untied, or leave the adapter unmerged."
                    )
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave dtypes alone: what trains is float32 from the start, and U_S, V_S keep the dtype of the weight."""


def register() -> None:
    """Make PEFT know LoRSA, so that `get_peft_model` and `PeftModel.from_pretrained` work as for its own methods.

    `peft.utils.register_peft_method` takes only the members of PEFT's own enumeration, hence the mappings.
    """
    key = cast(PeftType, PEFT_TYPE)
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = LorsaConfig
    PEFT_TYPE_TO_TUNER_MAPPING[key] = LorsaModel
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = LorsaModel.prefix
