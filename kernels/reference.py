"""The operators in plain PyTorch: the definition every faster implementation is tested against.

Notation: a skew-symmetric matrix of rank 2r, A = P Q^T - Q P^T with P, Q (n, r), gives the rotation

    R = cayley(A) = (I - A/2)^-1 (I + A/2) = I + X K Y^T,
    X = [P, -Q],  Y = [Q, P],  K = (I - M/2)^-1,  M = Y^T X  (2r, 2r)

by the Woodbury identity, so no n x n matrix is formed or inverted. I - A/2 is always invertible, because A has purely
imaginary eigenvalues. The rotations are summed as the *difference* to doing nothing (R - I, R x - x, ...): at P = 0 it
is exactly zero in floating point, which is what keeps an adapted model bit-identical to its base at step 0, and small
rotations lose no digits to cancellation.

`rotation_core` and what follows it exist in C++ and CUDA as well (operators.py). What comes before is for analysis,
export and merging.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Literal, ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Kind = Literal["value", "own", "pair"]


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
def thin_rotation_difference(x: Tensor, P: Tensor, Q: Tensor, inverse: bool = False, K: Tensor | None = None) -> Tensor:
    """Return R x - x (or R^T x - x) for every row x, in two thin products.

    The products with `x` run in the dtype of `x`; the 2r x 2r core is solved and applied in the dtype of `P`.

    Args:
        x: (..., n), any floating dtype.
        P: (n, r), float32 or float64.
        Q: (n, r), same as `P`.
        inverse: turn by R^T, the inverse rotation.
        K: (2r, 2r), the core; default, the rotation's.

    Returns:
        (..., n), dtype of `x`.
    """
    X, Y = _factors(P, Q)
    K = cayley_core(P, Q) if K is None else K
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
def rotation_core(P: Tensor, Q: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the cores of many rotations of one rank: `cayley_core` of each.

    Args:
        P: (N, r), the P of L rotations, packed: their rows under each other. float32 or float64.
        Q: (N, r), likewise.
        sizes: how many rows each of the L has; together N.

    Returns:
        (L, 2r, 2r), dtype of `P`.
    """
    pairs = zip(P.split(list(sizes)), Q.split(list(sizes)), strict=True)
    return torch.stack([cayley_core(*pair) for pair in pairs])


@_as_given
def subspace_core(
    P_out: Tensor, Q_out: Tensor, P_in: Tensor, Q_in: Tensor, s: Tensor, d: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return C of many modules: `subspace_difference` of each.

    Args:
        P_out: (N, r), the P of L left rotations, packed as for `rotation_core`; k rows for a module of k components.
        Q_out: (N, r).
        P_in: (N, r), of the right rotations.
        Q_in: (N, r).
        s: (N,) selected singular values.
        d: (N,) their trained change.
        sizes: k of each of the L modules.

    Returns:
        (sum of k^2,): the (k, k) matrices, flat, one after another.
    """
    packed = (P_out, Q_out, P_in, Q_in, s, d)
    parts = zip(*(tensor.split(list(sizes)) for tensor in packed), strict=True)
    return torch.cat([subspace_difference(*part).flatten() for part in parts])


@_as_given
def thin_rotation(
    x: Tensor,
    P: Tensor,
    Q: Tensor,
    K: Tensor,
    offset: Tensor | None = None,
    inverse: bool = False,
    keep_output: bool = False,
) -> Tensor:
    """Return R (x - offset) + offset for every row x: x turned about `offset`. At P = 0 it is x, to the bit.

    The products with `x` run in the dtype of `x`, what is between them in the dtype of `P`.

    Args:
        x: (..., n), any floating dtype; float64 with float64 P alone.
        P: (n, r), float32 or float64.
        Q: (n, r), same as `P`.
        K: (2r, 2r), their core. With another than the rotation's it is (I + X K Y^T) x, and takes no `keep_output`.
        offset: (n,), dtype of `x`; the bias of a linear layer, which does not turn. None: zero.
        inverse: turn by R^T, the inverse rotation.
        keep_output: what a faster implementation keeps for its backward pass: the result, which the caller needs
            anyway, or `x`. Changes nothing here.

    Returns:
        (..., n), dtype of `x`.
    """
    X, Y = _factors(P, Q)
    if inverse:
        X, Y, K = Y, X, K.mT
    inner = ((x if offset is None else x - offset) @ Y.to(x.dtype)).to(K.dtype) @ K.mT
    return x + inner.to(x.dtype) @ X.mT.to(x.dtype)


@_as_given
def spectral_linear(
    base: Tensor | None,
    x: Tensor,
    U: Tensor,
    core: Tensor,
    V: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """Return base + [U, left] core [V, right]^T x for every row x: a spectral update of a linear layer's output.

    Args:
        base: (..., m), dtype of `x`; None: zero.
        x: (..., n).
        U: (m, k), dtype of `x`, fixed.
        core: (k + l, k + l), or without `left` and `right` (k,) for a diagonal; float32 or float64.
        V: (n, k), dtype of `x`, fixed.
        left: (m, l), trained columns beside U, float32 or float64; with `right` or not at all.
        right: (n, l), trained columns beside V.

    Returns:
        (..., m), dtype of `base`, or else of `x`: under autocast the two differ.
    """
    if left is not None and right is not None:
        U, V = torch.cat([U, left.to(U.dtype)], dim=1), torch.cat([V, right.to(V.dtype)], dim=1)
    z = (x @ V).to(core.dtype)
    z = z * core if core.ndim == 1 else z @ core.mT
    change = z.to(x.dtype) @ U.mT
    return change if base is None else base + change.to(base.dtype)


@_as_given
def component_sensitivity(left: Tensor, right: Tensor, s: Tensor, rows: Sequence[int], kind: Kind) -> Tensor:
    """Return the squared scores of a module's components, summed over samples.

    With M = left^T right over the tokens of one sample, the sample's gradient in the module's singular basis,
    component i scores, by `kind`:

    - `value`: v = M_ii^2, for its singular value;
    - `own`: v + s_i^2 (sum_j M_ij^2 + sum_j M_ji^2 - 2 v), for its vectors turned towards any other direction too;
    - `pair`: v + sum_j (s_j M_ij - s_i M_ji)^2 + (s_i M_ij - s_j M_ji)^2, for the rotations that mix it with j.

    Args:
        left: (T, K), U^T dL/dy of every token.
        right: (T, K), V^T x of every token; same dtype, float32 or float64.
        s: (K,) singular values, same dtype.
        rows: how many tokens each sample has, in order; together T.
        kind: what counts.

    Returns:
        (K,), same dtype.
    """
    total = torch.zeros_like(s)
    for l, r in zip(left.split(list(rows)), right.split(list(rows)), strict=True):  # noqa: E741
        if kind == "value":
            total += (l * r).sum(0).square()
            continue
        M = l.mT @ r
        value = M.diagonal().square()
        if kind == "own":
            total += value + s.square() * (M.square().sum(0) + M.square().sum(1) - 2 * value)
        else:
            by_column, by_row = M * s, M * s[:, None]  # s_j M_ij and s_i M_ij
            total += value + (by_column - by_column.mT).square().sum(1) + (by_row - by_row.mT).square().sum(1)
    return total
