"""How a run's job ended, in the words of a real accounting, when SLURM's queue has forgotten it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_for

from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import read_runs


@pytest.fixture
def states_of(accounting_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `lorsa status` says of runs that were at work when their jobs ended."""
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.environment["SLURM_CONF"])

    def states_of(*jobs: str) -> list[str]:
        paths = [tmp_path / "runs" / job for job in jobs]
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)
            (path / "status.json").write_text(json.dumps({"state": "running", "launcher": "slurm"}))
            job = {"job_id": path.name, "launcher": "slurm", "sweep": "/nowhere"}
            (path / "job.json").write_text(json.dumps(job))
        return [run.state for run in read_runs(paths, Scheduler())]

    return states_of


@pytest.fixture
def submit(accounting_cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit a batch script; what is left of it at the end of the test is cancelled."""
    jobs: list[str] = []

    def submit(script: str, *options: str) -> str:
        jobs.append(accounting_cluster.submit(script, *options, cwd=tmp_path))
        return jobs[-1]

    yield submit
    accounting_cluster.run("scancel", *jobs)


def test_elements_of_an_array_end_each_in_its_own_way(accounting_cluster: Cluster, submit, states_of):
    script = "case $SLURM_ARRAY_TASK_ID in 0) exit 0;; 1) exit 3;; 2) kill -9 $$;; *) sleep 600;; esac"
    array = submit(script, "--array=0-4")
    running = [f"{array}_3", f"{array}_4"]
    wait_for(lambda: accounting_cluster.squeue(*running) == ["RUNNING"] * 2, "the array's start", 120)
    assert states_of(*running) == ["running"] * 2
    accounting_cluster.run("scancel", running[0])
    elements = [f"{array}_{number}" for number in range(5)]
    expected = ["lost", "killed", "killed", "cancelled", "running"]
    wait_for(lambda: states_of(*elements) == expected, "the accounting's words", 120)


def test_a_job_on_a_lost_node(accounting_cluster: Cluster, alone: None, submit, states_of):
    job = submit("sleep 600", "--nodelist=n1", "--no-requeue")
    wait_for(lambda: accounting_cluster.squeue(job) == ["RUNNING"], "the job's start", 120)
    accounting_cluster.node_down("n1")
    try:
        wait_for(lambda: states_of(job) == ["node failed"], "the accounting's word", 120)
    finally:
        accounting_cluster.node_up("n1")


@pytest.mark.slow
def test_a_job_at_its_time_limit(submit, states_of):
    job = submit("sleep 600", "--time=1")
    wait_for(lambda: states_of(job) == ["timed out"], "the time limit", 240)
