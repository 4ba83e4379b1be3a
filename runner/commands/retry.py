"""`lorsa retry`: submit again what did not end well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, Which, select_runs
from lorsa.runner.errors import UserError


def retry(
    which: Which = None,
    runs_dir: RunsDir = Path("runs"),
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Other resources this time: --set resources.mem_gb=64"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs, and submit nothing.")] = False,
) -> None:
    """Submit the runs of sweeps again that failed, were killed, timed out, lost or cancelled, with the same configs.

    A run with a checkpoint goes on from it. Resources may be changed: they are no part of what makes a run.
    """
    from lorsa.runner.launch.again import resubmit
    from lorsa.runner.launch.scheduler import Scheduler
    from lorsa.runner.launch.states import UNFINISHED
    from lorsa.runner.terminal import say

    for word in change or []:
        if not word.startswith("resources.") or "=" not in word:
            raise UserError(f"--set {word}: only resources can be changed, as in --set resources.minutes=240.")
    selected = select_runs(which, runs_dir, Scheduler()).runs
    wanted = [run for run in selected if run.state in UNFINISHED]
    if not wanted:
        say(f"None of the {len(selected)} runs needs that.")
        return
    if dry_run:
        from lorsa.runner.launch.tables import states_table
        from lorsa.runner.terminal import console

        console.print(states_table(wanted))
        say(f"{len(wanted)} runs would be submitted again.")
        return
    resubmit(wanted, change or [])
