"""What trackers show of a run, from the files in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lorsa.runner.errors import UserError

# Of a line of metrics.jsonl: what is neither an axis nor one of these is a score.
TRAIN = ("loss", "grad_norm", "learning_rate", "num_input_tokens_seen")
AXES = ("step", "epoch")


@dataclass(frozen=True)
class Row:
    """What was logged after one update.

    Attributes:
        step: the update.
        values: numbers by name: `step`, `epoch`, `train/loss`, `eval/primary`, …
    """

    step: int
    values: dict[str, float]


def read_rows(metrics: Path) -> list[Row]:
    """Return the rows of metrics.jsonl by rising step, the lines of one step as one row.

    A line that is being written, or is not a number where there should be one, is left out.
    """
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        values = {_name(key): value for key, value in record.items() if isinstance(value, int | float)}
        by_step[step] = by_step.get(step, {}) | values
    return [Row(step, by_step[step]) for step in sorted(by_step)]


def _name(key: str) -> str:
    if key in AXES:
        return key
    return f"train/{key}" if key in TRAIN else f"eval/{key}"


def summary(result: Mapping[str, Any]) -> dict[str, float | str | bool]:
    """Return the numbers of a result that runs are compared by; what is null is left out."""
    numbers: dict[str, Any] = {
        "score/dev": result["primary_metric"]["dev"],
        "score/test": result["primary_metric"]["test"],
        "score/name": result["primary_metric"]["name"],
        # A panel shows all runs; what is named by the task shows that task's alone.
        f"score/by_task/{result['task']}": result["primary_metric"]["test"],
        "params/adapter": result["adapter_params"],
        "params/head": result["head_params"],
        "params/total": result["total_params"],
        "params/percent": result["trainable_percent"],
        "memory/peak_gib": result["memory"]["peak_bytes"] / 2**30,
        "memory/adapter_mib": result["memory"]["adapter_bytes"] / 2**20,
        "best_step": result["best_step"],
        "attempts": result["attempts"],
        "is_demo": result["is_demo"],
    }
    numbers |= {f"seconds/{part}": seconds for part, seconds in result["timings"].items()}
    numbers |= {f"speed/{name}": value for name, value in result["throughput"].items()}
    for split, metrics in result["metrics"]["test"].items():
        numbers |= {f"test/{split}_{name}": value for name, value in metrics.items()}
    if result["components"]:
        numbers |= _components(result["components"])
    return {name: value for name, value in numbers.items() if value is not None}


def _components(components: Mapping[str, list[int]]) -> dict[str, float]:
    """Return how many components were chosen, and how far they are from the first ones, over all modules."""
    chosen = [indices for indices in components.values() if indices]
    return {
        "components/chosen": sum(map(len, chosen)),
        "components/modules": len(chosen),
        "components/median_index": median(index for indices in chosen for index in indices) if chosen else 0,
        "components/principal_share": fmean(
            sum(index < len(indices) for index in indices) / len(indices) for indices in chosen
        )
        if chosen
        else 0,
    }


def tags(config: Mapping[str, Any]) -> list[str]:
    """Return a run's tags: task, method, model, source of the data, and those of the config."""
    own = [config[group]["name"] for group in ("task", "method", "model", "data")]
    return list(dict.fromkeys([*own, *(config["tracker"].get("tags") or [])]))


def display_name(config: Mapping[str, Any]) -> str:
    """Return a run's name for people; its id is the signature."""
    return f"{config['method']['name']} {config['task']['name']} s{config['seed']}"


def sweep_of(run: Path) -> str | None:
    """Return the name of the sweep that a run was last submitted with; None where it was none."""
    try:
        return Path(json.loads((run / "job.json").read_text(encoding="utf-8"))["sweep"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_config(run: Path) -> dict[str, Any]:
    """Return config.yaml of a run as plain data.

    Raises:
        UserError: it is missing, damaged, or none of ours.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
        tags(config), display_name(config), config["runs_dir"]
    except FileNotFoundError:
        raise UserError(f"{run} is no run's folder, or one that never began to train: it has no config.yaml.") from None
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{run / 'config.yaml'} is damaged ({type(error).__name__}: {reason}).") from error
    return dict(config)
