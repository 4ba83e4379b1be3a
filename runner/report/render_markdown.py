"""A report as Markdown, with tables as GitHub reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorsa.runner.report.tables import BEST, NEAR, Report, Score, SectionTable
from lorsa.runner.report.words import (
    COST_HEADS,
    DIFFERENCE_HEADS,
    MISSING,
    NOISE,
    cost_cells,
    difference_cells,
    heading,
    legend_difference,
    names,
    whole,
)


def markdown_text(report: Report) -> str:
    """Return all tables with their notes."""
    parts = ["# Report", ""]
    for table in report.tables:
        parts += [f"## {_escaped(heading(table))}", "", *_scores(table), "", *_costs(table), ""]
        if report.baseline is not None and any(line.is_baseline for line in table.lines):
            parts += [*_differences(table), "", _escaped(legend_difference(report.baseline)), ""]
        parts += [*(f"- {_escaped(note)}" for note in table.notes), ""]
    parts += [f"Mean ± standard deviation (seeds). **Bold**: best; ≈: within noise of it ({NOISE}).", ""]
    parts += [f"- {_escaped(sentence)}" for sentence in report.left_out]
    return "\n".join(parts).rstrip("\n") + "\n"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _scores(table: SectionTable) -> list[str]:
    with_average = len(table.average_tasks) > 1
    heads = ["method", *table.section.tasks, *([table.average_name] if with_average else [])]
    rows = []
    for name, line in zip(names(table), table.lines, strict=True):
        scores = [line.scores[task] for task in table.section.tasks] + ([line.average] if with_average else [])
        rows.append([_escaped(name), *map(_cell, scores)])
    return _rows(heads, rows)


def _cell(score: Score) -> str:
    if score.summary is None:
        return "undefined" if score.undefined else MISSING
    cell = whole(score.summary)
    return f"**{cell}**" if score.mark == BEST else f"{cell} ≈" if score.mark == NEAR else cell


def _costs(table: SectionTable) -> list[str]:
    lines = zip(names(table), table.lines, strict=True)
    tasks = len(table.section.tasks)
    rows = [[_escaped(name), *cost_cells(line.cost), f"{line.cost.tasks} of {tasks}"] for name, line in lines]
    return _rows(["method", *COST_HEADS, "tasks"], rows)


def _differences(table: SectionTable) -> list[str]:
    rows = [
        [_escaped(name), *difference_cells(line.difference, line.p_holm)]
        for name, line in zip(names(table), table.lines, strict=True)
        if not line.is_baseline
    ]
    return _rows(["method", *DIFFERENCE_HEADS], rows)


def _escaped(text: str) -> str:
    """Escape what Markdown would read as a sign of its own."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))
