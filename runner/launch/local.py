"""A sweep on this machine: submitit's local jobs, so many at a time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from submitit import LocalExecutor, LocalJob

from lorsa.runner.launch.plan import group
from lorsa.runner.launch.sweep import Sweep
from lorsa.runner.launch.task import Task
from lorsa.runner.rundir import write_atomic

# A local job has no time limit; submitit wants one.
A_YEAR = 365 * 24 * 60


class LocalJobs:
    """The jobs of a sweep whose runs are marked as queued; `step` starts as many as may run at a time.

    Args:
        sweep: whose they are.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        settings = sweep.launcher
        queued = [run for run in sweep.runs if self._mine(run.signature)]
        self.parallel = settings["parallel"]
        self.waiting = [
            (resources, job)
            for resources, jobs in group(queued, settings["runs_per_job"], max(1, len(queued)))
            for job in jobs
        ]
        self.running: list[tuple[LocalJob[Any], list[str]]] = []

    def step(self) -> bool:
        """Start what may start now; return whether anything still runs or waits."""
        for job, names in self.running:
            if job.done():
                self._close(job, names)
        self.running = [(job, names) for job, names in self.running if not job.done()]
        while self.waiting and len(self.running) < self.parallel:
            resources, names = self.waiting.pop(0)
            # Not those that were cancelled while they waited.
            if names := [name for name in names if self._mine(name)]:
                self.running.append((self._start(resources, names), names))
        return bool(self.running)

    def _mine(self, name: str) -> bool:
        """Whether a run waits for this process to start it."""
        status, job = _read(self.sweep.runs_dir / name / "status.json"), _read(self.sweep.runs_dir / name / "job.json")
        here = (status.get("host"), status.get("pid")) == (socket.gethostname(), os.getpid())
        return status.get("state") == "queued" and here and "cancelled" not in job

    def _close(self, job: LocalJob[Any], names: list[str]) -> None:
        """Say so of runs that would wait for ever: their job is over, and did not begin or end them."""
        for name in names:
            path = self.sweep.runs_dir / name
            status = _read(path / "status.json")
            if status.get("state") in ("queued", "requeued") and "cancelled" not in _read(path / "job.json"):
                error = f"Its job ended without it; see {job.paths.stdout}."
                write_atomic(path / "status.json", json.dumps(status | {"state": "failed", "error": error}, indent=2))

    def _start(self, resources: dict[str, Any], names: list[str]) -> LocalJob[Any]:
        executor = LocalExecutor(self.sweep.jobs)
        executor.update_parameters(
            tasks_per_node=resources["tasks_per_node"],
            gpus_per_node=resources["gpus_per_node"],
            timeout_min=A_YEAR,
            stderr_to_stdout=True,
            setup=self.sweep.shell_lines(self.sweep.launcher),
        )
        job = executor.submit(Task(str(self.sweep.runs_dir), str(self.sweep.configs), tuple(names)))
        self.sweep.record_jobs({job.job_id: names})
        return job

    def __enter__(self) -> LocalJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs, where the sweep was interrupted; the same command goes on from the checkpoints."""
        for job, _ in self.running:
            job.cancel()


def _read(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stored
