"""`lorsa-run -m … hydra/launcher=slurm|local`, from the composed runs to submitted jobs. Read it from top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorsa.runner.errors import UserError
from lorsa.runner.launch.plan import Plan, PlannedRun, check_one_node, check_sharing, group, make_plan
from lorsa.runner.launch.scheduler import Scheduler, max_array_size
from lorsa.runner.launch.states import RunState, read_runs
from lorsa.runner.launch.sweep import Sweep, SweepRun
from lorsa.runner.rundir import RunDirectory, write_atomic, writing
from lorsa.runner.schema import JobConfig
from lorsa.runner.terminal import say

Composed = Sequence[tuple[Sequence[str], Callable[[], JobConfig]]]

# Two commands that submit to the same folder wait for each other so long.
LOCK_SECONDS = 600


def launch(kind: str, composed: Composed, folder: Path, settings: dict[str, Any]) -> list[RunState]:
    """Submit what is missing of a sweep, and wait for it if that was asked for.

    Args:
        kind: slurm or local.
        composed: for each run its overrides, and what composes its config.
        folder: the sweep's, to be written.
        settings: the keys of conf/hydra/launcher/<kind>.yaml.

    Returns:
        The state of each run, in the order of `composed`; after the end of all of them if it waited.

    Raises:
        UserError: a run cannot be, or SLURM refuses an array; what was submitted before that is recorded.
    """
    scheduler = Scheduler()
    plan = make_plan(composed, scheduler)
    say(describe(plan))
    cfg = plan.runs[0].cfg
    sweep = Sweep(folder)
    launcher = {"kind": kind, **settings}
    if cfg.dry_run:
        show_plan(plan, sweep, launcher)
        return _as_asked(plan, [run.state for run in plan.runs])
    if plan.wanted:
        with submitting(cfg.runs_dir):
            # Another command may have submitted some between the question above and the lock.
            wanted = [run for run in again(plan, scheduler) if run.wanted]
            write_sweep(sweep, plan, launcher)
            try:
                submit(sweep, [run.run for run in wanted], {run.run.signature: _about(run.cfg) for run in wanted})
            except UserError:
                if not sweep.has_jobs:  # nothing of it was submitted
                    shutil.rmtree(sweep.path, ignore_errors=True)
                raise
    if plan.wanted if kind == "local" else settings["wait"]:
        wait(sweep, [run.state.path for run in plan.runs], scheduler)
    return _as_asked(plan, read_runs([run.state.path for run in plan.runs], scheduler))


def _as_asked(plan: Plan, states: Sequence[RunState]) -> list[RunState]:
    by_name = {state.signature: state for state in states}
    return [by_name[name] for name in plan.asked]


def describe(plan: Plan) -> str:
    """Return one line: how many runs there are, and what is known of them."""
    counts: dict[str, int] = {}
    for run in plan.runs:
        state = "to do" if run.wanted else run.state.state
        counts[state] = counts.get(state, 0) + 1
    order = ("to do", *(state for state in counts if state != "to do"))
    parts = [f"{counts[state]} {state}" for state in order if state in counts]
    repetitions = len(plan.asked) - len(plan.runs)
    repeated = f" ({repetitions} more are repetitions)" if repetitions else ""
    end = "" if plan.wanted else " Nothing to submit."
    return f"{len(plan.runs)} runs{repeated}: {', '.join(parts)}.{end}"


def again(plan: Plan, scheduler: Scheduler) -> list[PlannedRun]:
    """Return the plan's runs with what they are doing now."""
    states = read_runs([run.state.path for run in plan.runs], scheduler)
    return [PlannedRun(run.run, run.cfg, state) for run, state in zip(plan.runs, states, strict=True)]


# --- Dry run --------------------------------------------------------------------------------------------------------


def show_plan(plan: Plan, sweep: Sweep, launcher: dict[str, Any]) -> None:
    """Print the runs, and for SLURM the script of each array; write nothing."""
    from lorsa.runner.launch.tables import show_planned

    show_planned(plan)
    runs = [run.run for run in plan.wanted]
    check_sharing(runs, launcher["runs_per_job"])
    if launcher["kind"] == "local":
        check_one_node(runs)
    if launcher["kind"] != "slurm":
        return
    from lorsa.runner.launch.slurm import script

    for resources, jobs in group(runs, launcher["runs_per_job"], _max_array()):
        say(f"\n# {len(jobs)} jobs\n{script(sweep, launcher, resources, len(jobs))}")


def _max_array() -> int:
    with suppress(UserError):
        return max_array_size()
    return 1001  # SLURM's default, where none answers


# --- Submit ---------------------------------------------------------------------------------------------------------


@contextmanager
def submitting(runs_dir: str) -> Iterator[None]:
    """Keep other commands from submitting the same runs meanwhile."""
    from filelock import FileLock, Timeout

    lock = Path(runs_dir) / ".submit.lock"
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=LOCK_SECONDS, mode=0o644)
    try:
        with writing(lock):
            held.acquire()
    except Timeout:
        raise UserError(f"Another command is submitting to {runs_dir} and does not end; {lock} is its lock.") from None
    try:
        yield
    finally:
        held.release()


