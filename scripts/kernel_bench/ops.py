"""Every operator by itself, against the eager reference and `torch.compile` of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kernel_bench.measure import Bench, Contender
from kernel_bench.shapes import LLAMA_7B, LLAMA_13B, SMOLLM2, TINY, Shape
from lorsa.kernels import operators, reference


def ops(bench: Bench, tokens: int) -> None:
    """Every operator by itself."""
    for shape in (TINY,) if bench.quick else (SMOLLM2, LLAMA_7B, LLAMA_13B):
        bench_rotation_core(bench, shape)
    few = random.Random(0)
    modules, k, most = (3, 8, 12) if bench.quick else (210, 64, 112)
    bench_subspace_core(bench, f"{modules} modules, k={k}, r=2", [k] * modules)
    ragged = [few.randint(4, most) for _ in range(modules)]
    bench_subspace_core(bench, f"{modules} modules, k=4 to {most}, r=2", ragged)

    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        for n in (32,) if bench.quick else (576, 4096, 11008):
            bench_thin_rotation(bench, dtype, tokens, n)
        bench_thin_rotation(bench, dtype, tokens - 3, 29 if bench.quick else 1531)
    for dtype in dtypes:
        for m, n in ((48, 32),) if bench.quick else ((1536, 576), (11008, 4096)):
            for kind in ("diagonal", "full", "sides"):
                bench_spectral_linear(bench, kind, dtype, tokens, m, n, 8 if bench.quick else 64)
        odd = (tokens - 3, 47, 29, 7) if bench.quick else (tokens - 3, 1531, 577, 61)
        bench_spectral_linear(bench, "sides", dtype, *odd)
    for samples, K in ((2, 16),) if bench.quick else ((16, 576), (1, 4096)):
        bench_component_sensitivity(bench, tokens, samples, K)


def bench_rotation_core(bench: Bench, shape: Shape) -> None:
    """The cores of a whole model's rotations, from each layer's own parameters to their gradients."""
    modules = shape.modules() * shape.layers
    sizes = [side for module in modules for side in module]
    P, Q = ([bench.random(size, 1, scale=scale) for size in sizes] for scale in (0.1, 1.0))
    leaves, grad_K = [*P, *Q], bench.random(len(sizes), 2, 2, grad=False)
    packed = [torch.cat(parts).detach().requires_grad_() for parts in (P, Q)]
    of_size = {size: [i for i, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)}
    grad_of_size = [grad_K[places] for places in of_size.values()]
    compiled = bench.compile(reference.cayley_core)

    def each() -> list[Tensor]:
        return [reference.cayley_core(*pair) for pair in zip(P, Q, strict=True)]

    def stacked(core: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return [
            core(torch.stack([P[i] for i in places]), torch.stack([Q[i] for i in places]))
            for places in of_size.values()
        ]

    def back(K: Tensor) -> None:
        gradients([K], leaves, [grad_K])

    def back_each(K: list[Tensor]) -> None:
        gradients(K, leaves, grad_K.unbind())

    def back_stacked(K: list[Tensor]) -> None:
        gradients(K, leaves, grad_of_size)

    contenders = [
        Contender("eager, each layer", each, back_each, leaves),
        Contender("reference", lambda: reference.rotation_core(torch.cat(P), torch.cat(Q), sizes), back, leaves),
        Contender("eager, stacked by size", lambda: stacked(reference.cayley_core), back_stacked, leaves),
        Contender("torch.compile, stacked by size", lambda: stacked(compiled), back_stacked, leaves, optional=True),
    ]
    if bench.built:
        contenders += [
            Contender("operator", lambda: operators.rotation_core(torch.cat(P), torch.cat(Q), sizes), back, leaves),
            Contender(
                "operator, packed before",
                lambda: operators.rotation_core(*packed, sizes),
                lambda K: gradients([K], packed, [grad_K]),
                packed,
            ),
        ]
    bench.compare("rotation_core", f"{shape.name}: {len(modules)} modules, r=1", torch.float32, contenders)


def bench_subspace_core(bench: Bench, shape: str, sizes: list[int]) -> None:
    """The cores of a whole model's modules in subspace form, from each one's own parameters to their gradients."""
    r = 2
    rotations = [[bench.random(k, r, scale=0.2) for k in sizes] for _ in range(4)]
    s, d = [bench.random(k, grad=False) for k in sizes], [bench.random(k, scale=0.1) for k in sizes]
    leaves = [leaf for part in (*rotations, d) for leaf in part]
    fixed = [*leaves, *s]
    grads = [bench.random(k, k, grad=False) for k in sizes]
    flat_grads = torch.cat([grad.flatten() for grad in grads])
    most = max(sizes)
    padded_grads = torch.stack([nn.functional.pad(grad, (0, most - len(grad)) * 2) for grad in grads])
    batched = torch.vmap(reference.subspace_difference)
    compiled = bench.compile(batched)

    def each() -> list[Tensor]:
        return [reference.subspace_difference(*parts) for parts in zip(*rotations, s, d, strict=True)]

    def packed(core: Callable[..., Tensor]) -> Tensor:
        return core(*(torch.cat(part) for part in (*rotations, s, d)), sizes)

    def padded(core: Callable[..., Tensor]) -> Tensor:
        # Rows of zeros do not turn, and a zero singular value adds nothing.
        return core(*(nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (*rotations, s, d)))

    def back_packed(C: Tensor) -> None:
        gradients([C], leaves, [flat_grads])

    def back_padded(C: Tensor) -> None:
        gradients([C], leaves, [padded_grads])

    contenders = [
        Contender("eager, each layer", each, lambda C: gradients(C, leaves, grads), fixed),
        Contender("reference", lambda: packed(reference.subspace_core), back_packed, fixed),
        Contender("eager, padded", lambda: padded(batched), back_padded, fixed),
        Contender("torch.compile, padded", lambda: padded(compiled), back_padded, fixed, optional=True),
    ]
    if bench.built:
        contenders.append(Contender("operator", lambda: packed(operators.subspace_core), back_packed, fixed))
    bench.compare("subspace_core", shape, torch.float32, contenders)


def bench_thin_rotation(bench: Bench, dtype: torch.dtype, tokens: int, n: int) -> None:
    """One rotation of many rows; an odd n has an offset, as behind a linear layer with a bias."""
    x, grad = bench.random(tokens, n, dtype=dtype), bench.random(tokens, n, dtype=dtype, grad=False)
    P, Q = bench.random(n, 1, scale=0.1), bench.random(n, 1)
    K = reference.cayley_core(P, Q).detach().requires_grad_()
    offset = bench.random(n, dtype=dtype, grad=False) if n % 2 else None
    fixed = [P, Q, K] if offset is None else [P, Q, K, offset]
    compiled = bench.compile(reference.thin_rotation)

    def back(y: Tensor) -> None:
        gradients([y], [x, P, Q, K], [grad])

    def copy_of_x() -> Tensor:
        with torch.no_grad():
            return x.clone()

    contenders = [
        Contender("reference", lambda: reference.thin_rotation(x, P, Q, K, offset), back, fixed),
        Contender("torch.compile", lambda: compiled(x, P, Q, K, offset), back, fixed, optional=True),
    ]
    if bench.built:
        contenders += [
            Contender("operator", lambda: operators.thin_rotation(x, P, Q, K, offset), back, fixed),
            Contender(
                "operator, keeps its output",
                lambda: operators.thin_rotation(x, P, Q, K, offset, keep_output=True),
                back,
                fixed,
            ),
        ]
    # What must be moved: x to y, and x and y's gradient to x's.
    floor = Contender("copy x; add two to a third", copy_of_x, lambda y: torch.add(grad, y))
    bench.compare("thin_rotation", f"{tokens} x {n}, r=1", dtype, [*contenders, floor])


def bench_spectral_linear(bench: Bench, kind: str, dtype: torch.dtype, tokens: int, m: int, n: int, k: int) -> None:
    """One layer's update added to its base's output: diagonal (form all), full (subspace) or with sides (selected)."""
    base, x = bench.random(tokens, m, dtype=dtype), bench.random(tokens, n, dtype=dtype)
    grad = bench.random(tokens, m, dtype=dtype, grad=False)
    U, V = (orthonormal(size, k, bench.device).to(dtype) for size in (m, n))
    width = k + 2 if kind == "sides" else k
    core = bench.random(*((k,) if kind == "diagonal" else (width, width)), scale=0.1)
    sides = [bench.random(size, 2) for size in (m, n)] if kind == "sides" else []
    compiled = bench.compile(reference.spectral_linear)
    fixed = [U, V, core, *sides]

    def contender(name: str, function: Callable[..., Tensor], optional: bool = False) -> Contender:
        return Contender(
            name,
            lambda: function(base, x, U, core, V, *sides),
            lambda y: gradients([y], [base, x, core, *sides], [grad]),
            fixed,
            optional,
        )

    contenders = [
        contender("reference", reference.spectral_linear),
        contender("torch.compile", compiled, optional=True),
    ]
    if bench.built:
        contenders.append(contender("operator", operators.spectral_linear))
    bench.compare(f"spectral_linear, {kind}", f"{tokens} x {n} to {m}, k={k}", dtype, contenders)


def bench_component_sensitivity(bench: Bench, tokens: int, samples: int, K: int) -> None:
    """The scores of one module with K components; there is no backward pass."""
    left, right = (bench.random(tokens, K, grad=False) for _ in range(2))
    s, rows = torch.rand(K, device=bench.device), [tokens // samples] * samples
    kept = tokens // samples * samples
    for kind in operators.KINDS:
        arguments = (left[:kept], right[:kept], s, rows, kind)
        contenders = [Contender("reference", lambda arguments=arguments: reference.component_sensitivity(*arguments))]
        if bench.built:
            run = operators.component_sensitivity
            contenders.append(Contender("operator", lambda arguments=arguments, run=run: run(*arguments)))
        shape = f"{samples} samples of {tokens // samples} tokens, {K} components"
        bench.compare(f"component_sensitivity, {kind}", shape, torch.float32, contenders)


def orthonormal(size: int, k: int, device: str) -> Tensor:
    """Return random orthonormal columns (size, k)."""
    return torch.linalg.qr(torch.randn(size, k)).Q.contiguous().to(device)  # LAPACK gives them column by column


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Run a backward pass to the leaves, and let its results go."""
    torch.autograd.grad(outputs, leaves, grads)
