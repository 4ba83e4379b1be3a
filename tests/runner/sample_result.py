"""A whole result.json, made up for a config: for tests of what is done with results."""

from typing import Any

from omegaconf import OmegaConf

from lorsa.runner.result import checked
from lorsa.runner.schema import JobConfig
from lorsa.runner.signature import hash_of


def sample_result(cfg: JobConfig, dev: float | None = 0.75) -> dict[str, Any]:
    """Return a result that follows the schema; its scores on GLUE's validation set are 0.5."""
    config = OmegaConf.to_container(cfg, resolve=True)
    splits = list(cfg.task.eval_splits)
    return checked(
        {
            "schema_version": 1,
            "signature": hash_of(config),
            "status": "done",
            "task": cfg.task.name,
            "model": cfg.model.name,
            "method": cfg.method.name,
            "seed": cfg.seed,
            "data_source": "demo v1" if cfg.data.name == "demo" else "nyu-mll/glue@main",
            "is_demo": cfg.data.name == "demo",
            "config": config,
            "protocol": cfg.protocol,
            "metrics": {
                "dev": {"dev": dict.fromkeys(cfg.task.metrics, dev)},
                "test": {split: dict.fromkeys(cfg.task.metrics, 0.5) for split in splits},
            },
            "primary_metric": {"name": cfg.task.metrics[0], "dev": dev, "test": 0.5 if splits else None},
            "best_step": 10,
            "adapter_params": 1000,
            "head_params": 100,
            "trainable_params": 1100,
            "total_params": 100000,
            "trainable_percent": 1.1,
            "rows": {"train": 100},
            "components": None,
            "timings": {"load": 1, "adapt": 1, "train": 1, "evaluate": 1, "total": 4},
            "throughput": {"tokens_per_s": 1.0, "examples_per_s": 1.0},
            "memory": {"peak_bytes": 1, "adapter_bytes": 1},
            "hardware": {},
            "versions": {"lorsa": "0.1.0", "peft": "0.21.0"},
            "git": {"commit": None, "dirty": None},
            "model_commit": None,
            "model_content": None,
            "attempts": 1,
            "resumed_from_step": 0,
        }
    )
