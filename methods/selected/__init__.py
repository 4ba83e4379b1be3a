"""Training a selection of the model's own parameters: everything, nothing but the head, or the biases."""

from lorsa.methods.selected.config import SelectedConfig
from lorsa.methods.selected.model import load_selected, save_selected, select_parameters

__all__ = ["SelectedConfig", "load_selected", "save_selected", "select_parameters"]
