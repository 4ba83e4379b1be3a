"""A report as one CSV table: a line for each method and task, the missing ones too, and for each method's average."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from lorsa.runner.report.tables import Line, Report, Score, SectionTable
from lorsa.runner.report.words import heading

AVERAGE = "average"
COLUMNS = (
    *("table", "is_demo", "protocol", "source", "train_rows", "by", "model", "method", "label", "task", "metric"),
    *("seeds", "mean", "std", "undefined", "mark", "adapter_params", "head_params", "total_params"),
    *("train_seconds", "tokens_per_s", "peak_bytes", "adapter_bytes"),
    *("difference", "low", "high", "p", "p_holm", "pairs"),
)
"""Scores and differences are in points; `seeds` is the number of scores behind `mean`; differences are on the lines
of averages, also where there is no average."""


def csv_text(report: Report) -> str:
    """Return the table, with its heads."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        for line in table.lines:
            writer.writerows(_lines(table, line))
    return file.getvalue()


def _lines(table: SectionTable, line: Line) -> Iterator[dict[str, Any]]:
    section, first = table.section, line.row.runs[0]
    common = {
        "table": heading(table), "is_demo": section.is_demo, "protocol": first.protocol,
        "train_rows": first.train_rows, "by": section.by,
        "model": line.row.model, "method": line.row.method, "label": line.row.label,
    }  # fmt: skip
    for task in section.tasks:
        found = {"task": task, "source": section.sources[task], **_score(line.scores[task])}
        cell = line.row.cells.get(task)
        if cell is not None:
            found["metric"] = cell.runs[0].metric
            for name in ("adapter_params", "head_params", "total_params", "peak_bytes", "adapter_bytes"):
                found[name] = _mean([getattr(run, name) for run in cell.runs])
            for name in ("train_seconds", "tokens_per_s"):
                found[name] = _mean([value for run in cell.runs if (value := getattr(run, name)) is not None])
        yield common | found
    difference = line.difference
    found = {"task": AVERAGE, "metric": table.average_name, **_score(line.average)}
    if difference is not None:
        found |= {
            "difference": difference.mean, "low": difference.low, "high": difference.high, "p": difference.p,
            "p_holm": line.p_holm, "pairs": difference.pairs,
        }  # fmt: skip
    yield common | found


def _score(score: Score) -> dict[str, Any]:
    found = score.summary
    return {
        "seeds": 0 if found is None else found.count,
        "mean": None if found is None else found.mean,
        "std": None if found is None else found.std,
        "undefined": score.undefined,
        "mark": score.mark,
    }


def _mean(values: list[float]) -> float | None:
    if not values:
        return None
    mean = fmean(values)
    return int(mean) if mean.is_integer() else mean
