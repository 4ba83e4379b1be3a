"""Is this config one that can run? Checked before anything heavy is imported, loaded or submitted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from lorsa.runner.distributed import check_environment
from lorsa.runner.errors import UserError, nearest
from lorsa.runner.rundir import JOB_ID
from lorsa.runner.schema import JobConfig
from lorsa.runner.signature import EMBEDDED, model_folder
from lorsa.runner.zero import check_method, is_zero

PROTOCOLS = ("split", "best_epoch")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16")
SOURCES = ("demo", "glue", "local")
ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
# transformers' others want settings of their own, or follow a score, which under them may only fall.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)
TRACKERS = ("none", "wandb", "tensorboard")

# Only these may be instantiated from a config.
ALLOWED_TARGETS = ("lorsa.methods.", "peft.")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method.lr": (lambda x: x > 0, "above 0"),
    "method.head_lr": (lambda x: x > 0, "above 0"),
    "method.calibration_rows": (lambda x: x >= 0, "0 or more"),
    "optim.eps": (lambda x: x > 0, "above 0"),
    "optim.weight_decay": (lambda x: x >= 0, "0 or more"),
    "optim.max_grad_norm": (lambda x: x >= 0, "0 or more"),
    "optim.warmup": (lambda x: 0 <= x < 1, "a share of the updates, from 0 to below 1"),
    "train.epochs": (lambda x: x > 0, "above 0"),
    "train.max_steps": (lambda x: x == -1 or x > 0, "above 0, or -1 for no limit"),
    "train.batch_size": (lambda x: x > 0, "above 0"),
    "train.eval_batch_size": (lambda x: x > 0, "above 0"),
    "train.max_length": (lambda x: x > 2, "above 2"),
    "train.lr": (lambda x: x > 0, "above 0"),
    "train.head_lr": (lambda x: x > 0, "above 0"),
    "train.probe_rows": (lambda x: x is None or x > 0, "above 0, or null"),
    "train.gradient_accumulation": (lambda x: x > 0, "above 0"),
    "train.checkpoint_every": (lambda x: x is None or x > 0, "above 0, or null"),
    "train.overfit_rows": (lambda x: x is None or x > 1, "above 1, or null"),
    "data.train_rows": (lambda x: x is None or x > 0, "above 0, or null"),
    "data.dev_fraction": (lambda x: 0 < x <= 0.5, "above 0 and at most 0.5"),
    "data.dev_max_rows": (lambda x: x > 0, "above 0"),
    "optim.betas": (lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x), "two numbers from 0 to below 1"),
    "task.columns": (lambda x: 1 <= len(x) <= 2, "one or two columns"),
    "engine.threads": (lambda x: x is None or x > 0, "above 0, or null"),
    "tracker.finish_seconds": (lambda x: x >= 0, "0 or more"),
    "tracker.tags": (lambda x: all(1 <= len(tag) <= 64 for tag in x), "a list of words of 1 to 64 characters"),
    "tracker.project": (lambda x: 1 <= len(x) <= 128 and not set(x) & set("/\\#?%:"), "a name without / \\ # ? % :"),
    "seed": (lambda x: 0 <= x < 2**32, "from 0 to 2**32 - 1"),
}

_RESOURCES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "nodes": (lambda x: x > 0, "above 0"),
    "tasks_per_node": (lambda x: x > 0, "above 0"),
    "gpus_per_node": (lambda x: x >= 0, "0 or more"),
    "cpus_per_task": (lambda x: x > 0, "above 0"),
    "mem_gb": (lambda x: x is None or x > 0, "above 0, or null"),
    "minutes": (lambda x: x > 0, "above 0"),
    "signal_seconds": (lambda x: x > 0, "above 0"),
    "retries": (lambda x: x >= 0, "0 or more"),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "protocol": PROTOCOLS,
    "model.dtype": DTYPES,
    "engine.device": DEVICES,
    "engine.precision": PRECISIONS,
    "optim.schedule": SCHEDULES,
    "data.name": SOURCES,
    "engine.name": ENGINES,
    "tracker.name": TRACKERS,
    "tracker.mode": ("auto", "online", "offline"),
}


def check(cfg: JobConfig) -> None:
    """Refuse a config that cannot run, or that would not mean what it says.

    Args:
        cfg: the composed config; every value is resolved here once, so a value that is missing is found too.

    Raises:
        UserError: one sentence that names the key and what would be valid.
    """
    _check_keys(cfg, JobConfig, "")
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it with {missing[0]}=…")
    config = cast(DictConfig, cfg)
    OmegaConf.resolve(config)
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in choices:
            raise UserError(f"{key}={value} is not known{nearest(str(value), choices)}")
    for key, (valid, words) in _RANGES.items():
        value = OmegaConf.select(config, key)
        if not valid(value):
            raise UserError(f"{key}={value} must be {words}.")
    check_resources(OmegaConf.to_container(config.resources))  # type: ignore[arg-type]
    _check_combinations(cfg)


def check_resources(resources: Mapping[str, Any]) -> None:
    """Refuse resources that cannot be, as `lorsa retry --set` changes them too.

    Args:
        resources: the keys of conf/resources.

    Raises:
        UserError: one sentence that names the key and what would be valid.
    """
    for key, (valid, words) in _RESOURCES.items():
        if not valid(resources[key]):
            raise UserError(f"resources.{key}={resources[key]} must be {words}.")
    if resources["signal_seconds"] > 30 * resources["minutes"]:
        raise UserError(
            f"resources.signal_seconds={resources['signal_seconds']} is more than half of resources.minutes="
            f"{resources['minutes']}: the run would be told to save before it has done much."
        )


def _check_keys(cfg: Any, schema: type, path: str) -> None:
    """Refuse keys that `+` added: Hydra lets them into a typed config."""
    known = {field.name: field.type for field in fields(schema)}
    for key in cfg:
        if key not in known:
            raise UserError(f"there is no key '{path}{key}'{nearest(str(key), known)}")
        kind = known[str(key)]
        if isinstance(kind, type) and is_dataclass(kind):
            _check_keys(cfg[key], kind, f"{path}{key}.")


def _check_combinations(cfg: JobConfig) -> None:
    target = str(cfg.method.config.get("_target_", ""))
    if not target.startswith(ALLOWED_TARGETS):
        raise UserError(
            f"method.config._target_={target} may not be instantiated; it must be a config class of peft or of "
            "lorsa.methods, such as peft.LoraConfig."
        )
    path = str(cfg.model.path)
    if path.startswith(EMBEDDED) and not model_folder(path).is_dir():  # type: ignore[union-attr]
        raise UserError(f"model.path={path}: the package embeds only {EMBEDDED}tiny_llama.")
    if path.startswith((".", "/", "~")) and model_folder(path) is None:
        raise UserError(f"model.path={path}: there is no such folder.")
    if cfg.protocol == "best_epoch" and cfg.train.overfit_rows is not None:
        raise UserError("train.overfit_rows scores the rows that it trains on, so it needs protocol=split.")
    if is_zero(cfg.engine) != cfg.engine.name.startswith("zero"):
        raise UserError(
            f"engine.name={cfg.engine.name} with engine.zero={'set' if is_zero(cfg.engine) else 'null'}: choose the "
            f"engine as a whole, engine={cfg.engine.name}."
        )
    check_environment(cfg.engine.name)
    asked = cfg.resources.nodes * cfg.resources.tasks_per_node
    if cfg.engine.name == "single" and asked > 1:
        raise UserError(
            f"engine=single is one process, and resources={cfg.resources.name} asks for {asked}; use engine=ddp, "
            "zero1, zero2 or zero3."
        )
    check_method(cfg)
    _check_tracker(cfg)
    if cfg.protocol == "best_epoch" and not cfg.task.eval_splits:
        raise UserError(
            f"protocol=best_epoch chooses the epoch on the validation set, and task={cfg.task.name} has none; use "
            "protocol=split."
        )


def _check_tracker(cfg: JobConfig) -> None:
    """Refuse a tracker that is not installed; not in a job, where a tracker never ends a run."""
    name = cfg.tracker.name
    if name != "none" and JOB_ID not in os.environ and find_spec(name) is None:
        raise UserError(f"tracker={name}: {name} is not installed: pip install 'lorsa[{name}]'.")
