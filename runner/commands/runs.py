"""Which runs a command is about: a sweep, a folder of runs, and filters such as `state=failed task=cola`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.errors import UserError, nearest
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import STATES, RunState, read_runs
from lorsa.runner.launch.sweep import SWEEPS, find_sweep

FILTERS = ("state", "task", "method", "model", "seed")

RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="The folder of the runs.")]
Which = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SWEEP] [KEY=VALUE]...",
        help="A sweep's folder or name, or latest; and which of its runs, by state, task, method, model or seed. "
        "Several values: state=failed,lost.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """What was asked for, and found.

    Attributes:
        runs: the runs that pass the filters.
        filtered: whether there were any filters.
    """

    runs: list[RunState]
    filtered: bool


def select_runs(which: Sequence[str] | None, runs_dir: Path, scheduler: Scheduler) -> Selection:
    """Return the runs that the arguments of a command name.

    Raises:
        UserError: there is no such sweep or folder, or a filter is unknown.
    """
    words = list(which or [])
    filters = dict(_filter(word) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"{names[1]}: one sweep at a time; filters are KEY=VALUE.")
    if names:
        sweep = find_sweep(names[0], runs_dir)
        paths: Iterable[Path] = [sweep.runs_dir / run.signature for run in sweep.runs]
    else:
        paths = all_runs(runs_dir)
    runs = read_runs(paths, scheduler)
    return Selection(
        [run for run in runs if all(str(run.value(key)) in values for key, values in filters.items())], bool(filters)
    )


def all_runs(runs_dir: Path) -> list[Path]:
    """Return the directories of all runs in a folder, by name.

    Raises:
        UserError: there is no such folder.
    """
    runs_dir = runs_dir.expanduser()
    try:
        with os.scandir(runs_dir) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{runs_dir}: {error.strerror}; name the folder of the runs with --runs-dir.") from error
    return [runs_dir / name for name in names if name != SWEEPS]


def find_run(name: str, runs_dir: Path) -> Path:
    """Return the directory of a run that a person names: a folder, a signature, or the first digits of one.

    Raises:
        UserError: there is none, or more than one.
    """
    for path in (Path(name).expanduser(), runs_dir.expanduser() / name):
        if path.is_dir() and any((path / file).exists() for file in ("status.json", "result.json")):
            return path.absolute()
    found = [path for path in all_runs(runs_dir) if path.name.startswith(name)]
    if len(found) == 1:
        return found[0].absolute()
    if found:
        raise UserError(f"{name} is the beginning of {len(found)} runs, such as {found[0].name} and {found[1].name}.")
    raise UserError(f"There is no run {name} in {runs_dir}; lorsa status lists them.")


def _filter(word: str) -> tuple[str, list[str]]:
    key, _, value = word.partition("=")
    if key not in FILTERS:
        raise UserError(f"{word}: runs are told apart by {', '.join(FILTERS)}; there is no {key}.")
    values = value.replace("_", " ").split(",") if key == "state" else value.split(",")
    for state in values if key == "state" else ():
        if state not in STATES:
            raise UserError(f"{word}: there is no state '{state}'{nearest(state, STATES)}")
    return key, values
