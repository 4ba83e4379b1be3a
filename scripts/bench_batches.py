"""Padding, and the cost of the training loop: our Trainer against a bare PyTorch loop over the same batches.

python scripts/bench_batches.py                                           # the demo's tasks, the embedded model
python scripts/bench_batches.py --data glue_data --model models/minilm --tasks sst2 cola mrpc stsb
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import DataCollatorWithPadding, TrainerCallback, get_linear_schedule_with_warmup

from lorsa.runner.batches import EncodedRows, LengthBucketSampler
from lorsa.runner.compose import compose
from lorsa.runner.job import Clock, adapt, load, make_trainer, prepare
from lorsa.runner.models import BaseModel
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.schema import JobConfig

ROUNDS = 5


class Stopwatch(TrainerCallback):
    """Times the updates alone, from the start of the first to the end of the last: no set-up, no checkpoint."""

    first = last = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start before the first batch is fetched."""
        self.first = self.first or time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end of an update."""
        self.last = time.perf_counter()


def padding_waste(rows: EncodedRows, batch_size: int) -> float:
    """Return the share of an epoch's tokens that is padding."""
    order = list(LengthBucketSampler(rows.lengths, batch_size, seed=0))
    longest = [max(rows.lengths[row] for row in order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    sizes = [len(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return 1 - sum(rows.lengths) / sum(length * size for length, size in zip(longest, sizes, strict=True))


def trainer_seconds(cfg: JobConfig, base: BaseModel, model: torch.nn.Module, rows: dict[str, EncodedRows]) -> float:
    """Return seconds per update of our Trainer, nothing but updates timed; `cfg.train.max_steps` of them."""
    directory = RunDirectory(cfg.runs_dir, "bench")
    directory.path.mkdir()
    trainer = make_trainer(cfg, base, model, rows, directory)
    trainer.evaluate = lambda *args, **kwargs: {"eval_primary": 0.0}  # type: ignore[method-assign]
    watch = Stopwatch()
    trainer.add_callback(watch)
    trainer.train()
    return (watch.last - watch.first) / cfg.train.max_steps


def seconds_per_update(overrides: list[str], updates: int) -> tuple[float, float]:
    """Return seconds per update of our Trainer and of a bare loop: medians of some rounds, in turns."""
    ours, bare = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            cfg = compose(f"runs_dir={folder}", f"train.max_steps={updates}", "method=lora", *overrides)
            device, method = prepare(cfg)
            _, base, rows = load(cfg)
            model, _ = adapt(cfg, method, base, rows["train"], device, Clock())
            ours.append(trainer_seconds(cfg, base, model, rows))

            sampler = LengthBucketSampler(rows["train"].lengths, cfg.train.batch_size, cfg.seed)
            collate = DataCollatorWithPadding(base.tokenizer)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=cfg.train.lr, weight_decay=0.0)
            schedule = get_linear_schedule_with_warmup(optimizer, 0, updates)
            model.train()
            start = time.perf_counter()
            order = list(sampler)
            for update in range(updates):
                first = update * cfg.train.batch_size % (len(order) - cfg.train.batch_size)
                chosen = order[first : first + cfg.train.batch_size]
                batch = collate([rows["train"].dataset[row] for row in chosen]).to(device)
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, cfg.optim.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            bare.append((time.perf_counter() - start) / updates)
    return statistics.median(ours), statistics.median(bare)


def main() -> None:
    """Measure the tasks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with GLUE; default: the demo")
    parser.add_argument("--model", help="a MiniLM folder; default: the embedded model")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "cola", "mrpc", "stsb"])
    parser.add_argument("--updates", type=int, default=30)
    arguments = parser.parse_args()
    overrides = ["data=local", f"data.path={arguments.data}"] if arguments.data else []
    overrides += ["model=minilm", f"model.path={arguments.model}"] if arguments.model else []
    print(f"{'task':6} {'padding':>8} {'Trainer, s':>11} {'bare, s':>8} {'ratio':>6}")
    for task in arguments.tasks:
        cfg = compose(f"task={task}", *overrides)
        prepare(cfg)
        rows = load(cfg)[2]["train"]
        ours, bare = seconds_per_update([f"task={task}", *overrides], arguments.updates)
        waste = padding_waste(rows, cfg.train.batch_size)
        print(f"{task:6} {waste:8.1%} {ours:11.4f} {bare:8.4f} {ours / bare:6.2f}")


if __name__ == "__main__":
    main()
