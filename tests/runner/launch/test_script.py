"""The sbatch script: to the letter, and what its shell lines do, in a real shell with a made-up SLURM."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launch_settings import RESOURCES, SLURM

from lorsa.runner.launch.slurm import cancel, script
from lorsa.runner.launch.sweep import Sweep

GPUS = {"gpus_per_node": 4, "tasks_per_node": 4, "nodes": 2, "cpus_per_task": 8, "mem_gb": 62.5}
WHERE = {"partition": "gpu", "account": "me", "qos": "long", "constraint": "a100|h100", "minutes": 1440}
EXTRA = {"extra": {"mail_type": "FAIL,END", "comment": "two words", "exclusive": True}}


def text_of(folder, elements=1, resources=None, **settings):
    return script(Sweep(folder), SLURM | settings, RESOURCES | (resources or {}), elements)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("single", lambda folder: text_of(folder)),
        (
            "array",
            lambda folder: text_of(
                folder,
                12,
                GPUS | WHERE | EXTRA | {"signal_seconds": 300},
                parallel=5,
                snapshot=True,
                offline=True,
                setup=["module load cuda", 'export NAME="a b"'],
            ),
        ),
    ],
)
def test_the_script_to_the_letter(tmp_path, name, text):
    """To take over a change that was meant: write the text that the failed test shows to the file."""
    folder = tmp_path / "sweeps" / "2026-01-01_00-00-00"
    found = text(folder).replace(str(tmp_path), "/HOME").replace(shlex.quote(sys.executable), "PYTHON")
    assert found == (Path(__file__).parent / f"{name}.sh").read_text()


def test_memory_is_in_mebibytes_and_left_out_where_it_is_not_given(tmp_path):
    assert "--mem=512M\n" in text_of(tmp_path, resources={"mem_gb": 0.5})
    assert "--mem" not in text_of(tmp_path)


def test_gpus_are_asked_for_where_there_are_any(tmp_path):
    assert "--gpus-per-node=2\n" in text_of(tmp_path, resources={"gpus_per_node": 2})
    assert "--gpus" not in text_of(tmp_path)


def test_an_extra_option_comes_after_ours(tmp_path):
    text = text_of(tmp_path, resources={"extra": {"time": 5, "requeue": "x"}})
    assert "--time=5\n" in text
    assert "--time=60" not in text


class Job:
    """Runs a script as slurmd would, on a node where srun, squeue and scontrol are made up."""

    def __init__(self, tmp_path, folder="sweep"):
        self.sweep = Sweep(tmp_path / folder)
        self.sweep.jobs.mkdir(parents=True)
        self.bin = tmp_path / "node"
        self.bin.mkdir()
        self.command("squeue", f'echo "$@" > {self.bin}/asked; cat {self.bin}/state')
        self.command("sleep", f'echo "$@" >> {self.bin}/pauses')
        (self.bin / "state").write_text("RUNNING")
        self.requeue_succeeds()

    def command(self, name, body):
        (self.bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def requeue_succeeds(self, at_try=1):
        tries = f"$(wc -l < {self.bin}/scontrol.calls)"
        self.command(
            "scontrol",
            f'echo "$@" >> {self.bin}/scontrol.calls; [ {tries} -lt {at_try} ] || echo PENDING > {self.bin}/state',
        )

    def run(self, code, element=None, srun="", **settings):
        self.command("srun", f"{srun}\nexit {code}")
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        if element is not None:
            environment |= {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(element)}
        text = text_of(self.sweep.path, 1 if element is None else 3, **settings)
        return subprocess.run(["bash"], input=text, env=environment, capture_output=True, text=True)

    @property
    def requeued(self):
        calls = self.bin / "scontrol.calls"
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def node_job(tmp_path):
    return Job(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_that_is_done_or_failed_does_not_begin_again(node_job, code):
    assert node_job.run(code).returncode == code
    assert node_job.requeued == []


@pytest.mark.parametrize("code", [75, 137, 139, 143])
@pytest.mark.parametrize(("element", "job_id"), [(None, "77"), (0, "70_0"), (2, "70_2")])
def test_a_job_that_was_stopped_or_killed_begins_again_and_no_other_element_does(node_job, code, element, job_id):
    done = node_job.run(code, element)
    assert done.returncode == code
    assert f"exit code {code}: the job begins again" in done.stdout
    assert node_job.requeued == [f"requeue {job_id}"]
    assert f"--jobs={job_id}" in (node_job.bin / "asked").read_text()


def test_a_requeue_that_is_refused_or_forgotten_is_asked_for_again(node_job):
    node_job.requeue_succeeds(at_try=3)
    assert node_job.run(137).returncode == 137
    assert node_job.requeued == ["requeue 77"] * 3
    assert (node_job.bin / "pauses").read_text().split() == ["6", "6", "12"]


def test_a_site_that_never_requeues_is_asked_for_three_minutes(node_job):
    node_job.command("scontrol", f"echo >> {node_job.bin}/scontrol.calls; exit 1")
    assert node_job.run(75).returncode == 75
    pauses = [int(pause) for pause in (node_job.bin / "pauses").read_text().split()]
    assert len(node_job.requeued) == len(pauses)
    assert 180 <= sum(pauses) < 200


def test_where_the_controller_gives_no_answer_the_job_runs(node_job):
    node_job.command("squeue", f"[ -e {node_job.bin}/pauses ] && echo PENDING")
    assert node_job.run(137).returncode == 137
    assert node_job.requeued == ["requeue 77"]


@pytest.mark.parametrize("code", [137, 143])
def test_a_task_that_failed_for_good_ends_the_job_though_the_others_were_killed(node_job, code):
    mark = node_job.sweep.jobs / "70_1.failed"
    assert node_job.run(code, 1, srun=f"touch {mark}").returncode == 1
    assert node_job.requeued == []


def test_the_mark_of_an_earlier_attempt_or_of_another_element_does_not_count(node_job):
    for name in ("70_1", "70_2", "77"):
        (node_job.sweep.jobs / f"{name}.failed").touch()
    assert node_job.run(137, 1).returncode == 137
    assert node_job.requeued == ["requeue 70_1"]
    assert (node_job.sweep.jobs / "70_2.failed").exists()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", ""])
def test_a_job_that_was_cancelled_meanwhile_is_left_alone(node_job, state):
    (node_job.bin / "state").write_text(state)
    assert node_job.run(143, 0).returncode == 143
    assert node_job.requeued == []


@pytest.mark.parametrize("folder", ["two words", "it's", "a$HOME", "a;b&c", 'say "x"', "back\\slash", "ä"])
def test_folders_with_any_characters(tmp_path, folder):
    job = Job(tmp_path, folder)
    mark = shlex.quote(str(job.sweep.jobs / "77.failed"))
    assert job.run(137, srun=f"touch {mark}").returncode == 1
    assert job.run(137).returncode == 137
    assert job.requeued == ["requeue 77"]
    done = job.run(0, srun='echo "path: $PYTHONPATH"', snapshot=True)
    assert f"path: {job.sweep.code}\n" in done.stdout
    assert done.stderr == ""


def test_what_the_setup_lines_set_reaches_the_tasks(node_job):
    settings = {"setup": ["export NAME='a b'"], "offline": True, "snapshot": True}
    done = node_job.run(0, srun='echo "$NAME, $HF_HUB_OFFLINE, $HF_DATASETS_OFFLINE, $PYTHONPATH"', **settings)
    assert done.stdout == f"a b, 1, 1, {node_job.sweep.code}\n"


def test_cancelling_names_the_jobs_and_the_signal(slurm):
    cancel([])
    cancel(["7_0", "7_1"])
    cancel(["8"], "SIGUSR1")
    assert slurm.calls("scancel") == ["7_0 7_1", "--signal=SIGUSR1 8"]
