"""Check and measure the CUDA kernels on a machine that has torch, nvcc and this checkout, and nothing else.

    python scripts/gpu_check.py [--csv FILE] [--sanitizer]

Builds the extension, compares every operator, forward and backward, with the reference in float64, counts
rotation_core's launches, measures the memory-bound kernels against the bandwidth of a copy, and runs the operator
benchmarks of bench_kernels.py. Takes less than ten minutes. Exits with 1 if a check failed, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# Of the norm of the reference's result.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float64: 1e-9}
SECONDS = 9 * 60


@dataclass(frozen=True)
class Row:
    """One line of the CSV: a check, with its limit and whether it was kept, or a measurement."""

    kind: str
    op: str
    case: str
    dtype: str
    value: float
    unit: str
    limit: float | None = None
    ok: bool | None = None
    p20: float | None = None
    p80: float | None = None

    def __str__(self) -> str:
        end = "" if self.ok is None else f"  of {self.limit:g} allowed  {'ok' if self.ok else 'FAILED'}"
        return f"{self.kind:10} {self.op:32} {self.case:44} {self.dtype:9} {self.value:10.4g} {self.unit}{end}"


def use_checkout() -> None:
    """Make lorsa.kernels importable from this checkout, unless it has been imported: lorsa need not be installed."""
    if "lorsa.kernels" in sys.modules:
        return
    lorsa = types.ModuleType("lorsa")
    lorsa.__path__ = []
    lorsa.__spec__ = importlib.machinery.ModuleSpec("lorsa", None, is_package=True)
    sys.modules["lorsa"] = lorsa
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "lorsa.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lorsa.kernels"] = module
    spec.loader.exec_module(module)


class Checks:
    """Compares operators with the reference.

    Args:
        ops: the operators, as torch.ops.lorsa.
        device: on which they run.
        small: leave out the shapes of whole models, as under the sanitizer.
    """

    def __init__(self, ops: Any, device: str, small: bool = False):
        use_checkout()
        from lorsa.kernels import reference

        self.ops, self.device, self.small, self.reference = ops, device, small, reference
        self.seed = 0

    def rows(self) -> Iterator[Row]:
        """Run all checks."""
        yield from self.rotation_core()
        yield from self.subspace_core()
        yield from self.thin_rotation()
        yield from self.component_sensitivity()
        yield from self.exact()
        if hasattr(self.ops, "spectral_linear"):
            yield from self.spectral_linear()

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0, shift: int = 0) -> Tensor:
        """Return normal numbers, contiguous but `shift` numbers off what vector loads want."""
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        buffer = torch.empty(values.numel() + shift, dtype=dtype, device=self.device)
        return buffer[shift:].view(shape).copy_(values)

    def factors(self, sizes: Sequence[int], r: int, count: int, **options: Any) -> list[Tensor]:
        """Return packed P, Q, ... (N, r) whose rotations turn far, by every size of angle."""
        scale = (sum(sizes) / len(sizes)) ** -0.5
        return [self.normal(sum(sizes), r, scale=2 * scale, **options) for _ in range(count)]

    def compared(
        self, op: str, case: str, dtype: torch.dtype, pairs: dict[str, tuple[Tensor, Tensor]]
    ) -> Iterator[Row]:
        """Yield the relative error of each result, given with what it should be."""
        for name, (actual, expected) in pairs.items():
            assert actual.shape == expected.shape, f"{op} {case} {name}: {actual.shape}, not {expected.shape}"
            gap, norm = (actual.double() - expected).norm().item(), expected.norm().item()
            error = gap / norm if norm else gap
            limit = TOLERANCE[dtype]
            # Not a number is not within the limit.
            yield Row("check", op, f"{case} {name}", str(dtype)[6:], error, "relative", limit, error <= limit)

    @staticmethod
    def wide(*tensors: Tensor) -> list[Tensor]:
        """Return float64 copies to differentiate by."""
        return [tensor.double().requires_grad_() for tensor in tensors]

    def rotation_core(self) -> Iterator[Row]:
        """K and its gradients."""
        cases = [([7], 1), ([1, 2, 33, 576], 1), ([64, 5, 64], 2), ([5, 129], 3), ([300, 40], 8), ([100], 32)]
        if not self.small:
            cases += [([3, 4] * 500, 1), ([4096, 11008] * 3, 1), ([4096, 11008], 4), ([5000, 13824], 16)]
        for sizes, r in cases:
            for dtype in (torch.float32, torch.float64):
                P, Q = self.factors(sizes, r, 2, dtype=dtype, shift=1)
                K = self.ops.rotation_core(P, Q, sizes)
                leaves = self.wide(P, Q)
                expected = self.reference.rotation_core(*leaves, sizes)
                grad = self.normal(*K.shape, dtype=dtype)
                gradients = torch.autograd.grad(expected, leaves, grad.double())
                dP, dQ = self.ops.rotation_core_backward(grad, P, Q, K, sizes)
                pairs = {"K": (K, expected.detach()), "dP": (dP, gradients[0]), "dQ": (dQ, gradients[1])}
                yield from self.compared("rotation_core", f"{self.named(sizes)} r={r}", dtype, pairs)

    def subspace_core(self) -> Iterator[Row]:
        """C and its gradients."""
        cases = [([5], 1), ([64, 65], 1), ([65, 16, 130], 2), ([33], 3), ([70, 90], 8), ([80], 32)]
        if not self.small:
            cases += [([2, 3] * 200, 1), ([192] * 20, 1), ([512, 1024], 2)]
        names = ("dP_out", "dQ_out", "dP_in", "dQ_in", "dd")
        for sizes, r in cases:
            for dtype in (torch.float32, torch.float64):
                factors = self.factors(sizes, r, 4, dtype=dtype, shift=1)
                s, d = (self.normal(sum(sizes), dtype=dtype) for _ in range(2))
                C, K_out, K_in = self.ops.subspace_core(*factors, s, d, sizes)
                leaves = self.wide(*factors, d)
                expected = self.reference.subspace_core(*leaves[:4], s.double(), leaves[4], sizes)
                grad = self.normal(*C.shape, dtype=dtype)
                gradients = torch.autograd.grad(expected, leaves, grad.double())
                results = self.ops.subspace_core_backward(grad, *factors, s, d, K_out, K_in, sizes)
                pairs = {"C": (C, expected.detach()), **self.named_pairs(names, results, gradients)}
                yield from self.compared("subspace_core", f"{self.named(sizes)} r={r}", dtype, pairs)

    def thin_rotation(self) -> Iterator[Row]:
        """Y and its gradients: both directions, with and without offset, from what went in and from what came out."""
        # tokens, n, r, how far off an aligned address
        cases = [(1, 2, 1, 0), (5, 9, 2, 0), (67, 64, 1, 0), (67, 64, 1, 1), (40, 130, 3, 0), (33, 260, 8, 0)]
        cases += [(9, 1100, 1, 0), (150, 65, 32, 0)]
        if not self.small:
            cases += [(1000, 576, 1, 0), (520, 1536, 4, 0), (300, 4096, 1, 0), (70, 11008, 2, 0), (5, 60001, 1, 0)]
        names = ("dx", "dP", "dQ", "dK", "doffset")
        options = [
            (inverse, given, kept) for inverse in (False, True) for given in (False, True) for kept in (False, True)
        ]
        for tokens, n, r, shift in cases:
            for dtype in TOLERANCE:
                # Every case in both directions; all the others in turn.
                for inverse, given, kept_output in options if n == 64 else options[n % 2 :: 3]:
                    wide = torch.float64 if dtype == torch.float64 else torch.float32
                    P, Q = self.factors([n], r, 2, dtype=wide, shift=shift)
                    K = self.reference.cayley_core(P.double(), Q.double()).to(wide).contiguous()
                    x, grad = (self.normal(tokens, n, dtype=dtype, shift=shift) for _ in range(2))
                    offset = self.normal(n, dtype=dtype, shift=shift) if given else None
                    y = self.ops.thin_rotation(x, P, Q, K, offset, inverse, kept_output)
                    leaves = self.wide(x, P, Q, K, *([] if offset is None else [offset]))
                    offset_leaf = leaves[4] if given else None
                    expected = self.reference.thin_rotation(*leaves[:4], offset_leaf, inverse)
                    gradients = torch.autograd.grad(expected, leaves, grad.double())
                    kept = y if kept_output else x
                    results = self.ops.thin_rotation_backward(grad, kept, P, Q, K, offset, inverse, kept_output)
                    pairs = {"y": (y, expected.detach()), **self.named_pairs(names, results, gradients)}
                    flags = f"{'inverse ' * inverse}{'offset ' * given}{'kept=y ' * kept_output}{'unaligned ' * shift}"
                    case = f"{tokens}x{n} r={r} {flags}".strip()
                    yield from self.compared("thin_rotation", case, dtype, pairs)

    def component_sensitivity(self) -> Iterator[Row]:
        """Scores of each kind."""
        cases = [([3], 5), ([4, 0, 7, 1], 64), ([20, 5], 65), ([33, 17, 16], 130)]
        if not self.small:
            cases += [([2, 3] * 500, 40), ([128] * 8, 576), ([100, 28], 1500)]
        for rows, components in cases:
            for dtype in (torch.float32, torch.float64):
                left, right = (self.normal(sum(rows), components, dtype=dtype) for _ in range(2))
                s = self.normal(components, dtype=dtype)
                wide = left.double(), right.double(), s.double()
                pairs = {
                    kind: (
                        self.ops.component_sensitivity(left, right, s, rows, number),
                        self.reference.component_sensitivity(*wide, rows, kind),
                    )
                    for number, kind in enumerate(("value", "own", "pair"))
                }
                case = f"{self.named(rows)} K={components}"
                yield from self.compared("component_sensitivity", case, dtype, pairs)

    def spectral_linear(self) -> Iterator[Row]:
        """Sums and gradients, through autograd."""
        tokens, m, n, k, extra = 37, 65, 33, 17, 2
        for dtype in TOLERANCE:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            shapes = {"base": (tokens, m), "x": (tokens, n), "U": (m, k), "core": (k + extra, k + extra), "V": (n, k)}
            tensors = {name: self.normal(*shape, dtype=dtype) for name, shape in shapes.items()}
            tensors["core"] = tensors["core"].to(wide)
            tensors |= {"left": self.normal(m, extra, dtype=wide), "right": self.normal(n, extra, dtype=wide)}
            grad = self.normal(tokens, m, dtype=dtype)
            trained = ("base", "x", "core", "left", "right")
            for name in trained:
                tensors[name].requires_grad_()
            out, _ = self.ops.spectral_linear(*tensors.values())
            gradients = torch.autograd.grad(out, [tensors[name] for name in trained], grad)
            copies = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
            expected = self.reference.spectral_linear(*copies.values())
            right = torch.autograd.grad(expected, [copies[name] for name in trained], grad.double())
            names = tuple(f"d{name}" for name in trained)
            pairs = {"out": (out.detach(), expected.detach()), **self.named_pairs(names, gradients, right)}
            yield from self.compared("spectral_linear", f"{tokens}x{n} to {m}, k={k}+{extra}", dtype, pairs)

    def exact(self) -> Iterator[Row]:
        """What holds to the bit: nothing changes at P = 0, equal inputs give equal outputs, no tokens give zeros."""
        for dtype in TOLERANCE:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            n, r = 70, 2
            Q, x, offset = self.normal(n, r, dtype=wide), self.normal(9, n, dtype=dtype), self.normal(n, dtype=dtype)
            P = torch.zeros_like(Q)
            K = self.ops.rotation_core(P, Q, [n])[0]
            for inverse in (False, True):
                y = self.ops.thin_rotation(x, P, Q, K, offset, inverse, False)
                yield self.exactly("thin_rotation", f"P = 0{' inverse' * inverse}", dtype, y, x)
            P, tokens = self.normal(n, r, dtype=wide, scale=0.2), 300
            K = self.ops.rotation_core(P, Q, [n])[0]
            x = self.normal(tokens, n, dtype=dtype)
            once, twice = (self.ops.thin_rotation_backward(x, x, P, Q, K, offset, False, True) for _ in range(2))
            for name, a, b in zip(("dx", "dP", "dQ", "dK", "doffset"), once, twice, strict=True):
                yield self.exactly("thin_rotation", f"again {name}", dtype, b, a)
            nothing = x[:0]
            results = self.ops.thin_rotation_backward(nothing, nothing, P, Q, K, offset, False, False)
            for name, result in zip(("dx", "dP", "dQ", "dK", "doffset"), results, strict=True):
                yield self.exactly("thin_rotation", f"no tokens {name}", dtype, result, torch.zeros_like(result))
        for dtype in (torch.float32, torch.float64):
            Q, s = self.normal(70, 2, dtype=dtype), self.normal(70, dtype=dtype)
            P, d = torch.zeros_like(Q), torch.zeros_like(s)
            C, _, _ = self.ops.subspace_core(P, Q, P, Q, s, d, [30, 40])
            yield self.exactly("subspace_core", "P = 0, d = 0", dtype, C, torch.zeros_like(C))
            nothing = self.normal(0, 5, dtype=dtype)
            scores = self.ops.component_sensitivity(nothing, nothing, s[:5].clone(), [], 2)
            yield self.exactly("component_sensitivity", "no samples", dtype, scores, torch.zeros_like(scores))

    def exactly(self, op: str, case: str, dtype: torch.dtype, actual: Tensor, expected: Tensor) -> Row:
        """Return whether two tensors are equal."""
        different = (actual != expected).sum().item() if actual.shape == expected.shape else actual.numel() + 1
        return Row("check", op, case, str(dtype)[6:], different, "numbers differ", 0, different == 0)

    @staticmethod
    def named(sizes: Sequence[int]) -> str:
        """Return a short name for many sizes."""
        return "+".join(map(str, sizes)) if len(sizes) < 5 else f"{len(sizes)} of {min(sizes)} to {max(sizes)}"

    @staticmethod
    def named_pairs(
        names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return results with what they should be, by name; a result that nothing was expected of is left out."""
        return {name: pair for name, *pair in zip(names, actual, expected)}  # noqa: B905, type: ignore[misc]


