"""How long do a model's bases take, against torch.linalg.svd in float32 on the same cores, and how exact are they?

    python scripts/unpack_small_models.py models
    OMP_NUM_THREADS=1 python scripts/bench_basis.py models/smollm2_135m

prints a Markdown table. `--large` adds two matrices of LLaMA-2's shapes (minutes), `--device cuda` computes on a GPU.
"""

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel

from lorsa.methods.lorsa import Basis, singular_basis
from lorsa.methods.lorsa.cache import BasisCache, prefetch

COMPONENTS = 64
SHAPES = ((4096, 4096), (4096, 11008))


def linear_layers(folder: Path, device: str) -> dict[str, nn.Linear]:
    """Return all linear modules of a model, by name, in float32."""
    gguf = next(folder.glob("*.gguf"), None)
    model = AutoModel.from_pretrained(folder, gguf_file=gguf.name if gguf else None, dtype=torch.float32).to(device)
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def weight_like(m: int, n: int, device: str) -> Tensor:
    """Return a random weight (m, n) whose values fall like those of attention projections: most below s_1 / 10."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(m, n, generator=generator) * (1 + torch.arange(m))[:, None] ** -0.3).to(device)


class Clock:
    """Sums up how long some work takes: by the clock on the wall, and by that of the process' own work on the CPU."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def time(self, work: Callable[[], object]) -> None:
        """Do the work, on the CPU or a GPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def errors(weight: Tensor, basis: Basis) -> Iterator[float]:
    """Yield the errors of values, reconstruction (spectral norm) and orthonormality (largest entry), by s_1."""
    W, U, s, V = (part.double() for part in (weight.detach(), basis.U, basis.s, basis.V))
    exact = torch.linalg.svdvals(W)
    yield ((s - exact).abs().max() / exact[0]).item()
    yield (torch.linalg.matrix_norm((U * s) @ V.mT - W, 2) / exact[0]).item()
    yield max((side.mT @ side - torch.eye(len(s), device=s.device)).abs().max().item() for side in (U, V))


def bench_model(layers: dict[str, nn.Linear], folder: Path) -> None:
    """Print the table of one model: every matrix by LAPACK and into a cache, in turns, then out of the cache."""
    cache = BasisCache(folder)
    svd, bare, cold, warm = Clock(), Clock(), Clock(), Clock()
    for name, layer in layers.items():  # in turns: a busy moment hits all
        weight = layer.weight.detach()
        svd.time(lambda weight=weight: torch.linalg.svd(weight, full_matrices=False))
        bare.time(lambda weight=weight: singular_basis(weight))
        cold.time(lambda name=name, layer=layer: prefetch({name: layer}, cache))

    def read() -> None:
        again = BasisCache(folder)
        for layer in layers.values():
            again.basis(layer.weight).select(list(range(min(COMPONENTS, *layer.weight.shape))))

    warm.time(read)
    print(f"| {len(layers)} matrices | wall, s | CPU, s | ratio, wall | ratio, CPU | goal |\n|---|---|---|---|---|---|")
    print(f"| torch.linalg.svd, float32 | {svd.wall:.2f} | {svd.cpu:.2f} | | | |")
    for what, clock, goal in (("singular_basis", bare, ""), ("cold: and written to the cache", cold, "5 x faster")):
        ratios = f"{svd.wall / clock.wall:.2f} x faster | {svd.cpu / clock.cpu:.2f} x faster"
        print(f"| {what} | {clock.wall:.2f} | {clock.cpu:.2f} | {ratios} | {goal} |")
    ratios = f"{warm.wall / cold.wall:.1%} of cold | {warm.cpu / cold.cpu:.1%} of cold"
    print(f"| warm: {COMPONENTS} components of each | {warm.wall:.2f} | {warm.cpu:.2f} | {ratios} | 5 % |")


def bench_accuracy(layers: dict[str, nn.Linear]) -> None:
    """Print the largest errors over every tenth matrix."""
    worst = [0.0, 0.0, 0.0]
    for layer in list(layers.values())[::10]:
        worst = [max(pair) for pair in zip(worst, errors(layer.weight, singular_basis(layer.weight)), strict=True)]
    print("\n| largest error, every tenth matrix | by s_1 | allowed |\n|---|---|---|")
    for what, error in zip(("singular values", "reconstruction, spectral norm", "orthonormality"), worst, strict=True):
        print(f"| {what} | {error:.1e} | 1e-05 |")


def bench_large(device: str) -> None:
    """Print the table of single large matrices."""
    print("\n| random matrix | torch.linalg.svd, CPU or GPU s | singular_basis | ratio |\n|---|---|---|---|")
    for m, n in SHAPES:
        weight = weight_like(m, n, device)
        ours, svd = Clock(), Clock()
        ours.time(lambda weight=weight: singular_basis(weight))
        svd.time(lambda weight=weight: torch.linalg.svd(weight, full_matrices=False))
        theirs, own = (svd.cpu, ours.cpu) if device == "cpu" else (svd.wall, ours.wall)
        print(f"| {m} x {n} | {theirs:.1f} | {own:.1f} | {theirs / own:.2f} x faster |", flush=True)


def hardware(device: str) -> str:
    """Return what the times depend on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder, with safetensors or GGUF")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, help="where to write the bases, and delete them (default: TMPDIR)")
    parser.add_argument("--large", action="store_true", help="also time single 4096 x 4096 and 4096 x 11008 matrices")
    arguments = parser.parse_args()
    print(f"{hardware(arguments.device)}, PyTorch {torch.__version__}\n")
    layers = linear_layers(arguments.model, arguments.device)
    folder = Path(tempfile.mkdtemp(dir=arguments.cache))
    try:
        bench_model(layers, folder)
    finally:
        shutil.rmtree(folder)
    bench_accuracy(layers)
    if arguments.large:
        bench_large(arguments.device)


if __name__ == "__main__":
    main()
