"""A PEFT model made plain: the adapter's difference in the weights, the trained modules in their places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from lorsa.methods.errors import MethodError

_UNLOAD = "unload_and_optionally_merge_module"


@torch.no_grad()
def merge_adapter(model: PeftModel, rows: Mapping[str, Tensor]) -> nn.Module:
    """Return the base model with the active adapters merged into it; `model` itself is used up.

    PEFT's `merge_and_unload` fails on a classification head of several layers for most of its methods. This goes
    through the same layers, calls their own `merge`, and puts the trained modules in place of their wrappers.

    Args:
        model: any PEFT model, in evaluation mode.
        rows: keyword arguments of `model.forward`. Merging must leave the answers to them as they are, to about half
            the digits of the weights; the other half is room for what it rounds.

    Raises:
        MethodError: PEFT has no merge for the method, or refuses it, or it would change the answers.
    """
    method = type(model.active_peft_config).__name__.removesuffix("Config")
    if not isinstance(model.base_model, BaseTuner):
        raise MethodError(f"PEFT cannot merge {method}: it changes more than weights.")
    base = model.get_base_model()
    before = model(**rows).logits
    try:
        model.base_model._check_merge_allowed()  # type: ignore[no-untyped-call]
        _merge_children(base)
    except MethodError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or "its layers have no merge."
        raise MethodError(f"PEFT cannot merge {method}: {reason}") from error
    if hasattr(base, "peft_config"):
        del base.peft_config
    after = base(**rows).logits
    precision = max(torch.finfo(parameter.dtype).eps for parameter in base.parameters())
    change = ((after - before).abs().max() / before.abs().max().clamp(min=1.0)).item()
    if not change <= 4 * precision**0.5:
        raise MethodError(
            f"PEFT's merge of {method} changes the model's answers, by up to {change:.1g} of the largest."
        )
    return base


def _merge_children(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        if hasattr(child, _UNLOAD):
            # Trained modules, and layers that are not put back by taking the base layer alone.
            plain = getattr(child, _UNLOAD)(merge=True, safe_merge=True, adapter_names=None)
            setattr(parent, name, plain)
        elif isinstance(child, BaseTunerLayer):
            child.merge(safe_merge=True)
            setattr(parent, name, child.get_base_layer())
        else:
            _merge_children(child)
