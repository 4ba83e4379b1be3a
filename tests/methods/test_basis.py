"""singular_basis against LAPACK's SVD in float64."""

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

LOW = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(8, 20), (20, 8), (12, 12), (60, 200), (200, 60)]
# What every result is held to, in units of s_1; what is aimed at, and measured on real weights, is a tenth of it.
TOLERANCE = {torch.float64: 1e-12, **dict.fromkeys(LOW, 1e-5)}


def weight(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(weight(n, k, seed))[0]


def with_values(m: int, n: int, s: Tensor) -> Tensor:
    return (orthonormal(m, len(s), 0) * s) @ orthonormal(n, len(s), 1).mT


def lapack(W: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vt = scipy.linalg.svd(W.double().numpy(), full_matrices=False, lapack_driver="gesvd")
    return U, s, Vt.T


def assert_is_decomposition(basis: Basis, W: Tensor) -> None:
    m, n = W.shape
    k = min(m, n)
    dtype, tolerance = torch.promote_types(W.dtype, torch.float32), TOLERANCE[W.dtype]
    assert (basis.U.shape, basis.s.shape, basis.V.shape) == ((m, k), (k,), (n, k))
    assert {part.dtype for part in (basis.U, basis.s, basis.V)} == {dtype}
    U, s, V, W = basis.U.double(), basis.s.double(), basis.V.double(), W.double()
    assert (s >= 0).all()
    assert (s.diff() <= 0).all()
    theirs = torch.linalg.svdvals(W)
    assert (s - theirs).abs().max() <= tolerance / 10 * theirs[0]
    assert torch.linalg.matrix_norm((U * s) @ V.mT - W, 2) <= tolerance * theirs[0]
    for side in (U, V):
        assert (side.mT @ side - torch.eye(k, dtype=torch.float64)).abs().max() <= tolerance


def assert_vectors_are_lapacks(basis: Basis, W: Tensor) -> None:
    U, s, V = lapack(W)
    for i in range(len(s)):
        gap = min([abs(s[i] - other) for j, other in enumerate(s) if j != i] + [s[i]])
        tolerance = 10 * TOLERANCE[W.dtype] * s[0] / max(gap, 1e-300)
        for ours, theirs in ((basis.U[:, i].numpy(), U[:, i]), (basis.V[:, i].numpy(), V[:, i])):
            assert min(np.abs(ours - theirs).max(), np.abs(ours + theirs).max()) <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), n=st.integers(1, 40), seed=st.integers(0, 1000))
def test_values_and_vectors_are_lapacks(m: int, n: int, seed: int, dtype: torch.dtype):
    W = weight(m, n, seed).to(dtype)
    basis = singular_basis(W)
    assert_is_decomposition(basis, W)
    assert_vectors_are_lapacks(basis, W)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize(("m", "n"), [(100, 100), (60, 200), (200, 60)])
def test_ill_conditioned_weights_lose_no_digits(m: int, n: int, smallest: float, dtype: torch.dtype):
    s = torch.logspace(0, np.log10(smallest), 60, dtype=torch.float64)
    W = with_values(m, n, s).to(dtype)
    basis = singular_basis(W)
    assert_is_decomposition(basis, W)
    assert_vectors_are_lapacks(basis, W)


def test_values_that_one_gram_matrix_does_not_resolve_have_lapacks_vectors():
    # Alone, the float32 Gram matrix of this weight knows 1e-4 and 1e-5 as the same rounding error.
    W = with_values(30, 50, torch.tensor([1, 0.9, 1e-2, 1e-4, 1e-5], dtype=torch.float64)).float()
    basis = singular_basis(W)
    U, s, V = lapack(W)
    assert basis.s[:4].numpy() == pytest.approx(s[:4], rel=2e-3)
    for i in range(4):
        assert abs(basis.U[:, i].numpy() @ U[:, i]) > 1 - 1e-4
        assert abs(basis.V[:, i].numpy() @ V[:, i]) > 1 - 1e-4


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_rank_deficient_weights_have_complete_orthonormal_sides(m: int, n: int, dtype: torch.dtype):
    W = (weight(m, 3) @ weight(3, n, seed=1)).to(torch.float64 if dtype == torch.float64 else torch.float32)
    basis = singular_basis(W)
    assert_is_decomposition(basis, W)
    assert basis.s[3:].max() <= TOLERANCE[W.dtype] / 10 * basis.s[0]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("m", "n"), [(5, 9), (9, 5), (4, 4), (1, 3), (3, 1), (1, 1)])
