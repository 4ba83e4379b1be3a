"""Whole runs with a tracker."""

import os
import signal
import subprocess
import sys
import time

import pytest
from wandb_file import history, only

from lorsa.runner.trackers.rows import read_rows
from lorsa.runner.trackers.state import read_state

WORDS = ["tracker=wandb", "method=lorsa", "train.max_steps=120", "train.checkpoint_every=20", "data.train_rows=600"]


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_is_one_offline_run_with_one_curve(tmp_path):
    command = [sys.executable, "-m", "lorsa.runner.cli", *WORDS, "runs_dir=runs", "engine.threads=1"]
    environment = os.environ | {"LORSA_JOB_ID": "7"}

    def start():
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def reached():
        logs = list(tmp_path.glob("runs/*/metrics.jsonl"))
        rows = read_rows(logs[0]) if logs else []
        return rows[-1].step if rows else 0

    for step in (30, 60, 90):
        process = start()
        while reached() < step:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start()
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert read_state(run).mode == "offline"
    (file,) = run.glob("wandb/*run-*/*.wandb")
    rows = history(file)
    assert rows == [{"_step": row.step, **row.values} for row in read_rows(run / "metrics.jsonl")]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps)) and set(range(10, 121, 10)) <= set(steps)
    assert [each.run_id for each in only(file, "run")] == [run.name]
    assert f"lorsa sync {run}" in " ".join(printed.split())
