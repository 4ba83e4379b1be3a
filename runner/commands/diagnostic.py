"""What a finished run answers to rows that it was not asked about while it ran: MNLI's model to the diagnostic set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorsa.runner.commands.finished import FinishedRun, load_run
from lorsa.runner.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from lorsa.runner.schema import TaskConfig


def predict_ax(run: FinishedRun) -> list[int]:
    """Return the predictions of an MNLI run for AX, which is in the run's own source of data.

    Raises:
        UserError: the source has no AX, or the run's model cannot be loaded.
    """
    from lorsa.runner.compose import compose
    from lorsa.runner.glue.source import load_task

    task = compose("task=ax").task
    # A run's own words for the labels, and their order, are those of its head.
    task.labels = run.cfg.task.labels
    rows = load_task(task, run.cfg.data, hold_out=False).prediction.get("test")
    if rows is None:
        raise UserError(f"{run.cfg.data.path or run.cfg.data.name} has no AX.")
    return [int(label) for label in predict(run, task, rows)]


def predict(run: FinishedRun, task: TaskConfig, rows: Dataset) -> list[int] | list[float]:
    """Return what a run's trained model predicts for rows, in the order of their `idx`.

    Args:
        run: the run; its device, precision and lengths are used.
        task: what the rows are of; its labels are as many as the run's.
        rows: the task's columns, `label` and `idx`.

    Raises:
        UserError: the run's model cannot be loaded, its device is not here, or its answers are not finite.
    """
    import numpy as np
    import torch
    from transformers import DataCollatorWithPadding

    from lorsa.runner.batches import encode
    from lorsa.runner.device import prepare_device
    from lorsa.runner.evaluation import predictions

    cfg = run.cfg
    device = prepare_device(cfg.engine)
    base, model = load_run(run)
    model.to(device)
    encoded = encode(rows, task, cfg.train.max_length, base.tokenizer, by_length=True)
    inputs = encoded.dataset.remove_columns("labels")
    loader = torch.utils.data.DataLoader(
        inputs, batch_size=cfg.train.eval_batch_size, collate_fn=DataCollatorWithPadding(base.tokenizer)
    )
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.engine.precision)
    parts = []
    with torch.no_grad(), torch.autocast(device.type, half, enabled=half is not None):
        for batch in loader:
            answers = model(**{name: value.to(device) for name, value in batch.items()}).logits
            parts.append(answers.float().cpu().numpy())
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise UserError(f"{run.directory.path}: the model's answers are not finite.")
    by_idx = dict(zip(encoded.ids, predictions(task, logits), strict=True))
    return [by_idx[idx] for idx in sorted(by_idx)]
