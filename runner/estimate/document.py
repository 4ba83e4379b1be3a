"""The estimate of a run or a sweep as one dictionary, which `--json` prints and table.py shows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lorsa import conf
from lorsa.runner.distributed import processes
from lorsa.runner.errors import UserError
from lorsa.runner.estimate.cards import CONTEXT
from lorsa.runner.estimate.framework import framework_bytes
from lorsa.runner.estimate.lengths import Lengths, largest, task_lengths, training_shapes, updates
from lorsa.runner.estimate.memory import estimate_memory
from lorsa.runner.estimate.run_model import RunModel
from lorsa.runner.estimate.time import find_speed, seconds
from lorsa.runner.schema import EngineConfig, JobConfig
from lorsa.runner.validate import ENGINES
from lorsa.runner.zero import check_method, is_zero

CONF = Path(conf.__file__).parent
# Of one row's predictions, written to predictions/.
_PREDICTION_BYTES = 90
# Of a tokenizer and what it is read from, for each entry of its vocabulary (BERT's and SmolLM2's, measured).
_TOKENIZER_BYTES = 700

Document = dict[str, Any]


def on_gpu(cfg: JobConfig, card: int | None) -> bool:
    """Say whether a run will be on GPUs: a card was named, the run asks for some, or there are some here."""
    if cfg.engine.device == "cpu":
        return False
    wanted = card is not None or cfg.resources.gpus_per_node > 0 or cfg.engine.device == "cuda"
    return wanted or torch.cuda.is_available()


def estimate(
    configs: Sequence[JobConfig], card: int | None, all_engines: bool, doing: Callable[[str], None]
) -> Document:
    """Estimate the runs of a sweep; those that differ in the seed alone are estimated once.

    Args:
        configs: the runs, checked.
        card: bytes of the GPU, if one was named.
        all_engines: also estimate the engines that the runs do not have.
        doing: told which run it is about.

    Raises:
        UserError: a run cannot be estimated; says which and why.
    """
    found: dict[str, Document] = {}
    for cfg in configs:
        key = _key(cfg)
        if key in found:
            found[key]["runs"] += 1
            continue
        doing(f"{cfg.model.name}, {cfg.method.name}, {cfg.task.name}")
        found[key] = _run(cfg, card, all_engines)
    runs = list(found.values())
    times = [each["time"] for each in runs]
    known = all(times)
    return {
        "runs": runs,
        "card_bytes": card,
        "total": {
            "runs": len(configs),
            "seconds": sum(each["time"]["seconds"] * each["runs"] for each in runs) if known else None,
            "gpu_hours": sum(each["time"]["gpu_hours"] * each["runs"] for each in runs) if known else None,
            "disk_bytes": sum(each["disk"]["run_bytes"] * each["runs"] for each in runs)
            + sum(
                {(each["model"], each["disk"]["bases_bytes"]): each["disk"]["bases_bytes"] for each in runs}.values()
            ),
        },
    }


def _key(cfg: JobConfig) -> str:
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    plain.pop("seed")
    plain["method"]["config"].pop("seed", None)
    return json.dumps(plain, sort_keys=True, default=str)


def _run(cfg: JobConfig, card: int | None, all_engines: bool) -> Document:
    gpu = on_gpu(cfg, card)
    lengths = task_lengths(cfg)
    count = processes(cfg)
    steps = updates(cfg, len(lengths.train), count)
    run = RunModel(cfg, lengths, gpu, steps)
    report = run.footprint.report
    speed = find_speed(cfg, count, gpu)
    took = None
    if speed is not None:
        duration = seconds(cfg, lengths, count, speed)
        took = {"seconds": duration, "gpu_hours": duration * count / 3600, "source": speed.source}
    shape = largest(training_shapes(cfg, lengths, count))
    return {
        "model": cfg.model.name,
        "method": cfg.method.name,
        "task": cfg.task.name,
        "runs": 1,
        "engine": cfg.engine.name,
        "processes": count,
        "device": "cuda" if gpu else "cpu",
        "parameters": {
            "adapter": report.adapter_params,
            "head": report.head_params,
            "trainable": report.trainable_params,
            "total": report.total_params,
            "trainable_percent": report.trainable_percent,
        },
        "batch": {"rows": shape[0], "tokens": shape[1], "lengths": lengths.source},
        "updates": steps,
        "memory": {
            name: _memory(cfg, engine, run, lengths, gpu, card) for name, engine in _engines(cfg, all_engines).items()
        },
        "time": took,
        "disk": _disk(cfg, run, lengths),
    }


def _engines(cfg: JobConfig, all_engines: bool) -> dict[str, EngineConfig]:
    """Return the run's engine, and the others as they are in conf/, with the run's device and precision."""
    engines = {}
    for name in ENGINES if all_engines else (cfg.engine.name,):
        if name == cfg.engine.name:
            engines[name] = cfg.engine
        else:
            kept = {key: getattr(cfg.engine, key) for key in ("device", "precision", "threads")}
            loaded = OmegaConf.merge(
                OmegaConf.structured(EngineConfig), OmegaConf.load(CONF / "engine" / f"{name}.yaml")
            )
            engines[name] = OmegaConf.merge(loaded, kept)  # type: ignore[assignment]
    return engines


def _memory(
    cfg: JobConfig, engine: EngineConfig, run: RunModel, lengths: Lengths, gpu: bool, card: int | None
) -> Document:
    changed = copy.deepcopy(cfg)
    changed.engine = engine
    count = 1 if engine.name == "single" else processes(cfg)
    try:
        check_method(changed)
        framework = 0
        if not gpu:
            framework = framework_bytes(engine.name) + _TOKENIZER_BYTES * run.vocabulary
    except UserError as error:
        return {"refused": str(error)}
    memory = estimate_memory(run, engine, count, training_shapes(cfg, lengths, count), framework)
    needed = memory.peak + (CONTEXT if gpu else 0)
    return {
        "peak_bytes": memory.peak,
        "needed_bytes": needed,
        "processes": count,
        "parts": memory.parts,
        "phase": memory.phase,
        "fits": None if card is None else needed <= card,
    }


def _disk(cfg: JobConfig, run: RunModel, lengths: Lengths) -> Document:
    """Return bytes of a run's folder in the end, of its checkpoints while it lasts, and of the bases' cache."""
    has = run.footprint
    adapter = has.trained_bytes + has.bases
    predictions = _PREDICTION_BYTES * (len(lengths.dev) + sum(map(len, lengths.splits.values())))
    # The last, the best, and the one that is being written: what trains, and the optimizer's state of it.
    checkpoints = 3 * (1 + run.states) * has.trained_bytes
    whole = 1 if not is_zero(cfg.engine) else 2  # under ZeRO the flat copy is in it too
    return {
        "run_bytes": adapter + predictions,
        "while_running_bytes": adapter + predictions + whole * checkpoints,
        "bases_bytes": has.files,
    }
