"""Run directories with results as the runner writes them, without training anything."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from lorsa.runner.commands.report import report
from lorsa.runner.result import checked, to_text

METRICS = {"cola": ["matthews_correlation"], "mrpc": ["accuracy", "f1"], "stsb": ["pearson", "spearman"]}


def result(
    method: str = "lora", task: str = "cola", seed: int = 0, score: float | None = 0.5, **changes: Any
) -> dict[str, Any]:
    """A valid result.json; `changes` are dotted keys, with `__` for dots, such as `config__train__lr=1e-3`."""
    metrics = METRICS.get(task, ["accuracy"])
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    made: dict[str, Any] = {
        "schema_version": 1,
        "signature": "",
        "status": "done",
        "task": task,
        "model": "minilm",
        "method": method,
        "seed": seed,
        "data_source": "nyu-mll/glue@main",
        "is_demo": False,
        "config": {
            "model": {"name": "minilm", "path": "models/minilm", "revision": None, "dtype": "float32"},
            "method": {"name": method, "config": {"_target_": f"peft.{method}", "r": 8, "seed": seed}, "lr": 1e-3},
            "task": {"name": task, "epochs": 3.0, "batch_size": 32, "max_length": 128, "metrics": metrics},
            "data": {"name": "glue", "train_rows": None, "dev_fraction": 0.1, "epochs": None},
            "optim": {"name": "adamw_torch"},
            "engine": {"name": "single", "device": "cpu", "precision": "fp32", "threads": 1},
            "resources": {"nodes": 1, "tasks_per_node": 1},
            "tracker": {"name": "none"},
            "train": {"epochs": 3.0, "max_steps": -1, "batch_size": 32, "max_length": 128, "lr": 1e-3, "head_lr": 1e-3},
            "protocol": "split",
            "seed": seed,
            "runs_dir": "runs",
            "force": False,
        },
        "protocol": "split",
        "metrics": {part: {split: dict.fromkeys(metrics, score) for split in splits} for part in ("dev", "test")},
        "primary_metric": {"name": metrics[0] if len(metrics) == 1 else f"mean({','.join(metrics)})", "dev": score},
        "best_step": 10,
        "adapter_params": {"lora": 147_456, "lorsa": 38_400, "head": 0}.get(method, 1000),
        "head_params": 770,
        "trainable_params": 1770,
        "total_params": 22_713_986,
        "trainable_percent": 0.2,
        "rows": {"train": 3000, "validation": 400},
        "components": {"layer.0": [0, 5, 9], "layer.1": [1]} if method == "lorsa" else None,
        "timings": {"load": 1.0, "adapt": 0.5, "train": 60.0 + seed, "evaluate": 2.0, "total": 64.0},
        "throughput": {"tokens_per_s": 800.0, "examples_per_s": 14.0},
        "memory": {"peak_bytes": 2**30, "adapter_bytes": 2**20},
        "hardware": {"device": "cpu", "gpus": [], "cpu": "a processor"},
        "versions": {"torch": "2.13.0", "lorsa": "0.1.0"},
        "git": {"commit": None, "dirty": None},
        "model_commit": "0" * 40,
        "attempts": 1,
        "resumed_from_step": 0,
    }
    made["primary_metric"]["test"] = score
    for dotted, value in changes.items():
        place, *rest = dotted.split("__")
        tree = made
        for key in rest:
            tree, place = tree[place], key
        tree[place] = value
    identity = copy.deepcopy([made["config"], made["data_source"], made["is_demo"], made["model"]])
    made["signature"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return made


def write(folder: Path, made: dict[str, Any]) -> Path:
    """Write a run directory."""
    path = folder / made["signature"]
    path.mkdir(parents=True)
    (path / "result.json").write_text(to_text(checked(made)))
    (path / "status.json").write_text(json.dumps({"state": "done"}))
    losses = [{"step": step, "epoch": step / 10, "loss": 1 / step} for step in (10, 20, 30)]
    lines = [*losses, {"step": 30, "epoch": 3.0, "primary": made["primary_metric"]["dev"]}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def add(folder: Path, *arguments: Any, **changes: Any) -> Path:
    """Write the run directory of `result(…)`."""
    return write(folder, result(*arguments, **changes))


def grid(folder: Path, methods: dict[str, float], tasks: tuple[str, ...], seeds: int = 3) -> Path:
    """Write runs of methods, each with a level of its own, on tasks, with scores that seeds move a little."""
    for method, level in methods.items():
        for number, task in enumerate(tasks):
            for seed in range(seeds):
                noise = 0.01 * ((seed * 7 + number * 3 + len(method)) % 5 - 2)
                add(folder, method, task, seed, level + 0.05 * number + noise)
    return folder


def lorsa_report(*arguments: object) -> str:
    """What `lorsa report` prints."""
    app = typer.Typer()
    app.command()(report)
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def document(*arguments: object) -> dict[str, Any]:
    """What it prints as JSON."""
    return json.loads(lorsa_report(*arguments, "--format", "json"))


def rows(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a table of that document, by label."""
    return {row["label"]: row for row in table["rows"]}
