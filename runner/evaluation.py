"""From logits to metrics and to files of predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorsa.runner.batches import EncodedRows
from lorsa.runner.metrics import compute, primary_over_splits
from lorsa.runner.schema import TaskConfig

Logits = np.ndarray[Any, np.dtype[np.float32]]


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
