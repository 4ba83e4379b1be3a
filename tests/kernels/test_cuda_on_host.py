"""The CUDA kernels and their bindings, run on the host by what is in cuda_on_host, against the reference in float64.

It shows that their arithmetic, their indices and their barriers are right; not how fast they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

from lorsa.kernels.library import CSRC

CUDA = CSRC / "cuda"
HOST = Path(__file__).parent / "cuda_on_host"
COMPILER = shutil.which("g++")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no g++ on this machine")]

# Run in a process of its own: empty tensors are filled with NaN there, and only one such library can be loaded.
CHECK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from gpu_check import Checks
torch.ops.load_library(sys.argv[2])
torch.use_deterministic_algorithms(True)
ops = torch.ops.lorsa_cuda_on_host
passed = 0
for order in map(int, sys.argv[3:]):
    ops.set_order(order)
    for row in Checks(ops, "cpu", small=True).rows():
        if not row.ok:
            sys.exit(str(row))
        passed += 1
print(passed)
"""


def call(*arguments: str | Path) -> None:
    done = subprocess.run([str(COMPILER), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled(unit: Path, folder: Path) -> Path:
    result = folder / f"{unit.stem}.o"
    headers = [option for path in include_paths() for option in ("-isystem", path)]
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    call(*flags, f"-I{HOST}", *headers, "-x", "c++", "-c", unit, "-o", result)
    return result


def linked(objects: Iterable[Path], library: Path) -> Path:
    folders = [f"-L{path}" for path in library_paths()]
    call("-shared", *objects, "-o", library, *folders, "-ltorch", "-ltorch_cpu", "-lc10")
    return library


def check(repository: Path, library: Path, *orders: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHECK, repository / "scripts", library, *orders]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)


def test_the_kernels_compute_what_the_reference_does_in_any_order_of_threads(tmp_path: Path, repository: Path):
    units = [HOST / "host.cpp", *sorted(CUDA.glob("*.cu"), key=lambda path: -path.stat().st_size)]
    with ThreadPoolExecutor(2) as pool:
        objects = dict(zip(units, pool.map(lambda unit: compiled(unit, tmp_path), units), strict=True))
    done = check(repository, linked(objects.values(), tmp_path / "whole.so"), 0, -1)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000

    # A missing barrier would be noticed.
    copy = shutil.copytree(CUDA, tmp_path / "csrc" / "cuda")
    broken = copy / "component_sensitivity.cu"
    text, barrier = broken.read_text(), "  sums[threadIdx.x] = sum;\n  __syncthreads();\n"
    assert text.count(barrier) == 1
    broken.write_text(text.replace(barrier, barrier.splitlines()[0] + "\n"))
    objects[CUDA / broken.name] = compiled(broken, copy)
    done = check(repository, linked(objects.values(), tmp_path / "broken.so"), 0)
    assert done.returncode != 0
    assert "component_sensitivity" in done.stderr
