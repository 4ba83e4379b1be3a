"""`lorsa logs`: what a run printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, find_run
from lorsa.runner.errors import UserError


def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its name, or the name's beginning.")],
    runs_dir: RunsDir = Path("runs"),
    rank: Annotated[int, typer.Option(min=0, help="Of which of the run's processes.")] = 0,
    tail: Annotated[int | None, typer.Option(min=1, help="The last so many lines.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print what a run of a sweep printed, in all its attempts."""
    path = find_run(run, runs_dir)
    log = path / "logs" / ("output.log" if rank == 0 else f"output.rank{rank}.log")
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(_without(path, rank)) from None
    wanted = lines[-tail:] if tail else lines
    if as_json:
        print(json.dumps({"run": path.name, "rank": rank, "file": str(log), "lines": wanted}))
        return
    for line in wanted:
        print(line)


def _without(path: Path, rank: int) -> str:
    if rank:
        return f"{path} has no process {rank}, or it printed nothing yet."
    if (path / "job.json").is_file():
        return f"{path.name} has not begun; see lorsa status."
    return f"{path.name} was not part of a sweep of hydra/launcher=slurm or local: its output went to the terminal."
