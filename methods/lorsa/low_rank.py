"""W' - W of an adapted layer as a product of two thin matrices.

Each form's difference is a sum of such products: with R = I + X G^T, X and G of 2r columns,

- subspace: U_S C V_S^T, of rank at most k;
- selected: U_S (V_S diag(d) + dV diag(s + d))^T + X_out (V' diag(s + d) U_S^T G_out)^T, with dV = X_in G_in^T V_S and
  V' = V_S + dV: at most k + 2r, and never more than 2k;
- all: U_S diag(d) V_S^T + X_out (R_in T^T G_out)^T + (T G_in) X_in^T with T = W + U_S diag(d) V_S^T: at most k + 4r.

So no decomposition of an m x n matrix is needed. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorsa.kernels import cayley_core, subspace_difference
from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.cores import linear_core
from lorsa.methods.lorsa.layer import LorsaLinear
from lorsa.methods.targets import is_quantized


@dataclass(frozen=True)
class LowRank:
    """A low-rank matrix B A, and what was cut from it.

    Attributes:
        B: (m, r) float64.
        A: (r, n) float64.
        norm: Frobenius norm before the cut.
        cut: Frobenius norm of what was cut.
    """

    B: Tensor
    A: Tensor
    norm: float
    cut: float

    @property
    def rank(self) -> int:
        """How many directions are left; zero for the zero matrix."""
        return len(self.A)


@torch.no_grad()
def low_rank_difference(layer: LorsaLinear, adapters: Iterable[str], name: str, rank: int | None = None) -> LowRank:
    """Return the sum of some adapters' W' - W of one layer as B A, with as few directions as it has.

    Args:
        layer: the adapted layer.
        adapters: names of adapters that it has.
        name: what to call it in an error.
        rank: keep at most so many directions.

    Raises:
        MethodError: the base weight is quantised, or the adapter holds values that are not finite.
    """
    if is_quantized(layer.get_base_layer()):
        raise MethodError(f"LoRSA: the base weight of {name} is quantised; load the model in floating point.")
    thin = [_difference(layer, adapter) for adapter in adapters]
    left, right = torch.cat([B for B, _ in thin], dim=1), torch.cat([A for _, A in thin], dim=1)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise MethodError(f"LoRSA: the adapter on {name} holds NaN or infinite values; it was not loaded, or diverged.")
    return _compressed(left, right, rank)


def _difference(layer: LorsaLinear, adapter: str) -> tuple[Tensor, Tensor]:
    """Return thin float64 factors (m, p) and (n, p) of one adapter's W' - W, p as at the top of this module."""
    P_out, Q_out, P_in, Q_in, U, s, V, d = (
        getattr(layer, f"lorsa_{part}")[adapter].to(torch.float64)
        for part in ("P_out", "Q_out", "P_in", "Q_in", "U", "s", "V", "d")
    )
    if layer.form[adapter] == "subspace":
        return U @ subspace_difference(P_out, Q_out, P_in, Q_in, s, d), V
    linear = layer.linear[adapter]
    (X_out, G_out), (X_in, G_in) = _thin_rotation(P_out, Q_out, linear), _thin_rotation(P_in, Q_in, linear)
    if layer.form[adapter] == "selected":
        dV = X_in @ (G_in.mT @ V)
        far = ((V + dV) * (s + d)) @ (U.mT @ G_out)
        return torch.cat([U, X_out], dim=1), torch.cat([V * d + dV * (s + d), far], dim=1)
    W = layer._original_weight().to(torch.float64)
    far = W.mT @ G_out + (V * d) @ (U.mT @ G_out)
    far = far + X_in @ (G_in.mT @ far)
    near = W @ G_in + (U * d) @ (V.mT @ G_in)
    return torch.cat([U * d, X_out, near], dim=1), torch.cat([V, far, X_in], dim=1)


def _thin_rotation(P: Tensor, Q: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Return X and G (n, 2r) with cayley(A), or I + A where it is `linear`, = I + X G^T; A = P Q^T - Q P^T."""
    K = linear_core(P) if linear else cayley_core(P, Q)
    return torch.cat([P, -Q], dim=1), torch.cat([Q, P], dim=1) @ K.mT


def _compressed(left: Tensor, right: Tensor, rank: int | None) -> LowRank:
    """Return left right^T, (m, p) times (p, n), in its singular directions, without those that are zero to float64."""
    near, R_near = torch.linalg.qr(left)
    far, R_far = torch.linalg.qr(right)
    U, s, Vh = torch.linalg.svd(R_near @ R_far.mT)
    # Rounding errors are relative to the factors: two large parts of a difference may cancel.
    noise = torch.finfo(s.dtype).eps * max(len(left), len(right)) * R_near.norm() * R_far.norm()
    count = int((s > noise).sum())
    kept = count if rank is None else min(rank, count)
    root = s[:kept].sqrt()
    return LowRank(
        B=near @ (U[:, :kept] * root),
        A=(root[:, None] * Vh[:kept]) @ far.mT,
        norm=s[:count].norm().item(),
        cut=s[kept:count].norm().item(),
    )
