"""What runs in a job: its exit codes, its signals, and runs that share it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lorsa.runner.launch import task as module
from lorsa.runner.launch.task import EXIT_FAILED, LOCAL_AGAIN, Task

# In place of the worker: does what the run's config says, a line of Python.
STAND_IN = """
import json, os, pathlib, signal, sys, time
config = pathlib.Path(sys.argv[1])
run = pathlib.Path({runs!r}, config.stem)
def say(state):
    (run / "status.json").write_text(json.dumps({{"state": state, "job_id": os.environ["LORSA_JOB_ID"]}}))
(run / "begun").touch()
exec(config.read_text())
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run a task in a process of its own, as a job of SLURM's; `runs` says what each run does."""
    runs_dir, configs = tmp_path / "runs", tmp_path / "configs"
    configs.mkdir()
    (tmp_path / "worker.py").write_text(STAND_IN.format(runs=str(runs_dir)))
    started = []

    def start(runs, **environment):
        for name, code in runs.items():
            (runs_dir / name).mkdir(parents=True, exist_ok=True)
            (configs / f"{name}.yaml").write_text(code)
        code = (
            "import sys\nfrom lorsa.runner.launch.task import Task\n"
            f"Task._command = lambda self, name: [sys.executable, {str(tmp_path / 'worker.py')!r}, "
            f"self.configs + '/' + name + '.yaml']\n"
            f"Task({str(runs_dir)!r}, {str(configs)!r}, {tuple(runs)!r})()\n"
        )
        slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SUBMITIT_FOLDER": str(tmp_path)}
        plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=plain | slurm | environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def begun(tmp_path, name):
    return (tmp_path / "runs" / name / "begun").exists()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("say('done')", 0),
        ("say('failed'); sys.exit(1)", EXIT_FAILED),
        ("say('failed'); sys.exit(2)", EXIT_FAILED),
        ("say('running')", EXIT_FAILED),
        ("say('requeued'); sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_the_exit_code_says_what_is_to_become_of_the_job(job, tmp_path, code, expected):
    assert job({"a": code}).wait() == expected
    log = (tmp_path / "runs" / "a" / "logs" / "output.log").read_text()
    assert log.startswith("--- job 7 on ")
    assert ("--- killed by SIG" in log) == (expected > 128)


def test_a_local_job_begins_again_by_submitits_code(job):
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}
    assert job({"a": "sys.exit(75)"}, **local).wait() == LOCAL_AGAIN


def test_runs_that_share_a_job_are_done_one_after_the_other_though_one_fails(job, tmp_path):
    runs = {"a": "say('done')", "b": "say('failed'); sys.exit(1)", "c": "say('done')"}
    assert job(runs).wait() == EXIT_FAILED
    assert all(begun(tmp_path, name) for name in runs)
    for name in runs:
        (tmp_path / "runs" / name / "begun").unlink()
    # Begun again: what is over is not done again, in this job.
    assert job(runs).wait() == EXIT_FAILED
    assert not any(begun(tmp_path, name) for name in runs)
    job(runs, SLURM_JOB_ID="8").wait()
    assert [begun(tmp_path, name) for name in runs] == [False, True, False]


def test_a_run_that_is_another_jobs_by_now_is_left_to_it(job, tmp_path):
    for name, job_id in (("b", "8"), ("c", "7")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "job.json").write_text(json.dumps({"job_id": job_id}))
    runs = {"a": "say('done')", "b": "say('failed'); sys.exit(1)", "c": "say('done')"}
    assert job(runs).wait() == 0
    assert [begun(tmp_path, name) for name in runs] == [True, False, True]


def test_a_run_that_is_stopped_ends_the_job_before_the_next(job, tmp_path):
    assert job({"a": "sys.exit(75)", "b": "say('done')"}).wait() == 75
    assert not begun(tmp_path, "b")


def test_signals_are_passed_on(job, tmp_path):
    code = "signal.signal(signal.SIGUSR2, lambda *a: sys.exit(75))\n(run / 'ready').touch()\ntime.sleep(600)"
    process = job({"a": code})
    until((tmp_path / "runs" / "a" / "ready").exists)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 75


