"""The logits of a split, and from them metrics and files of predictions."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorsa.runner.batches import EncodedRows
from lorsa.runner.checkpoints import kept_logits_folder
from lorsa.runner.distributed import from_main, world_size
from lorsa.runner.metrics import compute, primary_over_splits
from lorsa.runner.schema import TaskConfig

if TYPE_CHECKING:
    from lorsa.runner.rundir import RunDirectory
    from lorsa.runner.training import GlueTrainer

Logits = np.ndarray[Any, np.dtype[np.float32]]
# Batches after which an evaluation's logits are kept: QQP's test set can take longer than a job may.
BATCHES_PER_PIECE = 256


def kept_logits(trainer: GlueTrainer, split: str, rows: EncodedRows, directory: RunDirectory) -> Logits:
    """Return the logits of a split, (rows, labels), going on from what an attempt that was stopped has of them.

    The pieces end where batches do, so they are the same numbers as in one go.
    """
    size = BATCHES_PER_PIECE * trainer.args.per_device_eval_batch_size * world_size()
    folder = kept_logits_folder(trainer.state.best_global_step or trainer.state.global_step)
    pieces = []
    for start in range(0, len(rows), size):
        part = rows.part(start, start + size)
        # Its length is in its name: a version of this code that cuts otherwise finds none of its own.
        file = directory.checkpoints / folder / f"{split}-{start}-{len(part)}.npy"
        piece = from_main(lambda file=file: _read(file))  # type: ignore[misc]
        if piece is None:
            piece = trainer.logits(part)
            stream = io.BytesIO()
            np.save(stream, piece)
            directory.write(file.relative_to(directory.path).as_posix(), stream.getvalue())
        pieces.append(piece)
    return np.concatenate(pieces)


def _read(file: Path) -> Logits | None:
    return np.load(file) if file.is_file() else None


def predictions(task: TaskConfig, logits: Logits) -> list[int] | list[float]:
    """Return the predicted label ids, or for a regression the scores."""
    if task.labels:
        return [int(label) for label in logits.argmax(axis=-1)]
    return [float(score) for score in logits.reshape(-1)]


def score_splits(
    task: TaskConfig, rows: Mapping[str, EncodedRows], logits: Mapping[str, Logits]
) -> dict[str, dict[str, float]]:
    """Return the task's metrics for each split."""
    return {
        split: compute(task, predictions(task, logits[split]), list(encoded.dataset["labels"]))
        for split, encoded in rows.items()
    }


def selection_metrics(task: TaskConfig, by_split: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return one flat dictionary: `primary`, over all splits, and each split's metrics by `<split>_<metric>`."""
    flat = {f"{split}_{name}": value for split, metrics in by_split.items() for name, value in metrics.items()}
    return {"primary": primary_over_splits(task, by_split), **flat}


def prediction_lines(task: TaskConfig, rows: EncodedRows, logits: Logits) -> str:
    """Return a predictions file: a JSON object per row with `idx`, `prediction` and `logits`, ordered by `idx`."""
    predicted = predictions(task, logits)
    records: list[dict[str, Any]] = [
        {"idx": idx, "prediction": prediction, "logits": [float(value) for value in row]}
        for idx, prediction, row in zip(rows.ids, predicted, logits.reshape(len(rows), -1), strict=True)
    ]
    return "".join(json.dumps(record) + "\n" for record in sorted(records, key=lambda record: record["idx"]))


def or_null(value: float) -> float | None:
    """Return the value, or None where it is not a number: JSON has no NaN."""
    return value if math.isfinite(value) else None
