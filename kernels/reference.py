"""The operators in plain PyTorch: the definition every faster implementation is tested against.

Notation: a skew-symmetric matrix of rank 2r, A = P Q^T - Q P^T with P, Q (n, r), gives the rotation

    R = cayley(A) = (I - A/2)^-1 (I + A/2) = I + X K Y^T,
    X = [P, -Q],  Y = [Q, P],  K = (I - M/2)^-1,  M = Y^T X  (2r, 2r)

by the Woodbury identity, so no n x n matrix is formed or inverted. I - A/2 is always invertible, because A has purely
imaginary eigenvalues. Every function returns the *difference* to doing nothing (R - I, R x - x, ...): at P = 0 it is
exactly zero in floating point, which is what keeps an adapted model bit-identical to its base at step 0, and small
rotations lose no digits to cancellation.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def _as_given(operator: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Keep autocast out of an operator: in half precision a rotation is none, and there is no solve."""

    @wraps(operator)
    def without_autocast(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        device = next(value.device.type for value in args if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return operator(*args, **kwargs)

    return without_autocast


def _factors(P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    # Half precision has no solve and loses the orthogonality, should somebody have cast a whole model to it.
    dtype = torch.promote_types(P.dtype, torch.float32)
    P, Q = P.to(dtype), Q.to(dtype)
    return torch.cat([P, -Q], dim=-1), torch.cat([Q, P], dim=-1)


@_as_given
def cayley_core(P: Tensor, Q: Tensor) -> Tensor:
    """Return K = (I - Y^T X / 2)^-1, the small matrix of the rotation that P and Q describe.

    Args:
        P: (..., n, r); below float32 it is taken to float32. Leading dimensions are batched.
        Q: (..., n, r), same shape and dtype as `P`.

    Returns:
        (..., 2r, 2r), dtype of `P`, at least float32.
    """
    X, Y = _factors(P, Q)
    M = Y.mT @ X
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return torch.linalg.solve(eye - M / 2, eye.expand_as(M))


@_as_given
def rotation_difference(P: Tensor, Q: Tensor) -> Tensor:
    """Return R - I as a full matrix: for rotations of a small space, and for merging.

    Args:
        P: (..., n, r).
        Q: (..., n, r).

    Returns:
        (..., n, n) with `I + result` orthogonal of determinant 1.
    """
    X, Y = _factors(P, Q)
    return X @ cayley_core(P, Q) @ Y.mT


@_as_given
def thin_rotation_difference(x: Tensor, P: Tensor, Q: Tensor, inverse: bool = False) -> Tensor:
    """Return R x - x (or R^T x - x) for every row x, in two thin products.

    The products with `x` run in the dtype of `x`; the 2r x 2r core is solved and applied in the dtype of `P`.

    Args:
        x: (..., n), any floating dtype.
        P: (n, r), float32 or float64.
        Q: (n, r), same as `P`.
        inverse: turn by R^T, the inverse rotation.

    Returns:
        (..., n), dtype of `x`.
    """
    X, Y = _factors(P, Q)
    K = cayley_core(P, Q)
    # As row vectors: (R x)^T = x^T + x^T Y K^T X^T, and R^T swaps the two factors and transposes K.
    if inverse:
        X, Y, K = Y, X, K.mT
    inner = (x @ Y.to(x.dtype)).to(K.dtype) @ K.mT
    return inner.to(x.dtype) @ X.mT.to(x.dtype)


@_as_given
def subspace_difference(P_out: Tensor, Q_out: Tensor, P_in: Tensor, Q_in: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """Return C = R_out diag(s + d) R_in^T - diag(s), the update inside the selected subspace.

    Written as diag(d) + E_out D + D E_in^T + E_out D E_in^T with E = R - I and D = diag(s + d): nothing cancels.

    Args:
        P_out: (k, r), with `Q_out` the rotation of the left singular vectors.
        Q_out: (k, r).
        P_in: (k, r), with `Q_in` the rotation of the right singular vectors.
        Q_in: (k, r).
        s: (k,) selected singular values.
        d: (k,) their trained change.

    Returns:
        (k, k).
    """
    E_out, E_in = rotation_difference(P_out, Q_out), rotation_difference(P_in, Q_in)
    turned_out = E_out * (s + d)
    return torch.diag(d) + turned_out + (s + d)[:, None] * E_in.mT + turned_out @ E_in.mT


@_as_given
def spectral_linear(x: Tensor, U: Tensor, core: Tensor, V: Tensor) -> Tensor:
    """Return U C V^T x for every row x: the change that a spectral update makes to the output of a linear layer.

    Args:
        x: (..., n).
        U: (m, k), dtype of `x`.
        core: (k, k), or (k,) for a diagonal C; float32 or float64.
        V: (n, k), dtype of `x`.

    Returns:
        (..., m), dtype of `x`.
    """
    z = (x @ V).to(core.dtype)
    z = z * core if core.ndim == 1 else z @ core.mT
    return z.to(x.dtype) @ U.mT
