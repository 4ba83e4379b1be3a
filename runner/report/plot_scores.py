"""Figures of scores: against trained parameters with the Pareto front, and by task with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lorsa.runner.report.figures import add_legend, color, drawing, legend_height, marker, new, short, svg
from lorsa.runner.report.tables import Line, Score, SectionTable
from lorsa.runner.report.words import names, points


@dataclass(frozen=True, slots=True)
class Point:
    """A row in the plane of cost and score.

    Attributes:
        name: of the row.
        parameters: trained ones, the head's included; mean of its runs.
        score: the average over the tasks, or the only task's.
        on_front: no row of its model is better with as many parameters or fewer.
    """

    name: str
    number: int
    parameters: float
    score: Score
    on_front: bool


def front(table: SectionTable) -> list[Point]:
    """Return the rows that have a score for all tasks, by parameters, those on their model's Pareto front marked."""
    found = []
    for number, (name, line) in enumerate(zip(names(table), table.lines, strict=True)):
        score = overall(table, line)
        if score.summary is not None:
            found.append((line, Point(name, number, parameters(line), score, False)))
    points_ = []
    for line, point in found:
        others = [other for rival, other in found if rival.row.model == line.row.model]
        better = any(_beats(other, point) for other in others)
        points_.append(Point(point.name, point.number, point.parameters, point.score, not better))
    return sorted(points_, key=lambda point: (point.parameters, -_mean(point)))


def overall(table: SectionTable, line: Line) -> Score:
    """Return the average over tasks, or the score of the only task."""
    return (
        line.average if len(table.average_tasks) > 1 else line.scores[(table.average_tasks or table.section.tasks)[0]]
    )


def parameters(line: Line) -> float:
    """Return how many parameters a row trains, the head's included."""
    return fmean(run.adapter_params + run.head_params for run in line.row.runs)


def _beats(other: Point, point: Point) -> bool:
    first, second = (other.parameters, -_mean(other)), (point.parameters, -_mean(point))
    return first != second and first[0] <= second[0] and first[1] <= second[1]


def _mean(point: Point) -> float:
    return point.score.summary.mean if point.score.summary is not None else float("-inf")


def pareto_figure(table: SectionTable, name: str) -> str | None:
    """Return the scores against the trained parameters as SVG; None where fewer than two rows have all tasks."""
    places = front(table)
    if len(places) < 2:
        return None
    with drawing(name):
        labels = [short(point.name) for point in places]
        figure, (axis,) = new(3.2 + legend_height(labels))
        for point in places:
            deviation = point.score.summary.std if point.score.summary is not None else None
            axis.errorbar(
                max(1.0, point.parameters), _mean(point), deviation or 0.0, marker=marker(point.number), markersize=6,
                color=color(point.number), capsize=3, elinewidth=1, linestyle="", label=short(point.name),
            )  # fmt: skip
        for model in table.section.models:
            on_front = [point for point in places if point.on_front and table.lines[point.number].row.model == model]
            x, y = [max(1.0, point.parameters) for point in on_front], [_mean(point) for point in on_front]
            axis.plot(x, y, drawstyle="steps-post", color="black", linewidth=1, linestyle="--", zorder=0)
        axis.set_xscale("log")
        axis.set_xlabel("trained parameters, head included")
        axis.set_ylabel(f"{what(table)}, points")
        add_legend(figure, labels)
        best = ", ".join(point.name for point in places if point.on_front)
        description = (
            f"{len(places)} methods by trained parameters and {what(table)}, bars: ± standard deviation over seeds, "
            f"dashed: the Pareto front. On the front, from few parameters to many: {best}."
        )
        return svg(figure, name, "Score against trained parameters", description)


def what(table: SectionTable) -> str:
    """Return what `overall` is."""
    return table.average_name if len(table.average_tasks) > 1 else (table.average_tasks or table.section.tasks)[0]


def task_figure(table: SectionTable, name: str) -> str:
    """Return every method's score on every task, with its deviation, as SVG."""
    labels, tasks = list(map(short, names(table))), table.section.tasks
    step = 1 / (len(labels) + 1)
    with drawing(name):
        height = 1.0 + len(tasks) * (0.25 + 0.13 * len(labels)) + legend_height(labels)
        figure, (axis,) = new(min(height, 40.0))
        for number, (label, line) in enumerate(zip(labels, table.lines, strict=True)):
            found = [(place, score.summary) for place, task in enumerate(tasks) if (score := line.scores[task]).summary]
            axis.errorbar(
                [entry.mean for _, entry in found if entry],
                [place + (number + 1) * step - 0.5 for place, _ in found],
                xerr=[(entry.std or 0.0) for _, entry in found if entry],
                marker=marker(number), markersize=5, color=color(number), capsize=2, elinewidth=1, linestyle="",
                label=label,
            )  # fmt: skip
        axis.set_yticks(range(len(tasks)), tasks)
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        for place in range(1, len(tasks)):
            axis.axhline(place - 0.5, color="black", linewidth=0.4, alpha=0.4)
        axis.set_xlabel("score, points; bars: ± standard deviation over seeds")
        add_legend(figure, labels)
        return svg(
            figure, name, "Scores by task", "By task: " + "; ".join(_best(table, labels, task) for task in tasks)
        )


def _best(table: SectionTable, labels: Sequence[str], task: str) -> str:
    found = [
        (score.summary.mean, label)
        for label, line in zip(labels, table.lines, strict=True)
        if (score := line.scores[task]).summary is not None
    ]
    if not found:
        return f"{task}, no scores"
    best, label = max(found)
    return f"{task}, from {points(min(found)[0])} to {points(best)}, best {label}"
