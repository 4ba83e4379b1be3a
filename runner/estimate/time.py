"""How long a run takes, from how long a run of the same model and method took here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorsa.runner.errors import UserError
from lorsa.runner.estimate.framework import folder
from lorsa.runner.estimate.lengths import Lengths, updates
from lorsa.runner.glue.fingerprint import content_fingerprint
from lorsa.runner.schema import JobConfig
from lorsa.runner.signature import model_folder

UPDATES = 16
_BEFORE = ("load", "probe", "basis", "select", "adapt")


@dataclass(frozen=True)
class Speed:
    """What one run took.

    Attributes:
        train: seconds for each token that is trained on, over all processes; padding left out.
        evaluate: seconds for each token that is scored.
        before: seconds until the training began.
        source: which run.
    """

    train: float
    evaluate: float
    before: float
    source: str


def find_speed(cfg: JobConfig, processes: int, gpu: bool) -> Speed | None:
    """Return the speed of the latest finished run that has the same model, method, engine, and number of processes.

    Runs in `cfg.runs_dir` count, and those of `lorsa estimate --calibrate`. Other settings may differ: the task, the
    number of updates, the learning rate.

    Args:
        cfg: the run.
        processes: it will have.
        gpu: whether it will run on GPUs.
    """
    model = model_folder(cfg.model.path)
    wanted = _alike(OmegaConf.to_container(cfg, resolve=True), None if model is None else content_fingerprint(model))
    for result in _results([Path(cfg.runs_dir).expanduser(), folder()]):
        with suppress(KeyError, TypeError, AttributeError):  # of another schema, or no result of ours
            same = _alike(result["config"], result["model_content"]) == wanted
            same &= result["hardware"]["processes"] == processes
            if same and (result["hardware"]["device"] == "cuda") == gpu and (speed := _speed(result)):
                return speed
    return None


def _alike(config: Any, content: str | None) -> Any:
    """Return what of a config a token's time depends on.

    Args:
        config: resolved.
        content: the fingerprint of the model's folder, None for a model of the hub.
    """
    model = content or config["model"]["path"], config["model"]["gguf_file"], config["model"]["dtype"]
    method = {key: value for key, value in config["method"]["config"].items() if key != "seed"}
    engine = {key: config["engine"][key] for key in ("name", "precision")}
    checkpointing = config["train"]["gradient_checkpointing"]
    return model, method, engine, checkpointing


def _results(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield results, the latest first."""
    files = [path for each in folders if each.is_dir() for path in each.glob("*/result.json")]
    for path in sorted(files, key=lambda path: -path.stat().st_mtime):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue


def _speed(result: dict[str, Any]) -> Speed | None:
    timings, per_second, rows = result["timings"], result["throughput"], result["rows"]
    if not per_second["tokens_per_s"] or result["resumed_from_step"]:
        return None
    tokens = per_second["tokens_per_s"] * timings["train"]
    examples = per_second["examples_per_s"] * timings["train"]
    scored = sum(count for part, count in rows.items() if part != "train") * tokens / examples
    evaluate = timings["evaluate"] / scored
    # The training's time has a scoring of the dev part after each epoch in it.
    scorings = max(1, math.ceil(examples / rows["train"]))
    training = timings["train"] - evaluate * scorings * rows.get("dev", 0) * tokens / examples
    return Speed(
        max(training, 0.5 * timings["train"]) / tokens,
        evaluate,
        sum(timings.get(part, 0.0) for part in _BEFORE),
        f"run {result['signature']} ({result['task']})",
    )


def seconds(cfg: JobConfig, lengths: Lengths, processes: int, speed: Speed) -> float:
    """Return how long a run takes at a speed."""
    rows, dev = lengths.train, lengths.dev
    trained = updates(cfg, len(rows), processes) * cfg.train.batch_size * cfg.train.gradient_accumulation * processes
    trained = trained if cfg.train.max_steps > 0 else min(trained, math.ceil(cfg.train.epochs * len(rows)))
    epochs = math.ceil(trained / len(rows))
    chosen = dev or [length for split in cfg.task.eval_splits for length in lengths.splits.get(split, [])]
    scored = epochs * sum(chosen) + sum(dev) + sum(map(sum, lengths.splits.values()))
    return speed.before + speed.train * trained * sum(rows) / len(rows) + speed.evaluate * scored


def calibrate(overrides: Sequence[str]) -> None:
    """Run some updates of a job, as a run of its own whose result is kept.

    Args:
        overrides: of the job.

    Raises:
        UserError: it cannot run here.
    """
    short = [f"train.max_steps={UPDATES}", "data.dev_max_rows=64", "task.eval_splits=[]", "task.predict_splits=[]"]
    short += ["protocol=split"]  # the other chooses on the splits that are left out here
    command = [sys.executable, "-m", "lorsa.runner.cli", *overrides, *short, f"runs_dir={folder()}", "force=true"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("lorsa-run: ")
        raise UserError(f"the calibration run failed: {last}")
