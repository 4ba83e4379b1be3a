"""The singular value decomposition of a weight, exact, with a fixed sign convention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorsa.methods.errors import MethodError


@dataclass(frozen=True)
class Basis:
    """W = U diag(s) V^T, or the part of it that belongs to some components.

    Attributes:
        U: (m, k) left singular vectors as columns.
        s: (k,) singular values, descending in a full basis.
        V: (n, k) right singular vectors as columns.
    """

    U: Tensor
    s: Tensor
    V: Tensor

    def to(self, dtype: torch.dtype) -> Basis:
        """Return the basis in another dtype."""
        return Basis(self.U.to(dtype), self.s.to(dtype), self.V.to(dtype))

    def select(self, indices: list[int]) -> Basis:
        """Return the components with these indices, in this order, as tensors of their own."""
        index = torch.tensor(indices, dtype=torch.long, device=self.s.device)
        return Basis(self.U.index_select(1, index), self.s.index_select(0, index), self.V.index_select(1, index))


@torch.no_grad()
def singular_basis(weight: Tensor, name: str = "weight") -> Basis:
    """Return all min(m, n) components of `weight` in float64.

    The eigenvectors of the smaller Gram matrix give one side; the product of the weight with them, orthonormalised
    by QR, gives the other side and the values. On a CPU this takes a fraction of a full SVD's time. QR rather than a
    division by s keeps the far side orthonormal for zero and tiny singular values, where the division would not. In
    float64 a value is right to about 1e-16 s_1^2 / s: to eight digits for any s above 1e-4 s_1, and within about
    1e-8 s_1 always.

    Signs: the entry of largest magnitude in each column of the smaller side (U when m <= n) is positive.

    Args:
        weight: (m, n), any floating dtype.
        name: what to call the weight in an error.

    Raises:
        MethodError: the weight is not a finite matrix.
    """
    if weight.ndim != 2:
        raise MethodError(f"{name} has {weight.ndim} dimensions; LoRSA decomposes matrices.")
    W = weight.detach().to(torch.float64)
    if not torch.isfinite(W).all():
        raise MethodError(f"{name} has NaN or infinite entries; it has no singular value decomposition.")
    tall = W.shape[0] > W.shape[1]
    if tall:
        W = W.mT
    _, near = torch.linalg.eigh(W @ W.mT)
    near = near.flip(-1)
    far, R = torch.linalg.qr(W.mT @ near)
    s = R.diagonal().clone()
    pivot = near.gather(0, near.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(pivot < 0, -1.0, 1.0).to(near.dtype)
    near = near * sign
    far = far * torch.where(s < 0, -sign, sign)
    U, V = (far, near) if tall else (near, far)
    return Basis(U.contiguous(), s.abs(), V.contiguous())
