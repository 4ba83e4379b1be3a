"""A run's model without its weights: on the meta device, from the model's config alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorsa.methods import LorsaConfig, MethodError, Report
from lorsa.methods.apply import MethodConfig, apply
from lorsa.methods.lorsa.config import CALIBRATED
from lorsa.methods.lorsa.selection import target_layers
from lorsa.runner.errors import UserError
from lorsa.runner.method import build_method
from lorsa.runner.models import head_modules, keep_in_float32, label_options, source_of
from lorsa.runner.schema import JobConfig, ModelConfig
from lorsa.runner.signature import model_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONFIGS = Path(__file__).with_name("configs")


@dataclass
class EmptyModel:
    """A base model on the meta device.

    Attributes:
        model: with a head for the task.
        head: names of the head's modules.
        stored_dtype: of the weights in the checkpoint.
    """

    model: PreTrainedModel
    head: list[str]
    stored_dtype: torch.dtype


def empty_model(cfg: JobConfig, layers: int | None = None) -> EmptyModel:
    """Build the base model of a run.

    Args:
        cfg: the run.
        layers: no more than the first so many of the backbone's.

    Raises:
        UserError: its config cannot be found without the network, or transformers does not know the architecture.
    """
    from transformers import AutoModelForSequenceClassification

    config = model_config(cfg.model)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    for key, value in label_options(cfg.task).items():
        setattr(config, key, value)
    if config.pad_token_id is None:
        config.pad_token_id = 0
    if layers is not None and isinstance(getattr(config, "num_hidden_layers", None), int):
        config.num_hidden_layers = min(layers, config.num_hidden_layers)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                config, dtype=getattr(torch, cfg.model.dtype), attn_implementation=_attention(cfg.model)
            )
    except (ValueError, ImportError) as error:
        raise UserError(f"model {cfg.model.path}: {str(error).strip().splitlines()[0]}") from error
    head = head_modules(model, set(), cfg.model)
    for name in head:
        keep_in_float32(model.get_submodule(name))
    return EmptyModel(model, head, stored)


def model_config(model: ModelConfig) -> PretrainedConfig:
    """Return a model's config: from its folder, from those that come with the package, or from the hub's cache.

    Raises:
        UserError: it is in none of these.
    """
    from transformers import AutoConfig

    source, options = source_of(model)
    shipped = CONFIGS / f"{source.replace('/', '--')}.json"
    if model_folder(model.path) is None and model.revision is None and shipped.is_file():
        source, options = str(shipped), {}
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True, **options)
    except Exception as error:
        raise UserError(
            f"model {model.path}: its config.json is neither with the package nor in the hub's cache here; fetch it "
            "with lorsa prefetch, or give a folder that has it with model.path=/path/to/folder."
        ) from error
    return config


def _attention(model: ModelConfig) -> str:
    # Flash attention is not installed everywhere, and keeps what PyTorch's fused attention keeps.
    return "sdpa" if model.attn_implementation.startswith("flash_attention") else model.attn_implementation


def adapted(cfg: JobConfig, updates: int, layers: int | None = None) -> tuple[torch.nn.Module, Report, MethodConfig]:
    """Return a run's adapted model on the meta device, what trains in it, and the method.

    LoRSA's components are counted as k in each module: which they are depends on the weights, and shared out over the
    model they never bring more parameters than that.

    Args:
        cfg: the run.
        updates: of the optimizer.
        layers: of the backbone, None for all.

    Raises:
        UserError: the model's config is not here, or the method does not fit the model.
    """
    base = empty_model(cfg, layers)
    method = build_method(cfg.method)
    try:
        if isinstance(method, LorsaConfig) and method.components is None:
            method.selection, method.allocation = "principal", "layer"
        if isinstance(getattr(method, "init_lora_weights", None), str):
            method.init_lora_weights = True  # type: ignore[union-attr]  # PiSSA, OLoRA: the same parameters, but from a decomposition of weights
        model, report = apply(base.model, method, base.head, total_steps=updates)
    except MethodError as error:
        raise UserError(f"method={cfg.method.name}: {error}") from error
    return model, report, method


def check_fits(cfg: JobConfig) -> None:
    """Refuse a method that does not fit the model, as far as that shows without weights.

    Of a model whose config is not here nothing is known: the run may find it at the hub.

    Raises:
        UserError: says what does not fit.
    """
    import warnings

    try:
        model_config(cfg.model)
    except UserError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of kernels that it does not need here
        try:
            # Layers are alike, and some methods draw long random vectors for each of them.
            adapted(cfg, updates=10**6, layers=1)
        except UserError:
            adapted(cfg, updates=10**6)  # it may name other layers, or count on all


def basis_shapes(cfg: JobConfig) -> list[tuple[int, int]]:
    """Return (m, n) of each weight whose basis the run's method reads; empty for a method without bases."""
    method = build_method(cfg.method)
    if not isinstance(method, LorsaConfig):
        return []
    base = empty_model(cfg)
    method.modules_to_save = base.head
    return [(layer.out_features, layer.in_features) for layer in target_layers(base.model, method).values()]


def basis_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return the size of a basis' file: U, s, V and a checksum for each component."""
    m, n = shape
    return min(m, n) * ((m + n + 1) * (8 if dtype == torch.float64 else 4) + 8)


def needs_calibration(cfg: JobConfig) -> bool:
    """Say whether the run's method looks at gradients before it trains."""
    config: Any = cfg.method.config
    lorsa = str(config.get("_target_", "")).startswith("lorsa.methods.LorsaConfig")
    return lorsa and config.get("components") is None and config.get("selection", "sensitivity") in CALIBRATED


def size_text(count: float) -> str:
    """Return bytes in the unit that fits: 512 KiB, 3.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
