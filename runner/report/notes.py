"""What a reader has to know beside a section's numbers, one sentence each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from lorsa.runner.report.compare import Section
from lorsa.runner.report.record import Run

LIBRARIES = ("lorsa", "torch", "transformers", "peft")
_SHOWN = 10


def section_notes(section: Section, baseline: str | None, models_with_baseline: Collection[str]) -> list[str]:
    """Return the notes of a section; `models_with_baseline` are the models that have a row of `baseline`."""
    runs = section.runs
    notes = _about_scores(section) + _about_configs(section, runs) + _about_machines(runs)
    if baseline is not None and (without := [each for each in section.models if each not in models_with_baseline]):
        notes.append(f"There is no {baseline} of {', '.join(without)} here to compare with.")
    return notes


def _about_scores(section: Section) -> list[str]:
    notes = []
    if len(set(section.sources.values())) > 1:
        notes.append(f"Rows: {_list(f'{task} {source}' for task, source in section.sources.items())}.")
    metrics = {run.task: run.metric.replace(",", ", ") for run in section.runs}
    where = "the validation set" if section.is_demo else "GLUE's validation set"
    listed = _list(f"{task} {metrics[task]}" for task in section.tasks)
    notes.append(f"Scores are points, 100 times the metric on {where}: {listed}.")
    if "mnli" in section.tasks:
        notes.append("MNLI is the mean of its matched and mismatched parts, and counts as one task.")
    cells = [(row, task, cell) for row in section.rows for task, cell in row.cells.items()]
    undefined = [f"{cell.undefined} of {row.label} on {task}" for row, task, cell in cells if cell.undefined]
    if undefined:
        notes.append(
            f"Without a score, which is undefined for constant predictions: {_list(undefined)}; the means are over the "
            "others and flatter these methods."
        )
    doubles = [f"{len(cell.doubles)} of {row.label} on {task}" for row, task, cell in cells if cell.doubles]
    if doubles:
        notes.append(f"Left out, because the same seed is there already: {_list(doubles)}.")
    if all(len(cell.runs) == 1 for _, _, cell in cells):
        notes.append("One seed each: no deviation, and nothing can be said about noise.")
    return notes


def _about_configs(section: Section, runs: list[Run]) -> list[str]:
    varied: dict[str, list[str]] = defaultdict(list)
    for row in section.rows:
        for key, values in row.varied.items():
            per_task = ", ".join(f"{_value(values[task])} on {task}" for task in section.tasks if task in values)
            varied[f"{key} is {per_task}"].append(row.label)
    notes = [f"{_list(labels)}: {text}." for text, labels in varied.items()]
    for key, unlimited in (("train.max_steps", -1), ("train.overfit_rows", None)):
        found = {_value(run.settings.get(key)) for run in runs}
        if found != {_value(unlimited)}:
            notes.append(f"Not whole trainings: {key} is {', '.join(sorted(found))}.")
    return notes


def _about_machines(runs: list[Run]) -> list[str]:
    notes = []
    hardware = sorted({run.hardware for run in runs})
    if len(hardware) > 1:
        notes.append(f"Made on different hardware, so times and memory do not compare: {_list(hardware)}.")
    for name in LIBRARIES:
        versions = sorted({run.versions.get(name, "?") for run in runs})
        if len(versions) > 1:
            notes.append(f"Made with different versions of {name}: {_list(versions)}.")
    if resumed := sum(run.train_seconds is None for run in runs):
        notes.append(f"Resumed, so that their training time is not known: {resumed} of {len(runs)} runs.")
    return notes


def _list(parts: Any) -> str:
    texts = list(parts)
    rest = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _value(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
