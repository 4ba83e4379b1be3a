"""What a reader has to know beside a section's numbers, one sentence each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from lorsa.runner.report.compare import Row, Section, compared
from lorsa.runner.report.record import Run

LIBRARIES = ("lorsa", "torch", "transformers", "peft")
_SHOWN = 10
# What a method has of its own, whatever it is compared with.
_OF_THE_METHOD = ("method.", "train.lr", "train.head_lr")


def section_notes(
    section: Section, baseline: str | None, models_with_baseline: Collection[str], chosen: Sequence[str]
) -> list[str]:
    """Return the notes of a section.

    Args:
        section: what they are about.
        baseline: what is compared with, or None.
        models_with_baseline: the models that have a row of it.
        chosen: settings whose values were chosen by the dev part.
    """
    runs = section.runs
    notes = _about_scores(section) + _about_configs(section, runs, chosen) + _about_methods(section)
    notes += _about_tries(section) + _about_machines(runs)
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


def _about_configs(section: Section, runs: list[Run], chosen: Sequence[str]) -> list[str]:
    varied: dict[str, list[str]] = defaultdict(list)
    for row in section.rows:
        for key in chosen:
            values = {task: cell.runs[0].value(key) for task, cell in row.cells.items()}
            varied[f"{_per_task(section, key, values)}, chosen by the dev part"].append(row.label)
        for key, values in row.varied.items():
            if key not in chosen:
                varied[_per_task(section, key, values)].append(row.label)
    notes = [f"{_list(labels)}: {text}." for text, labels in varied.items()]
    for key, unlimited in (("train.max_steps", -1), ("train.overfit_rows", None)):
        found = {_value(run.settings.get(key)) for run in runs}
        if found != {_value(unlimited)}:
            notes.append(f"Not whole trainings: {key} is {', '.join(sorted(found))}.")
    return notes


def _per_task(section: Section, key: str, values: Mapping[str, Any]) -> str:
    per_task = ", ".join(f"{_value(values[task])} on {task}" for task in section.tasks if task in values)
    return f"{key} is {per_task}"


def _about_methods(section: Section) -> list[str]:
    """Say which settings, other than a method's own, the methods of a model do not share on the same task."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for model in section.models:
        for task in section.tasks:
            for key, texts in _settings(section, model, task).items():
                if len(set(texts.values())) > 1:
                    for method, text in texts.items():
                        found[key][text].add(method)
    return [
        f"Not the same for all methods: {key} is "
        f"{'; '.join(f'{text} for {_list(sorted(methods))}' for text, methods in texts.items())}."
        for key, texts in found.items()
    ]


def _settings(section: Section, model: str, task: str) -> dict[str, dict[str, str]]:
    """Return for every setting, other than a method's own, its value in each method; several of them are one text."""
    runs = [row.cells[task].runs[0] for row in section.rows if row.model == model and task in row.cells]
    settings = [
        (run.method, {key: value for key, value in compared(run).items() if not key.startswith(_OF_THE_METHOD)})
        for run in runs
    ]
    found: dict[str, dict[str, str]] = {}
    for key in sorted({key for _, values in settings for key in values}):
        texts: dict[str, set[str]] = defaultdict(set)
        for method, values in settings:
            texts[method].add(_value(values.get(key)))
        found[key] = {method: " and ".join(sorted(each)) for method, each in texts.items()}
    return found


def _about_tries(section: Section) -> list[str]:
    """Say where the rows of a method are tries, of which a reader might take the one that scored best."""
    found: dict[str, set[str]] = defaultdict(set)
    for first, second in combinations(section.rows, 2):
        if (first.model, first.method) == (second.model, second.method) and (keys := _differences(first, second)):
            found[" and ".join(keys)].add(first.method)
    return [
        f"Rows of {_list(sorted(methods))} differ in {keys} alone: to take the best of them is to choose on the scored "
        f"rows. {' '.join(f'--choose {key}' for key in keys.split(' and '))} takes what was best on the dev part."
        for keys, methods in found.items()
    ]


def _differences(first: Row, second: Row) -> list[str]:
    """Return how two rows of a method differ on a task that both have, if it is in how they were trained alone."""
    for task in first.cells.keys() & second.cells.keys():
        mine, theirs = (compared(row.cells[task].runs[0]) for row in (first, second))
        keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if keys and all(key.startswith(("train.", "optim.")) for key in keys):
            return keys
    return []


def _about_machines(runs: list[Run]) -> list[str]:
    notes = []
    commits = sorted({run.commit[:7] if run.commit else "no commit" for run in runs})
    if len(commits) > 1:
        notes.append(f"Made by different commits of lorsa: {_list(commits)}.")
    if dirty := sum(run.dirty for run in runs):
        notes.append(f"Made by code of lorsa with changes that are in no commit: {dirty} of {len(runs)} runs.")
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
