"""How much longer does a run take with a tracker, where wandb's server refuses, is silent, or there is no key?

python scripts/bench_tracking.py --repeats 5 --epochs 6       # whole runs: needs a quiet machine
python scripts/bench_tracking.py --ends --repeats 3           # what a run pays: its wait, and the companion's CPU time
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIMIT = 1.05
KEY = "0" * 40
PLAIN = "no tracker"


def silent_server() -> str:
    """Return the address of a server that takes connections, and never answers."""
    server = socket.create_server(("127.0.0.1", 0), backlog=256)
    connections = []

    def take() -> None:
        while True:
            connections.append(server.accept())

    threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def seconds(overrides: list[str], folder: Path, variables: dict[str, str]) -> float:
    """Return how long a run takes, from the command to its end."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # Nobody's key: what a person is logged in with is in their home folder.
    environment = inherited | {"HOME": str(folder), "LORSA_CACHE": str(folder / "cache")} | variables
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lorsa.runner.cli", *overrides],
        cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - start


def end_of(overrides: list[str], folder: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Return how long a run of eight seconds waits for its companion at the end, and the companion's CPU seconds.

    The run sleeps instead of training, so that this is no matter of what else the machine does with its processors.
    """
    script = """
import resource, sys, time
from omegaconf import OmegaConf
from lorsa.runner.compose import compose
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.trackers.tracking import tracked
cfg = compose(*sys.argv[1:])
run = RunDirectory("runs", "0" * 16)
run.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
try:
    with tracked(cfg, run):
        for step in range(10, 400, 10):
            run.log({"step": step, "epoch": step / 100, "loss": 1 / step})
            time.sleep(0.2)
        end = time.perf_counter()
        raise ValueError  # a failed run: it has no result
except ValueError:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(time.perf_counter() - end, used.ru_utime + used.ru_stime)
"""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script, *overrides],
        cwd=folder, env=inherited | {"HOME": str(folder)} | variables, check=True, capture_output=True, text=True,
    )  # fmt: skip
    waited, used = done.stdout.splitlines()[-1].split()
    return float(waited), float(used)


def show_ends(variants: dict[str, tuple[list[str], dict[str, str]]], repeats: int) -> None:
    """Measure and print the ends of runs."""
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(repeats):
            for name, (more, variables) in variants.items():
                ends[name].append(end_of(more, Path(temporary), variables))
    print(f"{'run':36} {'waits, s':>10} {'CPU, s':>8}   medians of {repeats}")
    for name, values in ends.items():
        waited, used = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:36} {waited:10.2f} {used:8.2f}")


def main() -> None:
    """Measure in turns, each second round backwards, and print medians of the ratios to the run beside."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="of the demo's SST-2; a run should take a minute")
    parser.add_argument("--ends", action="store_true", help="measure the ends of runs alone")
    options = parser.parse_args()
    refused = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    variants: dict[str, tuple[list[str], dict[str, str]]] = {
        PLAIN: ([], {}),
        "wandb, no key": (["tracker=wandb"], {}),
        "wandb, connections refused": (["tracker=wandb"], refused),
        "wandb, a server that never answers": (["tracker=wandb"], refused | {"WANDB_BASE_URL": silent_server()}),
        "tensorboard": (["tracker=tensorboard"], {}),
    }
    if options.ends:
        show_ends(variants, options.repeats)
        return
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The basis is computed once, and files are read for the first time.
        seconds(["train.max_steps=2", "engine.threads=1", "method=lorsa"], folder, {})
        for repeat in range(options.repeats):
            for name in list(variants)[:: 1 if repeat % 2 == 0 else -1]:
                more, variables = variants[name]
                run = ["method=lorsa", "engine.threads=1", f"train.epochs={options.epochs}", *more]
                times[name].append(seconds(run, folder, variables))
    print(f"{'run':36} {'median, s':>10} {'ratio':>6} {'at most':>8}")
    for name, values in times.items():
        ratio = statistics.median(mine / plain for mine, plain in zip(values, times[PLAIN], strict=True))
        print(
            f"{name:36} {statistics.median(values):10.1f} {ratio:6.3f} {'' if name == PLAIN else LIMIT:>8}",
            [round(v) for v in values],
        )


if __name__ == "__main__":
    main()
