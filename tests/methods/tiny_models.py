"""The smallest models of each architecture, and dense formulas of what an adapter on them should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    set_seed,
)
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from lorsa.methods import LorsaConfig, select_components
from lorsa.methods.lorsa import LorsaLinear

VOCABULARY = 40
# Dropout off: two passes of one model are comparable in training mode, too.
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "num_labels": 3,
    "initializer_range": 0.2,
    **STILL,
}


@dataclass(frozen=True)
class Architecture:
    """A model type at its smallest.

    Attributes:
        config: of the model.
        targets: names of its attention's linear modules.
        head: names of the modules that make up the head.
    """

    config: PretrainedConfig
    targets: list[str]
    head: list[str]


ARCHITECTURES = {
    "bert": Architecture(BertConfig(**ENCODER), ["query", "key", "value", "attention.output.dense"], ["classifier"]),
    "roberta": Architecture(RobertaConfig(**ENCODER, pad_token_id=0), ["query", "value"], ["classifier"]),
    "deberta": Architecture(
        DebertaV2Config(
            **ENCODER,
            relative_attention=True,
            max_relative_positions=-1,
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
            pooler_hidden_size=12,
        ),
        ["query_proj", "value_proj"],
        ["pooler", "classifier"],
    ),
    "llama": Architecture(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=20,
            max_position_embeddings=24,
            num_labels=3,
            pad_token_id=0,
            initializer_range=0.2,
        ),
        ["q_proj", "v_proj", "up_proj", "down_proj"],
        ["score"],
    ),
}

FORMS: dict[str, dict[str, Any]] = {
    "subspace": {"space": "subspace", "rotate": "selected", "k": 4, "r": 2},
    "selected": {"space": "ambient", "rotate": "selected", "k": 4, "r": 2},
    "all": {"space": "ambient", "rotate": "all", "k": 4, "r": 1},
    "linear": {"space": "ambient", "rotate": "all", "rotation": "linear", "k": 4, "r": 1},
}


def build(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model, the same at every call, in evaluation mode."""
    config = ARCHITECTURES[architecture].config
    config = type(config).from_dict({**config.to_dict(), **changes})
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they start at zero, where a bias treated wrongly goes unseen
            nn.init.normal_(parameter, std=0.1)
    return model


def batch(rows: int = 4, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Rows of tokens, some of them padded, with labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(1, rows, 2):
        mask[row, length - 1 - row % 3 :] = 0
    labels = torch.randint(0, 3, (rows,), generator=generator)
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, rows: dict[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        return model(**(rows or batch())).logits


def adapt(model: nn.Module, architecture: str, form: str, selection: str = "principal", **changes: Any) -> PeftModel:
    """The model with a LoRSA adapter of one form."""
    of = ARCHITECTURES[architecture]
    settings = {"target_modules": list(of.targets), "modules_to_save": list(of.head), **FORMS[form], **changes}
    config = LorsaConfig(selection=selection, task_type="SEQ_CLS", **settings)
    if selection in ("sensitivity", "fisher"):
        select_components(model, config, [batch(3, seed=5)])
    return get_peft_model(model, config).eval()


def layers(model: nn.Module) -> dict[str, LorsaLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LorsaLinear)}


def perturb(model: nn.Module, scale: float = 0.3, seed: int = 1, adapter: str = "default") -> None:
    """Move every trained tensor of an adapter away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers(model).values():
            for part in layer.adapter_layer_names:
                if adapter in (of := getattr(layer, part)):
                    of[adapter] += scale * torch.randn(of[adapter].shape, generator=generator, dtype=of[adapter].dtype)


def dense_rotation(P: Tensor, Q: Tensor, linear: bool = False) -> Tensor:
    A = P @ Q.mT - Q @ P.mT
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    if linear:
        return eye + A
    return torch.linalg.inv(eye - A / 2) @ (eye + A / 2)


def dense_weight(layer: LorsaLinear, indices: list[int], adapter: str = "default") -> Tensor:
    """W' in float64 from the definition: LAPACK's SVD of W, dense rotations, and nothing of the layer but P, Q and d.

    The signs of the singular vectors are the layer's: in subspace form they are part of what P and Q mean.
    """
    W = layer.get_base_layer().weight.detach().double()
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    U, s, V = U[:, indices], s[indices], Vt.mT[:, indices]
    sign = (U * layer.lorsa_U[adapter].double()).sum(0).sign()
    U, V = U * sign, V * sign
    P_out, Q_out, P_in, Q_in = (
        getattr(layer, f"lorsa_{part}")[adapter].detach().double() for part in ("P_out", "Q_out", "P_in", "Q_in")
    )
    linear, d = layer.linear[adapter], layer.lorsa_d[adapter].detach().double()
    out, inward = dense_rotation(P_out, Q_out, linear), dense_rotation(P_in, Q_in, linear)
    if layer.form[adapter] == "subspace":
        return W + U @ (out @ torch.diag(s + d) @ inward.mT - torch.diag(s)) @ V.mT
    if layer.form[adapter] == "selected":
        return W + (out @ U) @ torch.diag(s + d) @ (inward @ V).mT - U @ torch.diag(s) @ V.mT
    return out @ (W + U @ torch.diag(d) @ V.mT) @ inward.mT
