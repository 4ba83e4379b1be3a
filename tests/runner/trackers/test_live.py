"""Runs beside which a companion shows them to wandb: offline, online, and where the server does not play along."""

import json
import shutil
import socket
import subprocess
import sys
import time

import pytest
from logged import lines
from wandb_file import history, only
from wandb_server import KEY

from lorsa.runner.trackers.rows import read_rows
from lorsa.runner.trackers.state import read_state


def expected(run):
    return [{"_step": row.step, **row.values} for row in read_rows(run / "metrics.jsonl")]


def offline_file(run):
    """The one offline run."""
    (file,) = run.glob("wandb/*run-*/*.wandb")
    assert file.parent.name.startswith("offline-run-")
    return file


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_without_a_key_every_attempt_leaves_one_offline_run_of_all_of_the_log(make_run, companion):
    run = make_run(done=False, log=lines(10, 60))
    companion(run).end("")  # killed
    assert history(offline_file(run)) == expected(run)
    # The next attempt went on from a checkpoint at update 50, and wrote the later lines again.
    (run / "metrics.jsonl").write_text(lines(10, 100))
    companion(run).end("stopped")
    whole = make_run("other")
    for name in ("result.json", "adapter", "predictions"):
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, run / name)
    companion(run).end("done")
    file = offline_file(run)
    assert history(file) == expected(run)
    (opened,) = only(file, "run")
    assert (opened.run_id, opened.project, opened.run_group, opened.job_type) == (
        run.name,
        "lorsa",
        "the-sweep",
        "train",
    )
    assert list(opened.tags) == ["sst2", "lora", "tiny_llama", "demo", "mine"]
    configured = {item.key: json.loads(item.value_json) for item in opened.config.update}
    assert configured["train"]["lr"] == 1e-3
    assert configured["method_name"] == "lora"
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in only(file, "metric")}
    assert axes == {"step": "", "epoch": "", "train/*": "step", "eval/*": "epoch", "eval/primary": "epoch"}
    artifacts = {artifact.name: artifact for artifact in only(file, "artifact")}
    assert {name: each.type for name, each in artifacts.items()} == {
        f"adapter-{run.name}": "model",
        f"report-{run.name}": "report",
    }
    reported = {entry.path for entry in artifacts[f"report-{run.name}"].manifest.contents}
    assert reported == {"result.json", "config.yaml", "metrics.jsonl", "README.md", "predictions/dev.jsonl"}
    state = read_state(run)
    assert state.mode == "offline" and "no key" in state.reason and state.group == "the-sweep"


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stopped", "killed"])
def test_online_a_run_that_is_interrupted_goes_on_with_its_curve(make_run, companion, server, killed):
    run = make_run(done=False, log=lines(10, 50))
    first = companion(run)
    if killed:
        # wandb sends after fifteen seconds. The score of update 50 may be missing yet, so its row is held back, and
        # wandb holds one back too.
        wait_for(lambda: run.name in server.runs and len(server.runs[run.name].lines) == 3, 40)
        first.process.kill()
    else:
        first.end("stopped")
        assert [row["_step"] for row in server.runs[run.name].history] == [10, 20, 30, 40]
        assert read_state(run).digest == ""
    whole = make_run("other", log=lines(10, 100))
    for path in whole.iterdir():
        if path.name != "status.json":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, run / path.name)
    companion(run).end("done")
    stored = server.runs[run.name]
    shown = [{k: v for k, v in row.items() if k not in ("_runtime", "_timestamp")} for row in stored.history]
    assert shown == expected(run)
    assert stored.exit_code == 0
    assert stored.summary["score/test"] == 0.5
    assert stored.summary["eval/primary"] == {"max": 0.2, "last": 0.2}
    assert stored.artifacts == {f"adapter-{run.name}": "model", f"report-{run.name}": "report"}
    assert stored.fields["groupName"] == "the-sweep"
    state = read_state(run)
    assert state.mode == "online" and state.url.endswith(run.name) and state.digest


def test_a_key_that_the_server_refuses_is_said_and_the_run_is_offline(make_run, companion, server):
    server.status = 401
    run = make_run()
    companion(run).end("done")
    assert "its session has expired" in read_state(run).reason
    assert history(offline_file(run)) == expected(run)


def test_a_server_that_breaks_while_the_run_trains_leaves_an_offline_run(make_run, companion, server):
    run = make_run(log=lines(10, 50))
    text = (run / "config.yaml").read_text().replace("finish_seconds: 20.0", "finish_seconds: 4.0")
    (run / "config.yaml").write_text(text)
    going = companion(run)
    wait_for(lambda: run.name in server.runs)
    server.status = 503
    (run / "metrics.jsonl").write_text(lines(10, 100))
    start = time.monotonic()
    going.end("done")
    assert time.monotonic() - start < 4 + 5 + 3
    assert read_state(run).mode == "offline"


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_server_that_refuses_or_is_silent_holds_nothing_up(make_run, companion, monkeypatch, silent):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if silent:
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        run = make_run()
        going = companion(run)
        time.sleep(0 if silent else 1)
        start = time.monotonic()
        going.end("done")
        assert time.monotonic() - start < 15
    assert read_state(run).mode == "offline"
    assert history(offline_file(run)) == expected(run)


def test_wandb_sync_itself_makes_the_same_curve_of_the_offline_run(make_run, companion, server, monkeypatch):
    run = make_run()
    monkeypatch.setenv("WANDB_MODE", "offline")
    companion(run).end("done")
    assert read_state(run).reason == "as asked for"
    monkeypatch.delenv("WANDB_MODE")
    command = [sys.executable, "-m", "wandb", "sync", str(offline_file(run).parent)]
    subprocess.run(command, cwd=run, check=True, capture_output=True)
    shown = [{k: v for k, v in row.items() if k[0] != "_"} for row in server.runs[run.name].history]
    assert shown == [row.values for row in read_rows(run / "metrics.jsonl")]
