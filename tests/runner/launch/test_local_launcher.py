"""`hydra/launcher=local`: whole sweeps on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from launch_settings import RESOURCES

from lorsa.runner.launch.local import LocalJobs
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import read_runs

SWEEP = ["-m", "debug=smoke", "train.max_steps=2", "data.train_rows=40", "method=head", "hydra/launcher=local"]


def states(tmp_path):
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/status.json"))]


@pytest.mark.slow
def test_a_sweep_is_done_and_the_same_command_submits_nothing(command, tmp_path):
    words = [*SWEEP, "seed=0,1", "hydra.launcher.runs_per_job=2"]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 2 to do." in done.stdout
    assert "2 runs: 2 done" in done.stdout
    assert [(status["state"], status["launcher"], status["attempt"]) for status in states(tmp_path)] == [
        ("done", "local", 1)
    ] * 2
    assert len({status["job_id"] for status in states(tmp_path)}) == 1
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2
    assert len(list((tmp_path / "runs").glob("*/logs/output.log"))) == 2
    assert len(list((tmp_path / "runs" / "sweeps").iterdir())) == 1

    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.json")}
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert "2 runs: 2 done. Nothing to submit." in again.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.json")} == before
    assert len(list((tmp_path / "runs" / "sweeps").iterdir())) == 1


def test_one_bad_run_ends_the_sweep_before_it_begins(command, tmp_path):
    done = command(*SWEEP, "train.batch_size=0,4")
    assert done.returncode == 2
    assert "train.batch_size=0 must be above 0. Nothing was submitted." in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def queued(make_sweep, make_run, no_slurm, monkeypatch):
    """A sweep on this machine whose runs wait for this process; its worker does what a test says."""
    monkeypatch.setenv("PATH", os.defpath)

    def make(names, stand_in="", setup=(), **launcher):
        code = f"import sys, pathlib, time, os; run = sys.argv[1]; {stand_in}"
        monkeypatch.setattr("lorsa.runner.launch.local.Task", StandIn(code))
        sweep = make_sweep(*names, kind="local", setup=list(setup), **{"parallel": 1} | launcher)
        for name in names:
            make_run(name, "queued", {"sweep": str(sweep.path)}, launcher="local")
        return sweep

    return make


class StandIn:
    """Makes tasks that run a line of Python for each run; pickled by value."""

    def __init__(self, code):
        self.code = code

    def __call__(self, runs_dir, configs, runs):
        code, python = self.code, sys.executable

        def task():
            import subprocess
            import sys

            for name in runs:
                if returned := subprocess.call([python, "-c", code, f"{runs_dir}/{name}"]):
                    sys.exit(returned)

        return task


def finish(jobs, limit=30):
    end = time.monotonic() + limit
    most = 0
    while jobs.step():
        most = max(most, len(jobs.running))
        assert time.monotonic() < end
        time.sleep(0.02)
    return most


DONE = "open(run + '/status.json', 'w').write('{\"state\": \"done\"}'); open(run + '/result.json', 'w').write('{}')"


def test_so_many_jobs_run_at_a_time(queued):
    sweep = queued(["a", "b", "c"], DONE, parallel=2)
    with LocalJobs(sweep) as jobs:
        assert finish(jobs) == 2
    runs = read_runs([sweep.runs_dir / name for name in "abc"], Scheduler())
    assert [run.state for run in runs] == ["done"] * 3
    assert len((sweep.path / "jobs.jsonl").read_text().splitlines()) == 3


def test_a_job_that_ends_without_its_run_leaves_no_run_that_waits_for_ever(queued):
    sweep = queued(["a"], setup=["false"])
    with LocalJobs(sweep) as jobs:
        finish(jobs)
    (run,) = read_runs([sweep.runs_dir / "a"], Scheduler())
    assert (run.state, run.reason.startswith("Its job ended without it; see ")) == ("failed", True)


def test_runs_of_another_process_and_cancelled_ones_are_left_alone(queued, make_run):
    sweep = queued(["a", "b", "c"], DONE)
    other = sweep.runs_dir / "b" / "status.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"pid": os.getppid()}))
    with LocalJobs(sweep) as jobs:
        (sweep.runs_dir / "c" / "job.json").write_text('{"cancelled": true}')
        finish(jobs)
    runs = read_runs([sweep.runs_dir / name for name in "abc"], Scheduler())
    assert [run.state for run in runs] == ["done", "queued", "cancelled"]


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_leaves_no_process_behind(tmp_path):
    words = [word for word in SWEEP if not word.startswith("train.max_steps")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lorsa.runner.cli", *words, "train.max_steps=100000", "train.epochs=100000", "seed=0"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    end = time.monotonic() + 120
    while not any(status["state"] == "running" for status in states(tmp_path)):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.1)
    (status,) = states(tmp_path)
    assert status["host"] == socket.gethostname()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    end = time.monotonic() + 20
    while _alive(status["pid"]):
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.1)
    (path,) = (tmp_path / "runs").glob("*/status.json")
    (run,) = read_runs([path.parent], Scheduler())
    assert run.state in ("lost", "interrupted")


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_a_job_asks_for_is_what_submitit_is_told(queued, monkeypatch):
    told = {}

    class Executor:
        def __init__(self, folder):
            pass

        def update_parameters(self, **parameters):
            told.update(parameters)

        def submit(self, task):
            raise StopIteration

    monkeypatch.setattr("lorsa.runner.launch.local.LocalExecutor", Executor)
    sweep = queued(["a"], setup=["module load x"], offline=True)
    with LocalJobs(sweep) as jobs, pytest.raises(StopIteration):
        jobs.step()
    assert told["tasks_per_node"] == RESOURCES["tasks_per_node"]
    assert told["setup"] == ["module load x", "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1"]
