"""Runs that were submitted before: submitted again, or cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from lorsa.runner.errors import UserError
from lorsa.runner.launch.launch import submit, submitting, wait
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import ACTIVE, UNFINISHED, RunState, read_runs, waits
from lorsa.runner.launch.sweep import Sweep, SweepRun
from lorsa.runner.launch.task import CANCEL_SIGNAL
from lorsa.runner.rundir import write_atomic
from lorsa.runner.schema import ResourcesConfig
from lorsa.runner.validate import check_resources


def frozen_config(path: Path) -> Path:
    """Return the config that a run was submitted with, or the one that it wrote itself.

    Raises:
        UserError: there is none any more.
    """
    candidates = [path / "config.yaml"]
    with suppress(OSError, ValueError, KeyError, TypeError):  # no job, or not to be read
        candidates.insert(0, Sweep(Path(json.loads((path / "job.json").read_bytes())["sweep"])).config(path.name))
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
        gone = [run.signature for run in members if not sweep.config(run.signature).is_file()]
        if gone := gone + [run.signature for run in members if run.signature not in known]:
            raise UserError(f"{folder} has no config of {gone[0]} any more; run the sweep's command again.")
        # `training` says that there is something to go on from: `force` throws that away no second time.
        keys = ("model", "method", "task", "seed", "training")
        with submitting(str(sweep.runs_dir)):
            # Another command may have submitted some before the lock, and others may have ended well.
            members = [run for run in read_runs([run.path for run in members], Scheduler()) if run.state in UNFINISHED]
            wanted = [_changed(known[run.signature], changes) for run in members]
            about = {run.signature: {key: run.status[key] for key in keys if key in run.status} for run in members}
            asked = {run.path: run.job for run in members}
            restore = _store(sweep, wanted) if changes else None
            try:
                submit(sweep, wanted, about)
            except BaseException:
                if restore is not None:
                    restore({path.name for path, job in asked.items() if _job(path) != job})
                raise
        if sweep.launcher["kind"] == "local":
            wait(sweep, [run.path for run in members], Scheduler())


def cancel_runs(runs: Sequence[RunState]) -> None:
    """Cancel runs: their jobs, or where a job has other runs that are wanted, their part of it.

    Raises:
        UserError: SLURM refuses.
    """
    from lorsa.runner.launch import slurm

    in_slurm = [run for run in runs if run.status.get("launcher") == "slurm"]
    scheduler = Scheduler()
    for run in in_slurm:
        if not scheduler.can_tell(run.job):
            raise UserError(
                f"{run.signature} is job {run.job.get('job_id')} of user {run.job.get('user')} on cluster "
                f"{run.job.get('cluster')}, and this is user {scheduler.user} on {scheduler.cluster or 'none'}; cancel "
                "it there."
            )
    whole, shared = _whole_and_shared(in_slurm)
    for run in runs:
        write_atomic(run.path / "job.json", json.dumps(run.job | {"cancelled": True}))
    # A job of hydra/launcher=local looks at that file itself, and so does one of SLURM when it begins; see task.py.
    # For one that waits scancel would keep its signal, and wait too.
    begun = [job_id for job_id in shared if not waits(scheduler.state(job_id))]
    try:
        slurm.cancel(whole)
        slurm.cancel(begun, CANCEL_SIGNAL.name)
    except UserError:
        over = Scheduler().over({*whole, *shared})
        for run in runs:
            if run.job.get("job_id") in {*whole, *shared} - over:  # it goes on
                write_atomic(run.path / "job.json", json.dumps(run.job))
        raise


def _whole_and_shared(runs: Sequence[RunState]) -> tuple[list[str], list[str]]:
    """Return the jobs that have no other run that waits or runs, and those that have one."""
    names = {run.signature for run in runs}
    jobs = {run.job["job_id"]: run.job for run in runs}
    members: dict[str, dict[str, list[Path]]] = {}
    for folder in {job.get("sweep", "") for job in jobs.values()}:
        members[folder] = Sweep(Path(folder)).runs_by_job()
    others = {
        job_id: [path for path in members[job.get("sweep", "")].get(job_id, []) if path.name not in names]
        for job_id, job in jobs.items()
    }
    paths = sorted({path for each in others.values() for path in each})
    # Cancelled or failed, and retried, a run is another job's by now.
    active = {(run.path, run.job.get("job_id")) for run in read_runs(paths, Scheduler()) if run.state in ACTIVE}
    shared = [job_id for job_id, each in others.items() if active & {(path, job_id) for path in each}]
    return [job_id for job_id in jobs if job_id not in shared], shared


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
        except (OmegaConfBaseException, YAMLError) as error:
            valid = ", ".join(run.resources)
            raise UserError(f"--set {change}: {str(error).splitlines()[0]}; resources has {valid}.") from error
    resources: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    check_resources(resources)
    return replace(run, resources=resources)


def _store(sweep: Sweep, runs: Sequence[SweepRun]) -> Callable[[set[str]], None]:
    """Write changed resources to the sweep's folder: its list, and the configs that the jobs read.

    Returns:
        What takes that back, except of runs with these names.
    """
    names = {run.signature for run in runs}
    before = [run for run in sweep.runs if run.signature in names]

    def write(some: Sequence[SweepRun]) -> None:
        sweep.replace_runs(some)
        for run in some:
            path = sweep.config(run.signature)
            config = OmegaConf.load(path)
            config.resources = run.resources
            write_atomic(path, OmegaConf.to_yaml(config))

    write(runs)
    return lambda submitted: write([run for run in before if run.signature not in submitted])


def _job(run: Path) -> dict[str, Any]:
    try:
        job: dict[str, Any] = json.loads((run / "job.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return job
