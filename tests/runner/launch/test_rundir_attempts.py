"""What a run's directory says of its attempts in a job, and when a run is given up."""

import json
import os
import time

import pytest

from lorsa.runner import rundir as module
from lorsa.runner.checkpoints import COMPLETE_FILE, kept_logits_folder
from lorsa.runner.errors import AlreadyRunningError, GaveUpError, UserError
from lorsa.runner.rundir import JOB_ID, LAUNCHER, RunDirectory
from lorsa.runner.stop import StopRequested


class Killed(BaseException):
    """Ends an attempt without a word."""


@pytest.fixture
def directory(tmp_path):
    return lambda: RunDirectory(str(tmp_path), "run", {"task": "cola"})


@pytest.fixture
def in_job(monkeypatch):
    def enter(job_id="7_0"):
        monkeypatch.setenv(JOB_ID, job_id)
        monkeypatch.setenv(LAUNCHER, "slurm")

    enter()
    return enter


def checkpoint(run, step):
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / COMPLETE_FILE).touch()


def attempt(directory, retries=2, saves=None, training=False):
    """One attempt that dies without a word, after a checkpoint if it is said at which step."""
    run = directory()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed), run.held(retries):
        if saves is not None:
            checkpoint(run, saves)
        run.progress["training"] = training
        run.report("running")
        patch.setattr(RunDirectory, "_report_end", lambda self, error: None)
        raise Killed
    return run.status()


def test_attempts_and_deaths_are_counted_until_the_run_is_given_up(directory, in_job):
    found = [attempt(directory) for _ in range(3)]
    assert [(status["attempt"], status["deaths"]) for status in found] == [(1, 0), (2, 1), (3, 2)]
    with pytest.raises(GaveUpError, match=r"begun 3 times in job 7_0 .* resources.mem_gb=…"), directory().held(2):
        pytest.fail("it began")
    status = directory().status()
    assert (status["state"], status["deaths"]) == ("failed", 3)
    assert "GaveUpError" in status["error"]


def test_a_new_submission_counts_from_nothing(directory, in_job):
    for _ in range(3):
        attempt(directory)
    in_job("8_0")
    status = attempt(directory)
    assert (status["attempt"], status["deaths"], status["job_id"]) == (4, 0, "8_0")


def test_without_a_job_nobody_counts(directory, monkeypatch):
    monkeypatch.delenv(JOB_ID, raising=False)
    for _ in range(5):
        assert attempt(directory, training=True)["deaths"] == 0


def test_a_run_that_is_stopped_and_got_on_did_not_die(directory, in_job):
    for step in range(0, 50, 10):
        run = directory()
        with pytest.raises(StopRequested), run.held(1):
            checkpoint(run, step + 10)
            raise StopRequested("SIGUSR2")
        status = run.status()
        assert (status["state"], status["reason"], status["deaths"]) == ("requeued", "SIGUSR2", 0)


def test_a_run_that_is_stopped_in_its_evaluation_and_got_on_there_did_not_die(directory, in_job):
    checkpoint(directory(), 40)
    attempt(directory)
    for piece in range(5):
        run = directory()
        with pytest.raises(StopRequested), run.held(1):
            run.write(f"checkpoints/{kept_logits_folder(20)}/test-{piece}.npy", b"")
            raise StopRequested("SIGUSR2")
        assert run.status()["deaths"] == (1 if piece == 0 else 0)


def test_a_run_that_is_stopped_and_never_gets_on_is_given_up(directory, in_job):
    for deaths in range(2):
        run = directory()
        with pytest.raises(StopRequested), run.held(1):
            raise StopRequested("SIGUSR2")
        assert run.status()["deaths"] == deaths
    with pytest.raises(GaveUpError, match="stopped before it got any further"), directory().held(1):
        pytest.fail("it began")


def test_outside_a_job_a_run_that_is_stopped_is_interrupted(directory, monkeypatch):
    monkeypatch.delenv(JOB_ID, raising=False)
    run = directory()
    with pytest.raises(StopRequested), run.held():
        run.start(restart=False)
        raise StopRequested("SIGTERM")
    assert (run.status()["state"], run.status()["reason"]) == ("interrupted", "SIGTERM")


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt(), "interrupted"), (SystemExit(3), "interrupted")])
def test_in_a_job_every_end_is_recorded(directory, in_job, error, state):
    with pytest.raises(type(error)), directory().held():
        raise error
    assert directory().status()["state"] == state


def test_the_traceback_of_an_error_is_kept(directory, in_job):
    with pytest.raises(ValueError), directory().held():
        raise ValueError("two\nlines")
    status = directory().status()
    assert (status["state"], status["error"]) == ("failed", "ValueError: two\nlines")
    assert "in test_the_traceback_of_an_error_is_kept" in status["traceback"]


def test_an_error_of_an_earlier_attempt_is_forgotten(directory, in_job):
    with pytest.raises(UserError), directory().held():
        raise UserError("no")
    with directory().held():
        assert "error" not in directory().status()
    assert directory().status()["state"] == "done"


def test_the_heartbeat_touches_the_status_and_ends_with_the_run(directory, in_job, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    run = directory()
    with run.held():
        status = run.path / "status.json"
        os.utime(status, (0, 0))
        while not status.stat().st_mtime:
            time.sleep(0.01)
        assert json.loads(status.read_text())["state"] == "running"
    os.utime(status, (0, 0))
    time.sleep(0.1)
    assert status.stat().st_mtime == 0


def test_a_disk_that_refuses_a_heartbeat_does_not_end_the_run(directory, in_job, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    tried = []

    def refuse(path):
        tried.append(path)
        raise OSError("Stale file handle")

    monkeypatch.setattr(module.os, "utime", refuse)
    with directory().held():
        while len(tried) < 3:
            time.sleep(0.01)
    assert directory().status()["state"] == "done"


def test_in_a_job_a_lock_that_is_held_is_waited_for(directory, in_job, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS_IN_A_JOB", 0.2)
    with directory().held():
        before = directory().status()
        with pytest.raises(AlreadyRunningError, match=f"by process {os.getpid()}"), directory().held():
            pytest.fail("it began")
        assert directory().status() == before
    monkeypatch.delenv(JOB_ID)
    with directory().held(), pytest.raises(AlreadyRunningError), directory().held():
        pytest.fail("it began")


@pytest.mark.parametrize("text", ["", "{", "nothing"])
def test_a_damaged_status_does_not_keep_a_run_from_beginning(directory, in_job, text):
    directory().path.mkdir(parents=True)
    (directory().path / "status.json").write_text(text)
    with directory().held():
        assert directory().status()["attempt"] == 1


def test_a_forced_run_keeps_its_job_and_the_log_of_its_job(directory, in_job):
    run = directory()
    (run.path / "logs").mkdir(parents=True)
    (run.path / "job.json").write_text("{}")
    (run.path / "logs" / "output.log").write_text("--- job 7_0")
    (run.path / "checkpoints").mkdir()
    with run.held():
        run.start(restart=True)
        assert not run.checkpoints.exists()
        assert (run.path / "job.json").exists()
        assert (run.path / "logs" / "output.log").exists()


def test_a_run_that_is_killed_and_gets_on_each_time_is_not_given_up(directory, in_job):
    for step in range(0, 50, 10):
        assert attempt(directory, saves=step + 10)["deaths"] == 0
