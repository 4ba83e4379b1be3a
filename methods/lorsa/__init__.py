"""LoRSA, Low-Rank Spectral Adaptation: trained changes of selected singular values, and low-rank rotations."""

from lorsa.methods.lorsa.basis import Basis, singular_basis
from lorsa.methods.lorsa.budget import resolve_budget
from lorsa.methods.lorsa.cache import BasisCache, default_folder, prefetch
from lorsa.methods.lorsa.config import LorsaConfig
from lorsa.methods.lorsa.layer import LorsaLinear
from lorsa.methods.lorsa.model import LorsaModel, register
from lorsa.methods.lorsa.selection import select_components, target_layers

register()

__all__ = [
    "Basis",
    "BasisCache",
    "LorsaConfig",
    "LorsaLinear",
    "LorsaModel",
    "default_folder",
    "prefetch",
    "resolve_budget",
    "select_components",
    "singular_basis",
    "target_layers",
]
