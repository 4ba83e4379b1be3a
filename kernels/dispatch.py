"""Which implementation of the operators is in use: the compiled one where it is built, else the reference.

The environment variable LORSA_KERNELS says otherwise: auto (the default), reference, built (an error where nothing is
built) or jit (built at the first use). The choice is made once a process and kind of device, when an operator is first
wanted, and logged. The CUDA kernels turn with a rank of at most MAX_CUDA_RANK; above it the reference does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorsa.kernels import operators, reference
from lorsa.kernels.library import COMMAND, KernelError, choose, covers, cpu_capability, load
from lorsa.kernels.reference import Kind

MAX_CUDA_RANK = 32  # kMaxRank in csrc/cuda/launch.h

log = logging.getLogger(__name__)
_DEMANDS = ("built", "jit")
_library: list[Path | None] = []
_compiled: dict[str, bool] = {}


def implementation(device: str = "cpu", rank: int = 0) -> str:
    """Return what computes the operators on that type of device, in a few words; chosen now if it was not yet.

    Args:
        device: cpu, cuda, …
        rank: of the rotations.

    Raises:
        KernelError: LORSA_KERNELS asks for what cannot be had.
    """
    if not _is_compiled(device, rank):
        return "reference (PyTorch)"
    return f"C++ ({cpu_capability()})" if device == "cpu" else device.upper()


def _is_compiled(device: str, rank: int = 0) -> bool:
    if device not in _compiled:
        setting = os.environ.get("LORSA_KERNELS", "")
        if not _library:
            # One library serves a process; where the CPU's operators come first, no GPU is asked yet.
            path = choose(setting, capability=torch.cuda.get_device_capability() if device == "cuda" else None)
            if path is not None:
                load(path)
                operators.register_fakes()
            _library.append(path)
        key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
        compiled = _library[0] is not None and key is not None and _has_kernel(key, _library[0])
        if setting in _DEMANDS and key is not None and not compiled:
            raise KernelError(f"LORSA_KERNELS={setting}, but what is built has no kernels for {key}: {COMMAND} --cuda")
        _compiled[device] = compiled
        log.info("LoRSA's operators on %s: %s", device, implementation(device))
    if device == "cuda" and rank > MAX_CUDA_RANK and _compiled[device]:
        if os.environ.get("LORSA_KERNELS") in _DEMANDS:
            raise KernelError(
                f"the CUDA kernels turn with rank r of at most {MAX_CUDA_RANK}, not {rank}; with LORSA_KERNELS=auto "
                "the reference does."
            )
        return False
    return _compiled[device]


def _has_kernel(key: str, library: Path) -> bool:
    if key == "CUDA" and not covers(library, torch.cuda.get_device_capability()):
        return False
    # Asked of this one because spectral_linear is made of torch's own products, and is there on every device.
    return torch._C._dispatch_has_kernel_for_dispatch_key("lorsa::thin_rotation", key)


def rotation_core(P: Tensor, Q: Tensor, sizes: Sequence[int]) -> Tensor:
    """See `lorsa.kernels.reference.rotation_core`."""
    module = operators if _is_compiled(P.device.type, P.shape[1]) else reference
    return module.rotation_core(P, Q, sizes)


def subspace_core(
    P_out: Tensor, Q_out: Tensor, P_in: Tensor, Q_in: Tensor, s: Tensor, d: Tensor, sizes: Sequence[int]
) -> Tensor:
    """See `lorsa.kernels.reference.subspace_core`."""
    module = operators if _is_compiled(s.device.type, P_out.shape[1]) else reference
    return module.subspace_core(P_out, Q_out, P_in, Q_in, s, d, sizes)


def thin_rotation(
    x: Tensor,
    P: Tensor,
    Q: Tensor,
    K: Tensor,
    offset: Tensor | None = None,
    inverse: bool = False,
    keep_output: bool = False,
) -> Tensor:
    """See `lorsa.kernels.reference.thin_rotation`."""
    module = operators if _is_compiled(x.device.type, P.shape[1]) else reference
    return module.thin_rotation(x, P, Q, K, offset, inverse, keep_output)


def spectral_linear(
    base: Tensor | None,
    x: Tensor,
    U: Tensor,
    core: Tensor,
    V: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """See `lorsa.kernels.reference.spectral_linear`."""
    module = operators if _is_compiled(x.device.type) else reference
    return module.spectral_linear(base, x, U, core, V, left, right)


def component_sensitivity(left: Tensor, right: Tensor, s: Tensor, rows: Sequence[int], kind: Kind) -> Tensor:
    """See `lorsa.kernels.reference.component_sensitivity`."""
    module = operators if _is_compiled(left.device.type) else reference
    return module.component_sensitivity(left, right, s, rows, kind)