def test_zero_weight_has_zero_values_and_orthonormal_sides(m: int, n: int, dtype: torch.dtype):
    W = torch.zeros(m, n, dtype=dtype)
    basis = singular_basis(W)
    assert_is_decomposition(basis, W)
    assert not basis.s.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_repeated_values_span_lapacks_subspaces(dtype: torch.dtype):
    s = torch.tensor([5, 2, 2, 2, 0.5, 0.5, 1e-3, 1e-3], dtype=torch.float64)
    W = with_values(10, 14, s).to(dtype)
    basis = singular_basis(W)
    assert_is_decomposition(basis, W)
    U, _, V = (torch.from_numpy(np.ascontiguousarray(part)) for part in lapack(W))
    for low, high, gap in ((0, 1, 3), (1, 4, 1.5), (4, 6, 0.499), (6, 8, 1e-3)):
        for ours, theirs in ((basis.U.double(), U), (basis.V.double(), V)):
            ours, theirs = ours[:, low:high], theirs[:, low:high]
            assert (ours @ ours.mT - theirs @ theirs.mT).abs().max() < TOLERANCE[dtype] * 5 / gap


def test_identity_and_its_multiples_decompose():
    assert_is_decomposition(singular_basis(3 * torch.eye(6)), 3 * torch.eye(6))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_entries_whose_squares_leave_the_range_of_the_dtype_decompose(scale: float):
    W = weight(8, 20).float()
    assert torch.allclose(singular_basis(W * scale).s / scale, singular_basis(W).s, rtol=1e-5)


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


def test_the_weight_is_left_alone_and_no_gradient_follows():
    W = weight(12, 7).float().requires_grad_()
    before = W.detach().clone()
    basis = singular_basis(W)
    assert torch.equal(W, before)
    assert not basis.U.requires_grad


def test_autocast_and_low_matmul_precision_change_nothing():
    W = weight(60, 200).float()
    basis = singular_basis(W)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", torch.bfloat16):
            again = singular_basis(W)
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
    assert torch.equal(again.U, basis.U)
    assert torch.equal(again.V, basis.V)


def test_select_returns_the_asked_columns_in_the_asked_order():
    basis = singular_basis(weight(6, 9))
    part = basis.select([4, 0])
    assert torch.equal(part.U, basis.U[:, [4, 0]])
    assert torch.equal(part.s, basis.s[[4, 0]])
    assert torch.equal(part.V, basis.V[:, [4, 0]])
    assert part.U.is_contiguous()
    assert part.V.is_contiguous()
    empty = basis.select([])
    assert (empty.U.shape, empty.s.shape, empty.V.shape) == ((6, 0), (0,), (9, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float):
    W = torch.zeros(3, 4)
    W[1, 2] = value
    with pytest.raises(MethodError, match=r"^encoder\.q has NaN or infinite entries; [^.]*\.$"):
        singular_basis(W, "encoder.q")


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.zeros(5), r"^conv has 1 dimensions; [^.]*\.$"),
        (torch.zeros(2, 3, 4), r"^conv has 3 dimensions; [^.]*\.$"),
        (torch.zeros(0, 4), r"^conv is 0 x 4 and has no entries[^.]*\.$"),
        (torch.zeros(3, 4, device="meta"), r"^conv is on the meta device [^.]*\.$"),
        (torch.zeros(3, 4, dtype=torch.uint8), r"^conv holds uint8, as quantised weights do; [^.]*\.$"),
    ],
)
def test_tensors_that_have_no_decomposition_are_refused_by_name(tensor: Tensor, sentence: str):
    with pytest.raises(MethodError, match=sentence):
        singular_basis(tensor, "conv")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_a_gpu_the_basis_is_lapacks_too(dtype: torch.dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    W = with_values(60, 200, torch.logspace(0, -5, 60, dtype=torch.float64)).to(dtype)
    precision = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        basis = singular_basis(W.cuda())
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision
    assert basis.U.is_cuda
    assert_is_decomposition(Basis(basis.U.cpu(), basis.s.cpu(), basis.V.cpu()), W)
