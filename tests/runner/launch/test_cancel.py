"""`lorsa cancel` on made-up run directories."""

import json
import os
import shutil

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.launch import again
from lorsa.runner.launch.states import read_runs


def test_cancel_cancels_jobs_that_wait_or_run(sweep, slurm, lorsa, in_json):
    with pytest.raises(UserError, match="Name a sweep or filters"):
        lorsa("cancel")
    assert "2 runs would be cancelled" in lorsa("cancel", "--all", "--dry-run")
    assert slurm.calls("scancel") == []
    assert lorsa("cancel", "latest", "method=lora") == "Cancelled 2 runs.\n"
    assert [set(call.split()) for call in slurm.calls("scancel")] == [{"7_0", "7_1"}]
    assert set(in_json("state=cancelled")) == {"aaaa1111", "aaaa2222"}
    assert "None of the 5 runs waits or runs" in lorsa("cancel", "--all")


def share(sweep, slurm, make_run, names, state):
    """Runs that share job 8."""
    slurm.queue("8|RUNNING|None")
    for name in names:
        make_run(name, state, {"job_id": "8", "launcher": "slurm", "sweep": str(sweep.path)})
    with (sweep.path / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"job_id": "8", "runs": names}) + "\n" + '{"job_id": "9", "ru')


def test_cancel_of_one_run_leaves_the_others_of_its_job(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "running")
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == ["--signal=SIGUSR1 8"]
    lorsa("cancel", "--all")
    assert slurm.calls("scancel")[1:] == ["8"]


def test_cancel_of_one_run_of_a_job_that_waits_needs_no_signal(sweep, slurm, lorsa, make_run, in_json):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "queued")
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    slurm.queue("8|PENDING|Priority")
    slurm.command("scancel", "sleep 100")  # as the real one does until the job runs
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == []
    assert in_json("task=qqp") == {"xxxx": "cancelled"}


def test_a_job_whose_other_runs_were_retried_elsewhere_is_cancelled_as_a_whole(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "running")
    slurm.queue("8|RUNNING|None", "10|PENDING|None")
    job = {"job_id": "10", "launcher": "slurm", "sweep": str(sweep.path)}
    (sweep.runs_dir / "yyyy" / "job.json").write_text(json.dumps(job))
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == ["8"]


def test_another_clusters_job_of_the_same_number_is_left_alone(sweep, slurm, lorsa, make_run):
    slurm.command("scontrol", "echo 'ClusterName             = blue'")
    slurm.queue("8|RUNNING|None")
    there = {"job_id": "8", "launcher": "slurm", "sweep": str(sweep.path), "cluster": "red", "user": "someone"}
    make_run("xxxx", "running", there, task="qqp")
    with pytest.raises(UserError, match=r"xxxx is job 8 of user someone on cluster red, and this is .* on blue"):
        lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == []
    assert "cancelled" not in json.loads((sweep.runs_dir / "xxxx" / "job.json").read_text())


def test_cancel_asks_slurm_no_more_for_more_jobs(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, [f"x{i}" for i in range(6)], "running")
    lorsa("cancel", "--all")
    assert len(slurm.calls("squeue")) <= 2


def test_a_cancel_that_slurm_refuses_leaves_runs_as_they_are(sweep, slurm, lorsa, in_json):
    slurm.command("scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    with pytest.raises(UserError, match="SLURM refused: scancel: error: Access/permission denied"):
        lorsa("cancel", "--all")
    assert set(in_json("state=running,queued")) == {"aaaa1111", "aaaa2222"}


def test_cancel_without_the_sweeps_folder(sweep, slurm, lorsa):
    shutil.rmtree(sweep.path)
    lorsa("cancel", "--all")
    assert [set(call.split()) for call in slurm.calls("scancel")] == [{"7_0", "7_1"}]


def test_cancel_of_a_sweep_on_this_machine_is_a_note_for_its_process(no_slurm, make_sweep, make_run, lorsa):
    sweep = make_sweep("a", "b", kind="local")
    job = {"job_id": str(os.getpid()), "launcher": "local", "sweep": str(sweep.path)}
    paths = [make_run("a", "running", job, launcher="local"), make_run("b", "queued", {"sweep": "s"}, launcher="local")]
    assert lorsa("cancel", "--all") == "Cancelled 2 runs.\n"
    assert [run.state for run in read_runs(paths, again.Scheduler())] == ["cancelled", "cancelled"]
    assert json.loads((paths[1] / "job.json").read_text())["sweep"] == "s"
