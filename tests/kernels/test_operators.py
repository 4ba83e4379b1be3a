"""The compiled operators against the reference in float64, forward and backward, on shapes that fit no vector."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lorsa import kernels
from lorsa.kernels import operators, reference

if kernels.implementation() == "reference (PyTorch)":
    pytest.skip("the kernels are not built here: make kernels", allow_module_level=True)

# Relative to the largest entry. fp32 and half: what rounding of inputs and sums leaves.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SIZES = [[1, 2, 7], [64], [5, 5, 5, 130], [33, 3]]
RANKS = [1, 2, 3, 5]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    values = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Rounded once, so that the float64 side gets the very numbers that the operator gets.
    return values.to(dtype)


def widest(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        gap = (actual.double() - expected).abs().max().item()
        assert gap <= TOLERANCE[dtype] * max(expected.abs().max().item(), 1e-3), gap


def assert_same(
    compiled: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    trained: Sequence[bool],
    dtype: torch.dtype,
    *more: object,
) -> None:
    """Values and gradients of both, the second in float64."""

    def run(function: Callable[..., Tensor], cast: bool) -> list[Tensor]:
        leaves = [
            None if t is None else (t.double() if cast else t.clone()).requires_grad_(needs)
            for t, needs in zip(tensors, trained, strict=True)
        ]
        out = function(*leaves, *more)
        weights = normal(*out.shape, seed=99).to(out.dtype)
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        return [out, *torch.autograd.grad(out, wanted, weights)]

    for actual, exact in zip(run(compiled, False), run(expected, True), strict=True):
        assert_close(actual, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_rotation_core(sizes: list[int], r: int, dtype: torch.dtype):
    P, Q = (normal(sum(sizes), r, seed=i, dtype=dtype, scale=0.3) for i in range(2))
    assert_same(kernels.rotation_core, reference.rotation_core, [P, Q], [True, True], dtype, sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_subspace_core(sizes: list[int], r: int, dtype: torch.dtype):
    factors = [normal(sum(sizes), r, seed=i, dtype=dtype, scale=0.3) for i in range(4)]
    s, d = normal(sum(sizes), seed=4, dtype=dtype).abs(), normal(sum(sizes), seed=5, dtype=dtype)
    trained = [True, True, True, True, False, True]
    assert_same(kernels.subspace_core, reference.subspace_core, [*factors, s, d], trained, dtype, sizes)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("keep_output", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("shape", "r"), [((3, 5, 67), 1), ((9, 64), 2), ((1, 7), 3), ((2, 31), 5)])
def test_thin_rotation(
    shape: tuple[int, ...], r: int, offset: bool, inverse: bool, keep_output: bool, dtype: torch.dtype
):
    n, wide = shape[-1], widest(dtype)
    P, Q = (normal(n, r, seed=i, dtype=wide, scale=0.2) for i in range(2))
    K = reference.cayley_core(P, Q)
    x, b = normal(*shape, seed=2, dtype=dtype), normal(n, seed=3, dtype=dtype) if offset else None
    trained = [True, True, True, True, offset]
    if not keep_output:
        assert_same(
            kernels.thin_rotation, reference.thin_rotation, [x, P, Q, K, b], trained, dtype, inverse, keep_output
        )
        return

    # What is recovered from the output is so only where K is the core of P and Q: the three do not vary on their own.
    def turned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, P, Q, b: function(x, P, Q, reference.cayley_core(P, Q), b, inverse, keep_output)

    args = [x, P, Q, b]
    assert_same(turned(kernels.thin_rotation), turned(reference.thin_rotation), args, [*trained[:3], offset], dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("form", ["full", "diagonal", "sides"])
@pytest.mark.parametrize("base", [False, True])
def test_spectral_linear(base: bool, form: str, dtype: torch.dtype):
    m, n, k, extra = 11, 13, 5, 2 if form == "sides" else 0
    wide = widest(dtype)
    core = normal(k, seed=1, dtype=wide) if form == "diagonal" else normal(k + extra, k + extra, seed=1, dtype=wide)
    start = normal(3, 4, m, seed=2, dtype=dtype) if base else None
    sides = [normal(m, extra, seed=5, dtype=wide), normal(n, extra, seed=6, dtype=wide)] if extra else [None, None]
    x, U, V = normal(3, 4, n, seed=0, dtype=dtype), normal(m, k, seed=3, dtype=dtype), normal(n, k, seed=4, dtype=dtype)
    assert_same(
        kernels.spectral_linear,
        reference.spectral_linear,
        [start, x, U, core, V, *sides],
        [base, True, False, True, False, bool(extra), bool(extra)],
        dtype,
    )


@pytest.mark.parametrize("module", [kernels, reference])
def test_spectral_linear_adds_to_a_base_of_another_dtype(module):
    x, U, core, V = normal(3, 5, seed=0), normal(4, 2, seed=1), normal(2, seed=2), normal(5, 2, seed=3)
    base = normal(3, 4, seed=4, dtype=torch.bfloat16)
    out = module.spectral_linear(base, x.float(), U.float(), core.float(), V.float())
    assert out.dtype == torch.bfloat16
    assert_close(out, base.double() + reference.spectral_linear(None, x, U, core, V), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", operators.KINDS)
@pytest.mark.parametrize(("rows", "K"), [([3, 1, 5], 7), ([0, 4], 130), ([], 3)])
def test_component_sensitivity(rows: list[int], K: int, kind: reference.Kind, dtype: torch.dtype):
    left, right = (normal(sum(rows), K, seed=i, dtype=dtype) for i in range(2))
    s = normal(K, seed=2, dtype=dtype).abs()
    exact = reference.component_sensitivity(left.double(), right.double(), s.double(), rows, kind)
    assert_close(kernels.component_sensitivity(left, right, s, rows, kind), exact, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_at_step_zero_no_bit_changes(dtype: torch.dtype):
    n, r, wide = 37, 2, widest(dtype)
    P, Q = torch.zeros(n, r, dtype=wide), normal(n, r, seed=1, dtype=wide)
    K = kernels.rotation_core(P, Q, [n])[0]
    x, b = normal(6, n, seed=2, dtype=dtype, scale=100), normal(n, seed=3, dtype=dtype)
    for inverse in (False, True):
        assert torch.equal(kernels.thin_rotation(x, P, Q, K, b, inverse), x)
    s, d = normal(n, seed=4, dtype=wide).abs(), torch.zeros(n, dtype=wide)
    C = kernels.subspace_core(P, Q, P, Q, s, d, [n])
    assert torch.equal(C, torch.zeros(n * n, dtype=wide))
    U, V = normal(9, n, seed=5, dtype=dtype), normal(n, n, seed=6, dtype=dtype)
    base = normal(6, 9, seed=7, dtype=dtype)
    assert torch.equal(kernels.spectral_linear(base, x, U, C.view(n, n), V), base)
    assert torch.equal(kernels.spectral_linear(base, x, U, d, V), base)


def test_no_rows_give_no_rows_and_zero_gradients():
    P, Q = (normal(8, 2, seed=i, dtype=torch.float32).requires_grad_() for i in range(2))
    x = torch.empty(0, 8, requires_grad=True)
    y = kernels.thin_rotation(x, P, Q, kernels.rotation_core(P, Q, [8])[0])
    out = kernels.spectral_linear(y, y, torch.ones(8, 3), torch.ones(3), torch.ones(8, 3))
    assert out.shape == (0, 8)
    out.sum().backward()
    assert x.grad is not None
    assert P.grad is not None
    assert torch.equal(P.grad, torch.zeros(8, 2))
    assert kernels.rotation_core(P[:0], Q[:0], []).shape == (0, 4, 4)


def test_what_is_not_contiguous_is_made_so_by_the_functions_and_refused_by_the_operators():
    P, Q, x = normal(2, 8, seed=0).mT, normal(2, 8, seed=1).mT, normal(8, 5, seed=2).mT
    K = kernels.rotation_core(P, Q, [8])[0]
    assert_close(kernels.thin_rotation(x, P, Q, K), reference.thin_rotation(x, P, Q, K), torch.float64)
    with pytest.raises(RuntimeError, match="every tensor must be contiguous"):
        torch.ops.lorsa.thin_rotation(x, P, Q, K, None, False, False)


f = torch.ones
BAD = {
    "half parameters": (lambda o: o.rotation_core(f(4, 1).half(), f(4, 1).half(), [4]), "are float32 or float64"),
    "two dtypes": (lambda o: o.rotation_core(f(4, 1), f(4, 1).double(), [4]), "must have one dtype"),
    "other shapes": (lambda o: o.rotation_core(f(4, 1), f(5, 1), [4]), "must have the same shape"),
    "no rank": (lambda o: o.rotation_core(f(4, 0), f(4, 0), [4]), "r of at least 1"),
    "sizes": (lambda o: o.rotation_core(f(4, 1), f(4, 1), [3]), "add up to 3 rows and P has 4"),
    "empty matrix": (lambda o: o.rotation_core(f(4, 1), f(4, 1), [0, 4]), "at least one row"),
    "values": (lambda o: o.subspace_core(*[f(4, 1)] * 4, f(4), f(3), [4]), "s and d must have 4 entries"),
    "core": (lambda o: o.thin_rotation(f(2, 4), f(4, 1), f(4, 1), f(3, 3), None, False, False), r"must be \(2, 2\)"),
    "features": (lambda o: o.thin_rotation(f(2, 5), f(4, 1), f(4, 1), f(2, 2), None, False, False), r"\(tokens, 4\)"),
    "one dim": (lambda o: o.thin_rotation(f(4), f(4, 1), f(4, 1), f(2, 2), None, False, False), r"\(tokens, 4\)"),
    "integers": (
        lambda o: o.thin_rotation(f(2, 4).int(), f(4, 1), f(4, 1), f(2, 2), None, False, False),
        "must be floating point",
    ),
    "float64 x": (
        lambda o: o.thin_rotation(f(2, 4).double(), f(4, 1), f(4, 1), f(2, 2), None, False, False),
        "float64 goes with float64",
    ),
    "offset": (lambda o: o.thin_rotation(f(2, 4), f(4, 1), f(4, 1), f(2, 2), f(3), False, False), "the offset must be"),
    "factors": (lambda o: o.spectral_linear(None, f(2, 4), f(3, 2), f(2), f(4, 3), None, None), r"U must be \(m, k\)"),
    "diagonal": (lambda o: o.spectral_linear(None, f(2, 4), f(3, 2), f(3), f(4, 2), None, None), "or its diagonal"),
    "base": (lambda o: o.spectral_linear(f(2, 2), f(2, 4), f(3, 2), f(2), f(4, 2), None, None), "base must be"),
    "one side": (lambda o: o.spectral_linear(None, f(2, 4), f(3, 2), f(2), f(4, 2), f(3, 1), None), "come together"),
    "half core": (lambda o: o.spectral_linear(None, f(2, 4), f(3, 2), f(2).half(), f(4, 2), None, None), "the core is"),
    "kind": (lambda o: o.component_sensitivity(f(2, 4), f(2, 4), f(4), [2], 3), "kind is 0"),
    "tokens": (lambda o: o.component_sensitivity(f(2, 4), f(2, 4), f(4), [3], 0), "3 tokens together"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_with_a_sentence(case: str):
    call, message = BAD[case]
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.lorsa)


def test_differentiating_twice_is_refused():
    P, Q = (normal(4, 1, seed=i).requires_grad_() for i in range(2))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(kernels.rotation_core(P, Q, [4]).sum(), P, create_graph=True)


def examples() -> dict[str, tuple[object, ...]]:
    P, Q = (normal(12, 2, seed=i, dtype=torch.float32).requires_grad_() for i in range(2))
    s, d = torch.ones(12), torch.zeros(12, requires_grad=True)
    x, K, b = torch.randn(5, 12, requires_grad=True), torch.randn(4, 4, requires_grad=True), torch.randn(12)
    U, V, core = torch.randn(7, 3), torch.randn(12, 3), torch.randn(5, 5, requires_grad=True)
    left, right = torch.randn(7, 2, requires_grad=True), torch.randn(12, 2, requires_grad=True)
    base, diagonal = torch.randn(5, 7, requires_grad=True), torch.randn(3, requires_grad=True)
    exact = reference.cayley_core(P, Q).detach().contiguous()
    return {
        "rotation_core": (P, Q, [5, 7]),
        "subspace_core": (P, Q, P.detach(), Q.detach(), s, d, [5, 7]),
        "thin_rotation": (x, P, Q, K, b, False, False),
        "thin_rotation (inverse, output kept)": (x, P.detach(), Q.detach(), exact, None, True, True),
        "spectral_linear": (base, x, U, core, V, left, right),
        "spectral_linear (diagonal)": (None, x, U, diagonal, V, None, None),
        "component_sensitivity": (torch.randn(4, 6), torch.randn(4, 6), torch.ones(6), [1, 3], 2),
        "rotation_core_backward": (torch.randn(2, 4, 4), P.detach(), Q.detach(), torch.randn(2, 4, 4), [5, 7]),
        "subspace_core_backward": (
            torch.randn(5 * 5 + 7 * 7),
            *[each.detach() for each in (P, Q, P, Q)],
            s,
            d.detach(),
            torch.randn(2, 4, 4),
            torch.randn(2, 4, 4),
            [5, 7],
        ),
        "thin_rotation_backward": (x.detach(), x.detach(), P.detach(), Q.detach(), K.detach(), b, True, False),
        "spectral_linear_backward": (
            torch.randn(5, 7),
            torch.randn(5, 3),
            None,
            U,
            diagonal.detach(),
            V,
            None,
            None,
            True,
        ),
    }


@pytest.mark.parametrize("name", list(examples()))
def test_opcheck(name: str):
    torch.manual_seed(0)
    operator = getattr(torch.ops.lorsa, name.split()[0])
    torch.library.opcheck(operator.default, examples()[name])


def test_autocast_changes_nothing():
    P, Q, x = (normal(9, 2, seed=0).float(), normal(9, 2, seed=1).float(), normal(4, 9, seed=2).float())
    U, V, core = normal(6, 3, seed=3).float(), normal(9, 3, seed=4).float(), normal(3, 3, seed=5).float()

    def run() -> Tensor:
        y = kernels.thin_rotation(x, P, Q, kernels.rotation_core(P, Q, [9])[0])
        return kernels.spectral_linear(None, y, U, core, V)

    plain = run()
    score = [kernels.component_sensitivity(x, x, torch.ones(9), [1, 3], kind) for kind in operators.KINDS]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(), plain)
        for kind, expected in zip(operators.KINDS, score, strict=True):
            assert torch.equal(kernels.component_sensitivity(x, x, torch.ones(9), [1, 3], kind), expected)


@pytest.mark.parametrize("form", ["spectral_linear", "thin_rotation"])
def test_what_is_kept_for_the_backward_pass(form: str):
    """z alone, beside what exists anyway: the parameters, U and V, and for a rotation its result."""
    T, n, m, k = 40, 32, 24, 4
    x, U, V, core = torch.randn(T, n).requires_grad_(), torch.randn(m, k), torch.randn(n, k), torch.randn(k, k)
    P, Q = torch.randn(n, 1).requires_grad_(), torch.randn(n, 1).requires_grad_()
    core.requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if form == "spectral_linear":
            out = kernels.spectral_linear(torch.zeros(T, m), x, U, core, V)
            there = [U, V, core]
        else:
            K = torch.eye(2)
            out = kernels.thin_rotation(x, P, Q, K, keep_output=True)
            there = [P, Q, K, out]
    known = {tensor.data_ptr() for tensor in there}
    extra = [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in known]
    assert extra == ([(T, k)] if form == "spectral_linear" else [])


def chain(x: Tensor, P: Tensor, Q: Tensor, s: Tensor, d: Tensor, U: Tensor, V: Tensor) -> Tensor:
    K = kernels.rotation_core(P, Q, [len(P)])[0]
    C = kernels.subspace_core(P, Q, P, Q, s, d, [len(P)]).view(len(P), len(P))
    return kernels.spectral_linear(None, kernels.thin_rotation(x, P, Q, K, inverse=True), U, C, V)


def test_torch_compile_traces_without_a_break():
    P, Q = (normal(6, 2, seed=i, dtype=torch.float32, scale=0.2).requires_grad_() for i in range(2))
    s, d = torch.ones(6), torch.randn(6, requires_grad=True)
    U, V = torch.randn(5, 6), torch.randn(6, 6)
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (4, 9):
        x = torch.randn(tokens, 6)
        expected, actual = chain(x, P, Q, s, d, U, V), compiled(x, P, Q, s, d, U, V)
        assert torch.allclose(actual, expected, atol=1e-6)
        for mine, theirs in zip(
            torch.autograd.grad(actual.square().sum(), (P, Q, d)),
            torch.autograd.grad(expected.square().sum(), (P, Q, d)),
            strict=True,
        ):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_threads_change_no_bit_of_a_result():
    """Of a gradient of P, Q or K they do: each thread has sums of its own."""
    P, Q = (normal(65, 2, seed=i, dtype=torch.float32) for i in range(2))
    x, K = normal(50, 65, seed=2, dtype=torch.float32), reference.cayley_core(P, Q)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, max(2, min(4, os.cpu_count() or 1))):
            torch.set_num_threads(count)
            results.append(kernels.thin_rotation(x, P, Q, K))
        assert torch.equal(*results)
    finally:
        torch.set_num_threads(threads)
