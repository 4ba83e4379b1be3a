"""What a report says, as data: every renderer shows this and adds nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lorsa.runner.errors import UserError
from lorsa.runner.report.collect import Collection, check_key
from lorsa.runner.report.compare import GLUE, Cell, Row, Section, sections
from lorsa.runner.report.notes import section_notes
from lorsa.runner.report.record import Run
from lorsa.runner.report.statistics import Difference, Summary, differ, holm, paired, summary

BEST, NEAR = "best", "near"


@dataclass(frozen=True, slots=True)
class Score:
    """One entry of a table of scores.

    Attributes:
        scores: points by seed; empty where the cell is missing.
        summary: of the scores; None where the cell is missing.
        undefined: runs whose score is undefined, which the summary lacks.
        mark: `BEST` of its column and model, `NEAR` where it does not differ from that by more than noise, or "".
            Nothing is marked where the best has one score: it may be the best by luck alone.
    """

    scores: dict[int, float]
    summary: Summary | None
    undefined: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method costs: means over tasks of means over seeds, (lowest, highest) where there is a range.

    Attributes:
        adapter: trained parameters, without the head's.
        head: the head's; the number of labels changes it.
        adapter_percent: share of the whole model.
        head_percent: the same of the head.
        train_seconds: None where no run was made in one go.
        tokens_per_s: padding left out.
        peak_bytes: of the GPU, or resident without one.
        adapter_bytes: on disk.
        tasks: how many tasks the means are over.
    """

    adapter: tuple[int, int]
    head: tuple[int, int]
    adapter_percent: float
    head_percent: float
    train_seconds: float | None
    tokens_per_s: float | None
    peak_bytes: float
    adapter_bytes: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a section with all that is said of it.

    Attributes:
        row: the runs.
        scores: by task, one for every task of the section.
        average: over the tasks of the average; its summary is None where one of them is missing.
        cost: see `Cost`.
        is_baseline: what the others are compared with.
        difference: to the baseline of the same model, on the tasks of the average.
        p_holm: its p-value, corrected for all comparisons of the section.
    """

    row: Row
    scores: dict[str, Score]
    average: Score
    cost: Cost
    is_baseline: bool
    difference: Difference | None
    p_holm: float | None


@dataclass(frozen=True)
class SectionTable:
    """One section of a report.

    Attributes:
        section: its runs.
        average_tasks: the tasks of the average; fewer than two: there is none.
        average_name: what the average is called.
        lines: by model and label.
        notes: what a reader has to know, one sentence each.
    """

    section: Section
    average_tasks: list[str]
    average_name: str
    lines: list[Line]
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        tables: one per section.
        baseline: as it was asked for, or None.
        left_out: one sentence for each reason to leave folders out.
        collection: the runs.
    """

    tables: list[SectionTable]
    baseline: str | None
    left_out: list[str]
    collection: Collection


def report(
    collection: Collection,
    baseline: str | None = None,
    by: str | None = None,
    with_wnli: bool = False,
    chosen: Sequence[str] = (),
) -> Report:
    """Return the tables.

    Args:
        collection: the runs.
        baseline: a method's name or a row's label, which the others are compared with.
        by: also one table per value of this.
        with_wnli: WNLI counts in the average.
        chosen: settings whose values `choose` has chosen.

    Raises:
        UserError: the baseline is not there or not one row, or `by` means nothing.
    """
    if by is not None:
        check_key("--by", by, collection.runs)
    parts = sections(collection.runs, by)
    if baseline is not None:
        _check_baseline(baseline, parts)
    tables = [_section_table(part, baseline, with_wnli, chosen) for part in parts]
    return Report(tables, baseline, collection.reasons(), collection)


def _check_baseline(baseline: str, parts: Sequence[Section]) -> None:
    if not any(_is(row, baseline) for part in parts for row in part.rows):
        labels = sorted({row.label for part in parts for row in part.rows})
        raise UserError(f"--baseline {baseline}: there is no such method in these runs; there are {', '.join(labels)}.")
    for part in parts:
        for model in part.models:
            found = [row.label for row in part.rows if row.model == model and _is(row, baseline)]
            if len(found) > 1 and baseline not in found:
                quoted = ", ".join(f"'{label}'" for label in found)
                raise UserError(
                    f"--baseline {baseline}: {len(found)} rows of {model} have that name; name one of {quoted}."
                )


def _is(row: Row, name: str) -> bool:
    return name in (row.label, row.method)


