"""`lorsa cancel`: stop runs that are not wanted any more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, Which, select_runs
from lorsa.runner.errors import UserError
from lorsa.runner.launch.states import RunState


def cancel(
    which: Which = None,
    runs_dir: RunsDir = Path("runs"),
    everything: Annotated[bool, typer.Option("--all", help="All runs in the folder that wait or run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs, and cancel nothing.")] = False,
) -> None:
    """Cancel runs of sweeps that wait or run; what they wrote stays, and lorsa retry goes on with it."""
    from lorsa.runner.launch.again import cancel_runs
    from lorsa.runner.launch.scheduler import Scheduler
    from lorsa.runner.launch.states import ACTIVE
    from lorsa.runner.terminal import say

    if not which and not everything:
        raise UserError("Name a sweep or filters, as in lorsa cancel latest task=cola; --all cancels everything.")
    selected = select_runs(which, runs_dir, Scheduler()).runs
    active = [run for run in selected if run.state in ACTIVE and ("job_id" in run.job or _waits_here(run))]
    if not active:
        say(f"None of the {len(selected)} runs waits or runs in a job.")
        return
    if dry_run:
        from lorsa.runner.launch.tables import states_table
        from lorsa.runner.terminal import console

        console.print(states_table(active))
        say(f"{len(active)} runs would be cancelled.")
        return
    cancel_runs(active)
    say(f"Cancelled {len(active)} runs.")


def _waits_here(run: RunState) -> bool:
    """Whether it is of a sweep on this machine and waits for its turn."""
    return run.state == "queued" and run.status.get("launcher") == "local"