def launch_rows(ops: Any) -> Iterator[Row]:
    """One launch for the rotations of all layers of LLaMA-2 7B, both sides, forward and backward."""
    from torch.profiler import ProfilerActivity, profile

    P, Q, sizes = llama_factors("cuda")
    K = ops.rotation_core(P, Q, sizes)
    calls: dict[str, Callable[[], Any]] = {
        "rotation_core": lambda: ops.rotation_core(P, Q, sizes),
        "rotation_core_backward": lambda: ops.rotation_core_backward(K, P, Q, K, sizes),
    }
    for name, call in calls.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        events = profiler.events() or []
        launches = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
        yield Row("launches", name, f"{len(sizes)} matrices r=1", "float32", launches, "on the GPU", 1, launches == 1)


def llama_factors(device: str) -> tuple[Tensor, Tensor, list[int]]:
    """Return packed P, Q for both sides of LLaMA-2 7B's 224 linear layers at rank 1, and their sizes."""
    layer = [4096, 4096] * 4 + [11008, 4096] * 2 + [4096, 11008]
    sizes = layer * 32
    P, Q = (torch.randn(sum(sizes), 1, device=device) / 64 for _ in range(2))
    return P, Q, sizes


def milliseconds(call: Callable[[], Any], device: str, samples: int = 21, calls: int = 5) -> list[float]:
    """Return the times of a call, sorted. On a GPU it is kept busy first, so that calls queue up and follow closely."""
    for _ in range(3):
        call()
    times = []
    for _ in range(samples):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / calls)
        else:
            began = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times)


