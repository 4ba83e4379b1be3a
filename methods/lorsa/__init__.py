"""LoRSA, Low-Rank Spectral Adaptation: trained changes of selected singular values, and low-rank rotations."""

from lorsa.methods.lorsa.basis import Basis, singular_basis
from lorsa.methods.lorsa.config import LorsaConfig
from lorsa.methods.lorsa.layer import LorsaLinear
from lorsa.methods.lorsa.model import LorsaModel, register
from lorsa.methods.lorsa.selection import select_components

register()

__all__ = ["Basis", "LorsaConfig", "LorsaLinear", "LorsaModel", "select_components", "singular_basis"]
