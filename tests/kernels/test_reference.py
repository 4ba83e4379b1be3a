"""The reference operators against dense formulas in float64 that form and invert the n x n matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorsa.kernels.reference import (
    cayley_core,
    rotation_difference,
    spectral_linear,
    subspace_difference,
    thin_rotation_difference,
)

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

shapes = st.integers(2, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n // 2)))
scales = st.floats(1e-4, 3.0)
seeds = st.integers(0, 2**31)
checked = settings(max_examples=40, deadline=None, derandomize=True)


def normal(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def dense_rotation(P: Tensor, Q: Tensor) -> Tensor:
    """(I - A/2)^-1 (I + A/2), with nothing thin about it."""
    A = P @ Q.mT - Q @ P.mT
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    return torch.linalg.inv(eye - A / 2) @ (eye + A / 2)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every entry within `tolerance` of the largest one."""
    assert actual.shape == expected.shape
    gap = (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0
    assert gap <= tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 0.0), gap


@checked
@given(shapes, scales, seeds)
def test_rotation_is_the_dense_cayley_transform(shape: tuple[int, int], scale: float, seed: int):
    P, Q = normal(*shape, seed=seed, scale=scale), normal(*shape, seed=seed + 1)
    eye = torch.eye(shape[0], dtype=torch.float64)
    rotation = eye + rotation_difference(P, Q)
    # P and Q can be nearly parallel or large, which costs digits in the inverse of either side.
    assert_close(rotation, dense_rotation(P, Q), 1e-9)
    assert_close(rotation @ rotation.mT, eye, 1e-9)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=1e-8)


@checked
@given(shapes, scales, seeds)
def test_core_is_the_inverse_in_the_woodbury_identity(shape: tuple[int, int], scale: float, seed: int):
    P, Q = normal(*shape, seed=seed, scale=scale), normal(*shape, seed=seed + 1)
    # The identity read backwards: (I - A/2)^-1 = I + X K Y^T / 2, whose only unknown is K.
    X, Y = torch.cat([P, -Q], -1), torch.cat([Q, P], -1)
    core = cayley_core(P, Q)
    assert core.shape == (2 * shape[1], 2 * shape[1])
    eye = torch.eye(shape[0], dtype=torch.float64)
    assert_close(eye + X @ core @ Y.mT / 2, torch.linalg.inv(eye - (P @ Q.mT - Q @ P.mT) / 2), 1e-9)


@checked
@given(shapes, scales, seeds)
def test_rotation_by_minus_p_is_the_inverse(shape: tuple[int, int], scale: float, seed: int):
    P, Q = normal(*shape, seed=seed, scale=scale), normal(*shape, seed=seed + 1)
    assert_close(rotation_difference(-P, Q), rotation_difference(P, Q).mT, 1e-9)


def test_leading_dimensions_are_batched():
    P, Q = normal(3, 2, 7, 2, seed=0), normal(3, 2, 7, 2, seed=1)
    cores, differences = cayley_core(P, Q), rotation_difference(P, Q)
    assert cores.shape == (3, 2, 4, 4)
    assert differences.shape == (3, 2, 7, 7)
    for i in range(3):
        for j in range(2):
            assert_close(cores[i, j], cayley_core(P[i, j], Q[i, j]), 1e-12)
            assert_close(torch.eye(7, dtype=torch.float64) + differences[i, j], dense_rotation(P[i, j], Q[i, j]), 1e-10)


@checked
@given(shapes, scales, seeds, st.booleans())
def test_thin_rotation_turns_rows_like_the_dense_matrix(shape: tuple[int, int], scale: float, seed: int, inverse: bool):
    P, Q = normal(*shape, seed=seed, scale=scale), normal(*shape, seed=seed + 1)
    x = normal(2, 3, shape[0], seed=seed + 2)
    rotation = dense_rotation(P, Q)
    turn = rotation.mT if inverse else rotation
    assert_close(x + thin_rotation_difference(x, P, Q, inverse=inverse), x @ turn.mT, 1e-9)


def test_thin_rotation_and_its_inverse_cancel():
    P, Q, x = normal(9, 3, seed=0), normal(9, 3, seed=1), normal(5, 9, seed=2)
    turned = x + thin_rotation_difference(x, P, Q)
    assert_close(turned + thin_rotation_difference(turned, P, Q, inverse=True), x, 1e-11)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [4, 33])
def test_zero_p_changes_no_bit(dtype: torch.dtype, n: int):
    core_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    P, Q = torch.zeros(n, 2, dtype=core_dtype), normal(n, 2, seed=1, dtype=core_dtype)
    x = normal(3, n, seed=2, scale=100, dtype=dtype)
    for inverse in (False, True):
        difference = thin_rotation_difference(x, P, Q, inverse=inverse)
        assert difference.dtype == dtype
        assert torch.equal(difference, torch.zeros_like(x))
        assert torch.equal(x + difference, x)
    assert torch.equal(rotation_difference(P, Q), torch.zeros(n, n, dtype=core_dtype))
    s, d = normal(n, seed=3, dtype=core_dtype).abs(), torch.zeros(n, dtype=core_dtype)
    core = subspace_difference(P, Q, P, Q, s, d)
    assert torch.equal(core, torch.zeros(n, n, dtype=core_dtype))
    U, V = normal(6, n, seed=4, dtype=dtype), normal(n, n, seed=5, dtype=dtype)
    assert torch.equal(spectral_linear(None, x, U, core, V), torch.zeros(3, 6, dtype=dtype))
    assert torch.equal(spectral_linear(None, x, U, d, V), torch.zeros(3, 6, dtype=dtype))


