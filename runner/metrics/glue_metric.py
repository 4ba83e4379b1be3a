"""GLUE's metrics as a module of `evaluate` that needs no network.

`evaluate.load("glue", ...)` downloads its module; this one is loaded from its path or imported as any other:

    evaluate.load("<path>/glue_metric.py", config_name="mrpc").compute(predictions=[0, 1], references=[0, 1])

The configurations are GLUE's and the names are those of the official module, with `spearman` for its `spearmanr`. The
file stands alone, one import per line, because `evaluate` copies it and parses its imports.
"""

import warnings
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics

METRICS = {
    "sst2": ("accuracy",),
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "ax": ("matthews_correlation",),
}
"""For each configuration what it computes."""

_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, references: metrics.accuracy_score(references, predictions),
    "f1": lambda predictions, references: metrics.f1_score(references, predictions, zero_division=0.0),
    "matthews_correlation": lambda predictions, references: metrics.matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: _correlation(stats.pearsonr, predictions, references),
    "spearman": lambda predictions, references: _correlation(stats.spearmanr, predictions, references),
}


def _correlation(function: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the coefficient, NaN where there is none: for fewer than two rows and for constant or infinite input."""
    if len(predictions) < 2 or not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        return float("nan")
    return float(function(predictions, references).statistic)


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one GLUE task: `config_name` is a key of `METRICS`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise KeyError(f"'{self.config_name}' is not a GLUE configuration; valid: {', '.join(METRICS)}")
        number = datasets.Value("float64" if "pearson" in METRICS[self.config_name] else "int64")
        return evaluate.MetricInfo(
            description="The metrics of the GLUE benchmark (https://gluebenchmark.com).",
            citation="@inproceedings{wang2019glue, title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for "
            "Natural Language Understanding}, booktitle={ICLR}, year={2019}}",
            inputs_description="predictions and references: class ids, or for stsb scores from 0 to 5",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        # Lists, because the "numpy" format of `datasets` would round scores to float32.
        arrays = np.asarray(predictions), np.asarray(references)
        with warnings.catch_warnings():
            # A model that always gives one answer is a result like any other, and its numbers are defined above.
            warnings.simplefilter("ignore")
            return {name: float(_FUNCTIONS[name](*arrays)) for name in METRICS[self.config_name]}
