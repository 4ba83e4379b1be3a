"""Time what a large sweep costs on the login node.

    eval "$(scripts/slurm_dev_cluster.sh env)"   # or on a cluster's login node; without SLURM, only the dry run
    python scripts/bench_sweep.py --runs 1000 --directories 10000

The submitted jobs are cancelled at once. `lorsa status` is timed over made-up run directories.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--directories", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        time_submission(Path(folder), arguments.runs)
        time_status(Path(folder), arguments.directories)


def time_submission(folder: Path, runs: int) -> None:
    """Submit a sweep of 5 methods, 2 tasks and as many seeds as that needs."""
    seeds = runs // 10
    sweep = ["method=lorsa,lora,pissa,head,full", "task=sst2,cola", f"seed=range({seeds})"]
    slurm = shutil.which("sbatch") is not None
    options = ["hydra/launcher=slurm", "hydra.launcher.parallel=1"] + ([] if slurm else ["dry_run=true"])
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lorsa.runner.cli", "-m", *sweep, *options], cwd=folder, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    print(f"{seeds * 10} runs composed, checked and {'submitted' if slurm else 'shown'} in {seconds:.1f} s")
    if slurm:
        in_slurm = time_slurm(folder)
        print(f"  of which SLURM's own time, measured again on the same scripts: {in_slurm:.1f} s")
        for job in set(re.findall(r"jobs? (\d+)", done.stdout)):
            subprocess.run(["scancel", job], check=True)


def time_slurm(folder: Path) -> float:
    """Return how long sbatch takes for the same scripts: to check them and to submit them."""
    seconds = 0.0
    for script in folder.glob("runs/sweeps/*/submitit/.submission_file_*.sh"):
        for options in (["--test-only"], ["--hold"]):
            began = time.perf_counter()
            done = subprocess.run(["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True)
            seconds += time.perf_counter() - began
            if options == ["--hold"]:
                subprocess.run(["scancel", done.stdout.strip()], check=True)
    return seconds


def time_status(folder: Path, directories: int) -> None:
    """Time `lorsa status` over run directories of which one in ten still runs."""
    runs = folder / "many"
    for index in range(directories):
        path = runs / f"{index:016x}"
        path.mkdir(parents=True)
        state = "running" if index % 10 == 0 else "done"
        status = {"state": state, "model": "tiny_llama", "method": "lorsa", "task": "sst2", "seed": index, "step": 7}
        status |= {"max_steps": 70, "score": 0.5, "attempt": 1, "deaths": 0, "host": "elsewhere", "pid": 1}
        status |= {"job_id": f"1_{index}", "launcher": "slurm", "heartbeat": time.time()}
        (path / "status.json").write_text(json.dumps(status))
        (path / "job.json").write_text(json.dumps({"job_id": f"1_{index}", "launcher": "slurm", "sweep": "s"}))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lorsa.runner.app", "status", "--runs-dir", str(runs)], capture_output=True, check=True
    )
    print(f"lorsa status over {directories} run directories: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
