"""The small matrices of all adapted layers, computed once per forward pass, in a few calls and not a few per layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorsa.kernels import rotation_core, subspace_core

if TYPE_CHECKING:
    from lorsa.methods.lorsa.layer import LorsaLinear

Place = tuple["LorsaLinear", str]  # a layer and the name of one of its adapters


@dataclass(frozen=True)
class SharedCores:
    """A layer's matrices, and of which parameters they are.

    Args:
        cores: what `LorsaLinear.cores` returns.
        versions: how often each parameter had been written to.
        trained: whether a parameter required a gradient.
    """

    cores: tuple[Tensor, ...]
    versions: tuple[int, ...]
    trained: bool

    def serves(self, parameters: tuple[Tensor, ...]) -> bool:
        """Say whether these are the matrices of `parameters` as they are now, with a gradient if one is wanted."""
        return (
            self.versions == tuple(parameter._version for parameter in parameters)
            and self.trained == any(parameter.requires_grad for parameter in parameters)
            and (self.cores[0].requires_grad or not (self.trained and torch.is_grad_enabled()))
        )


@contextmanager
def share_cores(model: nn.Module, layers: list[LorsaLinear]) -> Iterator[None]:
    """Within, the active adapters of `layers` find their matrices computed.

    Not where a part of the model runs again in a backward pass of its own (reentrant checkpointing), which would go
    through the one computation once a part, nor under ZeRO-3, where a layer has its parameters in its own forward pass
    alone; there each layer computes its own.
    """
    checkpointed, reentrant = _checkpointing(model)
    if not reentrant:
        _compute(layers)
    try:
        yield
    finally:
        # Parts that run again in the backward pass must find what they found the first time; `serves` tells when it
        # is out of date.
        if not checkpointed:
            for layer in layers:
                layer.shared_cores.clear()


def _compute(layers: list[LorsaLinear]) -> None:
    turning: dict[tuple[int, torch.dtype, torch.device], list[Place]] = defaultdict(list)
    within: dict[tuple[int, torch.dtype, torch.device], list[Place]] = defaultdict(list)
    for layer in layers:
        layer.shared_cores.clear()
        if layer.disable_adapters or layer.merged:
            continue
        for adapter in layer.active_adapters:
            if adapter not in layer.lorsa_d:
                continue
            P = layer.lorsa_P_out[adapter]
            if P.shape[-1] == 0 or hasattr(P, "ds_id"):
                continue
            group = within if layer.form[adapter] == "subspace" else turning
            group[P.shape[1], P.dtype, P.device].append((layer, adapter))
    for places in turning.values():
        _share_rotations(places)
    for places in within.values():
        _share_subspaces(places)


def _share_rotations(places: list[Place]) -> None:
    parameters = [layer.core_parameters(adapter) for layer, adapter in places]
    # Each layer's two sides one after the other.
    P = [side for P_out, _, P_in, _, _ in parameters for side in (P_out, P_in)]
    Q = [side for _, Q_out, _, Q_in, _ in parameters for side in (Q_out, Q_in)]
    cores = rotation_core(torch.cat(P), torch.cat(Q), [len(side) for side in P]).unbind()
    for index, (layer, adapter) in enumerate(places):
        _hand_out(layer, adapter, cores[2 * index : 2 * index + 2], parameters[index])


def _share_subspaces(places: list[Place]) -> None:
    parameters = [layer.core_parameters(adapter) for layer, adapter in places]
    sizes = [len(d) for *_, d in parameters]
    P_out, Q_out, P_in, Q_in, d = (torch.cat(part) for part in zip(*parameters, strict=True))
    s = torch.cat([layer.lorsa_s[adapter] for layer, adapter in places])
    flat = subspace_core(P_out, Q_out, P_in, Q_in, s, d, sizes).split([k * k for k in sizes])
    for index, (layer, adapter) in enumerate(places):
        _hand_out(layer, adapter, (flat[index].view(sizes[index], sizes[index]),), parameters[index])


def _hand_out(layer: LorsaLinear, adapter: str, cores: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> None:
    versions = tuple(parameter._version for parameter in parameters)
    layer.shared_cores[adapter] = SharedCores(cores, versions, any(p.requires_grad for p in parameters))


def _checkpointing(model: nn.Module) -> tuple[bool, bool]:
    """Say whether parts of the model run again in the backward pass, and whether in one of their own."""
    functions = [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and module.training
    ]
    reentrant = any(
        not (isinstance(function, partial) and function.keywords.get("use_reentrant") is False)
        for function in functions
    )
    return bool(functions), reentrant
