"""The singular value decomposition of a weight, exact, with a fixed sign convention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lorsa.methods.errors import MethodError

# What `singular_basis` returns for a given weight: to be raised whenever its results change, since caches outlive it.
ALGORITHM_VERSION = 1

# Components below this fraction of the largest are decomposed again, from what the larger ones leave.
_RESOLVED = 0.1


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
        """Return the components with these indices, in this order, as contiguous tensors of their own."""
        index = torch.tensor(indices, dtype=torch.long, device=self.s.device)
        # In a full basis a component lies in one piece, a row of the transpose: the others are not read.
        U, V = (part.mT.index_select(0, index).mT.contiguous() for part in (self.U, self.V))
        return Basis(U, self.s.index_select(0, index), V)


@torch.no_grad()
def singular_basis(weight: Tensor, name: str = "weight") -> Basis:
    """Return all min(m, n) components of `weight`, in float64 for a float64 weight and in float32 for any other.

    The eigenvectors of the smaller Gram matrix are one side; the weight's product with them, orthonormalised by QR, is
    the other side and the values. Alone this is right to eps s_1^2 / s for a value s, hence resolves nothing below
    sqrt(eps) s_1 (Golub and Van Loan, Matrix Computations, 4th ed., section 8.6).
    So the components below s_1 / 10 are decomposed again, in the basis found so far: there the Gram matrix of what
    is left has its own, smaller norm. This is repeated until less than sqrt(eps) s_1 is left. With eps = 1.2e-7 in
    float32 and 2.2e-16 in float64, and up to 4096 x 11008:

    - values are right to about 10 eps s_1, zero ones among them, however ill-conditioned the weight;
    - U diag(s) V^T is the weight to about 70 eps s_1 in spectral norm;
    - U and V are orthonormal to about 50 eps, entry by entry, for zero and repeated values too;
    - a vector is LAPACK's, up to its sign, to about 50 eps s_1 / (the distance of its value to the next one).

    Signs: the entry of largest magnitude in each column of the smaller side (U when m <= n) is positive. TF32 and
    autocast, where they are on, do not touch the computation.

    Args:
        weight: (m, n), any floating dtype, any device; the basis is computed and returned there.
        name: what to call the weight in an error.

    Raises:
        MethodError: the weight is not a finite matrix of floating-point numbers in memory.
    """
    dtype = check_decomposable(weight, name)
    W = weight.detach().to(dtype)
    lowest, highest = W.aminmax()
    size = torch.maximum(-lowest, highest)
    if not torch.isfinite(size):
        raise MethodError(f"{name} has NaN or infinite entries; it has no singular value decomposition.")
    # Squares of unscaled entries could leave the range of the dtype.
    size = torch.where(size > 0, size, 1)
    tall = W.shape[0] > W.shape[1]
    with _full_precision(W.device):
        near, s, far = _decompose((W.mT if tall else W) / size)
    U, V = (far, near) if tall else (near, far)
    return Basis(U.mT, s * size, V.mT)


def check_decomposable(weight: Tensor, name: str) -> torch.dtype:
    """Return the dtype of a weight's basis.

    Raises:
        MethodError: what the weight is rules a decomposition out, whatever its values.
    """
    if weight.ndim != 2:
        raise MethodError(f"{name} has {weight.ndim} dimensions; LoRSA decomposes matrices.")
    if weight.numel() == 0:
        raise MethodError(f"{name} is {weight.shape[0]} x {weight.shape[1]} and has no entries to decompose.")
    if weight.is_meta:
        raise MethodError(f"{name} is on the meta device and has no values; load the model before adapting it.")
    if not weight.is_floating_point():
        raise MethodError(
            f"{name} holds {str(weight.dtype).removeprefix('torch.')}, as quantised weights do; LoRSA decomposes "
            "floating-point weights."
        )
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _decompose(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U^T (m, m), s (m,) descending and V^T (m, n), with components as rows, of a wide W (m, n), m <= n."""
    eps = torch.finfo(W.dtype).eps
    near = _eigenvectors(W @ W.mT)
    far = near @ W  # rows s_i v_i
    start = 0
    while True:
        s = torch.linalg.vector_norm(far, dim=1)
        start += int((s[start:] > _RESOLVED * s[start]).sum())
        if start == len(s) or s[start:].max() <= 10 * eps * s[0]:
            break  # what is left are rounding errors, or nothing
        turn = _eigenvectors(far[start:] @ far[start:].mT)
        near[start:] = turn @ near[start:]
        far[start:] = turn @ far[start:]
        if s[start] <= eps**0.5 * s[0]:
            break
    # Dividing by s would do for large values; QR gives an orthonormal side for tiny and zero ones too.
    far, R = torch.linalg.qr(far.mT)
    s, order = R.diagonal().abs().sort(descending=True, stable=True)
    pivot = near.gather(1, near.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    sign = torch.where(pivot < 0, -1, 1)[order]
    far_sign = torch.where(R.diagonal()[order] < 0, -sign, sign)
    return near[order] * sign[:, None], s, far.mT[order] * far_sign[:, None]


def _eigenvectors(G: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric (k, k) matrix as rows, those of the largest eigenvalues first."""
    return torch.linalg.eigh(G)[1].mT.flip(0)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