def test_a_cancelled_run_is_ended_by_the_signal_and_the_next_begins(job, tmp_path):
    process = job({"a": "(run / 'ready').touch()\ntime.sleep(600)", "b": "say('done')", "c": "say('done')"})
    until((tmp_path / "runs" / "a" / "ready").exists)
    process.send_signal(signal.SIGUSR1)  # of a run that was not cancelled: nothing
    for name in ("a", "c"):
        (tmp_path / "runs" / name / "job.json").write_text('{"cancelled": true}')
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == EXIT_FAILED
    assert begun(tmp_path, "b")
    assert not begun(tmp_path, "c")


def test_a_local_job_sees_by_itself_that_its_run_was_cancelled(job, tmp_path, monkeypatch):
    process = job(
        {"a": "(run / 'ready').touch()\ntime.sleep(600)"}, SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID="7"
    )
    until((tmp_path / "runs" / "a" / "ready").exists)
    (tmp_path / "runs" / "a" / "job.json").write_text('{"cancelled": true}')
    assert process.wait(60) == EXIT_FAILED


def test_ctrl_c_ends_the_worker_too(job, tmp_path):
    process = job({"a": "(run / 'pid').write_text(str(os.getpid()))\n(run / 'ready').touch()\ntime.sleep(600)"})
    until((tmp_path / "runs" / "a" / "ready").exists)
    worker = int((tmp_path / "runs" / "a" / "pid").read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    until(lambda: not alive(worker))


def alive(process):
    try:
        return "Z" not in open(f"/proc/{process}/stat").read().rpartition(")")[2].split()[0]  # noqa: PTH123
    except FileNotFoundError:
        return False


RANKS = {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1"}


def rank(number):
    return RANKS | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}


def test_a_process_that_ends_before_the_first_has_recorded_the_result_is_no_failure(job):
    assert job({"a": "pass"}, **rank(1)).wait() == 0
    assert job({"a": "pass"}, **rank(0)).wait() == EXIT_FAILED


def test_a_process_that_fails_leaves_the_mark_for_the_script(job, tmp_path):
    assert job({"a": "sys.exit(1)"}, **rank(1)).wait() == EXIT_FAILED
    assert (tmp_path / "7.failed").exists()
    assert (tmp_path / "runs" / "a" / "logs" / "output.rank1.log").exists()


def test_a_process_that_is_stopped_leaves_no_mark(job, tmp_path):
    assert job({"a": "sys.exit(75)"}, **rank(1)).wait() == 75
    assert not (tmp_path / "7.failed").exists()


def test_workers_get_what_pytorch_and_deepspeed_expect(job, tmp_path):
    code = "(run / 'env').write_text(json.dumps(dict(os.environ)))"
    job({"a": code}, **rank(1)).wait()
    found = json.loads((tmp_path / "runs" / "a" / "env").read_text())
    assert [found[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["1", "2", "1", "2"]
    assert found["MASTER_ADDR"]
    assert found["MASTER_PORT"].isdecimal()
    assert (found["LORSA_JOB_ID"], found["LORSA_LAUNCHER"]) == ("7", "slurm")
    job({"a": code}).wait()
    assert "RANK" not in json.loads((tmp_path / "runs" / "a" / "env").read_text())


def test_elements_of_an_array_go_by_their_full_name(job, tmp_path):
    code = "(run / 'env').write_text(os.environ['LORSA_JOB_ID'])"
    job({"a": code}, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3").wait()
    assert (tmp_path / "runs" / "a" / "env").read_text() == "70_3"


def test_damaged_files_are_no_crash(tmp_path):
    (tmp_path / "a").mkdir()
    for text in ("", "{"):
        (tmp_path / "a" / "job.json").write_text(text)
        (tmp_path / "a" / "status.json").write_text(text)
        task = Task(str(tmp_path), "", ("a",))
        assert not task._cancelled("a")
        assert not task._over("a", "7")
    assert module._read(tmp_path / "nothing") == {}
