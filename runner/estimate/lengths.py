"""How many tokens the rows of a task have, and so which shapes its batches have."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lorsa.runner.batches import LengthBucketSampler, ProcessBatches, encode
from lorsa.runner.errors import UserError
from lorsa.runner.glue.source import load_task
from lorsa.runner.models import load_tokenizer
from lorsa.runner.schema import JobConfig

# Quantiles of real GLUE's token counts; scripts/task_lengths.py writes it.
TABLE = Path(__file__).with_name("lengths.json")
# Of a larger split so many rows are tokenised, the first of the shuffle that training draws from.
SAMPLE = 20_000

Shape = tuple[int, int]
"""Rows and tokens of a batch."""


@dataclass(frozen=True)
class Lengths:
    """Token counts of a task's rows.

    Attributes:
        train: of the training rows.
        dev: of the part that chooses the checkpoint, if it is cut from the training set.
        splits: of each split that is scored or predicted.
        source: where they come from, in words.
        exact: whether they are those of the very rows.
    """

    train: list[int]
    dev: list[int]
    splits: dict[str, list[int]]
    source: str
    exact: bool


def task_lengths(cfg: JobConfig) -> Lengths:
    """Return the token counts of a run's rows: of the rows, where they and the tokenizer are here, else as recorded.

    Raises:
        UserError: local data that are not sound, or a task that is nowhere.
    """
    try:
        tokenizer = load_tokenizer(cfg)
    except UserError:
        return _recorded(cfg)
    try:
        data = load_task(cfg.task, cfg.data, hold_out=cfg.protocol == "split")
    except UserError:
        if cfg.data.name != "glue":
            raise
        return _recorded(cfg)
    train, dev = data.train, data.dev
    if cfg.train.overfit_rows is not None:
        train = train.select(range(min(cfg.train.overfit_rows, len(train))))
        dev = None if dev is None else train
    exact = True

    def count(rows: Any) -> list[int]:
        nonlocal exact
        some = rows.select(range(min(SAMPLE, len(rows))))
        lengths = encode(some, cfg.task, cfg.train.max_length, tokenizer).lengths
        exact = exact and len(some) == len(rows)
        return np.resize(lengths, len(rows)).tolist()

    splits = {name: count(rows) for name, rows in (data.evaluation | data.prediction).items()}
    train_lengths, dev_lengths = count(train), [] if dev is None else count(dev)
    words = f"{data.source}, tokenised with the model's tokenizer"
    if not exact:
        words += f" (the first {SAMPLE:,} rows of each split)"
    return Lengths(train_lengths, dev_lengths, splits, words, exact)


def _recorded(cfg: JobConfig) -> Lengths:
    """Return rows with the recorded quantiles of GLUE; where a task has none, all rows are as long as they may be."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if cfg.task.name not in table["rows"]:
        raise UserError(
            f"task={cfg.task.name}: its rows or its tokenizer are not here, and only GLUE's lengths come with the "
            "package; fetch them with lorsa prefetch."
        )
    rows: dict[str, int] = table["rows"][cfg.task.name]
    kind = "llama" if _is_llama(cfg) else "bert"
    quantiles: dict[str, list[int]] = table["lengths"][kind].get(cfg.task.name, {})

    def spread(split: str, count: int) -> list[int]:
        points = quantiles.get(split) or quantiles.get("train") or [cfg.train.max_length]
        # In a random order, as the rows of a task are.
        at = np.random.default_rng(0).permutation(np.linspace(0, 1, count) if count > 1 else np.ones(1))
        lengths = np.interp(at, np.linspace(0, 1, len(points)), points).round()
        return np.minimum(lengths, cfg.train.max_length).astype(int).tolist()

    total = rows[cfg.task.train_split]
    dev = min(cfg.data.dev_max_rows, max(1, round(cfg.data.dev_fraction * total))) if cfg.protocol == "split" else 0
    train = min(cfg.data.train_rows or total, total - dev)
    if cfg.train.overfit_rows is not None:
        train = min(train, cfg.train.overfit_rows)
        dev = train if dev else 0
    names = [name for name in (*cfg.task.eval_splits, *cfg.task.predict_splits) if name in rows]
    words = f"recorded lengths of GLUE under {table['tokenizers'][kind]}"
    if not quantiles:
        words = f"no recorded lengths: every row counted with train.max_length={cfg.train.max_length}, an upper bound"
    return Lengths(
        spread(cfg.task.train_split, train),
        spread(cfg.task.train_split, dev) if dev else [],
        {name: spread(name, rows[name]) for name in names},
        words,
        False,
    )


def _is_llama(cfg: JobConfig) -> bool:
    from lorsa.runner.estimate.parameters import model_config

    return str(model_config(cfg.model).model_type) not in ("bert", "roberta", "deberta-v2", "distilbert", "electra")


def training_shapes(cfg: JobConfig, lengths: Lengths, processes: int) -> list[Shape]:
    """Return the shape of each batch that the first process trains on in the first epoch, or until `max_steps`."""
    passes = cfg.train.gradient_accumulation
    order = LengthBucketSampler(lengths.train, cfg.train.batch_size * passes * processes, cfg.seed)
    if processes > 1:
        batches = [
            [row if row >= 0 else -1 - row for row in batch]
            for batch in ProcessBatches(order, cfg.train.batch_size, passes, 0, processes)
        ]
    else:
        rows = list(order)
        batches = [rows[first : first + cfg.train.batch_size] for first in range(0, len(rows), cfg.train.batch_size)]
    if cfg.train.max_steps > 0:
        batches = list(islice(batches, cfg.train.max_steps * passes))
    return [(len(batch), max(lengths.train[row] for row in batch)) for batch in batches]


def evaluation_shapes(cfg: JobConfig, lengths: Sequence[int]) -> list[Shape]:
    """Return the shapes of the batches of a split that is scored, longest first."""
    ordered, size = sorted(lengths, reverse=True), cfg.train.eval_batch_size
    return [(len(ordered[first : first + size]), ordered[first]) for first in range(0, len(ordered), size)]


def drawn_shapes(cfg: JobConfig, lengths: Lengths, rows: int) -> list[Shape]:
    """Return the shapes of the batches that are looked at before the training, as `job.drawn_batches` draws them."""
    drawn = np.random.default_rng(cfg.seed).permutation(len(lengths.train))[:rows]
    ordered, size = sorted(lengths.train[row] for row in drawn), cfg.train.batch_size
    parts = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    return [(len(part), part[-1]) for part in parts]


def updates(cfg: JobConfig, rows: int, processes: int) -> int:
    """Return the number of optimizer updates, as `training.total_updates` counts them."""
    if cfg.train.max_steps > 0:
        return cfg.train.max_steps
    passes = math.ceil(rows / (cfg.train.batch_size * processes))
    return math.ceil(cfg.train.epochs * math.ceil(passes / cfg.train.gradient_accumulation))


def largest(shapes: Sequence[Shape]) -> Shape:
    """Return the shape with the most tokens, padding counted."""
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
