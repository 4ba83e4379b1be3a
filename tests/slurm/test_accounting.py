"""How a run's job ended, in the words of a real accounting, when SLURM's queue has forgotten it."""

import json
from pathlib import Path

import pytest
from cluster import Cluster, wait_for

from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import read_runs


@pytest.fixture
def state_of(accounting_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `lorsa status` says of a run that was at work when its job ended."""
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.environment["SLURM_CONF"])

    def state_of(job: str) -> str:
        path = tmp_path / "runs" / job
        path.mkdir(parents=True, exist_ok=True)
        (path / "status.json").write_text(json.dumps({"state": "running", "launcher": "slurm"}))
        (path / "job.json").write_text(json.dumps({"job_id": job, "launcher": "slurm", "sweep": "/nowhere"}))
        (run,) = read_runs([path], Scheduler())
        return run.state

    return state_of


def test_elements_of_an_array_end_each_in_its_own_way(accounting_cluster: Cluster, tmp_path: Path, state_of):
    script = "case $SLURM_ARRAY_TASK_ID in 0) exit 0;; 1) exit 3;; 2) kill -9 $$;; *) sleep 600;; esac"
    array = accounting_cluster.submit(script, "--array=0-4", cwd=tmp_path)
    wait_for(lambda: accounting_cluster.squeue(f"{array}_3") == ["RUNNING"], "the array's start")
    assert state_of(f"{array}_4") == "running"
    accounting_cluster.run("scancel", f"{array}_3")
    expected = {0: "lost", 1: "killed", 2: "killed", 3: "cancelled", 4: "running"}
    wait_for(lambda: {i: state_of(f"{array}_{i}") for i in expected} == expected, "the accounting's words")
    accounting_cluster.run("scancel", array)


def test_a_job_on_a_lost_node(accounting_cluster: Cluster, alone: None, tmp_path: Path, state_of):
    job = accounting_cluster.submit("sleep 600", "--nodelist=n1", "--no-requeue", cwd=tmp_path)
    wait_for(lambda: accounting_cluster.squeue(job) == ["RUNNING"], "the job's start")
    accounting_cluster.node_down("n1")
    try:
        wait_for(lambda: state_of(job) == "node failed", "the accounting's word")
    finally:
        accounting_cluster.node_up("n1")


@pytest.mark.slow
def test_a_job_at_its_time_limit(accounting_cluster: Cluster, tmp_path: Path, state_of):
    job = accounting_cluster.submit("sleep 600", "--time=1", cwd=tmp_path)
    wait_for(lambda: state_of(job) == "timed out", "the time limit", 180)
