"""singular_basis against LAPACK's SVD."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorsa.methods import MethodError
from lorsa.methods.lorsa import Basis, singular_basis


def weight(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(weight(n, k, seed))[0]


def lapack(W: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vt = scipy.linalg.svd(W.double().numpy(), full_matrices=False, lapack_driver="gesvd")
    return U, s, Vt.T


def assert_is_decomposition(basis: Basis, W: Tensor, tolerance: float = 1e-12) -> None:
    m, n = W.shape
    k = min(m, n)
    W = W.double()
    size = max(W.abs().max().item(), 1e-300)
    assert (basis.U.shape, basis.s.shape, basis.V.shape) == ((m, k), (k,), (n, k))
    assert all(part.dtype == torch.float64 and part.is_contiguous() for part in (basis.U, basis.s, basis.V))
    assert (basis.s >= 0).all()
    eye = torch.eye(k, dtype=torch.float64)
    assert (basis.U.mT @ basis.U - eye).abs().max() < 1e-12
    assert (basis.V.mT @ basis.V - eye).abs().max() < 1e-12
    assert ((basis.U * basis.s) @ basis.V.mT - W).abs().max() < tolerance * 10 * size * max(m, n)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_values_and_vectors_are_lapacks(m: int, n: int, seed: int):
    W = weight(m, n, seed)
    basis = singular_basis(W)
    U, s, V = lapack(W)
    # The error bound of a Gram matrix's eigenvalues, 1e-16 s_1^2 / s, in place of 1e-16 s_1.
    bound = 1e-13 * s[0] ** 2 / np.maximum(s, 1e-8 * s[0])
    assert np.all(np.abs(basis.s.numpy() - s) <= bound)
    assert_is_decomposition(basis, W, tolerance=1e-12 * s[0] / s[-1])
    for i in range(min(m, n)):
        gap = min(abs(s[i] ** 2 - other**2) for j, other in enumerate(s) if j != i) if len(s) > 1 else s[0] ** 2
        tolerance = 1e-12 * s[0] ** 2 / gap * s[0] / s[i]
        for ours, theirs in ((basis.U[:, i].numpy(), U[:, i]), (basis.V[:, i].numpy(), V[:, i])):
            assert min(np.abs(ours - theirs).max(), np.abs(ours + theirs).max()) <= tolerance


@pytest.mark.parametrize(("m", "n"), [(8, 20), (20, 8), (9, 9)])
def test_signs_follow_the_convention(m: int, n: int):
    basis = singular_basis(weight(m, n))
    smaller = basis.U if m <= n else basis.V
    assert (smaller.gather(0, smaller.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("m", "n"), [(8, 20), (20, 8), (9, 9)])
def test_the_result_is_deterministic_and_moves_with_permutations(m: int, n: int):
    W = weight(m, n)
    basis, again = singular_basis(W), singular_basis(W.clone())
    for part in ("U", "s", "V"):
        assert torch.equal(getattr(basis, part), getattr(again, part))
    # Renumbering inputs and outputs renumbers the vectors' entries and, by the convention, flips no sign.
    rows, columns = (torch.randperm(size, generator=torch.Generator().manual_seed(1)) for size in (m, n))
    permuted = singular_basis(W[rows][:, columns])
    assert torch.allclose(permuted.s, basis.s, rtol=1e-11)
    assert torch.allclose(permuted.U, basis.U[rows], atol=1e-10)
    assert torch.allclose(permuted.V, basis.V[columns], atol=1e-10)


@pytest.mark.parametrize(("m", "n"), [(8, 20), (20, 8), (12, 12)])
def test_rank_deficient_weights_have_complete_orthonormal_sides(m: int, n: int):
    W = weight(m, 3) @ weight(3, n, seed=1)
    basis = singular_basis(W)
    s = lapack(W)[1]
    assert np.allclose(basis.s[:3].numpy(), s[:3], rtol=1e-12)
    assert basis.s[3:].max() < 1e-7 * s[0]
    assert_is_decomposition(basis, W, tolerance=1e-7)


@pytest.mark.parametrize(("m", "n"), [(5, 9), (9, 5), (4, 4), (1, 3), (3, 1), (1, 1)])
def test_zero_weight_has_zero_values_and_orthonormal_sides(m: int, n: int):
    basis = singular_basis(torch.zeros(m, n))
    assert_is_decomposition(basis, torch.zeros(m, n))
    assert torch.equal(basis.s, torch.zeros(min(m, n), dtype=torch.float64))


def test_repeated_values_span_lapacks_subspaces():
    s = torch.tensor([5.0, 2.0, 2.0, 2.0, 0.5, 0.5], dtype=torch.float64)
    W = (orthonormal(10, 6, 0) * s) @ orthonormal(14, 6, 1).mT
    basis = singular_basis(W)
    assert_is_decomposition(basis, torch.nn.functional.pad(W, (0, 0, 0, 0)), tolerance=1e-7)
    assert torch.allclose(basis.s[:6], s, rtol=1e-12)
    U, _, V = (torch.from_numpy(np.ascontiguousarray(part)) for part in lapack(W))
    for low, high in ((0, 1), (1, 4), (4, 6)):
        for ours, theirs in ((basis.U, U), (basis.V, V)):
            ours, theirs = ours[:, low:high], theirs[:, low:high]
            assert (ours @ ours.mT - theirs @ theirs.mT).abs().max() < 1e-10


def test_identity_and_its_multiples_decompose():
    assert_is_decomposition(singular_basis(3 * torch.eye(6)), 3 * torch.eye(6))


def test_small_values_keep_float32_precision():
    s = torch.logspace(0, -7, 8, dtype=torch.float64)
    W = (orthonormal(8, 8, 0) * s) @ orthonormal(30, 8, 1).mT
    assert torch.allclose(singular_basis(W).s, s, rtol=6e-2)
    assert torch.allclose(singular_basis(W).s[:6], s[:6], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_weights_are_decomposed_in_float64(dtype: torch.dtype):
    W = weight(12, 7).to(dtype).requires_grad_()
    basis = singular_basis(W)
    assert not basis.U.requires_grad
    assert np.allclose(basis.s.numpy(), lapack(W.detach())[1], rtol=1e-11)
    assert_is_decomposition(basis, W.detach(), tolerance=1e-10)


def test_select_returns_the_asked_columns_in_the_asked_order():
    basis = singular_basis(weight(6, 9))
    part = basis.select([4, 0])
    assert torch.equal(part.U, basis.U[:, [4, 0]])
    assert torch.equal(part.s, basis.s[[4, 0]])
    assert torch.equal(part.V, basis.V[:, [4, 0]])
    empty = basis.select([])
    assert (empty.U.shape, empty.s.shape, empty.V.shape) == ((6, 0), (0,), (9, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float):
    W = torch.zeros(3, 4)
    W[1, 2] = value
    with pytest.raises(MethodError, match=r"^encoder\.q has NaN or infinite entries; [^.]*\.$"):
        singular_basis(W, "encoder.q")


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_tensors_that_are_not_matrices_are_refused_by_name(shape: tuple[int, ...]):
    with pytest.raises(MethodError, match=rf"^conv has {len(shape)} dimensions; [^.]*\.$"):
        singular_basis(torch.zeros(shape), "conv")