def _section_table(section: Section, baseline: str | None, with_wnli: bool, chosen: Sequence[str]) -> SectionTable:
    counted = (*GLUE, "wnli") if with_wnli else GLUE
    tasks = [task for task in section.tasks if task in counted]
    whole = not section.is_demo and len(tasks) == len(counted)
    name = "GLUE average" if whole else f"average of {len(tasks)} tasks"
    scores = {id(row): {task: _score(row.cells.get(task)) for task in section.tasks} for row in section.rows}
    averages = {id(row): _average([scores[id(row)][task] for task in tasks]) for row in section.rows}
    for model in section.models:
        rows = [row for row in section.rows if row.model == model]
        for task in section.tasks:
            for row, score in zip(rows, _marked([scores[id(row)][task] for row in rows]), strict=True):
                scores[id(row)][task] = score
        averages |= zip(map(id, rows), _marked([averages[id(row)] for row in rows]), strict=True)
    bases = _baselines(section, baseline)
    differences = {
        id(row): _difference(row, bases[row.model], tasks or section.tasks)
        for row in section.rows
        if row.model in bases and bases[row.model] is not row
    }
    tested = [(key, each.p) for key, each in differences.items() if each is not None and each.p is not None]
    corrected = dict(zip((key for key, _ in tested), holm([p for _, p in tested]), strict=True))
    lines = [
        Line(
            row, scores[id(row)], averages[id(row)], _cost(row), bases.get(row.model) is row,
            differences.get(id(row)), corrected.get(id(row)),
        )
        for row in section.rows
    ]  # fmt: skip
    return SectionTable(section, tasks, name, lines, section_notes(section, baseline, bases.keys(), chosen))


def _baselines(section: Section, baseline: str | None) -> dict[str, Row]:
    """Return the baseline of each model: the row of that label, or else the one of that method."""
    found: dict[str, Row] = {}
    for row in section.rows:
        if baseline is not None and _is(row, baseline) and (row.label == baseline or row.model not in found):
            found[row.model] = row
    return found


def _score(cell: Cell | None) -> Score:
    if cell is None:
        return Score({}, None)
    return Score(cell.scores, summary(list(cell.scores.values())), cell.undefined)


def _average(scores: Sequence[Score]) -> Score:
    """Return the average over tasks: its mean is that of the tasks' means, its spread that of whole seeds.

    A seed is whole if every task has it. A row that lacks a task has no average: it would be one over other tasks.
    """
    summaries = [each.summary for each in scores]
    present = [each for each in summaries if each is not None]
    if len(scores) < 2 or len(present) < len(scores):
        return Score({}, None)
    seeds = set.intersection(*(set(each.scores) for each in scores))
    whole = {seed: fmean(each.scores[seed] for each in scores) for seed in sorted(seeds)}
    spread = summary(list(whole.values()))
    mean = fmean(each.mean for each in present)
    undefined = sum(each.undefined for each in scores)
    return Score(whole, Summary(mean, spread.std if spread else None, len(whole)), undefined)


def _marked(column: Sequence[Score]) -> list[Score]:
    """Return the scores of a column with the best, and those within noise of it, marked."""
    found = [score for score in column if score.summary is not None]
    if len(found) < 2:
        return list(column)
    best = max(found, key=lambda score: score.summary.mean if score.summary is not None else 0)
    if len(best.scores) < 2:
        return list(column)
    return [replace(score, mark=_mark(score, best)) for score in column]


def _mark(score: Score, best: Score) -> str:
    if score.summary is None or best.summary is None:
        return ""
    if score.summary.mean == best.summary.mean:
        return BEST
    return NEAR if differ(list(best.scores.values()), list(score.scores.values())) is False else ""


def _difference(row: Row, base: Row, tasks: Sequence[str]) -> Difference | None:
    first, second = ({task: each.cells[task].scores for task in tasks if task in each.cells} for each in (row, base))
    return paired(first, second)


def _cost(row: Row) -> Cost:
    def mean(value: Callable[[Run], float | None]) -> float | None:
        by_task = [[found for run in cell.runs if (found := value(run)) is not None] for cell in row.cells.values()]
        return fmean(map(fmean, known)) if (known := [values for values in by_task if values]) else None

    def certain(value: Callable[[Run], float]) -> float:
        return mean(value) or 0.0

    adapter, head = [run.adapter_params for run in row.runs], [run.head_params for run in row.runs]
    return Cost(
        adapter=(min(adapter), max(adapter)),
        head=(min(head), max(head)),
        adapter_percent=certain(lambda run: 100 * run.adapter_params / run.total_params),
        head_percent=certain(lambda run: 100 * run.head_params / run.total_params),
        train_seconds=mean(lambda run: run.train_seconds),
        tokens_per_s=mean(lambda run: run.tokens_per_s),
        peak_bytes=certain(lambda run: run.peak_bytes),
        adapter_bytes=certain(lambda run: run.adapter_bytes),
        tasks=len(row.cells),
    )
