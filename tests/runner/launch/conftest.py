"""A made-up SLURM, of small scripts, and made-up run directories."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from launch_settings import RESOURCES, SLURM
from omegaconf import OmegaConf
from typer.testing import CliRunner

from lorsa.runner.app import app
from lorsa.runner.compose import CONFIG_DIR
from lorsa.runner.launch.composer import SweepComposer
from lorsa.runner.launch.sweep import Sweep, SweepRun
from lorsa.runner.rundir import JOB_ID, LAUNCHER
from lorsa.runner.schema import JobConfig, register_resolvers
from lorsa.runner.terminal import console


@pytest.fixture(scope="session")
def compose_run() -> Callable[..., JobConfig]:
    """Compose a run as a launcher does, which is faster than from nothing."""
    register_resolvers()
    loader = ConfigLoaderImpl(create_config_search_path(CONFIG_DIR))
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = SweepComposer(loader)

    return lambda *overrides: composer.job_config(master, list(overrides))


class FakeSlurm:
    """Commands of SLURM that say what a test wants; nothing else is on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def command(self, name: str, script: str) -> None:
        """Make a command: a bash script, with `$calls`, the file that counts its calls."""
        path = self.folder / name
        path.write_text(f"#!/bin/bash\ncalls={self.folder}/{name}.calls\nprintf '%s\\n' \"$*\" >> $calls\n{script}\n")
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def queue(self, *lines: str) -> None:
        """Have squeue list these jobs: `7_0|RUNNING|None`."""
        self.command("squeue", "\n".join(f"echo '{line}'" for line in lines))

    def accounting(self, *lines: str) -> None:
        """Have sacct list these: `7_0|TIMEOUT`."""
        self.command("sacct", "\n".join(f"echo '{line}'" for line in lines))


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A machine without SLURM, whatever there really is."""
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder))
    for name in (JOB_ID, LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def slurm(no_slurm: FakeSlurm) -> FakeSlurm:
    """A cluster that takes every job: 101, 102, …; its queue is empty, and it has no accounting."""
    no_slurm.command("srun", "")
    no_slurm.command("scancel", "")
    no_slurm.command("scontrol", "echo 'MaxArraySize            = 1001'")
    no_slurm.command(
        "sbatch",
        '[ "$1" = --test-only ] && exit 0\n'
        "number=0; while read -r line; do [[ $line = --test-only* ]] || number=$((number + 1)); done < $calls\n"
        'echo "Submitted batch job $((100 + number))"',
    )
    no_slurm.queue()
    return no_slurm


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run's directory: its status.json, its job.json if there is a job, and its result if it is done."""

    def make(
        name: str,
        state: str | None,
        job: dict[str, object] | None = None,
        launcher: str | None = "slurm",
        silent: float = 0,
        **status: object,
    ) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        if state is not None:
            said = {"state": state, "launcher": launcher, "host": socket.gethostname(), "pid": os.getpid(), **status}
            (path / "status.json").write_text(json.dumps(said))
            os.utime(path / "status.json", (time.time() - silent,) * 2)
        if job is not None:
            (path / "job.json").write_text(json.dumps(job))
        if state == "done":
            (path / "result.json").write_text(json.dumps({"schema_version": 1, "primary_metric": {"dev": 0.5}}))
            (path / "adapter").mkdir()
        return path

    return make


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Sweep]:
    """Write a sweep's folder, with runs of these names."""

    def make(*names: str, resources: dict[str, dict[str, object]] | None = None, **launcher: object) -> Sweep:
        sweep = Sweep(tmp_path / "runs" / "sweeps" / "2026-01-01_00-00-00")
        changed = resources or {}
        runs = [SweepRun(name, [f"name={name}"], RESOURCES | changed.get(name, {})) for name in names]
        texts = [OmegaConf.to_yaml({"seed": 0, "resources": run.resources}) for run in runs]
        sweep.write(tmp_path / "runs", ["lorsa-run"], SLURM | launcher, runs, texts)
        return sweep

    return make


@pytest.fixture
def sweep(slurm: FakeSlurm, make_sweep: Callable[..., Sweep], make_run: Callable[..., Path]) -> Sweep:
    """A sweep with a run in each of the usual states; the jobs 7_0 and 7_1 are in the queue."""
    names = ["aaaa1111", "aaaa2222", "bbbb", "cccc", "dddd"]
    made = make_sweep(*names)
    slurm.queue("7_0|RUNNING|None", "7_1|PENDING|Priority")
    slurm.accounting("7_2|TIMEOUT")
    states = ["running", "queued", "running", "failed", "done"]
    methods = ["lora", "lora", "lora", "lorsa", "lorsa"]
    for i, (name, state, method) in enumerate(zip(names, states, methods, strict=True)):
        job = {"job_id": f"7_{i}", "launcher": "slurm", "sweep": str(made.path)}
        about = {"model": "tiny", "method": method, "task": "cola", "seed": i, "step": 3, "max_steps": 9}
        error = {"error": "ValueError: no", "traceback": "Traceback\n" + "  more\n" * 30 + "ValueError: no"}
        make_run(name, state, job, **about, **(error if state == "failed" else {}))
    lines = [{"job_id": f"7_{i}", "runs": [name]} for i, name in enumerate(names)]
    (made.path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@pytest.fixture
def lorsa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command; returns what it printed. What it refuses is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_width", 200)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def in_json(lorsa: Callable[..., str]) -> Callable[..., dict[str, str]]:
    """Ask `lorsa status --json` with filters; returns the states of the runs."""
    return lambda *words: {run["signature"]: run["state"] for run in json.loads(lorsa("status", "--json", *words))}


@pytest.fixture
def dead_process() -> int:
    """The number of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
