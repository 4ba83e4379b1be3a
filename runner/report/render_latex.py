r"""A report as LaTeX tables, for `\input` into a paper that loads booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from lorsa.runner.report.tables import BEST, NEAR, Report, Score, SectionTable
from lorsa.runner.report.words import (
    COST_HEADS,
    DIFFERENCE_HEADS,
    NOISE,
    cost_cells,
    difference_cells,
    heading,
    legend_difference,
    names,
    points,
)

_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
}


def latex_text(report: Report) -> str:
    """Return the tables, each a float of its own, and what else is to be said as comments."""
    parts = [
        r"% \usepackage{booktabs}",
        rf"% Bold: best; underlined: within noise of it ({NOISE}).",
    ]
    for table in report.tables:
        title = heading(table)
        parts += ["", f"% {_one_line(title)}", *(f"% {_one_line(note)}" for note in table.notes)]
        parts += _scores(table, title)
        parts += _costs(table, title)
        if report.baseline is not None and any(line.is_baseline for line in table.lines):
            parts += _differences(table, f"{title}. {legend_difference(report.baseline)}")
    parts += [f"% {_one_line(sentence)}" for sentence in report.left_out]
    return "\n".join(parts) + "\n"


def _scores(table: SectionTable, title: str) -> list[str]:
    """Return the scores, the deviations below the means: nine tasks and their average fit into a column of text."""
    with_average = len(table.average_tasks) > 1
    average = table.average_name.replace("average", "avg.")
    heads = ["method", *table.section.tasks, *([average] if with_average else [])]
    shown = [
        [line.scores[task] for task in table.section.tasks] + ([line.average] if with_average else [])
        for line in table.lines
    ]
    counts = {score.summary.count for scores in shown for score in scores if score.summary is not None}
    same = len(counts) == 1
    rows = []
    for name, scores in zip(names(table), shown, strict=True):
        rows.append([_escaped(name), *map(_mean, scores)])
        if not same or counts != {1}:
            rows.append(["", *(_spread(score, not same) for score in scores)])
    if counts == {1}:
        said = "One seed each, so that noise is not known and nothing is marked"
    else:
        seeds = f"{counts.pop()} seeds" if same else "in brackets: seeds"
        said = rf"Mean $\pm$ standard deviation, {seeds}. Bold: best; underlined: within noise of it"
    caption = f"{_escaped(title)}. {said}."
    return _float(caption, heads, rows)


def _mean(score: Score) -> str:
    if score.summary is None:
        return "undef." if score.undefined else "--"
    mean = points(score.summary.mean)
    return rf"\textbf{{{mean}}}" if score.mark == BEST else rf"\underline{{{mean}}}" if score.mark == NEAR else mean


def _spread(score: Score, with_count: bool) -> str:
    if score.summary is None:
        return ""
    deviation = "" if score.summary.std is None else rf"$\pm${score.summary.std:.1f}"
    return rf"\scriptsize {deviation}{f' ({score.summary.count})' if with_count and score.summary.count else ''}"


def _costs(table: SectionTable, title: str) -> list[str]:
    rows = [
        [_escaped(name), *map(_escaped, cost_cells(line.cost))]
        for name, line in zip(names(table), table.lines, strict=True)
    ]
    return _float(f"Cost, mean over tasks. {_escaped(title)}.", ["method", *COST_HEADS], rows)


def _differences(table: SectionTable, caption: str) -> list[str]:
    rows = [
        [_escaped(name), *map(_escaped, difference_cells(line.difference, line.p_holm))]
        for name, line in zip(names(table), table.lines, strict=True)
        if not line.is_baseline
    ]
    return _float(_escaped(caption), ["method", *DIFFERENCE_HEADS], rows)


def _float(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, heads)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _escaped(text: str) -> str:
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
