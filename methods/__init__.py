"""PEFT methods. LoRSA is ours; everything PEFT has comes from PEFT."""

from lorsa.methods.apply import Report, apply, save
from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa import LorsaConfig, select_components
from lorsa.methods.selected import SelectedConfig

__all__ = ["LorsaConfig", "MethodError", "Report", "SelectedConfig", "apply", "save", "select_components"]
