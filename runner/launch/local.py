"""A sweep on this machine: submitit's local jobs, so many at a time."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from submitit import LocalExecutor, LocalJob

from lorsa.runner.errors import UserError
from lorsa.runner.launch.plan import group
from lorsa.runner.launch.sweep import Sweep, SweepRun
from lorsa.runner.launch.task import Task

# A local job has no time limit; submitit wants one.
A_YEAR = 365 * 24 * 60


class LocalJobs:
    """The jobs of a sweep whose runs are marked as queued; `step` starts as many as may run at a time.

    Args:
        sweep: whose they are.

    Raises:
        UserError: a run asks for several nodes.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        settings = sweep.launcher
        queued = [run for run in sweep.runs if _status(sweep, run).get("state") == "queued"]
        for run in queued:
            if run.resources["nodes"] > 1:
                raise UserError(f"{' '.join(run.overrides)}: resources.nodes must be 1 with hydra/launcher=local.")
        self.parallel = settings["parallel"]
        self.waiting = [
            (resources, job)
            for resources, jobs in group(queued, settings["runs_per_job"], max(1, len(queued)))
            for job in jobs
        ]
        self.running: list[LocalJob[Any]] = []

    def step(self) -> bool:
        """Start what may start now; return whether anything still runs or waits."""
        self.running = [job for job in self.running if not job.done()]
        while self.waiting and len(self.running) < self.parallel:
            resources, names = self.waiting.pop(0)
            self.running.append(self._start(resources, names))
        return bool(self.running)

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
        self.sweep.record_job(job.job_id, names)
        return job

    def __enter__(self) -> LocalJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs, where the sweep was interrupted; the same command goes on from the checkpoints."""
        for job in self.running:
            job.cancel()


def _status(sweep: Sweep, run: SweepRun) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads((sweep.runs_dir / run.signature / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return stored
