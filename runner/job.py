"""The life of one run, from a composed config to a recorded result. Read it from top to bottom.

Everything heavy is imported inside the functions that need it: a config that is wrong, or a run that is done already,
is answered without loading PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lorsa.runner.distributed import (
    broadcast,
    check_processes,
    from_main,
    gathered,
    is_main,
    together,
    world_size,
)
from lorsa.runner.errors import UserError
from lorsa.runner.follower import Follower
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.schema import JobConfig
from lorsa.runner.signature import model_folder, signature
from lorsa.runner.terminal import say, show_result
from lorsa.runner.trackers.tracking import tracked
from lorsa.runner.validate import check

if TYPE_CHECKING:
    import torch

    from lorsa.methods import Report
    from lorsa.methods.apply import MethodConfig
    from lorsa.runner.batches import EncodedRows
    from lorsa.runner.glue.source import TaskData
    from lorsa.runner.models import BaseModel
    from lorsa.runner.training import GlueTrainer


def run(cfg: JobConfig) -> float | None:
    """Train, evaluate and record one run, unless its result is there already.

    Args:
        cfg: the composed config; resolved in place.

    Returns:
        The primary metric on the dev part, which a sweeper may optimise; None where it is not a number.

    Raises:
        UserError: something a person can mend, in one sentence.
    """
    check(cfg)
    check_processes(cfg)
    with together(cfg):
        directory = (RunDirectory if is_main() else Follower)(
            cfg.runs_dir, from_main(lambda: signature(cfg)), about(cfg)
        )
        stored = from_main(lambda: None if cfg.force else directory.result())
        if stored is not None:
            say("This run is already done; force=true would run it again.")
            show_result(stored, directory.path)
            return _dev_score(stored)
        if cfg.dry_run:
            from lorsa.runner.launch.plan import check_run

            from_main(lambda: check_run(cfg, set()))
            say(f"This run is not done; it would go to {directory.path}.")
            return None
        with ExitStack() as stack:
            from_main(lambda: stack.enter_context(directory.held(cfg.resources.retries)))
            # Another process may have finished it between the question above and the lock.
            result = from_main(lambda: None if cfg.force else directory.result())
            if result is None:
                result = _train_and_record(cfg, directory)
            directory.progress["score"] = _dev_score(result)
        show_result(result, directory.path)
        return _dev_score(result)


def about(cfg: JobConfig) -> dict[str, Any]:
    """Return what status.json says of what is run, for lists of runs."""
    return {
        "model": cfg.model.name,
        "method": cfg.method.name,
        "task": cfg.task.name,
        "seed": cfg.seed,
        "engine": cfg.engine.name,
    }


def _dev_score(result: dict[str, Any]) -> float | None:
    score: float | None = result["primary_metric"]["dev"]
    return score


@dataclass
class Clock:
    """Seconds spent in each part of a run."""

    started: float = field(default_factory=time.perf_counter)
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside under `name`."""
        start = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        """Return the parts, and the total since the start."""
        return {**self.parts, "total": time.perf_counter() - self.started}


def _train_and_record(cfg: JobConfig, directory: RunDirectory) -> dict[str, Any]:
    from lorsa.kernels import KernelError
    from lorsa.methods import MethodError
    from lorsa.runner.device import reset_peak_memory

    clock = Clock()
    reset_peak_memory()
    say(f"Run {directory.signature}: {cfg.method.name} on {cfg.task.name} ({cfg.data.name}), {cfg.model.name}")
    try:
        device, method = prepare(cfg)
        with clock.part("load"):
            data, base, rows = load(cfg)
        model, report = adapt(cfg, method, base, rows["train"], device, clock)
        trainer = make_trainer(cfg, base, model, rows, directory)
        directory.start(restart=cfg.force)
        directory.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        with tracked(cfg, directory):
            with clock.part("train"):
                resumed_from = trainer.fit()
            with clock.part("evaluate"):
                scores = evaluate(cfg, trainer, rows, directory)
            return record(cfg, directory, trainer, method, data, rows, report, scores, device, clock, resumed_from)
    except (MethodError, KernelError) as error:
        raise UserError(f"method={cfg.method.name}: {error}") from error


# --- Prepare: what can be checked without data or weights -----------------------------------------------------------


def prepare(cfg: JobConfig) -> tuple[torch.device, MethodConfig]:
    """Check the device, the method's config and the task's metrics, and quieten the libraries."""
    import warnings

    import datasets
    import transformers

    from lorsa.runner.device import prepare_device
    from lorsa.runner.method import build_method
    from lorsa.runner.metrics import check_metrics
    from lorsa.runner.training import check_training_arguments

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # PEFT asks transformers by the old name, once per model.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    check_metrics(cfg.task)
    check_training_arguments(cfg)
    return prepare_device(cfg.engine), build_method(cfg.method)


# --- Load: rows, tokenizer, model -----------------------------------------------------------------------------------


