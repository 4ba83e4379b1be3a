"""Lists of runs on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorsa.runner.launch.plan import Plan
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import ACTIVE, STATES, RunState, read_runs
from lorsa.runner.terminal import console

# How often the files of the runs are read; SLURM is asked less often (scheduler.py).
LOOK_SECONDS = 2.0
# A shared file system may show a changed file late.
FILE_SECONDS = 60.0
# A terminal shows so many runs of a longer list: first those that are on their way or ended badly.
LIVE_ROWS = 30
# From so many characters on, lines are not narrow; below, a run is named by its first digits, which commands take too.
WIDE = 120
SHORT = 8

_STYLES = {"done": "green", "running": "cyan", "starting": "cyan", "queued": "dim", "requeued": "yellow", "new": "dim"}


def show_planned(plan: Plan) -> None:
    """Print the runs of a dry run."""
    table = Table(title="Runs", title_justify="left")
    for column in ("run", "overrides", "processes", "state"):
        table.add_column(column, overflow="fold")
    same = set.intersection(*(set(run.run.overrides) for run in plan.runs)) if len(plan.runs) > 1 else set()
    for run in plan.runs:
        resources = run.run.resources
        processes = resources["nodes"] * resources["tasks_per_node"]
        state = "to be submitted" if run.wanted else run.state.state
        apart = " ".join(override for override in run.run.overrides if override not in same)
        table.add_row(run.run.signature, Text(apart), str(processes), state)
    console.print(table)


def states_table(runs: Sequence[RunState]) -> Table:
    """Return the table of `lorsa status`; a narrow terminal gets fewer columns."""
    wide = console.width >= WIDE
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run", no_wrap=True)
    for column in (*(["model"] if wide else []), "method", "task"):
        table.add_column(column, overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("state", overflow="fold", min_width=9)
    for column in ("progress", "score", "heard of"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("job", *(["host"] if wide else [])):
        table.add_column(column, overflow="fold", min_width=6)
    for run in runs:
        status = run.status
        state = Text(run.state, style=_STYLES.get(run.state, "red"))
        if run.reason:
            state.append(f": {run.reason}", style="dim")
        host = str(status.get("host", "")) if run.state not in ("queued", "new") else ""
        table.add_row(
            run.signature if wide else run.signature[:SHORT],
            *(str(status.get(key, "")) for key in (*(["model"] if wide else []), "method", "task", "seed")),
            state,
            _progress(run),
            _score(run),
            _age(run.silent),
            *(run.job_id or "", *([host] if wide else [])),
        )
    return table


def counts(runs: Sequence[RunState]) -> str:
    """Return one line: how many runs are in which state."""
    found = {state: sum(run.state == state for run in runs) for state in STATES}
    return f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in found.items() if count)


def live(paths: Sequence[Path], scheduler: Scheduler, step: Callable[[], bool] | None = None) -> None:
    """Show runs until none of them waits or runs.

    Args:
        paths: their directories.
        scheduler: what knows about their jobs.
        step: called each time; says whether there is still something to do, whatever the runs say.
    """
    with Live(console=console, auto_refresh=False, transient=True) as view:
        ended = None
        while True:
            busy = step() if step is not None else False
            runs = read_runs(paths, scheduler)
            view.update(Group(counts(runs), states_table(_most_telling(runs))), refresh=console.is_terminal)
            if busy or any(run.state in ACTIVE for run in runs):
                ended = None
            else:
                ended = ended or time.monotonic()
                # What a run wrote at its end may be seen here later than SLURM forgets its job.
                unsaid = step is None and any(run.state in ("lost", "killed") for run in runs)
                if not unsaid or time.monotonic() - ended > FILE_SECONDS:
                    break
            time.sleep(LOOK_SECONDS)
    console.print(counts(runs), highlight=False)


def _most_telling(runs: Sequence[RunState]) -> list[RunState]:
    order = {"running": 0, "starting": 0, "requeued": 1, "done": 4, "new": 5, "queued": 3}
    return sorted(runs, key=lambda run: order.get(run.state, 2))[:LIVE_ROWS]


def _progress(run: RunState) -> str:
    step, total = run.status.get("step"), run.status.get("max_steps")
    return f"{step}/{total}" if step is not None and total else ""


def _score(run: RunState) -> str:
    score = run.status.get("score")
    return "" if score is None else f"{score:.4f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
