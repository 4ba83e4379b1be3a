"""A report on the terminal."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorsa.runner.report.tables import BEST, NEAR, Report, Score, SectionTable
from lorsa.runner.report.words import (
    COST_HEADS,
    DIFFERENCE_HEADS,
    MISSING,
    NOISE,
    beside,
    cost_cells,
    difference_cells,
    heading,
    legend_difference,
    names,
    points,
)
from lorsa.runner.terminal import console

FILE_WIDTH = 200
LABEL_WIDTH, CELL_WIDTH = 8, 12
_SIGNS = {BEST: "*", NEAR: "~"}
_STYLES = {BEST: "bold green", NEAR: "green"}


def show(report: Report, to: Console = console) -> None:
    """Print all tables with their notes, then what was left out."""
    for table in report.tables:
        to.print(Text(heading(table), style="bold"))
        to.print(_scores(table))
        to.print(_costs(table))
        if report.baseline is not None and any(line.is_baseline for line in table.lines):
            to.print(_differences(table))
            to.print(Text(legend_difference(report.baseline), style="dim"))
        for note in table.notes:
            to.print(Text(note, style="dim"))
        to.print()
    to.print(Text(f"Mean ± standard deviation (seeds). *: best; ~: within noise of it ({NOISE}).", style="dim"))
    for sentence in report.left_out:
        to.print(Text(sentence, style="yellow"))


def text(report: Report) -> str:
    """Return what `show` prints, without colours."""
    file = io.StringIO()
    show(report, Console(file=file, width=FILE_WIDTH, highlight=False, color_system=None))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _table(title: str, names: list[str], heads: list[str]) -> Table:
    # Narrow: a table of several tasks has to fit into 80 columns.
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left", title_style="italic"
    )
    words = [word for name in ("method", *names) for word in name.split()]
    room = max(LABEL_WIDTH, console.width - CELL_WIDTH * len(heads))
    table.add_column("method", overflow="fold", min_width=min(room, max(map(len, words))))
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    return table


def _scores(table: SectionTable) -> Table:
    tasks = table.section.tasks
    with_average = len(table.average_tasks) > 1
    average = table.average_name.replace("average", "avg.").replace(" of ", " of\n")  # no wider than what is below it
    shown = _table("Scores", names(table), [*tasks, *([average] if with_average else [])])
    for name, line in zip(names(table), table.lines, strict=True):
        scores = [line.scores[task] for task in tasks] + ([line.average] if with_average else [])
        shown.add_row(Text(name), *map(_cell, scores))
    return shown


def _cell(score: Score) -> Text:
    """Return the mean over its deviation and seeds, on two lines."""
    if score.summary is None:
        return Text("undefined" if score.undefined else MISSING, style="red")
    mean = f"{points(score.summary.mean)}{_SIGNS.get(score.mark, ' ')}"
    rest = beside(score.summary)
    return Text(mean, style=_STYLES.get(score.mark, "")).append(f"\n{rest}", style="dim not bold")


def _costs(table: SectionTable) -> Table:
    tasks = len(table.section.tasks)
    adapter, _, head, _, *rest = COST_HEADS
    shown = _table("Cost, mean over tasks", names(table), [adapter, head, *rest, *(["tasks"] if tasks > 1 else [])])
    for name, line in zip(names(table), table.lines, strict=True):
        count = [f"{line.cost.tasks} of {tasks}"] if tasks > 1 else []
        adapter, adapter_share, head, head_share, *rest = cost_cells(line.cost)
        shown.add_row(Text(name), f"{adapter}\n{adapter_share}", f"{head}\n{head_share}", *rest, *count)
    return shown


def _differences(table: SectionTable) -> Table:
    shown = _table("Difference to the baseline", names(table), list(DIFFERENCE_HEADS))
    for name, line in zip(names(table), table.lines, strict=True):
        if line.is_baseline:
            shown.add_row(Text(f"{name} (baseline)"), *[""] * len(DIFFERENCE_HEADS))
        else:
            shown.add_row(Text(name), *difference_cells(line.difference, line.p_holm))
    return shown
