"""Run directories that are made up, and a wandb server that is too; no account of anybody's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logged import lines
from omegaconf import OmegaConf
from wandb_server import KEY, WandbServer

sys.path.insert(0, str(Path(__file__).parents[1]))

from sample_result import sample_result

from lorsa.runner.compose import compose
from lorsa.runner.schema import JobConfig


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a person or a machine has set for wandb."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server, and the key to it in the environment."""
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.close()
    assert server.unknown == []


@pytest.fixture(scope="session")
def config() -> JobConfig:
    return compose("method=lora", "tracker=wandb", "tracker.tags=[mine]", "tracker.finish_seconds=20")


@pytest.fixture
def make_run(tmp_path: Path, config: JobConfig) -> Callable[..., Path]:
    """Write a run's directory, done or not."""

    def make(
        name: str = "1f0c5e8a9b7d6342", *, done: bool = True, log: str = lines(10, 100), tracker: str = ""
    ) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        own = OmegaConf.merge(config, {"tracker": {"name": tracker or "wandb"}})
        (run / "config.yaml").write_text(OmegaConf.to_yaml(own, resolve=True))
        (run / "metrics.jsonl").write_text(log)
        (run / "status.json").write_text(json.dumps({"state": "done" if done else "interrupted"}))
        if done:
            (run / "adapter").mkdir()
            (run / "adapter" / "README.md").write_text("# A run\n")
            (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
            (run / "predictions").mkdir()
            (run / "predictions" / "dev.jsonl").write_text("{}\n")
            (run / "result.json").write_text(json.dumps(sample_result(config)))
        return run

    return make


@pytest.fixture
def lorsa(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `lorsa` in a process of its own, with no terminal to prompt at; at most twenty seconds."""

    def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "lorsa.runner.app", *map(str, arguments)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    return command


class Companion:
    """The companion of a run that a test plays."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.log = run / "companion.log"
        words = [sys.executable, "-m", "lorsa.runner.trackers.companion", str(run), "the-sweep"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)

    def end(self, how: str) -> None:
        """Say how the run ended; nothing if it was killed."""
        self.process.communicate(f"{how}\n" if how else "", timeout=40)


@pytest.fixture
def companion() -> Iterator[Callable[[Path], Companion]]:
    started: list[Companion] = []

    def start(run: Path) -> Companion:
        started.append(Companion(run))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
