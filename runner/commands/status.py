"""`lorsa status`: how runs are doing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, Which, select_runs


def status(
    which: Which = None,
    runs_dir: RunsDir = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Keep the table up to date until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many runs.")] = 200,
) -> None:
    """Say how runs are doing: state, progress, dev score so far, how long ago they were heard of, job and host.

    It reads the runs' own files, and asks SLURM once, where there is one.
    """
    from lorsa.runner.launch.scheduler import Scheduler

    scheduler = Scheduler()
    selected = select_runs(which, runs_dir, scheduler).runs
    if as_json:
        from lorsa.runner.launch.states import document

        print(json.dumps([document(run) for run in selected]))
        return
    from lorsa.runner.launch.tables import LOOK_SECONDS, counts, states_table
    from lorsa.runner.terminal import console

    if not watch:
        console.print(states_table(selected[:limit]))
        hidden = f" ({len(selected) - limit} are not shown; --limit)" if len(selected) > limit else ""
        console.print(counts(selected) + hidden, highlight=False)
        return
    from rich.console import Group
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as view:
        while True:
            view.update(Group(states_table(selected[:limit]), counts(selected)), refresh=True)
            time.sleep(LOOK_SECONDS)
            selected = select_runs(which, runs_dir, scheduler).runs
