"""Spectral-update operators: what a LoRSA layer computes, apart from any module or configuration.

reference.py defines them in PyTorch; csrc/ has them in C++ and CUDA C++, build.py compiles that, and dispatch.py takes
the compiled ones where they are built. This package imports torch alone.
"""

from lorsa.kernels.dispatch import (
    component_sensitivity,
    implementation,
    rotation_core,
    spectral_linear,
    subspace_core,
    thin_rotation,
)
from lorsa.kernels.library import KernelError
from lorsa.kernels.reference import cayley_core, rotation_difference, subspace_difference, thin_rotation_difference

__all__ = [
    "KernelError",
    "cayley_core",
    "component_sensitivity",
    "implementation",
    "rotation_core",
    "rotation_difference",
    "spectral_linear",
    "subspace_core",
    "subspace_difference",
    "thin_rotation",
    "thin_rotation_difference",
]
