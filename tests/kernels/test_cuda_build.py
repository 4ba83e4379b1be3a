"""The CUDA sources compile, on a machine without a GPU and with a torch that has no CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from lorsa.kernels.build import find_toolkit
from lorsa.kernels.library import CSRC, NVCC_FLAGS

CUDA = CSRC / "cuda"
TOOLKIT = find_toolkit()

pytestmark = pytest.mark.skipif(TOOLKIT is None, reason="no nvcc on this machine")


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", sorted(path.name for path in CUDA.glob("*.cu")))
def test_a_kernel_compiles_with_cuda_headers_alone(tmp_path: Path, name: str, architecture: str):
    compiled = tmp_path / "kernel.o"
    # -G leaves out the optimiser, which takes most of the time; it goes without line numbers of optimised code.
    flags = [flag for flag in NVCC_FLAGS if flag != "-lineinfo"]
    flags += ["-G", "-Werror", "all-warnings", f"-arch={architecture}"]
    run(TOOLKIT.root / "bin" / "nvcc", *flags, "-c", CUDA / name, "-o", compiled)
    assert compiled.stat().st_size > 0


def test_the_bindings_compile(tmp_path: Path):
    compiler = shutil.which("g++") or pytest.skip("no g++ on this machine")
    headers = [option for folder in include_paths() for option in ("-isystem", folder)]
    defined = []
    if not any(Path(folder, "c10/cuda/impl/cuda_cmake_macros.h").exists() for folder in include_paths()):
        defined.append("-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE")  # a torch without CUDA lacks what CMake generates
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *defined]
    run(compiler, *flags, *headers, "-isystem", TOOLKIT.root / "include", CUDA / "bindings.cpp")


def test_every_operator_has_a_cuda_kernel():
    operators = set(re.findall(r'"(\w+)\(', (CSRC / "schema.cpp").read_text()))
    sources = [CUDA / "bindings.cpp", *CSRC.glob("*.cpp")]
    blocks = [
        re.search(r"TORCH_LIBRARY_IMPL\(lorsa, CUDA, m\) \{(.*?)\n\}", path.read_text(), re.S) for path in sources
    ]
    registered = {name for block in blocks if block for name in re.findall(r'm\.impl\("(\w+)"', block[1])}
    assert operators
    assert operators == registered
