"""Spectral-update operators: what a LoRSA layer computes, apart from any module or configuration.

This package imports torch alone.
"""

from lorsa.kernels.reference import (
    cayley_core,
    rotation_difference,
    spectral_linear,
    subspace_difference,
    thin_rotation_difference,
)

__all__ = [
    "cayley_core",
    "rotation_difference",
    "spectral_linear",
    "subspace_difference",
    "thin_rotation_difference",
]
