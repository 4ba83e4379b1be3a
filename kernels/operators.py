"""The compiled operators, `torch.ops.lorsa.*`, behind the signatures of reference.py.

Here is what the C++ does not do: leading dimensions, contiguity, dtypes that differ, and the shapes that torch.compile
and fake tensors ask for. Nothing here works before `library.load`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorsa.kernels.reference import Kind

KINDS: tuple[Kind, ...] = ("value", "own", "pair")


def rotation_core(P: Tensor, Q: Tensor, sizes: Sequence[int]) -> Tensor:
    """As `reference.rotation_core`."""
    return torch.ops.lorsa.rotation_core(_wide(P), _wide(Q), sizes)


def subspace_core(
    P_out: Tensor, Q_out: Tensor, P_in: Tensor, Q_in: Tensor, s: Tensor, d: Tensor, sizes: Sequence[int]
) -> Tensor:
    """As `reference.subspace_core`."""
    C, _, _ = torch.ops.lorsa.subspace_core(*map(_wide, (P_out, Q_out, P_in, Q_in, s, d)), sizes)
    return C


def thin_rotation(
    x: Tensor,
    P: Tensor,
    Q: Tensor,
    K: Tensor,
    offset: Tensor | None = None,
    inverse: bool = False,
    keep_output: bool = False,
) -> Tensor:
    """As `reference.thin_rotation`; what it sums, it sums in the dtype of `P`."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    P, Q, K = _wide(P), _wide(Q), _wide(K)
    offset = None if offset is None else offset.to(rows.dtype).contiguous()
    return torch.ops.lorsa.thin_rotation(rows, P, Q, K, offset, inverse, keep_output).view(x.shape)


def spectral_linear(
    base: Tensor | None,
    x: Tensor,
    U: Tensor,
    core: Tensor,
    V: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """As `reference.spectral_linear`; a `base` of another dtype than `x` is added to after the product."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    fused = base is not None and base.dtype == x.dtype
    start = base.reshape(-1, base.shape[-1]).contiguous() if base is not None and fused else None
    left, right = (None if side is None else side.contiguous() for side in (left, right))
    out, _ = torch.ops.lorsa.spectral_linear(start, rows, U.contiguous(), _wide(core), V.contiguous(), left, right)
    out = out.view(*x.shape[:-1], U.shape[0])
    return out if base is None or fused else base + out.to(base.dtype)


def component_sensitivity(left: Tensor, right: Tensor, s: Tensor, rows: Sequence[int], kind: Kind) -> Tensor:
    """As `reference.component_sensitivity`."""
    return torch.ops.lorsa.component_sensitivity(
        left.contiguous(), right.contiguous(), s.contiguous(), rows, KINDS.index(kind)
    )


def _wide(tensor: Tensor) -> Tensor:
    """Return it contiguous and in float32 at least, should somebody have cast a whole model to half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def register_fakes() -> None:
    """Tell torch the shapes and dtypes that every operator returns; once, after the library is loaded."""

    def fake(name: str, function: object) -> None:
        torch.library.register_fake(f"lorsa::{name}", function)  # type: ignore[arg-type]

    fake("rotation_core", _rotation_core)
    fake("rotation_core_backward", lambda grad_K, P, Q, K, sizes: (torch.empty_like(P), torch.empty_like(Q)))
    fake("subspace_core", _subspace_core)
    fake(
        "subspace_core_backward",
        lambda grad_C, P_out, Q_out, P_in, Q_in, s, d, K_out, K_in, sizes: tuple(
            map(torch.empty_like, (P_out, Q_out, P_in, Q_in, d))
        ),
    )
    fake("thin_rotation", lambda x, P, Q, K, offset, inverse, keep_output: torch.empty_like(x))
    fake("thin_rotation_backward", _thin_rotation_backward)
    fake("spectral_linear", _spectral_linear)
    fake("spectral_linear_backward", _spectral_linear_backward)
    fake("component_sensitivity", lambda left, right, s, rows, kind: torch.empty_like(s))


def _rotation_core(P: Tensor, Q: Tensor, sizes: Sequence[int]) -> Tensor:
    return P.new_empty(len(sizes), 2 * P.shape[1], 2 * P.shape[1])


def _subspace_core(
    P_out: Tensor, Q_out: Tensor, P_in: Tensor, Q_in: Tensor, s: Tensor, d: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    C = s.new_empty(sum(size * size for size in sizes))
    return C, _rotation_core(P_out, Q_out, sizes), _rotation_core(P_in, Q_in, sizes)


def _thin_rotation_backward(
    grad: Tensor, kept: Tensor, P: Tensor, Q: Tensor, K: Tensor, offset: Tensor | None, inverse: bool, kept_output: bool
) -> tuple[Tensor, ...]:
    doffset = P.new_empty(0 if offset is None else P.shape[0])
    return torch.empty_like(grad), torch.empty_like(P), torch.empty_like(Q), torch.empty_like(K), doffset


def _spectral_linear(
    base: Tensor | None, x: Tensor, U: Tensor, core: Tensor, V: Tensor, left: Tensor | None, right: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], U.shape[0]), x.new_empty(x.shape[0], core.shape[0])


def _spectral_linear_backward(
    grad: Tensor,
    z: Tensor,
    x: Tensor | None,
    U: Tensor,
    core: Tensor,
    V: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        grad.new_empty(grad.shape[0], V.shape[0]) if need_x else grad.new_empty(0),
        torch.empty_like(core),
        core.new_empty(0) if left is None else torch.empty_like(left),
        core.new_empty(0) if right is None else torch.empty_like(right),
    )
