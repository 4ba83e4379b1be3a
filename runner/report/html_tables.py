"""The tables of a section, for the page."""

from __future__ import annotations

from html import escape

from lorsa.runner.report.html_parts import Cell, number, table, text
from lorsa.runner.report.plot_scores import front
from lorsa.runner.report.tables import BEST, NEAR, Line, Score, SectionTable
from lorsa.runner.report.words import (
    COST_HEADS,
    DIFFERENCE_HEADS,
    MISSING,
    NOISE,
    beside,
    cost_cells,
    difference_cells,
    legend_difference,
    names,
    points,
)

_SAID = {BEST: "best", NEAR: "within noise of the best"}
_SIGNS = {BEST: "★", NEAR: "≈"}


def scores_table(shown: SectionTable, name: str) -> str:
    """Return the scores of every method on every task, and their average."""
    tasks = shown.section.tasks
    with_average = len(shown.average_tasks) > 1
    rows = []
    for label, line in zip(names(shown), shown.lines, strict=True):
        scores = [line.scores[task] for task in tasks] + ([line.average] if with_average else [])
        rows.append([text(label), *map(_score, scores)])
    heads = ["method", *tasks, *([shown.average_name] if with_average else [])]
    which = "column and model" if len(shown.section.models) > 1 else "column"
    explanation = (
        f"Points: mean ± standard deviation (number of seeds). ★: best of its {which}; ≈: within noise of it ({NOISE})."
    )
    return table(name, "Scores", explanation, heads, _numeric(heads), rows)


def _score(score: Score) -> Cell:
    if score.summary is None:
        missing = "undefined" if score.undefined else f'{MISSING}<span class="hidden">missing</span>'
        return Cell(missing, None, "bad")
    sign = ""
    if score.mark:
        sign = f' <span aria-hidden="true">{_SIGNS[score.mark]}</span><span class="hidden">{_SAID[score.mark]}</span>'
    rest = beside(score.summary)
    shown = f'{points(score.summary.mean)}{sign} <span class="spread">{escape(rest)}</span>'
    return Cell(shown, score.summary.mean, score.mark)


def costs_table(shown: SectionTable, name: str) -> str:
    """Return what every method costs."""
    rows = []
    for label, line in zip(names(shown), shown.lines, strict=True):
        cost = line.cost
        values = (
            cost.adapter[0], cost.adapter_percent, cost.head[0], cost.head_percent, cost.train_seconds,
            cost.tokens_per_s, cost.peak_bytes, cost.adapter_bytes,
        )  # fmt: skip
        cells = [number(cell, value) for cell, value in zip(cost_cells(cost), values, strict=True)]
        rows.append([text(label), *cells, number(f"{cost.tasks} of {len(shown.section.tasks)}", cost.tasks)])
    heads = ["method", *COST_HEADS, "tasks"]
    explanation = (
        "Adapter and head: trained parameters, and their share of the model. Training time, tokens per second (padding "
        "left out) and peak memory: mean over tasks of the mean over seeds."
    )
    return table(name, "Cost", explanation, heads, _numeric(heads), rows)


def differences_table(shown: SectionTable, baseline: str, name: str) -> str:
    """Return the paired differences to the baseline."""
    rows = [
        [text(label), *_difference(line)]
        for label, line in zip(names(shown), shown.lines, strict=True)
        if not line.is_baseline
    ]
    heads = ["method", *DIFFERENCE_HEADS]
    return table(name, f"Difference to {baseline}", legend_difference(baseline), heads, _numeric(heads), rows)


def _difference(line: Line) -> list[Cell]:
    found = line.difference
    values = (None,) * 5 if found is None else (found.mean, found.low, found.p, line.p_holm, found.pairs)
    cells = difference_cells(found, line.p_holm)
    return [number(cell, value) for cell, value in zip(cells, values, strict=True)]


def front_table(shown: SectionTable, name: str) -> str:
    """Return the numbers of the figure of scores against parameters."""
    rows = []
    for point in front(shown):
        if (found := point.score.summary) is not None:
            place = text("yes" if point.on_front else "no")
            parameters = number(f"{point.parameters:,.0f}", point.parameters)
            rows.append([text(point.name), parameters, number(points(found.mean), found.mean), place])
    heads = ["method", "trained parameters", "score", "on the front"]
    return table(name, "Score against trained parameters", "", heads, [False, True, True, False], rows)


def _numeric(heads: list[str]) -> list[bool]:
    return [False, *[True] * (len(heads) - 1)]