@checked
@given(shapes, scales, seeds)
def test_subspace_difference_is_the_dense_formula(shape: tuple[int, int], scale: float, seed: int):
    P_out, Q_out, P_in, Q_in = (normal(*shape, seed=seed + i, scale=scale) for i in range(4))
    s, d = normal(shape[0], seed=seed + 4).abs(), normal(shape[0], seed=seed + 5)
    turned = dense_rotation(P_out, Q_out) @ torch.diag(s + d) @ dense_rotation(P_in, Q_in).mT
    assert_close(subspace_difference(P_out, Q_out, P_in, Q_in, s, d), turned - torch.diag(s), 1e-9)


@pytest.mark.parametrize("diagonal", [True, False])
def test_spectral_linear_is_the_dense_product(diagonal: bool):
    x, U, V = normal(2, 4, 9, seed=0), normal(7, 5, seed=1), normal(9, 5, seed=2)
    core = normal(5, seed=3) if diagonal else normal(5, 5, seed=3)
    weight = U @ (torch.diag(core) if diagonal else core) @ V.mT
    assert_close(spectral_linear(None, x, U, core, V), torch.einsum("mn,abn->abm", weight, x), 1e-12)


def test_empty_ranks_and_selections_are_the_identity():
    nothing, x = torch.zeros(1, 0), normal(3, 4, seed=0, dtype=torch.float32)
    assert torch.equal(rotation_difference(nothing, nothing), torch.zeros(1, 1))
    one, change = torch.ones(1), torch.full((1,), 0.5)
    assert torch.equal(subspace_difference(nothing, nothing, nothing, nothing, one, change), torch.tensor([[0.5]]))
    assert torch.equal(
        spectral_linear(None, x, torch.zeros(6, 0), torch.zeros(0), torch.zeros(4, 0)), torch.zeros(3, 6)
    )


def test_bfloat16_rows_stay_close_to_float32():
    P, Q = (normal(64, 3, seed=i, scale=0.1, dtype=torch.float32) for i in range(2))
    x = normal(10, 64, seed=2, dtype=torch.bfloat16)
    half, full = thin_rotation_difference(x, P, Q), thin_rotation_difference(x.float(), P, Q)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.02 * full.norm()
    U, V = (normal(64, 8, seed=i, scale=0.125, dtype=torch.bfloat16) for i in (3, 4))
    for core in (normal(8, seed=5, dtype=torch.float32), normal(8, 8, seed=5, dtype=torch.float32)):
        half, full = spectral_linear(None, x, U, core, V), spectral_linear(None, x.float(), U.float(), core, V.float())
        assert half.dtype == torch.bfloat16
        assert (half.float() - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-10])
def test_small_rotations_keep_their_digits_in_float32(scale: float):
    """R x - x computed by subtraction would be left with no digit at 1e-10; the difference form has all of them."""
    P, Q = normal(50, 2, seed=0, scale=scale, dtype=torch.float32), normal(50, 2, seed=1, dtype=torch.float32)
    x = normal(4, 50, seed=2, dtype=torch.float32)
    exact = x.double() @ (dense_rotation(P.double(), Q.double()) - torch.eye(50, dtype=torch.float64)).mT
    if scale < 1e-5:  # the dense side cancels in float64 too: R - I = (I - A/2)^-1 A does not
        A = (P.double() @ Q.double().mT) - (Q.double() @ P.double().mT)
        exact = x.double() @ torch.linalg.solve(torch.eye(50, dtype=torch.float64) - A / 2, A).mT
    assert (thin_rotation_difference(x, P, Q).double() - exact).norm() < 2e-6 * exact.norm()
    s, d = torch.ones(50), torch.zeros(50)
    core = subspace_difference(P, Q, torch.zeros_like(P), Q, s, d)
    assert (x.double() @ core.double().mT - exact).norm() < 2e-6 * exact.norm()


def test_gradients_agree_with_finite_differences():
    def leaf(*shape: int, seed: int) -> Tensor:
        return normal(*shape, seed=seed, scale=0.5).requires_grad_()

    factors = [leaf(5, 2, seed=i) for i in range(4)]
    s, d, x, U = leaf(5, seed=4), leaf(5, seed=5), leaf(3, 5, seed=6), leaf(4, 5, seed=7)
    check = torch.autograd.gradcheck
    assert check(cayley_core, factors[:2])
    assert check(rotation_difference, factors[:2])
    assert check(lambda x, P, Q: thin_rotation_difference(x, P, Q), (x, *factors[:2]))
    assert check(lambda x, P, Q: thin_rotation_difference(x, P, Q, inverse=True), (x, *factors[:2]))
    assert check(subspace_difference, (*factors, s, d))
    assert check(spectral_linear, (None, x, U, d, leaf(5, 5, seed=8)))
    assert check(spectral_linear, (None, x, U, leaf(5, 5, seed=9), leaf(5, 5, seed=8)))


def test_a_model_cast_to_bfloat16_still_solves_in_float32():
    P, Q = torch.randn(12, 2, dtype=torch.bfloat16), torch.randn(12, 2, dtype=torch.bfloat16)
    assert cayley_core(P, Q).dtype == torch.float32
    moved = thin_rotation_difference(torch.randn(3, 12, dtype=torch.bfloat16), P, Q)
    assert moved.dtype == torch.bfloat16
    assert torch.isfinite(moved).all()
