"""How long does `lorsa report` take over many runs, and how much memory? Runs are made up, each report a process.

python scripts/bench_report.py                  # 10,000 and 24 runs; goals: 10 s and 1 GB, 3 s
python scripts/bench_report.py --runs 24 --html # with the page
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
LAYERS, COMPONENTS = 24, 64  # of a LoRSA run: its indices are most of the file
MODULES = ("query", "key", "value", "attention.output.dense")
REPORT = """
import resource, sys, time
start = time.perf_counter()
from lorsa.runner import app
sys.argv = ["lorsa", "report", *sys.argv[1:]]
try:
    app.main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    heavy = sorted({"torch", "transformers", "pandas"} & set(sys.modules))
    print(f"{time.perf_counter() - start:.2f} {peak:.0f} {heavy}", file=sys.stderr)
"""


def config(method: str, task: str, seed: int, rate: float) -> dict[str, Any]:
    """Return a config as large as a real one."""
    settings: dict[str, Any] = {f"setting_{number}": number for number in range(12)}
    return {
        "model": {"name": "minilm", "path": "models/minilm", "dtype": "float32", "modules": {"attention": MODULES}},
        "method": {"name": method, "config": {"_target_": f"peft.{method}", "r": 8, "seed": seed}, "lr": rate},
        "task": {"name": task, "columns": ["sentence1", "sentence2"], "epochs": 3.0, "batch_size": 32, **settings},
        "data": {"name": "glue", "train_rows": None, "dev_fraction": 0.1, "split_seed": 0},
        "optim": {"name": "adamw_torch", "betas": [0.9, 0.999], **settings},
        "engine": {"name": "single", "device": "auto", "precision": "bf16", "threads": 1},
        "resources": {"nodes": 1, "tasks_per_node": 1, **settings},
        "tracker": {"name": "none"},
        "train": {"epochs": 3.0, "max_steps": -1, "batch_size": 32, "lr": rate, "head_lr": rate},
        "protocol": "split",
        "seed": seed,
        "runs_dir": "runs",
        "force": False,
    }


@cache
def components() -> dict[str, list[int]]:
    """Return what a LoRSA run chose, in as many modules as a real one has."""
    draw = random.Random(0)
    modules = [f"bert.encoder.layer.{layer}.{name}" for layer in range(LAYERS) for name in MODULES]
    return {name: sorted(draw.sample(range(384), COMPONENTS)) for name in modules}


def make_run(folder: Path, number: int) -> None:
    """Write the result.json, status.json and metrics.jsonl of one made-up run."""
    draw = random.Random(number)
    task, rest = TASKS[number % len(TASKS)], number // len(TASKS)
    method, rest = ("lorsa", "lora", "head", "dora")[rest % 4], rest // 4
    seed, rate = rest % 10, 1e-4 * (1 + rest // 10)
    signature = f"{number:016x}"
    score = draw.gauss(0.8, 0.02)
    chosen = components() if method == "lorsa" else None
    metrics = {split: {"validation": {"accuracy": score}} for split in ("dev", "test")}
    result = {
        "schema_version": 1, "signature": signature, "status": "done", "task": task, "model": "minilm",
        "method": method, "seed": seed, "data_source": "nyu-mll/glue@main", "is_demo": False,
        "config": config(method, task, seed, rate), "protocol": "split", "metrics": metrics,
        "primary_metric": {"name": "accuracy", "dev": score, "test": score}, "best_step": 100,
        "adapter_params": 38400, "head_params": 770, "trainable_params": 39170, "total_params": 22713986,
        "trainable_percent": 0.172, "rows": {"train": 3000, "dev": 367, "validation": 408}, "components": chosen,
        "timings": {"load": 1.0, "adapt": 0.1, "train": draw.uniform(50, 90), "evaluate": 2.0, "total": 90.0},
        "throughput": {"tokens_per_s": draw.uniform(700, 900), "examples_per_s": 14.0},
        "memory": {"peak_bytes": 2902085632, "adapter_bytes": 4931176},
        "hardware": {"device": "cpu", "gpus": [], "cpu": "a processor"}, "versions": {"torch": "2.13.0"},
        "git": {"commit": None, "dirty": None}, "model_commit": "0" * 40, "attempts": 1, "resumed_from_step": 0,
    }  # fmt: skip
    path = folder / signature
    path.mkdir()
    (path / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (path / "status.json").write_text(json.dumps({"state": "done", "method": method, "task": task, "seed": seed}))
    lines = [{"step": step, "epoch": step / 100, "loss": 1 / step} for step in range(10, 300, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measure(runs: int, options: list[str]) -> None:
    """Make the runs, report on them, and print what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "runs"
        folder.mkdir()
        for number in range(runs):
            make_run(folder, number)
        size = sum(path.stat().st_size for path in folder.glob("*/result.json")) / 2**20
        command = [sys.executable, "-c", REPORT, str(folder), *options]
        if "--html" in options:
            command.append(str(Path(temporary) / "report.html"))
        start, before = time.perf_counter(), os.times()
        done = subprocess.run(command, capture_output=True, text=True)
        wall, after = time.perf_counter() - start, os.times()
        if done.returncode:
            sys.exit(done.stderr)
        _, peak, heavy = done.stderr.strip().splitlines()[-1].split(" ", 2)
        used = after.children_user + after.children_system - before.children_user - before.children_system
        print(
            f"{runs:,} runs, {size:,.0f} MiB: {wall:.2f} s, of them {used:.2f} s on the processor; {peak} MiB; {heavy}"
        )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[10_000, 24])
    parser.add_argument("--html", action="store_true", help="write the page too")
    arguments = parser.parse_args()
    for runs in arguments.runs:
        measure(runs, ["--baseline", "lora lr=0.0001" if runs > 400 else "lora", *["--html"] * arguments.html])


if __name__ == "__main__":
    main()
