"""`lorsa submit-glue`: the zip that the GLUE server scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorsa.runner.commands.finished import read_result, read_run
from lorsa.runner.errors import UserError
from lorsa.runner.glue.submission import FILES, ROWS, archive, in_servers_terms, most_frequent
from lorsa.runner.launch.sweep import SWEEPS

if TYPE_CHECKING:
    from lorsa.runner.result import Result

_FILL = "--fill most-frequent predicts the training set's most frequent label"


@dataclass(frozen=True)
class _Part:
    """One file of the zip: its predictions, and where they are from."""

    predictions: Sequence[str]
    origin: str
    dev: float | None = None


def submit_glue(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, one for each task.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="File to write.")],
    best: Annotated[
        bool, typer.Option("--best", help="Of several runs of a task take the one with the best dev score.")
    ] = False,
    fill: Annotated[
        Literal["most-frequent"] | None,
        typer.Option(help="What to predict for tasks without a run: the training set's most frequent label."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.zip.")] = False,
) -> None:
    """Write the test-set predictions of runs as the zip that the GLUE server (gluebenchmark.com) takes.

    The server wants all nine tasks and the diagnostic set AX, whose predictions are those of the MNLI run's model,
    made now, unless a run of task=ax is given. What is written has passed a check of the server's rules.
    """
    from rich.table import Table

    from lorsa.runner.glue.submission_check import faults
    from lorsa.runner.terminal import console, say

    out = _check_out(out, force)
    chosen = _one_per_task(runs, best)
    parts = {file: part for path, result in chosen.values() for file, part in _parts(path, result).items()}
    if "mnli" in chosen and "ax" not in chosen:
        parts |= _ax(*chosen["mnli"], fill is not None)
    parts |= _filled([task for task in FILES if not set(FILES[task].values()) <= set(parts)], fill)

    content = archive({file: parts[file].predictions for file in ROWS})
    if found := faults(content):
        raise UserError(f"{out} is not written, because the server would refuse it: {found[0]}.")
    _write(out, content)
    table = Table("file", "predictions", "dev score", "from")
    for file in ROWS:
        dev = parts[file].dev
        table.add_row(file, f"{ROWS[file]:,}", "-" if dev is None else f"{dev:.4f}", parts[file].origin)
    console.print(table)
    say(f"Submission: {out}")


def _check_out(out: Path, force: bool) -> Path:
    out = out.expanduser()
    if out.suffix != ".zip":
        raise UserError(f"{out}: the last argument is the file to write; its name has to end in .zip.")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file.")
    if out.exists() and not force:
        raise UserError(f"{out} exists already; --force replaces it.")
    return out


def _one_per_task(paths: Iterable[Path], best: bool) -> dict[str, tuple[Path, Result]]:
    """Return the run of each task: the only one, or the best."""
    by_task: dict[str, list[tuple[Path, Result]]] = {}
    # As in runs/*, which names the folder of the sweeps among those of the runs.
    for path in dict.fromkeys(path for path in paths if path.name != SWEEPS):
        _, result = read_result(path)
        _check_run(path, result)
        by_task.setdefault(result["task"], []).append((path, result))
    return {task: found[0] if len(found) == 1 else _best(task, found, best) for task, found in by_task.items()}


def _check_run(path: Path, result: Result) -> None:
    if result["is_demo"]:
        raise UserError(f"{path} was trained on demo data, which is made up; the server scores runs on GLUE.")
    if result["task"] not in FILES:
        raise UserError(f"{path} is of task={result['task']}, which is none of GLUE's: {', '.join(FILES)}.")


def _best(task: str, found: Sequence[tuple[Path, Result]], best: bool) -> tuple[Path, Result]:
    first, second = found[0][0], found[1][0]
    if not best:
        more = f", and {len(found) - 2} more," if len(found) > 2 else ""
        raise UserError(
            f"{first} and {second}{more} are of task={task}; name one of them, or take the best dev score with --best."
        )
    protocols = sorted({result["protocol"] for _, result in found})
    if len(protocols) > 1:
        raise UserError(f"--best: the runs of task={task} have protocol={' and '.join(protocols)}, not to be compared.")
    scored = [(path, result) for path, result in found if result["primary_metric"]["dev"] is not None]
    if not scored:
        raise UserError(f"--best: no run of task={task} has a dev score; name one of {first}, {second}.")
    return max(scored, key=lambda run: float(run[1]["primary_metric"]["dev"]))


def _parts(path: Path, result: Result) -> dict[str, _Part]:
    """Return the files that a run has the predictions of."""
    task, dev = result["task"], result["primary_metric"]["dev"]
    labels = result["config"]["task"]["labels"]
    return {
        file: _Part(
            in_servers_terms(task, labels, _predictions(path / "predictions" / f"{split}.jsonl", file)), str(path), dev
        )
        for split, file in FILES[task].items()
    }


def _predictions(file: Path, name: str) -> list[float]:
    """Read a run's predictions, which have to be there for every row of the published test set, in its order."""
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        numbered = {int(record["idx"]): float(record["prediction"]) for record in records}
    except FileNotFoundError:
        raise UserError(f"There is no {file}: the data of that run has no test set to predict.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}).") from error
    rows = ROWS[name]
    if len(records) != rows:
        raise UserError(f"{file} has {len(records):,} predictions, but the test set of {name} has {rows:,} rows.")
    if sorted(numbered) != list(range(rows)):
        raise UserError(f"{file}: its rows are not numbered from 0 to {rows - 1:,}, as those of the test set are.")
    return [numbered[index] for index in range(rows)]


def _ax(path: Path, mnli: Result, may_fill: bool) -> dict[str, _Part]:
    """Return what the MNLI run's model predicts for AX; nothing where that cannot be had and may be filled."""
    from lorsa.runner.commands.diagnostic import predict_ax
    from lorsa.runner.terminal import say

    file = FILES["ax"]["test"]
    try:
        predicted = predict_ax(read_run(path))
    except UserError as error:
        if not may_fill:
            raise UserError(f"{file} from {path}: {error} A run of task=ax would do; {_FILL}.") from error
        say(f"{file} is filled, because: {error}")
        return {}
    if len(predicted) != ROWS[file]:
        raise UserError(f"The data of {path} has {len(predicted):,} rows of AX, but the test set {ROWS[file]:,}.")
    labels = mnli["config"]["task"]["labels"]
    return {file: _Part(in_servers_terms("ax", labels, predicted), f"{path}, predicted now")}


def _filled(tasks: Sequence[str], fill: str | None) -> dict[str, _Part]:
    if tasks and fill is None:
        raise UserError(f"There is no run of task={', '.join(tasks)}, and the server wants all of them; {_FILL}.")
    return {
        file: _Part(most_frequent(task, file), "most frequent label") for task in tasks for file in FILES[task].values()
    }


def _write(out: Path, content: bytes) -> None:
    from lorsa.runner.rundir import write_atomic

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, content)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror}.") from error
