"""What ZeRO-3 saves: memory per process for the frozen model, and the size of a checkpoint, beside one process.

python scripts/bench_engines.py model=smollm2_135m model.path=models/smollm2_135m \
    model.gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf

Trains a few updates in one process, then in two under engine=zero3, on the CPU. Prints for each process the bytes that
the frozen weights take between two updates, the anonymous memory resident then, and the seconds of an update; and the
size of a checkpoint as a share of the model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROCESSES = 2
UPDATES = 4
SMALL = (
    f"train.max_steps={UPDATES}",
    "train.batch_size=2",
    "train.checkpoint_every=2",
    "train.overfit_rows=16",
    "train.eval_batch_size=4",
    "method.calibration_rows=4",
    "task.eval_splits=[]",
    "task.predict_splits=[]",
    "engine.device=cpu",
    "engine.threads=1",
)


def resident() -> int:
    """Return the anonymous memory of this process, in bytes, with what is free given back first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def frozen_bytes(model: Any) -> int:
    """Return what this process holds of the parameters that do not train."""
    total = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            held = [parameter.data] + ([parameter.ds_tensor] if hasattr(parameter, "ds_id") else [])
            total += sum(tensor.numel() * tensor.element_size() for tensor in held)
    return total


def work(overrides: list[str], out: Path) -> None:
    """Train one process' share, and write what it saw to `out`."""
    from transformers import TrainerCallback

    from lorsa.runner.compose import compose
    from lorsa.runner.distributed import is_main, together
    from lorsa.runner.follower import Follower
    from lorsa.runner.job import Clock, adapt, load, make_trainer, prepare
    from lorsa.runner.rundir import RunDirectory
    from lorsa.runner.validate import check

    seen: dict[str, Any] = {"frozen": 0, "resident": 0, "seconds": [], "checkpoint": 0}

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen["seconds"].append(time.perf_counter() - self.start)
            seen["frozen"] = max(seen["frozen"], frozen_bytes(model))
            seen["resident"] = max(seen["resident"], resident())

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seen["checkpoint"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    cfg = compose(*overrides)
    check(cfg)
    with together(cfg):
        device, method = prepare(cfg)
        _, base, rows = load(cfg)
        model, report = adapt(cfg, method, base, rows["train"], device, Clock())
        directory = (RunDirectory if is_main() else Follower)(cfg.runs_dir, "bench")
        trainer = make_trainer(cfg, base, model, rows, directory)
        trainer.add_callback(Look())
        directory.path.mkdir(parents=True, exist_ok=True)
        trainer.fit()
    out.write_text(json.dumps(seen | {"parameters": report.total_params, "trained": report.trainable_params}))


def measure(folder: Path, engine: str, processes: int, overrides: list[str]) -> list[dict[str, Any]]:
    """Run one engine; returns what each process saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [f"runs_dir={folder / engine}", f"engine={engine}", *SMALL, *overrides]
    started = []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        launcher = {name: str(value) for name, value in names.items()} | {"MASTER_PORT": port}
        command = [sys.executable, __file__, "--work", str(folder / f"{engine}-{rank}.json"), *arguments]
        started.append(subprocess.Popen(command, env=os.environ | (launcher if processes > 1 else {})))
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"engine={engine} failed")
    return [json.loads((folder / f"{engine}-{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Measure both, and print the ratios."""
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[3:], Path(sys.argv[2]))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-engines-"))
    try:
        seen = {
            engine: measure(folder, engine, processes, sys.argv[1:])
            for engine, processes in (("single", 1), ("zero3", PROCESSES))
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    (alone,) = seen["single"]
    model_bytes = 4 * alone["parameters"]
    print(f"{'':10}{'frozen MiB':>12}{'ratio':>8}{'resident MiB':>14}{'ratio':>8}{'s/update':>10}{'checkpoint':>12}")
    for engine, processes in seen.items():
        for rank, one in enumerate(processes):
            print(
                f"{engine} {rank:<{9 - len(engine)}}"
                f"{one['frozen'] / 2**20:>12.1f}{one['frozen'] / alone['frozen']:>8.2f}"
                f"{one['resident'] / 2**20:>14.1f}{one['resident'] / alone['resident']:>8.2f}"
                f"{min(one['seconds']):>10.2f}{100 * one['checkpoint'] / model_bytes:>10.2f} %"
            )


if __name__ == "__main__":
    main()
