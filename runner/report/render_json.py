"""A report as one JSON document."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lorsa.runner.report.tables import Line, Report, Score, SectionTable
from lorsa.runner.report.words import heading

VERSION = 1


def json_text(report: Report) -> str:
    """Return the document.

    - report_version, baseline (or null), left_out (sentences), tables.
    - tables: title, is_demo, by, sources (by task), tasks, average_tasks, average_name, notes, rows.
    - rows: model, method, label, signatures, scores (by task), average, cost, is_baseline, difference, p_holm.
    - scores: by_seed (points), mean, std, seeds (their number), undefined, mark (best, near or empty); mean is null
      where the cell is missing, std where there is one seed.
    - cost: the fields of `tables.Cost`; difference: those of `statistics.Difference`, or null.
    """
    document = {
        "report_version": VERSION,
        "baseline": report.baseline,
        "left_out": report.left_out,
        "tables": [_table(table) for table in report.tables],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _table(table: SectionTable) -> dict[str, Any]:
    section = table.section
    return {
        "title": heading(table),
        "is_demo": section.is_demo,
        "by": section.by,
        "sources": section.sources,
        "tasks": section.tasks,
        "average_tasks": table.average_tasks,
        "average_name": table.average_name,
        "notes": table.notes,
        "rows": [_row(line) for line in table.lines],
    }


def _row(line: Line) -> dict[str, Any]:
    return {
        "model": line.row.model,
        "method": line.row.method,
        "label": line.row.label,
        "signatures": [run.signature for run in line.row.runs],
        "scores": {task: _score(score) for task, score in line.scores.items()},
        "average": _score(line.average),
        "cost": asdict(line.cost),
        "is_baseline": line.is_baseline,
        "difference": None if line.difference is None else asdict(line.difference),
        "p_holm": line.p_holm,
    }


def _score(score: Score) -> dict[str, Any]:
    found = score.summary
    return {
        "by_seed": {str(seed): value for seed, value in score.scores.items()},
        "mean": None if found is None else found.mean,
        "std": None if found is None else found.std,
        "seeds": 0 if found is None else found.count,
        "undefined": score.undefined,
        "mark": score.mark,
    }
