"""How runs are doing: what they wrote themselves, and what SLURM says of their jobs.

new          there is nothing of it
queued       its job waits
starting     its job runs, the run has not said anything yet
running
requeued     it stopped and saved because it was told to, or its job was lost; the job waits to go on
done
failed       it ended with an error
interrupted  Ctrl-C, or a signal outside a job
cancelled    by lorsa cancel or scancel
timed out, out of memory, node failed, preempted, killed
             its job is over in that way, and nothing will go on with it: lorsa retry
lost         its job or process is gone, and nobody knows why: lorsa retry
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorsa.runner.launch.scheduler import JobState, Scheduler

ACTIVE = ("queued", "starting", "running", "requeued")
UNFINISHED = (
    *("interrupted", "failed", "cancelled", "timed out", "out of memory"),
    *("node failed", "preempted", "killed", "lost"),
)
STATES = ("new", *ACTIVE, "done", *UNFINISHED)

# A run touches its status.json every 20 s; a process elsewhere that has not done so for this long is gone.
SILENT_SECONDS = 300.0

_WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
_RUNS = ("RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING")
_ENDS = {
    "TIMEOUT": "timed out",
    "DEADLINE": "timed out",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "FAILED": "killed",
}


@dataclass(frozen=True)
class RunState:
    """One run, as lists of runs show it.

    Attributes:
        path: its directory.
        state: one of `STATES`.
        reason: why it waits or how it ended, where there is more to say.
        job: job.json: what it was last submitted as.
        status: status.json: what it said last.
        silent: seconds since it last gave a sign of life, by the clock of the disk; None where it does not run.
    """

    path: Path
    state: str
    reason: str = ""
    job: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    silent: float | None = None

    @property
    def signature(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def job_id(self) -> str | None:
        """The job that it is in, or was in last."""
        return self.status.get("job_id") or self.job.get("job_id")

    def value(self, key: str) -> Any:
        """Return what a filter such as `task=cola` compares: the state, or a key of status.json."""
        return self.state if key == "state" else self.status.get(key)


def read_runs(paths: Iterable[Path], scheduler: Scheduler) -> list[RunState]:
    """Return the states of runs: two small files each, and one or two questions to SLURM for all of them."""
    found = [(path, _read(path / "status.json")) for path in paths]
    jobs = {path: _read(path / "job.json") for path, status in found if status.get("state") != "done"}
    unfinished = [(path, status) for path, status in found if status.get("state") not in ("done", "failed")]
    now = _disk_time(unfinished[0][0].parent) if unfinished else time.time()
    ids = {path: str(jobs[path]["job_id"]) for path, status in unfinished if _in_job(status, jobs[path], scheduler)}
    over = scheduler.over(set(ids.values())) if ids else set()
    past = scheduler.past(over) if over else {}
    # A run may have ended after its file was read and before SLURM was asked.
    found = [(path, _read(path / "status.json") if ids.get(path) in over else status) for path, status in found]
    return [_state(path, status, jobs.get(path, {}), scheduler, over, past, now) for path, status in found]


def _in_job(status: dict[str, Any], job: dict[str, Any], scheduler: Scheduler) -> bool:
    """Whether the scheduler can say something of it: not of another cluster's or user's job."""
    return status.get("launcher") == "slurm" and "job_id" in job and scheduler.can_tell(job)


def waits(job: JobState | None) -> bool:
    """Whether a job has not begun, or waits to begin again."""
    return job is not None and job.state in _WAITS


def _state(
    path: Path,
    status: dict[str, Any],
    job: dict[str, Any],
    scheduler: Scheduler,
    over: set[str],
    past: dict[str, JobState],
    now: float,
) -> RunState:
    said = status.get("state")
    if said == "done" and not (path / "result.json").is_file():
        return RunState(path, "lost", "it was done, and its result.json is gone", job, status)
    if said in ("done", "failed"):
        return RunState(path, said, _first_line(str(status.get("error", ""))), job, status)
    if said is None:
        # A result without status.json: made by an older version, or copied.
        return RunState(path, "done" if (path / "result.json").is_file() else "new", "", job, status)
    if "cancelled" in job:
        return RunState(path, "cancelled", "", job, status)
    if said == "interrupted":
        return RunState(path, said, "", job, status)
    if said not in ACTIVE:
        return RunState(path, "lost", f"its status.json says '{said}', which this version does not know", job, status)
    reason = str(status.get("reason", ""))
    job_id = str(job["job_id"]) if _in_job(status, job, scheduler) else ""
    queued = scheduler.state(job_id) if job_id else None
    if queued is not None and said == "running" and _silent(path, now) < scheduler.age:
        state, why = "running", ""  # it spoke after SLURM did
    elif queued is not None or job_id in over:
        state, why = _in_slurm(said, queued, past.get(job_id))
    else:
        state, why = _elsewhere(path, said, status, job, now)
    silent = None
    if state in ("running", "lost", "starting"):
        silent = _silent(path, now)
    return RunState(path, state, why or reason, job, status, silent)


def _in_slurm(said: str, queued: JobState | None, past: JobState | None) -> tuple[str, str]:
    if queued is not None:
        if queued.state in _WAITS:
            return ("queued" if said == "queued" else "requeued"), _waits_for(queued.reason)
        if queued.state in _RUNS:
            # A job with several runs: those whose turn has not come are still queued.
            return {"requeued": "requeued", "queued": "starting"}.get(said, "running"), ""
        return _ENDS.get(queued.state, "lost"), queued.state
    if past is not None and past.state in _ENDS:
        return _ENDS[past.state], ""
    return "lost", "SLURM has no such job any more" if said != "queued" else "its job ended without it"


def _waits_for(reason: str) -> str:
    return "" if reason in ("None", "", "Priority", "Resources") else reason


def _elsewhere(path: Path, said: str, status: dict[str, Any], job: dict[str, Any], now: float) -> tuple[str, str]:
    """Judge a run outside SLURM, or whose SLURM cannot be asked from here."""
    if said == "queued":
        if status.get("launcher") == "local" and not _alive(status.get("host"), status.get("pid")):
            return "lost", "the sweep's process is gone"
        if status.get("launcher") == "slurm" and "job_id" not in job:
            here = status.get("host") == socket.gethostname()
            if not _alive(status["host"], status.get("pid")) if here else _silent(path, now) > SILENT_SECONDS:
                return "lost", "it was not submitted to the end"
        return "queued", ""
    if status.get("launcher") != "slurm" and status.get("host") == socket.gethostname():
        # Between two attempts of a local job, the job itself has to be there.
        process = job.get("job_id") if said == "requeued" else status.get("pid")
        if not _alive(status["host"], process):
            return "lost", "its process is gone"
        return str(said), ""
    if said == "running" and _silent(path, now) > SILENT_SECONDS:
        return "lost", "no sign of life"
    return said, ""


def _alive(host: str | None, pid: int | str | None) -> bool:
    if host != socket.gethostname() or not str(pid).isdecimal():
        return True  # cannot be seen from here
    try:
        os.kill(int(str(pid)), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _silent(path: Path, now: float) -> float:
    try:
        return max(0.0, now - (path / "status.json").stat().st_mtime)
    except OSError:
        return 0.0


def _disk_time(folder: Path) -> float:
    """Return the time by the clock that stamps the files there, which may be another machine's."""
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as file:
            return Path(file.name).stat().st_mtime
    except OSError:
        return time.time()


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def document(run: RunState) -> dict[str, Any]:
    """Return a run as JSON for `lorsa status --json`."""
    keys = ("model", "method", "task", "seed", "step", "max_steps", "score", "attempt", "deaths", "host", "error")
    return {
        "signature": run.signature,
        "path": str(run.path),
        "state": run.state,
        "reason": run.reason,
        "job_id": run.job_id,
        "silent_seconds": run.silent,
        **{key: run.status.get(key) for key in keys},
    }
