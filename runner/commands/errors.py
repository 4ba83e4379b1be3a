"""`lorsa errors`: every failure in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, Which, select_runs
from lorsa.runner.launch.states import RunState

# Of a traceback or a log without one.
TAIL_LINES = 12


def errors(
    which: Which = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print whole tracebacks.")] = False,
) -> None:
    """Print why runs failed, once for all runs that failed in the same way.

    A run that was killed left no error; then it is the end of what it printed.
    """
    from lorsa.runner.launch.scheduler import Scheduler
    from lorsa.runner.launch.states import UNFINISHED

    selected = [run for run in select_runs(which, runs_dir, Scheduler()).runs if run.state in UNFINISHED]
    groups: dict[tuple[str, str], list[str]] = {}
    shown: dict[tuple[str, str], str] = {}
    for run in selected:
        key = (run.state, run.reason)
        groups.setdefault(key, []).append(run.signature)
        shown.setdefault(key, str(run.status.get("traceback") or _end_of_log(run)))
    if as_json:
        document = [
            {"state": key[0], "reason": key[1], "runs": names, "text": shown[key]} for key, names in groups.items()
        ]
        print(json.dumps(document))
        return
    from lorsa.runner.terminal import console, say

    if not groups:
        say("No run failed.")
    for (state, reason), names in sorted(groups.items(), key=lambda item: -len(item[1])):
        console.rule(f"{len(names)} x {state}", style="red", align="left")
        if reason:
            say(reason)
        say(f"Runs: {' '.join(names[:8])}{' …' if len(names) > 8 else ''}")
        text = shown[state, reason].rstrip()
        if text:
            say(text if full else "\n".join(text.splitlines()[-TAIL_LINES:]))


def _end_of_log(run: RunState) -> str:
    """Return the end of what the run printed: of the process that ended with a traceback, if one did.

    Of a run that never began it is what its job printed.
    """
    logs = sorted((run.path / "logs").glob("output*.log"))
    if not logs and "sweep" in run.job:
        logs = sorted(Path(run.job["sweep"], "submitit").glob(f"{run.job_id}_*log.out"))
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    found = next((text for text in texts if "Traceback" in text[-4000:]), texts[0] if texts else "")
    return "\n".join(found.splitlines()[-TAIL_LINES:])