def write_sweep(sweep: Sweep, plan: Plan, launcher: dict[str, Any]) -> None:
    """Write the sweep's folder, with all its runs and a frozen config for each."""
    first = plan.runs[0].cfg
    runs = [run.run for run in plan.runs]
    check_sharing(runs, launcher["runs_per_job"])
    if launcher["kind"] == "local":
        check_one_node(runs)
    if (sweep.path / "sweep.json").exists() and {run.signature for run in sweep.runs} - {run.signature for run in runs}:
        raise UserError(f"{sweep.path} is another sweep's; start this one again, or give it a hydra.sweep.dir=…")
    texts = [OmegaConf.to_yaml(run.cfg) for run in plan.runs]  # `check` resolved them
    sweep.write(Path(first.runs_dir), sys.argv, launcher, runs, texts)
    if launcher["snapshot"]:
        copy_code(sweep.code)


def copy_code(folder: Path) -> None:
    """Copy this package's code, so that jobs run it as it is now; a copy that is there stays, since jobs may run it."""
    if folder.is_dir():
        say(f"Jobs run the code that this sweep was first started with: {folder}")
        return
    root = Path(__file__).resolve().parents[2]
    with writing(folder), tempfile.TemporaryDirectory(prefix=".code.", dir=folder.parent) as temporary:
        copy = Path(temporary, folder.name)  # whole, or not there
        for package in ("conf", "kernels", "methods", "runner"):
            shutil.copytree(root / package, copy / "lorsa" / package, ignore=shutil.ignore_patterns("__pycache__"))
        copy.rename(folder)


def submit(sweep: Sweep, runs: Sequence[SweepRun], about: dict[str, dict[str, Any]]) -> None:
    """Submit runs of a sweep.

    Args:
        sweep: written, with these runs in it.
        runs: what to submit.
        about: for each run what status.json says of it.

    Raises:
        UserError: SLURM refuses; arrays that it took before are recorded, and their runs are queued.
    """
    settings = sweep.launcher
    if settings["kind"] == "local":
        mark_queued(sweep, [run.signature for run in runs], about)
        return
    from lorsa.runner.launch import slurm

    arrays = group(runs, settings["runs_per_job"], max_array_size())
    for resources, jobs in arrays:
        slurm.check_script(slurm.script(sweep, settings, resources, len(jobs)))
    for resources, jobs in arrays:
        names = [name for job in jobs for name in job]
        undo = mark_queued(sweep, names, about)
        try:
            ids = slurm.submit(sweep, resources, jobs)
        except BaseException:
            undo()
            raise
        sweep.record_jobs(dict(zip(ids, jobs, strict=True)))
        say(f"Submitted {len(names)} runs as {_span(ids)}.")
    say(f"How it goes: lorsa status {sweep.path}")


def mark_queued(sweep: Sweep, names: Sequence[str], about: dict[str, dict[str, Any]]) -> Callable[[], None]:
    """Write in each run's directory that it is queued, before its job can begin; return what takes that back."""
    before: dict[Path, bytes | None] = {}
    for name in names:
        directory = RunDirectory(str(sweep.runs_dir), name)
        status, job = directory.path / "status.json", directory.path / "job.json"
        before |= {file: file.read_bytes() if file.is_file() else None for file in (job, status)}
        with writing(directory.path):
            directory.path.mkdir(parents=True, exist_ok=True)
            write_atomic(job, json.dumps({"sweep": str(sweep.path)}))  # its id follows
        attempt = directory.status().get("attempt", 0)
        queued = {
            "state": "queued",
            **about[name],
            "attempt": attempt,
            "launcher": sweep.launcher["kind"],
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        directory.write("status.json", json.dumps(queued, indent=2))

    def undo() -> None:
        for file, content in before.items():
            if content is not None:
                write_atomic(file, content)
            else:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # not empty: something else is in it
                    file.parent.rmdir()

    return undo


def _about(cfg: JobConfig) -> dict[str, Any]:
    from lorsa.runner.job import about

    return about(cfg)


def _span(ids: Sequence[str]) -> str:
    return f"job {ids[0]}" if len(ids) == 1 else f"jobs {ids[0]} to {ids[-1]}"


# --- Wait -----------------------------------------------------------------------------------------------------------


def wait(sweep: Sweep, paths: Sequence[Path], scheduler: Scheduler) -> None:
    """Wait until no run of the sweep waits or runs, with a live table; on this machine, that is what runs them."""
    from lorsa.runner.launch.tables import live

    if sweep.launcher["kind"] == "local":
        from lorsa.runner.launch.local import LocalJobs

        with LocalJobs(sweep) as jobs:
            live(paths, scheduler, jobs.step)
    else:
        live(paths, scheduler)
