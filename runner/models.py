"""Base models and their tokenizers: from the hub, a folder, a GGUF file, or the package itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorsa.runner.distributed import world_size
from lorsa.runner.errors import UserError
from lorsa.runner.schema import JobConfig, ModelConfig, TaskConfig
from lorsa.runner.signature import model_folder
from lorsa.runner.zero import announced, is_zero3, make_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model with a fresh classification head.

    Attributes:
        model: an `AutoModelForSequenceClassification`.
        tokenizer: its tokenizer; the pad token is set on both.
        head: names of the modules that the checkpoint does not have, or that sit on top of the backbone; they are
            trained under every method.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: list[str]


def load_tokenizer(cfg: JobConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `cfg.model`, with a pad token.

    Raises:
        UserError: it cannot be found, or no token can serve for padding.
    """
    from transformers import AutoTokenizer

    source, options = source_of(cfg.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise _load_error(cfg.model, "tokenizer", error) from error
    _choose_pad_token(tokenizer, cfg.model)
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(cfg: JobConfig, tokenizer: PreTrainedTokenizerBase, on_meta: bool = False) -> BaseModel:
    """Load `cfg.model` with a head for `cfg.task`, initialised from `cfg.seed`.

    Args:
        cfg: the run's config.
        tokenizer: its tokenizer.
        on_meta: fetch the files, and give a model on the meta device, which takes no memory.

    Raises:
        UserError: no such model, no weights, damaged weights, or the hub cannot be reached.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    source, options = source_of(cfg.model)
    if on_meta:
        options["device_map"] = "meta"
    # Weights that the checkpoint lacks are drawn during loading: the head depends on the seed and on nothing else.
    set_seed(cfg.seed)
    try:
        with announced(cfg, world_size()):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=getattr(torch, cfg.model.dtype),
                attn_implementation=cfg.model.attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the head of a model fine-tuned for another number of labels
                **options,
                **label_options(cfg.task),
            )
    except Exception as error:
        raise _load_error(cfg.model, "model", error) from error
    if cfg.model.gguf_file is not None:
        # Its weights are ordinary tensors by now, but it still calls itself quantised, and the Trainer refuses those.
        model.is_quantized = False
        model.hf_quantizer = None
        del model.config.quantization_config
    fresh = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id >= model.config.vocab_size:
        raise UserError(
            f"model {cfg.model.path}: the pad token {tokenizer.pad_token!r} has id {tokenizer.pad_token_id}, but the "
            f"model knows only {model.config.vocab_size} tokens; name another with model.pad_token=…"
        )
    model.eval()
    head = head_modules(model, fresh, cfg.model)
    if is_zero3(cfg.engine):
        make_whole(model, head)
        set_seed(cfg.seed)
        _draw_again(model, head, fresh)
    for name in head:
        keep_in_float32(model.get_submodule(name))
    return BaseModel(model, tokenizer, head)


def label_options(task: TaskConfig) -> dict[str, Any]:
    """Return what a transformers config says about a task's labels."""
    labels = list(task.labels)
    if not labels:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels),
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def source_of(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return the folder or hub id of a model, and the options by which transformers loads it.

    Raises:
        UserError: the folder lacks the GGUF file.
    """
    folder = model_folder(model.path)
    options: dict[str, Any] = {}
    if model.revision is not None and folder is None:
        options["revision"] = model.revision
    if model.gguf_file is not None:
        if folder is not None and not (folder / model.gguf_file).is_file():
            present = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
            raise UserError(f"model.gguf_file={model.gguf_file} is not in {folder}; GGUF files there: {present}.")
        options["gguf_file"] = model.gguf_file
    return (str(folder) if folder is not None else model.path), options


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> None:
    """Make sure that padding cannot be mistaken for text.

    A Llama reads its answer at the last token that is not the pad token. A pad token that can end a sentence (the
    end-of-sequence token, if the tokenizer appends it) would move that place, so it is not taken.
    """
    if model.pad_token is not None:
        if model.pad_token not in tokenizer.get_vocab():
            raise UserError(f"model.pad_token={model.pad_token!r} is not in the tokenizer's vocabulary.")
        tokenizer.pad_token = model.pad_token
        return
    used = set(tokenizer("a")["input_ids"]) | set(tokenizer("a", "b")["input_ids"])
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in used:
        return
    # LLaMA-2's <unk> cannot come from text, because unknown characters fall back to bytes.
    byte_fallback = "<0x00>" in tokenizer.get_vocab() or not tokenizer.unk_token
    for token in (tokenizer.unk_token if byte_fallback else None, tokenizer.eos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in used:
            tokenizer.pad_token = token
            return
    raise UserError(
        f"model {model.path}: its tokenizer has no pad token, and none of its special tokens can serve as one; name "
        "one that does not occur in text with model.pad_token=…"
    )


def head_modules(model: PreTrainedModel, fresh: set[str], config: ModelConfig) -> list[str]:
    """Return the modules on top of the backbone, and its pooler where that starts at random too.

    Args:
        model: with its head.
        fresh: names of the parameters that its checkpoint lacks.
        config: says in an error which model it is.

    Raises:
        UserError: the checkpoint lacks more than that.
    """
    backbone = model.base_model_prefix
    head = [
        name for name, child in model.named_children() if name != backbone and any(True for _ in child.parameters())
    ]
    inside = {name for name in fresh if name.startswith(f"{backbone}.")}
    pooler = f"{backbone}.pooler"
    in_pooler = {name for name in inside if name.startswith(f"{pooler}.")}
    if inside - in_pooler:
        raise UserError(
            f"model {config.path}: the checkpoint lacks weights of the backbone ({', '.join(sorted(inside)[:3])}…); it "
            "is not a checkpoint of this architecture."
        )
    return [*head, pooler] if in_pooler else head


def _draw_again(model: PreTrainedModel, head: list[str], fresh: set[str]) -> None:
    """Draw the fresh weights of the head as loading does without ZeRO-3, under which more is drawn before them."""
    for name in head:
        for path, module in model.get_submodule(name).named_modules(prefix=name):
            own = [f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)]
            if own and fresh.issuperset(own):
                model._init_weights(module)


def keep_in_float32(module: nn.Module) -> None:
    """Train a head in float32 on a backbone of half precision, where small updates of it would round to nothing."""
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        module.float().register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _load_error(model: ModelConfig, what: str, error: Exception) -> UserError:
    folder = model_folder(model.path)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if folder is None:
        return UserError(
            f"model {model.path}: there is no such folder, and its {what} could not be loaded from the hub ({reason}); "
            "without internet, download it elsewhere and give the folder with model.path=/path/to/folder."
        )
    if what == "tokenizer" and model.gguf_file is None and not any(map(_is_tokenizer, folder.iterdir())):
        return UserError(f"model {folder}: the folder has no tokenizer; it should have a tokenizer.json.")
    if what == "model" and model.gguf_file is None:
        weights = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
        if not weights:
            gguf = sorted(path.name for path in folder.glob("*.gguf"))
            hint = f"name it with model.gguf_file={gguf[0]}" if gguf else "it should have a model.safetensors"
            return UserError(f"model {folder}: the folder has no weights that transformers reads; {hint}.")
        for path in weights:
            if path.suffix == ".safetensors" and (damage := _damage(path)):
                return UserError(f"model {folder}: {path.name} is damaged ({damage}); copy it again.")
    return UserError(f"model {folder}: its {what} could not be loaded: {reason}")


def _is_tokenizer(path: Path) -> bool:
    return "token" in path.name or path.name.startswith(("vocab", "merges", "spiece", "sentencepiece"))


def _damage(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return None
    except SafetensorError as error:
        return str(error)
