"""How runs are doing, by what they wrote and what SLURM says."""

import json
import os
import time

import pytest

from lorsa.runner.launch import scheduler as scheduler_module
from lorsa.runner.launch import states
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import SILENT_SECONDS, STATES, document, read_runs

JOB = {"job_id": "7_0", "launcher": "slurm", "sweep": "/nowhere"}


def state_of(path, scheduler=None):
    (run,) = read_runs([path], scheduler or Scheduler())
    assert run.state in STATES
    return run.state


@pytest.mark.parametrize(
    ("said", "queued", "expected"),
    [
        ("queued", "PENDING", "queued"),
        ("running", "PENDING", "requeued"),
        ("requeued", "PENDING", "requeued"),
        ("requeued", "REQUEUE_HOLD", "requeued"),
        ("running", "SUSPENDED", "requeued"),
        ("queued", "RUNNING", "starting"),
        ("queued", "CONFIGURING", "starting"),
        ("requeued", "RUNNING", "requeued"),
        ("running", "RUNNING", "running"),
        ("running", "COMPLETING", "running"),
        ("running", "SIGNALING", "running"),
        ("running", "TIMEOUT", "timed out"),
        ("running", "OUT_OF_MEMORY", "out of memory"),
        ("running", "SOMETHING_NEW", "lost"),
    ],
)
def test_each_word_of_the_queue(slurm, make_run, said, queued, expected):
    slurm.queue(f"7_0|{queued}|None")
    assert state_of(make_run("a", said, JOB, silent=10)) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("TIMEOUT", "timed out"),
        ("DEADLINE", "timed out"),
        ("OUT_OF_MEMORY", "out of memory"),
        ("NODE_FAIL", "node failed"),
        ("BOOT_FAIL", "node failed"),
        ("PREEMPTED", "preempted"),
        ("CANCELLED by 0", "cancelled"),
        ("FAILED", "killed"),
        ("COMPLETED", "lost"),
    ],
)
@pytest.mark.parametrize("said", ["queued", "running", "requeued"])
def test_each_word_of_the_accounting(slurm, make_run, said, word, expected):
    slurm.accounting(f"7_0|{word}", "7_1|PENDING")
    assert state_of(make_run("a", said, JOB)) == expected


@pytest.mark.parametrize("said", ["queued", "running", "requeued"])
def test_a_job_that_is_gone_is_lost_where_there_is_no_accounting(slurm, make_run, said):
    assert state_of(make_run("a", said, JOB)) == "lost"


def test_why_a_job_waits_is_said_where_it_is_not_the_usual(slurm, make_run):
    slurm.queue("7_0|PENDING|QOSMaxJobsPerUserLimit", "7_1|PENDING|Priority")
    paths = [make_run("a", "queued", JOB), make_run("b", "queued", JOB | {"job_id": "7_1"})]
    assert [run.reason for run in read_runs(paths, Scheduler())] == ["QOSMaxJobsPerUserLimit", ""]


def test_one_question_for_all_runs(slurm, make_run):
    slurm.queue(*(f"7_{i}|RUNNING|None" for i in range(20)))
    paths = [make_run(f"{i:02}", "running", JOB | {"job_id": f"7_{i}"}) for i in range(20)]
    assert {run.state for run in read_runs(paths, Scheduler())} == {"running"}
    assert len(slurm.calls("squeue")) == 1


def test_finished_runs_need_no_slurm(slurm, make_run):
    paths = [make_run("a", "done"), make_run("b", "failed", JOB, error="ValueError: no\nmore")]
    assert [(run.state, run.reason) for run in read_runs(paths, Scheduler())] == [
        ("done", ""),
        ("failed", "ValueError: no"),
    ]
    assert slurm.calls("squeue") == []


def test_a_run_that_was_submitted_after_slurm_was_asked_is_queued(slurm, make_run):
    scheduler = Scheduler()
    assert state_of(make_run("a", "running", JOB), scheduler) == "lost"
    assert state_of(make_run("b", "queued", JOB | {"job_id": "8"}), scheduler) == "queued"


def test_a_run_that_spoke_after_slurm_did_is_running(slurm, make_run, monkeypatch):
    slurm.queue("7_0|PENDING|None")
    path = make_run("a", "queued", JOB)
    scheduler = Scheduler()
    assert state_of(path, scheduler) == "queued"
    monkeypatch.setattr(scheduler_module.Scheduler, "age", 30.0)
    (path / "status.json").write_text(json.dumps({"state": "running", "launcher": "slurm"}))
    assert state_of(path, scheduler) == "running"


def test_a_run_that_ends_while_slurm_is_asked_is_done(slurm, make_run):
    path = make_run("a", "running", JOB)
    (path / "result.json").write_text("{}")
    done = json.dumps({"state": "done", "launcher": "slurm"})
    slurm.command("squeue", f"echo '{done}' > {path}/status.json")
    assert state_of(path) == "done"


@pytest.mark.parametrize("other", [{"cluster": "red"}, {"cluster": "blue", "user": "someone"}])
def test_what_another_clusters_or_users_job_does_is_not_asked_here(slurm, make_run, other):
    slurm.command("scontrol", "echo 'ClusterName             = blue'")
    slurm.queue("7_1|PENDING|None")  # of the same number as one there
    assert state_of(make_run("a", "running", JOB | other, silent=SILENT_SECONDS - 60)) == "running"
    assert state_of(make_run("b", "running", JOB | other | {"job_id": "7_1"})) == "running"
    assert state_of(make_run("c", "queued", JOB | other)) == "queued"
    here = {"cluster": "blue", "user": Scheduler().user}
    assert state_of(make_run("d", "running", JOB | here)) == "lost"
    assert state_of(make_run("e", "running", JOB | here | {"job_id": "7_1"}, silent=30)) == "requeued"


