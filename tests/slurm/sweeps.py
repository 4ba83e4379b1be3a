"""Sweeps on the development cluster, driven by the commands that a user types."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster

# A few seconds of training, with a checkpoint every few updates.
SHORT = (
    "task=cola",
    "task.predict_splits=[]",
    "data.dev_max_rows=64",
    "train.batch_size=8",
    "train.max_steps=24",
    "train.checkpoint_every=3",
    "engine.device=cpu",
    "engine.threads=1",
    "resources.cpus_per_task=1",
)


class Sweeps:
    """`lorsa-run -m` and `lorsa` in a folder, on a cluster."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster = cluster
        self.folder = folder
        self.runs_dir = folder / "runs"

    def launch(self, *overrides: str, ok: bool = True, launcher: str = "slurm") -> str:
        """Start a sweep; returns what was printed."""
        words = ["-m", "lorsa.runner.cli", "-m", *SHORT, *overrides]
        return self._python(*words, f"hydra/launcher={launcher}", ok=ok)

    def lorsa(self, *words: str, ok: bool = True) -> str:
        return self._python("-m", "lorsa.runner.app", *words, ok=ok)

    def states(self, *which: str) -> dict[str, dict[str, Any]]:
        """What `lorsa status` says, by signature."""
        return {run["signature"]: run for run in json.loads(self.lorsa("status", *which, "--json"))}

    def result(self, signature: str) -> dict[str, Any]:
        return json.loads((self.runs_dir / signature / "result.json").read_text())

    def log(self, signature: str) -> str:
        return (self.runs_dir / signature / "logs" / "output.log").read_text()

    def _python(self, *words: str, ok: bool) -> str:
        # No terminal: a wide line, so that nothing is folded.
        environment = self.cluster.environment | {"COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said
        return re.sub(r"\s+", " ", said)
