"""Which runs may stand beside each other, and which are one and the same but for the seed.

A *section* holds what can be compared: all of it made-up rows or all of it GLUE, one protocol, one number of training
rows, for each task one source of its rows. In it, a *row* is a method with one configuration on one model, a column is
a task, and a *cell* holds the runs of both, which differ in the seed alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lorsa.runner.report.record import Run

# GLUE's tasks in the order of its paper. Its average leaves WNLI out by the literature's habit, and has no AX.
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
ORDER = (*GLUE, "wnli", "ax")

_METHOD = "method.config."
# In a config for the record: paths and files that the result names by their content, what cannot change a result
# (signature.py), what sets sections apart, and defaults that are used under another name (train.lr is method.lr).
_IGNORED = {
    *("runs_dir", "force", "dry_run", "seed", "protocol", "engine.threads", "train.checkpoint_every", "train.profile"),
    *("model.name", "model.path", "model.revision", "method.name", "method.lr", "method.head_lr"),
    *("data.name", "data.path", "data.revision", "data.version", "data.train_rows", "data.epochs"),
    *("task.name", "task.folder", "task.epochs", "task.batch_size", "task.max_length", "task.predict_splits"),
}
_IGNORED_GROUPS = ("tracker.", "resources.", "model.modules.")
# Of these a task has its own: that they differ between tasks says something only where that is overridden.
_OF_THE_TASK = {"train.epochs": ("data.epochs", "task.epochs")} | {
    f"train.{key}": (f"task.{key}",) for key in ("batch_size", "max_length")
}
# First in a row's name, which ends where it tells the rows apart.
_TELLING = ("method.config._target_", "method.config.r", "method.config.k", "method.config.budget", "train.lr")


@dataclass(frozen=True, slots=True)
class Cell:
    """Runs that differ in the seed alone.

    Attributes:
        runs: by seed, each seed once.
        doubles: runs of a seed that is there already.
    """

    runs: list[Run]
    doubles: list[Run]

    @property
    def scores(self) -> dict[int, float]:
        """Scores in points, by seed; without the runs whose score is undefined."""
        return {run.seed: 100 * run.score for run in self.runs if run.score is not None}

    @property
    def undefined(self) -> int:
        """How many runs have no score."""
        return sum(run.score is None for run in self.runs)


@dataclass(frozen=True)
class Row:
    """A method, configured in one way.

    Attributes:
        model: the base model.
        method: the method's name.
        label: the name, and what sets it apart from other rows of that name and model.
        cells: by task; a task that was not run is not there.
        varied: settings that differ between this row's tasks, though not within one: {key: {task: value}}.
    """

    model: str
    method: str
    label: str
    cells: dict[str, Cell]
    varied: dict[str, dict[str, Any]]

    @property
    def runs(self) -> list[Run]:
        """All runs of the row."""
        return [run for cell in self.cells.values() for run in cell.runs]


@dataclass(frozen=True)
class Section:
    """Runs that can be compared.

    Attributes:
        title: what they have in common and other sections have not.
        sources: where each task's rows came from.
        is_demo: made-up rows.
        tasks: the columns, in GLUE's order.
        rows: by model and label.
        by: the value of `--by`, or None.
    """

    title: str
    sources: dict[str, str]
    is_demo: bool
    tasks: list[str]
    rows: list[Row]
    by: str | None

    @property
    def models(self) -> list[str]:
        """The base models."""
        return sorted({row.model for row in self.rows})

    @property
    def runs(self) -> list[Run]:
        """All runs in the tables."""
        return [run for row in self.rows for run in row.runs]


def sections(runs: Sequence[Run], by: str | None = None) -> list[Section]:
    """Put runs into sections: those with most runs first, demo last.

    Args:
        runs: each run once.
        by: also one section per value of this name or dotted key of the config.
    """
    variants = _variants(runs)
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        value = None if by is None else str(run.value(by))
        groups[run.is_demo, _origin(run), variants[run.task, run.source], run.protocol, run.train_rows, value].append(
            run
        )
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), str(item[0])))
    return [_section(key, members, by) for key, members in ordered]


def _origin(run: Run) -> str:
    """Return the part of a source that all its tasks share: a fingerprint of local files is of one task alone."""
    return "local" if run.source.startswith("local:") else run.source


def _variants(runs: Iterable[Run]) -> dict[tuple[str, str], int]:
    """Number the different local files that a task was read from, the most used first."""
    counts = Counter((run.task, run.source) for run in runs if _origin(run) == "local")
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    seen: Counter[str] = Counter()
    for (task, source), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        numbers[task, source] = seen[task]
        seen[task] += 1
    return numbers


def _section(key: tuple[Any, ...], runs: list[Run], by: str | None) -> Section:
    is_demo, origin, variant, protocol, train_rows, value = key
    sources = {run.task: run.source for run in runs}
    tasks = sorted(sources, key=lambda task: (ORDER.index(task) if task in ORDER else len(ORDER), task))
    parts = ["Demo: made-up rows, not GLUE" if is_demo else "GLUE"]
    if origin == "local":
        parts.append("from local files" + (f", version {variant + 1} of them" if variant else ""))
    else:
        parts.append(f"from {origin}")
    parts.append("protocol split" if protocol == "split" else "protocol best_epoch: the best epoch on the scored rows")
    parts.append("all training rows" if train_rows is None else f"{train_rows:,} training rows")
    if by is not None:
        parts.append(f"{by} {value}")
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.model, run.method].append(run)
    rows = [row for (model, method), members in sorted(groups.items()) for row in _rows(model, method, members, tasks)]
    return Section("; ".join(parts), {task: sources[task] for task in tasks}, is_demo, tasks, rows, value)


def compared(run: Run) -> dict[str, Any]:
    """Return the settings of a run that tell it from others of its method, model, task and seed."""
    settings = run.settings
    found = {
        key: value for key, value in settings.items() if key not in _IGNORED and not key.startswith(_IGNORED_GROUPS)
    }
    seeds = f"{_METHOD}seed"
    if found.get(seeds) == run.seed:
        del found[seeds]
    nodes, tasks = settings.get("resources.nodes", 1), settings.get("resources.tasks_per_node", 1)
    found.setdefault("engine.processes", nodes * tasks)
    found["metric"] = run.metric
    return found


def _is_default(run: Run, key: str) -> bool:
    defaults = (value for name in _OF_THE_TASK.get(key, ()) if (value := run.settings.get(name)) is not None)
    return key in _OF_THE_TASK and run.settings.get(key) == next(defaults, None)


def _rows(model: str, method: str, runs: list[Run], tasks: Sequence[str]) -> list[Row]:
    """Split the runs of one name by the settings that differ where only the seed should."""
    settings = [compared(run) for run in runs]
    splitting, varying = _differing(runs, settings)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, values in enumerate(settings):
        groups[tuple(repr(values.get(key)) for key in splitting)].append(number)
    shown = _shortest(splitting, list(groups))
    rows = []
    for members in groups.values():
        first = settings[members[0]]
        words = [method, *(f"{_short(key, shown)}={_text(first.get(key))}" for key in shown)]
        cells = {task: _cell([runs[i] for i in members if runs[i].task == task]) for task in tasks}
        per_task = {key: {runs[i].task: settings[i].get(key) for i in members} for key in varying}
        varied = {
            key: values
            for key, values in per_task.items()
            if len(set(map(repr, values.values()))) > 1 and not all(_is_default(runs[i], key) for i in members)
        }
        rows.append(Row(model, method, " ".join(words), {t: cell for t, cell in cells.items() if cell.runs}, varied))
    return sorted(rows, key=lambda row: row.label)


def _differing(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the keys by which rows are split, and those that differ between tasks alone.

    A method's own config splits wherever it differs. A learning rate or a number of epochs may be chosen for each
    task; it splits where one task was run with several.
    """
    per_key: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for key in {key for values in settings for key in values}:
        by_task = per_key[key]
        for run, values in zip(runs, settings, strict=True):
            by_task[run.task].add(repr(values.get(key)))
    splitting, varying = [], []
    for key, by_task in per_key.items():
        if key == "model.content":
            # Older results do not say it.
            split = len(set[str]().union(*by_task.values()) - {repr(None)}) > 1
        elif key.startswith(_METHOD):
            split = len(set[str]().union(*by_task.values())) > 1
        else:
            split = any(len(values) > 1 for values in by_task.values())
        if split:
            splitting.append(key)
        elif not key.startswith(("task.", "model.", "metric")) and len(set(map(frozenset, by_task.values()))) > 1:
            varying.append(key)
    order = {key: place for place, key in enumerate(_TELLING)}
    return sorted(splitting, key=lambda key: (order.get(key, len(order)), not key.startswith(_METHOD), key)), varying


def _shortest(keys: Sequence[str], groups: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the first keys that tell the groups apart, without those that tell nothing new."""
    shown: list[int] = []
    apart = 1
    for place in range(len(keys)):
        found = len({tuple(group[i] for i in (*shown, place)) for group in groups})
        if found > apart:
            shown.append(place)
            apart = found
    return [keys[place] for place in shown]


def _cell(runs: list[Run]) -> Cell:
    by_seed: dict[int, Run] = {}
    doubles = [run for run in runs if by_seed.setdefault(run.seed, run) is not run]
    return Cell([by_seed[seed] for seed in sorted(by_seed)], doubles)


def _short(key: str, among: Sequence[str]) -> str:
    """Return the last part of a key where it is clear, else all of it; of `engine.name` it is `engine`."""

    def last(key: str) -> str:
        return key.removesuffix(".name").rpartition(".")[2]

    return last(key) if sum(last(each) == last(key) for each in among) == 1 else key


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)
