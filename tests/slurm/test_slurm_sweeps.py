"""Sweeps on a real SLURM: what is refused, what fails, what is cancelled and what is tried again."""

import json
import os
import signal

import pytest
from cluster import Cluster, wait_for
from sweeps import Sweeps

ACTIVE = {"queued", "starting", "running", "requeued"}


@pytest.fixture
def sweeps(cluster: Cluster, tmp_path) -> Sweeps:
    return Sweeps(cluster, tmp_path)


def over(sweeps: Sweeps) -> bool:
    return not {run["state"] for run in sweeps.states().values()} & ACTIVE


def test_slurm_says_no_in_its_own_words_and_nothing_is_left(sweeps: Sweeps):
    said = sweeps.launch("seed=0,1", "resources.partition=nowhere", ok=False)
    assert "SLURM refused: " in said and "invalid partition specified: nowhere" in said
    said = sweeps.launch("seed=0,1", "resources.cpus_per_task=5", ok=False)
    assert "Requested node configuration is not available" in said
    said = sweeps.launch("seed=0,1", "method=lorsa,lora", "++method.config.alpha=1", ok=False)
    assert "method.config.alpha is not a field of LorsaConfig" in said and "Nothing was submitted." in said
    assert not list(sweeps.runs_dir.glob("*/status.json"))
    assert "there are none" in sweeps.lorsa("status", "latest", ok=False)


def test_a_node_that_is_down_is_waited_for(sweeps: Sweeps, alone: None):
    sweeps.cluster.node_down("n2")
    try:
        said = sweeps.launch("engine=ddp", "resources.nodes=2")
        assert "nodes that it needs may be down" in said and "Submitted 1 runs" in said
        assert [run["state"] for run in sweeps.states().values()] == ["queued"]
    finally:
        sweeps.cluster.node_up("n2")
    wait_for(lambda: [run["state"] for run in sweeps.states().values()] != ["queued"], "it begins", 60)


@pytest.mark.slow
def test_a_diverged_run_fails_once_and_the_others_of_its_job_go_on(sweeps: Sweeps):
    sweeps.launch("method=lora", "train.lr=1e-3,1e30", "hydra.launcher.runs_per_job=2", "train.max_steps=6")
    wait_for(lambda: over(sweeps), "the sweep ends", 180)
    runs = sweeps.states()
    assert sorted(run["state"] for run in runs.values()) == ["done", "failed"]
    failed = next(run for run in runs.values() if run["state"] == "failed")
    assert failed["attempt"] == 1
    # SLURM says FAILED too, and said so once.
    wait_for(lambda: sweeps.cluster.squeue(failed["job_id"]) == ["FAILED"], "SLURM says so")
    said = sweeps.lorsa("errors")
    assert "1 x failed" in said and "training diverged" in said
    assert "1 runs would be submitted again" in sweeps.lorsa("retry", "state=failed", "--dry-run")


@pytest.mark.slow
def test_a_run_that_dies_without_a_word_is_given_up_after_its_retries(sweeps: Sweeps):
    sweeps.launch("method=head", "seed=0", "resources.retries=1", "train.checkpoint_every=1000", "train.max_steps=2000")
    name = next(iter(sweeps.states()))

    def status() -> dict[str, object]:
        return json.loads((sweeps.runs_dir / name / "status.json").read_text())

    for attempt in (1, 2):
        wait_for(lambda now=attempt: (status()["state"], status()["attempt"]) == ("running", now), "it begins", 120)
        os.kill(int(str(status()["pid"])), signal.SIGKILL)
    wait_for(lambda: over(sweeps), "the sweep ends", 120)
    run = sweeps.states()[name]
    assert (run["state"], run["attempt"]) == ("failed", 3)
    assert "It was begun 2 times in job" in run["error"]


@pytest.mark.slow
def test_cancelled_runs_stay_cancelled_until_they_are_tried_again(sweeps: Sweeps):
    sweeps.launch("method=head,lora", "train.max_steps=2000", "train.checkpoint_every=1", "task.epochs=1000")
    lora = next(name for name, run in sweeps.states().items() if run["method"] == "lora")
    wait_for(lambda: (sweeps.states()[lora]["step"] or 0) > 1, "it trains", 120)
    assert "Cancelled 1 runs" in sweeps.lorsa("cancel", "method=lora")
    job = sweeps.states()[lora]["job_id"]
    wait_for(lambda: sweeps.cluster.squeue(job) == ["CANCELLED"], "SLURM cancels it")
    assert sweeps.states()[lora]["state"] == "cancelled"
    assert "1 runs: 1 to do" in sweeps.launch("method=lora", "train.max_steps=2000", "task.epochs=1000", "dry_run=true")
    assert "Submitted 1 runs" in sweeps.lorsa("retry", "state=cancelled", "--set", "resources.minutes=120")
    wait_for(lambda: sweeps.states()[lora]["state"] == "running", "it goes on", 120)
    again = sweeps.states()[lora]["job_id"]
    assert again != job
    assert "2:00:00" in sweeps.cluster.squeue(again, form="%l")[0]
    sweeps.lorsa("cancel", "--all")
    wait_for(lambda: "RUNNING" not in sweeps.cluster.squeue(again), "SLURM cancels it")


@pytest.mark.slow
def test_waiting_shows_the_end_and_fails_if_a_run_does(sweeps: Sweeps):
    common = ("method=lora", "train.max_steps=6", "hydra.launcher.wait=true")
    assert "1 runs: 1 done" in sweeps.launch(*common, "seed=0")
    said = sweeps.launch(*common, "seed=1", "train.lr=1e-3,1e30", ok=False)
    assert "1 of 2 runs are not done; see lorsa errors" in said


@pytest.mark.slow
def test_a_run_on_two_nodes_stops_in_both_of_its_processes_and_goes_on(sweeps: Sweeps):
    sweeps.launch("method=lora", "engine=zero2", "resources.nodes=2", "task.epochs=3", "train.max_steps=90")
    name = next(iter(sweeps.states()))
    wait_for(lambda: (sweeps.states()[name]["step"] or 0) > 1, "it trains", 180)
    job = sweeps.states()[name]["job_id"]
    sweeps.cluster.run("scancel", "--signal=USR2", job)
    wait_for(lambda: sweeps.states()[name]["attempt"] == 2, "it begins again", 120)
    wait_for(lambda: over(sweeps), "it ends", 240)
    run, result = sweeps.states()[name], sweeps.result(name)
    assert (run["state"], run["deaths"]) == ("done", 0), sweeps.lorsa("errors")
    assert result["resumed_from_step"] > 0
    logs = sweeps.runs_dir / name / "logs"
    for log in ("output.log", "output.rank1.log"):
        assert "stopped by " in (logs / log).read_text()
