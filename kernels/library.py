"""The compiled kernels as a file: which library fits this source, torch and processor, where it lies, and loading it.

A library's folder is named after everything that the library was made from, so one that is found is never outdated:

<cache>/kernels/    <cache> is $LORSA_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/lorsa
    <key>/          <hash>, or for a build with CUDA <hash>-cu<toolkit>-<architecture>-<architecture>...
        lorsa_kernels.so
        build.json  what it was built for
    <key>.lock      held while it is built
    .<key>-*/       a build under way, or left by a process that was killed; never looked into

A package that was built with LORSA_BUILD_KERNELS=1 has such folders in lorsa/kernels/built. build.py makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

CSRC = Path(__file__).parent / "csrc"
PACKAGED = Path(__file__).parent / "built"
NAME = "lorsa_kernels"
LIBRARY = f"{NAME}.so"
COMMAND = "python -m lorsa.kernels.build"
SETTINGS = ("auto", "reference", "built", "jit")

# No -march=native: one cache serves the different nodes of a cluster. No -ffast-math: the reference is the definition.
CXX_FLAGS = (
    "-O3", "-DNDEBUG", "-fopenmp", "-fopenmp-simd", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra",
)  # fmt: skip
CPU_FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}
# torch.utils.cpp_extension forbids arithmetic on half types; the kernels compile alike with nvcc alone and through it.
NVCC_FLAGS = (
    "-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-Wall", "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_HALF2_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
)  # fmt: skip


class KernelError(RuntimeError):
    """The compiled kernels cannot be built, found or loaded. The message says what would help."""


def cache_folder() -> Path:
    """Return the folder in which libraries are kept; it need not exist.

    Raises:
        KernelError: LORSA_CACHE and XDG_CACHE_HOME are not set, and there is no home.
    """
    try:
        if folder := os.environ.get("LORSA_CACHE"):
            return Path(folder).expanduser() / "kernels"
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lorsa" / "kernels"
    except RuntimeError as error:
        raise KernelError("There is no home folder for ~/.cache/lorsa; set LORSA_CACHE to a folder.") from error


def cpu_capability() -> str:
    """Return the instruction set that torch chose for this processor: AVX512, AVX2 or another name."""
    return torch.backends.cpu.get_cpu_capability()


def cxx_flags() -> tuple[str, ...]:
    """Return the C++ compiler's flags for this processor."""
    return (*CXX_FLAGS, *CPU_FLAGS.get(cpu_capability(), ()))


def read_sources(source: Path, cuda: bool) -> dict[str, bytes]:
    """Return all that a build reads, by path within `source`; without CUDA that is all outside cuda/."""
    found = (path for path in source.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu"))
    files = {path.relative_to(source).as_posix(): path for path in found if not path.name.startswith(".")}
    return {name: files[name].read_bytes() for name in sorted(files) if cuda or not name.startswith("cuda/")}


def source_key(sources: Mapping[str, bytes], cuda: bool) -> str:
    """Return the hash of what a build depends on and a machine without a compiler knows too."""
    facts = {
        "sources": {name: hashlib.sha256(content).hexdigest() for name, content in sources.items()},
        "flags": [cxx_flags(), NVCC_FLAGS if cuda else None],
        "torch": [torch.__version__, torch.version.git_version, torch.version.cuda, torch.compiled_with_cxx11_abi()],
        # The C library's version: what is linked against a newer one does not load with an older one.
        "platform": [platform.system(), platform.machine(), platform.libc_ver(), sys.implementation.cache_tag],
        "cpu": cpu_capability(),
        "cuda": cuda,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def find(source: Path = CSRC, capability: tuple[int, int] | None = None) -> Path | None:
    """Return the library for exactly this source, torch and processor, or None; one with CUDA if torch has CUDA.

    Args:
        source: the folder of the sources.
        capability: of the GPU that it is for, where that is known: to look would initialise the GPU.
    """
    return (find_cuda(source, capability) if torch.version.cuda else None) or find_key(
        source_key(read_sources(source, False), False)
    )


def find_cuda(source: Path = CSRC, capability: tuple[int, int] | None = None) -> Path | None:
    """Return the library with CUDA kernels for this source, torch and processor, or None.

    Of several it is the newest that has code for a GPU of that compute capability, else the newest.
    """
    key = source_key(read_sources(source, cuda=True), cuda=True)
    found = [path for folder in (PACKAGED, cache_folder()) for path in folder.glob(f"{key}-cu*/{LIBRARY}")]

    def rank(path: Path) -> tuple[bool, float]:
        return capability is not None and covers(path, capability), path.stat().st_mtime

    return max(found, key=rank, default=None)


def find_key(key: str) -> Path | None:
    """Return the library in the folder of that name, or None."""
    paths = (folder / key / LIBRARY for folder in (PACKAGED, cache_folder()))
    return next((path for path in paths if path.is_file()), None)


def covers(path: Path, capability: tuple[int, int]) -> bool:
    """Say whether a library has code for a GPU of that compute capability (torch.cuda.get_device_capability)."""
    for major, minor, exact, ptx in re.findall(r"-(\d+)\.(\d+)([af]?)(\+PTX)?(?=-|$)", path.parent.name):
        built = int(major), int(minor)
        if built == capability or (not exact and built <= capability and (ptx or built[0] == capability[0])):
            return True
    return False


_loaded: list[Path] = []


def load(path: Path) -> None:
    """Register the library's operators as torch.ops.lorsa; for the library that is loaded already, do nothing.

    Raises:
        KernelError: it cannot be loaded, or another library is.
    """
    path = path.resolve()
    if path in _loaded:
        return
    if _loaded:  # a second registration of the operators would end the process
        raise KernelError(f"{path} cannot be loaded: {_loaded[0]} is, and a process can load one alone.")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        reason = error.__cause__ or error
        raise KernelError(f"The kernels cannot be loaded ({reason}); build them again: {COMMAND} --force") from error
    _loaded.append(path)


def choose(setting: str, source: Path = CSRC, capability: tuple[int, int] | None = None) -> Path | None:
    """Return the library to load, or None for the reference.

    Args:
        setting: of the environment variable LORSA_KERNELS. auto (or nothing): what is built, else the reference;
            reference; built: an error if it is not; jit: built now if it is not.
        source: the folder of the sources.
        capability: of the GPU that it is for, where that is known.

    Raises:
        KernelError: the setting is none of these, or asks for what cannot be had.
    """
    setting = setting or "auto"
    if setting not in SETTINGS:
        raise KernelError(f"LORSA_KERNELS={setting} is unknown; it is one of {', '.join(SETTINGS)}.")
    if setting == "reference":
        return None
    if setting == "jit":
        # One with CUDA kernels is taken as it is: a machine without nvcc would build one without them.
        if torch.version.cuda and (path := find_cuda(source, capability)):
            return path
        from lorsa.kernels.build import build

        return build(source=source).path
    path = find(source, capability)
    if path is None and setting == "built":
        raise KernelError(
            f"LORSA_KERNELS=built, but the kernels are not built for this source, torch {torch.__version__} and "
            f"{cpu_capability()}; this builds them: {COMMAND}"
        )
    return path
