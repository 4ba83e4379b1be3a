"""Real signals to a run that trains: it saves at the next update, says so, and goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lorsa.runner import stop
from lorsa.runner.compose import compose
from lorsa.runner.job import run
from lorsa.runner.rundir import JOB_ID, LAUNCHER
from lorsa.runner.signature import signature

OPTIONS = ["debug=smoke", "data.train_rows=200", "train.max_steps=20", "train.batch_size=8", "method=lora"]


@pytest.fixture
def worker(tmp_path):
    """Start a worker as a job does, on a frozen config; returns it and the run's directory."""
    started = []

    def start(runs_dir, seconds_per_update=0.0):
        cfg = compose(f"runs_dir={tmp_path / runs_dir}", *OPTIONS)
        config = tmp_path / f"{signature(cfg)}.yaml"
        config.write_text(OmegaConf.to_yaml(cfg, resolve=True))
        # Slow enough for a signal to meet it.
        code = (
            "import sys, time\n"
            "from lorsa.runner.launch import worker\n"
            "from lorsa.runner.callbacks import MethodHook\n"
            f"MethodHook.on_step_begin = lambda *a, **k: time.sleep({seconds_per_update})\n"
            "worker.main()\n"
        )
        environment = os.environ | {JOB_ID: "7_0", LAUNCHER: "slurm"}
        words = [sys.executable, "-c", code, str(config)]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        started.append(process)
        return process, tmp_path / runs_dir / signature(cfg)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)


def status_of(path: Path):
    return json.loads((path / "status.json").read_text())


def weights_and_score(path: Path):
    return {file.name: file.read_bytes() for file in path.glob("adapter/*.safetensors")}, status_of(path)["score"]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on_to_the_same_bits(worker, tmp_path):
    whole = compose(f"runs_dir={tmp_path / 'whole'}", *OPTIONS)
    run(whole)
    first, path = worker("stopped", seconds_per_update=0.1)
    until(lambda: (path / "metrics.jsonl").exists(), first)
    first.send_signal(signal.SIGUSR1)  # for another process of the job; no matter here
    first.send_signal(signal.SIGUSR2)
    first.send_signal(signal.SIGTERM)  # some clusters send both
    assert first.wait() == stop.EXIT_STOPPED
    status = status_of(path)
    assert status["state"] == "requeued"
    assert 0 < status["step"] < 20
    assert (path / "checkpoints" / f"checkpoint-{status['step']}" / "complete").exists()

    second, _ = worker("stopped")
    assert second.wait() == 0, second.stderr.read().decode()
    assert json.loads((path / "result.json").read_text())["resumed_from_step"] == status["step"]
    status = status_of(path)
    assert (status["state"], status["attempt"], status["deaths"]) == ("done", 2, 0)
    assert weights_and_score(path) == weights_and_score(tmp_path / "whole" / signature(whole))


@pytest.fixture
def fresh(monkeypatch):
    """The module as at a start, and the process's own handlers back at the end."""
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    monkeypatch.setattr(stop, "_requested", None)
    monkeypatch.setattr(stop, "_raised", False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_request_ends_a_run_at_once_where_there_is_nothing_to_save(fresh):
    stop.listen()
    with pytest.raises(stop.StopRequested, match="SIGUSR2"):
        signal.raise_signal(signal.SIGUSR2)
    assert stop.requested() == "SIGUSR2"


def test_a_request_is_noted_where_something_is_being_trained(fresh):
    stop.listen()
    with pytest.raises(stop.StopRequested, match="SIGTERM"), stop.deferred():
        assert stop.requested() is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested() == "SIGTERM"


def test_a_second_signal_does_not_interrupt_how_the_run_records_its_end(fresh):
    stop.listen()
    with pytest.raises(stop.StopRequested):
        signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)


def test_a_request_passes_through_code_that_catches_errors(fresh):
    stop.listen()
    with pytest.raises(stop.StopRequested):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("it was swallowed")


def test_requests_reach_the_main_thread_alone(fresh):
    stop.listen()
    other = threading.Thread(target=lambda: time.sleep(0.2))
    other.start()
    with pytest.raises(stop.StopRequested):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(1)
    other.join()
