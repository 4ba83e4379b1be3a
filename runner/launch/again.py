"""Runs that were submitted before: submitted again, or cancelled."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorsa.runner.errors import UserError
from lorsa.runner.launch.launch import submit, submitting, wait
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import ACTIVE, RunState, read_runs
from lorsa.runner.launch.sweep import Sweep, SweepRun
from lorsa.runner.launch.task import CANCEL_SIGNAL
from lorsa.runner.rundir import write_atomic
from lorsa.runner.schema import ResourcesConfig


def frozen_config(path: Path) -> Path:
    """Return the config that a run was submitted with, or the one that it wrote itself.

    Raises:
        UserError: there is none any more.
    """
    job = path / "job.json"
    candidates = [path / "config.yaml"]
    if job.is_file():
        candidates.insert(0, Sweep(Path(json.loads(job.read_bytes())["sweep"])).config(path.name))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"{path.name} has no config any more: its sweep's folder is gone; run its command again.")


def resubmit(runs: Sequence[RunState], changes: Sequence[str]) -> None:
    """Submit runs again, each as part of its sweep; with hydra/launcher=local, do them and wait.

    Args:
        runs: what to submit.
        changes: overrides of resources.

    Raises:
        UserError: a run was not part of a sweep, a change is not valid, or SLURM refuses.
    """
    by_sweep: dict[str, list[RunState]] = {}
    for run in runs:
        by_sweep.setdefault(_sweep_of(run), []).append(run)
    for folder, members in by_sweep.items():
        sweep = Sweep(Path(folder))
        known = {run.signature: run for run in sweep.runs}
        if gone := [run.signature for run in members if not sweep.config(run.signature).is_file()]:
            raise UserError(f"{folder} has no config of {gone[0]} any more; run the sweep's command again.")
        wanted = [_changed(known[run.signature], changes) for run in members]
        about = {
            run.signature: {key: run.status.get(key) for key in ("model", "method", "task", "seed")} for run in members
        }
        with submitting(str(sweep.runs_dir)):
            if changes:
                _store(sweep, wanted)
            submit(sweep, wanted, about)
        if sweep.launcher["kind"] == "local":
            wait(sweep, [run.path for run in members], Scheduler())


def cancel_runs(runs: Sequence[RunState]) -> None:
    """Cancel runs: their jobs, or where a job has other runs that are wanted, their part of it.

    Raises:
        UserError: SLURM refuses.
    """
    from lorsa.runner.launch import slurm

    names = {run.signature for run in runs}
    for run in runs:
        write_atomic(run.path / "job.json", json.dumps(run.job | {"cancelled": True}))
    whole: list[str] = []
    shared: list[str] = []
    for job in {run.job["job_id"]: run.job for run in runs}.values():
        sweep = Sweep(Path(job["sweep"]))
        others = [sweep.runs_dir / name for name in sweep.runs_of(job["job_id"]) if name not in names]
        needed = any(run.state in ACTIVE for run in read_runs(others, Scheduler()))
        if job["launcher"] == "local":
            _end_local(job, CANCEL_SIGNAL if needed else signal.SIGINT)
        else:
            (shared if needed else whole).append(job["job_id"])
    slurm.cancel(whole)
    slurm.cancel(shared, CANCEL_SIGNAL.name)


def _end_local(job: dict[str, Any], number: signal.Signals) -> None:
    """Signal a job of hydra/launcher=local; its id is that of a process, where the sweep was started."""
    if job.get("host") != socket.gethostname():
        raise UserError(f"job {job['job_id']} runs on {job.get('host')}; cancel it there.")
    with suppress(ProcessLookupError):
        os.kill(int(job["job_id"]), number)


def _sweep_of(run: RunState) -> str:
    if "sweep" not in run.job:
        raise UserError(
            f"{run.signature} was not part of a sweep of hydra/launcher=slurm or local; run its command again."
        )
    return str(run.job["sweep"])


def _changed(run: SweepRun, changes: Sequence[str]) -> SweepRun:
    """Return a run with other resources."""
    if not changes:
        return run
    config = OmegaConf.merge(OmegaConf.structured(ResourcesConfig), run.resources)
    for change in changes:
        key, _, value = change.removeprefix("resources.").partition("=")
        if key in ("nodes", "tasks_per_node"):
            raise UserError(f"--set {change}: the number of processes makes another run; start it with lorsa-run.")
        try:
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value, force_add=key.startswith("extra."))
        except OmegaConfBaseException as error:
            valid = ", ".join(run.resources)
            raise UserError(f"--set {change}: {str(error).splitlines()[0]}; resources has {valid}.") from error
    resources: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    return replace(run, resources=resources)


def _store(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Write changed resources to the sweep's folder: its list, and the configs that the jobs read."""
    sweep.replace_runs(runs)
    for run in runs:
        path = sweep.config(run.signature)
        config = OmegaConf.load(path)
        config.resources = run.resources
        write_atomic(path, OmegaConf.to_yaml(config))