def load(cfg: JobConfig) -> tuple[TaskData, BaseModel, dict[str, EncodedRows]]:
    """Return the task's data, the base model, and the tokenised rows of every part.

    The parts are `train`, `dev`, and each evaluation and prediction split by its name.
    """
    from lorsa.runner.batches import encode
    from lorsa.runner.glue.source import load_task
    from lorsa.runner.models import load_model, load_tokenizer

    # Under best_epoch the validation set chooses, so no training rows are held out for it.
    data = load_task(cfg.task, cfg.data, hold_out=cfg.protocol == "split")
    tokenizer = load_tokenizer(cfg)
    train, dev = data.train, data.dev
    if cfg.train.overfit_rows is not None:
        train = train.select(range(min(cfg.train.overfit_rows, len(train))))
        dev = None if dev is None else train
    parts = {"dev": dev} if dev is not None else {}
    parts |= data.evaluation | data.prediction
    rows = {"train": encode(train, cfg.task, cfg.train.max_length, tokenizer)}
    rows |= {
        name: encode(part, cfg.task, cfg.train.max_length, tokenizer, by_length=True) for name, part in parts.items()
    }
    return data, load_model(cfg, tokenizer), rows


# --- Adapt: the method ----------------------------------------------------------------------------------------------


def adapt(
    cfg: JobConfig, method: MethodConfig, base: BaseModel, train: EncodedRows, device: torch.device, clock: Clock
) -> tuple[torch.nn.Module, Report]:
    """Apply the method; what it draws at random depends on the seed alone."""
    from transformers import set_seed

    from lorsa.methods import LorsaConfig
    from lorsa.methods.apply import apply, needs_calibration, select
    from lorsa.methods.head import fit_head
    from lorsa.runner.bases import fill_cache
    from lorsa.runner.device import autocast, kernels_version
    from lorsa.runner.training import total_updates
    from lorsa.runner.zero import announced, runnable

    if len(train) < world_size():
        raise UserError(f"{world_size()} processes, but only {len(train)} rows to train on; start fewer processes.")
    set_seed(cfg.seed)
    base.model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its signature
    if cfg.train.probe_rows is not None:
        with clock.part("probe"), runnable(base.model, cfg, world_size()), autocast(cfg.engine, device):
            fit_head(base.model, base.head, drawn_batches(cfg, base, train, cfg.train.probe_rows))
    if isinstance(method, LorsaConfig):
        with clock.part("basis"):
            fill_cache(base.model, base.head, method)
        with clock.part("select"), runnable(base.model, cfg, world_size()), autocast(cfg.engine, device):
            select(
                base.model,
                method,
                base.head,
                drawn_batches(cfg, base, train, calibration_rows(cfg)) if needs_calibration(method) else None,
                head_is_fitted=cfg.train.probe_rows is not None,
            )
        # Rounding that differs between two kinds of machine must not choose differently.
        method.components = broadcast(method.components)
    with clock.part("adapt"), announced(cfg, world_size()):
        model, report = apply(base.model, method, base.head, total_steps=total_updates(cfg, len(train)))
    for version in kernels_version(method, device).values():
        say(f"LoRSA's operators: {version}.")
    say(
        f"Trains {report.adapter_params:,} adapter and {report.head_params:,} head parameters "
        f"of {report.total_params:,}."
    )
    return model, report


def calibration_rows(cfg: JobConfig) -> int:
    """Return how many rows a method looks at that selects components by gradients; there must be some."""
    if cfg.method.calibration_rows == 0:
        raise UserError(f"method={cfg.method.name} selects components by gradients; give method.calibration_rows=64.")
    return cfg.method.calibration_rows


def drawn_batches(cfg: JobConfig, base: BaseModel, train: EncodedRows, rows: int) -> list[dict[str, torch.Tensor]]:
    """Return training rows, drawn by the seed, for what is looked at before the training starts."""
    import numpy as np
    from transformers import DataCollatorWithPadding

    collate = DataCollatorWithPadding(base.tokenizer)
    drawn = np.random.default_rng(cfg.seed).permutation(len(train))[:rows].tolist()
    drawn.sort(key=lambda row: len(train.dataset[row]["input_ids"]))  # so that little of a batch is padding
    size, device = cfg.train.batch_size, base.model.device
    batches = (collate([train.dataset[row] for row in drawn[i : i + size]]) for i in range(0, len(drawn), size))
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]


# --- Train ----------------------------------------------------------------------------------------------------------


def make_trainer(
    cfg: JobConfig, base: BaseModel, model: torch.nn.Module, rows: dict[str, EncodedRows], directory: RunDirectory
) -> GlueTrainer:
    """Return the trainer, which chooses its checkpoint on the splits that the protocol names."""
    from lorsa.runner.evaluation import score_splits, selection_metrics
    from lorsa.runner.training import GlueTrainer
    from lorsa.runner.zero import is_zero, is_zero3, prepare_model

    if is_zero(cfg.engine):
        prepare_model(model, cfg.engine)
    if is_zero3(cfg.engine) and cfg.train.gradient_checkpointing:
        # What is checkpointed reentrantly gets a gradient only if its inputs want one, and embeddings are frozen.
        base.model.enable_input_require_grads()
    splits = ["dev"] if cfg.protocol == "split" else list(cfg.task.eval_splits)
    selection = {split: rows[split] for split in splits}
    return GlueTrainer(
        cfg,
        model,
        base.tokenizer,
        base.head,
        rows["train"],
        selection,
        lambda logits: selection_metrics(cfg.task, score_splits(cfg.task, selection, logits)),
        directory,
    )


