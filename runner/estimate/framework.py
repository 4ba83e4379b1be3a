"""What a process of a run has in memory without a model: Python, PyTorch and the other libraries, at work.

Measured once for each set of versions, as the peak of a short run of the embedded model, which has a million
parameters; kept in $LORSA_CACHE/estimates.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lorsa.methods.lorsa import default_folder
from lorsa.runner.device import versions
from lorsa.runner.errors import UserError
from lorsa.runner.terminal import aside

_SHORT = (
    "model=tiny_llama",
    "method=lora",
    "task=sst2",
    "data=demo",
    "engine.device=cpu",
    "task.eval_splits=[]",
    "task.predict_splits=[]",
    "data.train_rows=64",
    "data.dev_max_rows=16",
    "train.max_steps=4",
    "train.batch_size=4",
)


def folder() -> Path:
    """Return where measurements are kept."""
    return default_folder() / "estimates"


def framework_bytes(engine: str) -> int:
    """Return the bytes that a process of an engine has resident on the CPU, measured now if they were not yet.

    Raises:
        UserError: the measurement fails, as it does where DeepSpeed is not installed.
    """
    # The libraries are what differs: DeepSpeed's are loaded for all its engines alike, and hooks are ZeRO-3's.
    kind = "zero3" if engine.startswith("zero3") else "zero1" if engine.startswith("zero") else "single"
    key = hashlib.sha256(json.dumps([versions(), kind], sort_keys=True).encode()).hexdigest()[:16]
    path = folder() / f"framework-{key}.json"
    if path.is_file():
        return int(json.loads(path.read_text(encoding="utf-8"))["peak_bytes"])
    aside.print(f"Measuring what the libraries take under engine={kind}, once on this machine.", markup=False)
    peak = _measured(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    from lorsa.runner.rundir import write_atomic

    write_atomic(path, json.dumps({"engine": kind, "peak_bytes": peak}) + "\n")
    return peak


def _measured(engine: str) -> int:
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    with tempfile.TemporaryDirectory(prefix="lorsa-estimate-") as runs:
        command = [sys.executable, "-m", "lorsa.runner.cli", *_SHORT, f"engine={engine}", f"runs_dir={runs}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        results = list(Path(runs).glob("*/result.json"))
        if done.returncode or not results:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"what the libraries take under engine={engine} could not be measured: {last}")
        return int(json.loads(results[0].read_text(encoding="utf-8"))["memory"]["peak_bytes"])
