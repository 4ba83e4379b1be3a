"""The small matrices of all adapted layers, computed once per forward pass, in a few calls and not a few per layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorsa.kernels import rotation_core, subspace_core

if TYPE_CHECKING:
    from lorsa.methods.lorsa.layer import LorsaLinear

Place = tuple["LorsaLinear", str]  # a layer and the name of one of its adapters


def linear_core(P: Tensor) -> Tensor:
    """Return the core (2r, 2r) of R = I + A, which is the identity: A = P Q^T - Q P^T = [P, -Q] [Q, P]^T."""
    return torch.eye(2 * P.shape[1], dtype=P.dtype, device=P.device)


class SharedCores:
    """What one layer gets of the last `share_cores`, by adapter."""

    def __init__(self) -> None:
        self.cores: dict[str, tuple[Tensor, ...]] = {}
        self.active = False

    def get(self, adapter: str) -> tuple[Tensor, ...] | None:
        """Return an adapter's matrices within the forward pass that they were made for, or one that repeats it.

        A part of the model that is checkpointed runs again in the backward pass, and must find what it found before.
        """
        if torch.compiler.is_compiling() or adapter not in self.cores:
            return None
        in_backward = torch._C._current_graph_task_id() != -1
        if not (self.active or in_backward):
            return None
        if not torch.is_grad_enabled() and self.cores[adapter][0].requires_grad:
            # Reentrant checkpointing: this part will have a backward pass of its own, which would go through the one
            # computation once a part.
            del self.cores[adapter]
            return None
        return self.cores[adapter]


@contextmanager
def share_cores(layers: list[LorsaLinear]) -> Iterator[None]:
    """Within, the active adapters of `layers` find their matrices computed, if gradients are recorded.

    Each layer computes its own without gradients (a backward pass that needs what is shared may be to come), under
    torch.compile, and where a parameter is not there as a whole (ZeRO-3, FSDP). A layer that the forward pass skips
    gets gradients of zero in place of none.
    """
    sharing = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if sharing:
        _compute(layers)
    try:
        yield
    finally:
        if sharing:
            for layer in layers:
                layer.shared_cores.active = False


def _compute(layers: list[LorsaLinear]) -> None:
    turning: dict[tuple[int, torch.dtype, torch.device], list[Place]] = defaultdict(list)
    within: dict[tuple[int, torch.dtype, torch.device], list[Place]] = defaultdict(list)
    for layer in layers:
        if layer.disable_adapters or layer.merged:
            continue
        layer.shared_cores.cores.clear()
        layer.shared_cores.active = True
        for adapter in layer.active_adapters:
            if adapter not in layer.lorsa_d:
                continue
            P = layer.lorsa_P_out[adapter]
            if layer.linear[adapter] or P.shape[-1] == 0 or not all(map(_is_whole, layer.core_parameters(adapter))):
                continue
            group = within if layer.form[adapter] == "subspace" else turning
            group[P.shape[1], P.dtype, P.device].append((layer, adapter))
    for places in turning.values():
        _share_rotations(places)
    for places in within.values():
        _share_subspaces(places)


def _is_whole(parameter: Tensor) -> bool:
    """Say whether all of a parameter is here: ZeRO-3 and FSDP leave a placeholder, a shard or a DTensor."""
    return type(parameter.data) is Tensor and parameter.numel() > 0 and not hasattr(parameter, "ds_id")


def _share_rotations(places: list[Place]) -> None:
    parameters = [layer.core_parameters(adapter) for layer, adapter in places]
    # Each layer's two sides one after the other.
    P = [side for P_out, _, P_in, _, _ in parameters for side in (P_out, P_in)]
    Q = [side for _, Q_out, _, Q_in, _ in parameters for side in (Q_out, Q_in)]
    cores = rotation_core(torch.cat(P), torch.cat(Q), [len(side) for side in P]).unbind()
    for index, (layer, adapter) in enumerate(places):
        layer.shared_cores.cores[adapter] = cores[2 * index : 2 * index + 2]


def _share_subspaces(places: list[Place]) -> None:
    parameters = [layer.core_parameters(adapter) for layer, adapter in places]
    sizes = [len(d) for *_, d in parameters]
    P_out, Q_out, P_in, Q_in, d = (torch.cat(part) for part in zip(*parameters, strict=True))
    s = torch.cat([layer.lorsa_s[adapter] for layer, adapter in places])
    flat = subspace_core(P_out, Q_out, P_in, Q_in, s, d, sizes).split([k * k for k in sizes])
    for (layer, adapter), k, C in zip(places, sizes, flat, strict=True):
        layer.shared_cores.cores[adapter] = (C.view(k, k),)
