"""How close `lorsa estimate` comes to the measured peak: full, LoRA and LoRSA under engine=single, zero1 and zero3.

python scripts/bench_estimate.py --models models --glue glue [--only minilm:lora:single]

Each case is estimated, then run: some updates on MRPC in processes of their own, on the CPU; of the ZeRO engines two.
The measured peak is result.json's memory.peak_bytes, the most that one of a run's processes had resident. Prints both
and their ratio. `scripts/unpack_small_models.py` makes the models' folder.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS, ENGINES, PROCESSES = ("full", "lora", "lorsa"), ("single", "zero1", "zero3"), 2
SHORT = (
    "engine.device=cpu",
    "engine.threads=1",
    "data=local",
    "task=mrpc",
    "task.eval_splits=[]",
    "task.predict_splits=[]",
    "data.train_rows=192",
    "data.dev_max_rows=64",
    "train.max_steps=6",
    "train.batch_size=8",
    "method.calibration_rows=32",
)


def overrides(model: str, method: str, models: Path, glue: Path) -> list[str]:
    """Return what a case has in common under all engines."""
    chosen = [f"model={model}", f"model.path={models / model}", f"method={method}", f"data.path={glue}", *SHORT]
    if model == "smollm2_135m":
        chosen.append("model.gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf")
    return chosen


def measured(case: list[str], engine: str) -> int:
    """Run a case, and return its peak in bytes."""
    count = 1 if engine == "single" else PROCESSES
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="bench-estimate-") as folder:
        command = [sys.executable, "-m", "lorsa.runner.cli", *case, f"engine={engine}", f"runs_dir={folder}"]
        started = []
        for rank in range(count):
            names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": port}
            launcher = names | {"MASTER_ADDR": "127.0.0.1"} if count > 1 else {}
            started.append(subprocess.Popen(command, env=os.environ | launcher, stdout=subprocess.DEVNULL))
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit(f"the run under engine={engine} failed")
        (result,) = Path(folder).glob("*/result.json")
        return int(json.loads(result.read_text())["memory"]["peak_bytes"])


def estimated(case: list[str], engine: str) -> dict[str, Any]:
    """Return the estimate of a case."""
    tasks = [] if engine == "single" else [f"resources.tasks_per_node={PROCESSES}"]
    # A sweep, if of one, is estimated under its own engine alone.
    chosen = [*case, f"engine={engine}", *tasks, "seed=0,1"]
    command = [sys.executable, "-m", "lorsa.runner.app", "estimate", *chosen, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    memory: dict[str, Any] = document["runs"][0]["memory"][engine]
    return memory


def main() -> None:
    """Estimate and run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="cases as model:method:engine")
    arguments = parser.parse_args()
    print("| model | method | engine | estimate, MiB | measured, MiB | ratio |\n|---|---|---|---|---|---|")
    for model in ("minilm", "smollm2_135m"):
        for method in METHODS:
            for engine in ENGINES:
                if arguments.only and f"{model}:{method}:{engine}" not in arguments.only:
                    continue
                case = overrides(model, method, arguments.models.absolute(), arguments.glue.absolute())
                guess, peak = estimated(case, engine)["peak_bytes"], measured(case, engine)
                row = (model, method, engine, f"{guess / 2**20:,.0f}", f"{peak / 2**20:,.0f}", f"{guess / peak:.2f}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