def timed(
    op: str, case: str, dtype: torch.dtype, bytes_moved: int, times: list[float], copy: float = 0
) -> Iterator[Row]:
    """Yield the time and the bandwidth of a call, the latter also as a share of the copy's (where that is known)."""
    p20, median, p80 = (times[int(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
    name = str(dtype)[6:]
    yield Row("time", op, case, name, median, "ms", p20=p20, p80=p80)
    bandwidth = bytes_moved / median / 1e6
    yield Row("bandwidth", op, case, name, bandwidth, "GB/s")
    if copy:
        yield Row("bandwidth", op, case, name, bandwidth / copy, "of the copy's")


def bandwidth_rows(ops: Any, device: str) -> Iterator[Row]:
    """Measure the memory-bound kernels against a copy. Bytes: each input read once, each output written once."""
    small = device == "cpu"  # to try this script out, not to measure anything
    source = torch.randn((2**20 if small else 2**28), device=device)
    target = torch.empty_like(source)
    size = source.numel() * 4
    times = milliseconds(lambda: target.copy_(source), device)
    _, of_copy = rows = list(timed("copy", f"{size >> 20} MiB", torch.float32, 2 * size, times))
    yield from rows
    copy = of_copy.value

    for dtype in (torch.bfloat16, torch.float32):
        for tokens, n, r in (
            [(64, 256, 1)] if small else [(1024, 4096, 1), (16384, 4096, 1), (8192, 11008, 1), (8192, 4096, 4)]
        ):
            x, grad = (torch.randn(tokens, n, device=device).to(dtype) for _ in range(2))
            P, Q = (torch.randn(n, r, device=device) / n**0.5 for _ in range(2))
            K = ops.rotation_core(P, Q, [n])[0]
            case, element = f"{tokens}x{n} r={r}", x.element_size()
            times = milliseconds(lambda: ops.thin_rotation(x, P, Q, K, None, False, True), device)  # noqa: B023
            yield from timed("thin_rotation", case, dtype, 2 * tokens * n * element, times, copy)
            for kept_output in (False, True):
                times = milliseconds(
                    lambda: ops.thin_rotation_backward(grad, x, P, Q, K, None, False, kept_output),  # noqa: B023
                    device,
                )
                # Two kernels: the sums over tokens need what the first has worked out for each.
                moved = 5 * tokens * n * element
                label = case + " kept=y" * kept_output
                yield from timed("thin_rotation_backward", label, dtype, moved, times, copy)

    P, Q, sizes = llama_factors(device)
    if small:
        sizes = sizes[:4]
        P, Q = P[: sum(sizes)], Q[: sum(sizes)]
    K = ops.rotation_core(P, Q, sizes)
    case, moved = f"{len(sizes)} matrices r=1", 2 * P.numel() * 4
    times = milliseconds(lambda: ops.rotation_core(P, Q, sizes), device)
    yield from timed("rotation_core", case, P.dtype, moved, times, copy)
    times = milliseconds(lambda: ops.rotation_core_backward(K, P, Q, K, sizes), device)
    yield from timed("rotation_core_backward", case, P.dtype, 2 * moved, times, copy)

    for k, r, count in [(32, 1, 4)] if small else [(64, 1, 224), (512, 1, 224), (512, 4, 224)]:
        sizes = [k] * count
        factors = [torch.randn(k * count, r, device=device) / k**0.5 for _ in range(4)]
        s, d = (torch.randn(k * count, device=device) for _ in range(2))
        C, K_out, K_in = ops.subspace_core(*factors, s, d, sizes)
        case, moved = f"{count} modules k={k} r={r}", 4 * (k * k * count + 4 * r * k * count)
        times = milliseconds(lambda: ops.subspace_core(*factors, s, d, sizes), device)  # noqa: B023
        yield from timed("subspace_core", case, torch.float32, moved, times, copy)
        times = milliseconds(
            lambda: ops.subspace_core_backward(C, *factors, s, d, K_out, K_in, sizes),  # noqa: B023
            device,
        )
        yield from timed("subspace_core_backward", case, torch.float32, moved, times, copy)


def sensitivity_rows(ops: Any, device: str) -> Iterator[Row]:
    """Measure component_sensitivity, which multiplies more than it moves, against the matrix products in it."""
    rows, components = ([16] * 2, 64) if device == "cpu" else ([128] * 8, 4096)
    left, right = (torch.randn(sum(rows), components, device=device) for _ in range(2))
    s = torch.rand(components, device=device)
    pieces = list(zip(left.split(rows), right.split(rows), strict=True))
    ours = milliseconds(lambda: ops.component_sensitivity(left, right, s, rows, 2), device, samples=7, calls=2)
    products = milliseconds(lambda: [a.T @ b for a, b in pieces], device, samples=7, calls=2)
    case = f"{len(rows)} samples of {rows[0]} tokens K={components}"
    yield Row("time", "component_sensitivity", case, "float32", statistics.median(ours), "ms")
    yield Row("time", "left^T right alone", case, "float32", statistics.median(products), "ms")


# bench_kernels.py imports lorsa, which need not be installed.
WITH_CHECKOUT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import gpu_check
gpu_check.use_checkout()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def benchmark_rows(device: str, seconds: float) -> Iterator[Row]:
    """Run the operator benchmarks of bench_kernels.py for at most so long; what is left out then, it says."""
    script = Path(__file__).with_name("bench_kernels.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.csv"
        options = ["--device", device, "--only", "ops", "--no-compile", "--seconds", "0.5", "--csv", str(path)]
        options += ["--quick"] if device == "cpu" else []
        command = [sys.executable, "-c", WITH_CHECKOUT, str(script.parent), str(script), *options]
        try:
            done = subprocess.run(command, timeout=seconds, env={**os.environ, "LORSA_KERNELS": "built"})
            if done.returncode:
                print(f"{script.name} failed: the benchmarks are left out from there.")
        except subprocess.TimeoutExpired:
            print(f"{script.name} was stopped after {seconds:.0f} s: the rest of the benchmarks is left out.")
        if not path.exists():
            return
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                case, p20, p80 = f"{line['shape']}, {line['contender']}", float(line["p20_ms"]), float(line["p80_ms"])
                about = ("bench", line["what"], case, line["dtype"])
                yield Row(*about, float(line["median_ms"]), "ms", p20=p20, p80=p80)
                yield Row(*about, float(line["ratio"]), "of the first's")


def run_sanitizers(arguments: Sequence[str]) -> Iterator[Row]:
    """Run the checks again, at small sizes, under each of compute-sanitizer's tools."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        print("compute-sanitizer was not found: neither memcheck nor racecheck ran.")
        return
    # torch's own cache of memory hides what is read past the end of a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            __file__,
            "--checks-only",
            *arguments,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        print("\n".join(summary) or done.stdout[-2000:] + done.stderr[-2000:])
        clean = done.returncode == 0
        yield Row("sanitizer", "all", tool, "all", done.returncode, "exit code", 0, clean)


def hardware(device: str) -> dict[str, str]:
    """Return what the CSV says of the machine on every line."""
    facts = {"hardware": platform.processor() or platform.machine(), "torch": torch.__version__}
    facts |= {"cuda": torch.version.cuda or "", "capability": "", "driver": ""}
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts |= {"hardware": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        if shutil.which(query[0]):
            lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
            facts["driver"] = lines[0] if lines else ""
    return facts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--csv", type=Path, default=Path("gpu_check.csv"), help="the file to write (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try this script out")
    parser.add_argument("--small", action="store_true", help="leave out the shapes of whole models")
    parser.add_argument("--checks-only", action="store_true", help="small, and no measurements, no CSV")
    parser.add_argument("--sanitizer", action="store_true", help="run the checks under compute-sanitizer too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    started = time.monotonic()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"There is no GPU that this torch ({torch.__version__}) can use, and nothing was checked.")
        return 2
    use_checkout()
    from lorsa.kernels.build import build
    from lorsa.kernels.library import KernelError, load

    try:
        report = build(cuda=options.device == "cuda")
        print(report)
        load(report.path)
    except KernelError as error:
        print(error, file=sys.stderr)
        return 1
    ops, device = torch.ops.lorsa, options.device
    # The reference's products, and those that a kernel is measured against, are what they say they are.
    torch.backends.cuda.matmul.allow_tf32 = False

    rows: list[Row] = []

    def take(source: Iterator[Row], deadline: float | None = None) -> None:
        for row in source:
            rows.append(row)
            print(row, flush=True)
            if deadline is not None and time.monotonic() - started > deadline:
                print(f"{deadline:.0f} s have passed: the rest of these measurements is left out.")
                return

    take(Checks(ops, device, options.small or options.checks_only).rows())
    if not options.checks_only:
        if device == "cuda":
            take(launch_rows(ops))
        if options.sanitizer:
            take(run_sanitizers(["--device", device]))
        take(bandwidth_rows(ops, device), SECONDS)
        take(sensitivity_rows(ops, device), SECONDS)
        take(benchmark_rows(device, SECONDS - (time.monotonic() - started)))
        facts = hardware(device)
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*facts, *Row.__dataclass_fields__], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**facts, **asdict(row)} for row in rows)
    checks = [row for row in rows if row.ok is not None]
    failed = [row for row in checks if not row.ok]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed in {time.monotonic() - started:.0f} s.")
    for row in failed:
        print(row)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