def test_where_slurm_does_not_answer_a_run_is_judged_by_its_heartbeat(slurm, make_run):
    slurm.command("squeue", "exit 1")
    assert state_of(make_run("a", "running", JOB, silent=SILENT_SECONDS - 60)) == "running"
    assert state_of(make_run("b", "running", JOB, silent=SILENT_SECONDS + 60)) == "lost"
    assert state_of(make_run("c", "queued", JOB, silent=10 * SILENT_SECONDS)) == "queued"
    assert state_of(make_run("d", "requeued", JOB, silent=10 * SILENT_SECONDS)) == "requeued"


def test_silence_is_measured_by_the_clock_of_the_disk(no_slurm, make_run, monkeypatch):
    path = make_run("a", "running", host="elsewhere", launcher=None)
    now = time.time()
    for jump in (1e6, -1e6):
        monkeypatch.setattr(states.time, "time", lambda jump=jump: now + jump)
        assert state_of(path) == "running"
        assert read_runs([path], Scheduler())[0].silent < 60


def test_a_heartbeat_from_the_future_is_no_silence(no_slurm, make_run):
    assert state_of(make_run("a", "running", host="elsewhere", silent=-1e6)) == "running"


def test_a_folder_that_cannot_be_written_can_be_read(no_slurm, make_run, monkeypatch):
    path = make_run("a", "running", host="elsewhere")

    def refuse(**options):
        raise PermissionError

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert state_of(path) == "running"


def test_a_process_on_this_machine_that_is_gone_is_lost(no_slurm, make_run, dead_process):
    assert state_of(make_run("a", "running", launcher=None, pid=dead_process)) == "lost"
    assert state_of(make_run("b", "running", launcher=None)) == "running"
    assert state_of(make_run("c", "running", launcher=None, pid=dead_process, host="elsewhere")) == "running"
    assert state_of(make_run("d", "queued", launcher="local", pid=dead_process)) == "lost"
    # Between two attempts of a local job its job has to be there.
    assert state_of(make_run("e", "requeued", {"job_id": str(dead_process)}, "local", pid=dead_process)) == "lost"
    assert state_of(make_run("f", "requeued", {"job_id": str(os.getpid())}, "local", pid=dead_process)) == "requeued"


def test_a_submission_that_broke_off_is_lost_and_one_that_goes_on_is_queued(slurm, make_run, dead_process):
    begun = {"sweep": "/somewhere"}
    assert state_of(make_run("a", "queued", begun, pid=dead_process)) == "lost"
    assert state_of(make_run("b", "queued", begun)) == "queued"
    assert state_of(make_run("c", "queued", begun, host="elsewhere")) == "queued"
    assert state_of(make_run("d", "queued", begun, host="elsewhere", silent=SILENT_SECONDS + 60)) == "lost"


def test_a_cancelled_run_is_cancelled_unless_it_ended_before(slurm, make_run):
    slurm.queue("7_0|COMPLETING|None")
    cancelled = JOB | {"cancelled": True}
    states_found = {said: state_of(make_run(said, said, cancelled)) for said in ("queued", "running", "done", "failed")}
    assert states_found == {"queued": "cancelled", "running": "cancelled", "done": "done", "failed": "failed"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"running"', "\x00\x01", "{}"])
def test_a_damaged_status_is_no_crash(slurm, make_run, text):
    path = make_run("a", "running", JOB)
    (path / "status.json").write_text(text)
    assert state_of(path) == "new"
    (path / "result.json").write_text("{}")
    assert state_of(path) == "done"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 7}', '{"job_id": 7}'])
def test_a_damaged_job_is_no_crash(slurm, make_run, text):
    path = make_run("a", "running", JOB)
    (path / "job.json").write_text(text)
    assert state_of(path) in ("running", "lost")


def test_a_state_of_another_version_is_said(slurm, make_run):
    (run,) = read_runs([make_run("a", "dreaming", JOB, error=None)], Scheduler())
    assert (run.state, "'dreaming'" in run.reason) == ("lost", True)


def test_a_run_that_says_done_and_has_no_result_is_not_done(slurm, make_run):
    path = make_run("a", "done")
    (path / "result.json").unlink()
    assert state_of(path) == "lost"


def test_directories_that_are_not_there_or_half_there(slurm, tmp_path):
    (tmp_path / "empty").mkdir()
    runs = read_runs([tmp_path / "nothing" / "at-all", tmp_path / "empty"], Scheduler())
    assert [run.state for run in runs] == ["new", "new"]
    assert read_runs([], Scheduler()) == []


def test_a_run_as_json_can_be_printed(slurm, make_run):
    slurm.queue("7_0|RUNNING|None")
    (run,) = read_runs([make_run("a", "running", JOB, task="cola", step=3, max_steps=9)], Scheduler())
    printed = json.loads(json.dumps(document(run)))
    assert (printed["state"], printed["task"], printed["step"], printed["job_id"]) == ("running", "cola", 3, "7_0")