# --- Evaluate -------------------------------------------------------------------------------------------------------


def evaluate(
    cfg: JobConfig, trainer: GlueTrainer, rows: dict[str, EncodedRows], directory: RunDirectory
) -> dict[str, dict[str, float]]:
    """Score the chosen checkpoint on every labelled part, and write the predictions of all but the training rows."""
    from lorsa.runner.evaluation import kept_logits, prediction_lines, score_splits

    scores: dict[str, dict[str, float]] = {}
    for split, encoded in rows.items():
        if split == "train":
            continue
        logits = kept_logits(trainer, split, encoded, directory)
        directory.write(f"predictions/{split}.jsonl", prediction_lines(cfg.task, encoded, logits))
        if min(encoded.dataset["labels"]) >= 0:
            scores |= score_splits(cfg.task, {split: encoded}, {split: logits})
    return scores


# --- Record ---------------------------------------------------------------------------------------------------------


def record(
    cfg: JobConfig,
    directory: RunDirectory,
    trainer: GlueTrainer,
    method: MethodConfig,
    data: TaskData,
    rows: dict[str, EncodedRows],
    report: Report,
    scores: dict[str, dict[str, float]],
    device: torch.device,
    clock: Clock,
    resumed_from: int,
) -> dict[str, Any]:
    """Write the adapter, then result.json; the run is done with that, and its checkpoints are dropped.

    Each waits for the disk before the next: after a power cut there is the whole of one or the other.
    """
    import shutil

    from lorsa.methods import save
    from lorsa.methods.selected import SelectedConfig
    from lorsa.runner.card import CARD, Kind, card
    from lorsa.runner.device import git_state, hardware, kernels_version, peak_memory, versions
    from lorsa.runner.evaluation import or_null
    from lorsa.runner.glue.fingerprint import content_fingerprint
    from lorsa.runner.metrics import primary_name, primary_over_splits
    from lorsa.runner.result import SCHEMA_VERSION, checked, to_text
    from lorsa.runner.rundir import flush_folder, flush_to_disk, writing

    with writing(directory.adapter), trainer.whole_model():
        if is_main():
            save(trainer.model, method, directory.adapter)
    test = {split: scores[split] for split in data.evaluation}
    dev = {"dev": scores["dev"]} if cfg.protocol == "split" else test
    updates = trainer.state.global_step - resumed_from
    examples = trainer.examples_trained()
    seconds = clock.parts["train"]
    folder = model_folder(cfg.model.path)
    result = {
        "schema_version": SCHEMA_VERSION,
        "signature": directory.signature,
        "status": "done",
        "task": cfg.task.name,
        "model": cfg.model.name,
        "method": cfg.method.name,
        "seed": cfg.seed,
        "data_source": data.source,
        "is_demo": cfg.data.name == "demo",
        "config": OmegaConf.to_container(cfg, resolve=True),
        "protocol": cfg.protocol,
        "metrics": {
            part: {
                split: {name: or_null(value) for name, value in metrics.items()}
                for split, metrics in part_scores.items()
            }
            for part, part_scores in (("dev", dev), ("test", test))
        },
        "primary_metric": {
            "name": primary_name(cfg.task),
            "dev": or_null(primary_over_splits(cfg.task, dev)),
            "test": or_null(primary_over_splits(cfg.task, test)) if test else None,
        },
        "best_step": trainer.state.best_global_step,
        "adapter_params": report.adapter_params,
        "head_params": report.head_params,
        "trainable_params": report.trainable_params,
        "total_params": report.total_params,
        "trainable_percent": report.trainable_percent,
        "rows": {part: len(encoded) for part, encoded in rows.items()},
        "components": report.components,
        "timings": clock.timings(),
        "throughput": {
            "tokens_per_s": trainer.tokens_trained / seconds if updates else None,
            "examples_per_s": examples / seconds if updates else None,
        },
        "memory": {
            "peak_bytes": max(gathered(peak_memory(device))),
            "adapter_bytes": sum(
                path.stat().st_size
                for path in directory.adapter.rglob("*")
                if path.is_file() and path != directory.adapter / CARD
            ),
        },
        "hardware": hardware(device) | {"processes": world_size()},
        "versions": versions() | kernels_version(method, device),
        "git": git_state(),
        "model_commit": getattr(trainer.model.config, "_commit_hash", None),
        "model_content": None if folder is None else content_fingerprint(folder),
        "attempts": directory.attempt,
        "resumed_from_step": resumed_from,
    }
    text = to_text(checked(result))
    # In place of PEFT's, which is a template to fill in.
    kind: Kind = "selected" if isinstance(method, SelectedConfig) else "adapter"
    directory.write(f"{directory.adapter.name}/{CARD}", card(result, kind))
    if is_main():
        with writing(directory.adapter):
            flush_folder(directory.adapter)
    directory.write("result.json", text)
    if is_main():
        flush_to_disk(directory.path)
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return result
