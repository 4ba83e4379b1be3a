"""GLUE's metrics, behind the interface of `evaluate`, and the one number by which a run is judged."""

import math
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lorsa.runner.errors import UserError, nearest
from lorsa.runner.schema import TaskConfig

if TYPE_CHECKING:
    import numpy as np

    Values = Sequence[float] | np.ndarray


def check_metrics(task: TaskConfig) -> None:
    """Check that the task's metrics exist, so that a misspelt one fails before the training and not after it.

    Raises:
        UserError: the task is not one of GLUE's, or has a metric that GLUE does not compute for it.
    """
    from lorsa.runner.metrics.glue_metric import METRICS

    if task.name not in METRICS:
        raise UserError(f"There are no metrics for task '{task.name}'{nearest(task.name, METRICS)}")
    if not task.metrics:
        raise UserError(f"task.metrics is empty; valid for '{task.name}': {', '.join(METRICS[task.name])}.")
    for name in task.metrics:
        if name not in METRICS[task.name]:
            raise UserError(f"Metric '{name}' is unknown for task '{task.name}'{nearest(name, METRICS[task.name])}")


def compute(task: TaskConfig, predictions: "Values", references: "Values") -> dict[str, float]:
    """Return the task's metrics, in the order of `task.metrics`; a fraction in 0..1, or a correlation in -1..1.

    Constant predictions are a result, not an error: matthews_correlation is 0 then, pearson and spearman are NaN.

    Args:
        task: the task.
        predictions: class ids, or scores for a regression.
        references: the labels.

    Raises:
        UserError: the task has a metric that GLUE does not compute for it.
    """
    from lorsa.runner.metrics.glue_metric import GlueMetric

    check_metrics(task)
    # The class itself instead of evaluate.load, which copies the file into a cache that all processes of a node share
    # and reports the load to the hub; in memory and in a folder of its own, two evaluations cannot meet.
    with TemporaryDirectory(prefix="lorsa-metric-") as folder:
        metric = GlueMetric(config_name=task.name, keep_in_memory=True, cache_dir=folder)
        scores = metric.compute(predictions=predictions, references=references)
    return {name: scores[name] for name in task.metrics}


def primary(task: TaskConfig, metrics: Mapping[str, float]) -> float:
    """Return the mean of the task's metrics on one split; NaN if any of them is."""
    return _mean([metrics[name] for name in task.metrics])


def primary_name(task: TaskConfig) -> str:
    """Return what `primary` is called in a result: `accuracy`, or `mean(accuracy,f1)`."""
    names = list(task.metrics)
    return names[0] if len(names) == 1 else f"mean({','.join(names)})"


def primary_over_splits(task: TaskConfig, by_split: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean of `primary` over the evaluated splits, so that MNLI-m and MNLI-mm count as one task.

    Args:
        task: the task.
        by_split: for each evaluated split its metrics; at least one.
    """
    return _mean([primary(task, metrics) for metrics in by_split.values()])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
