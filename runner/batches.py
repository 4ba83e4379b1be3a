"""From rows of text to batches: tokenised once, bucketed by length, padded to the longest row of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from lorsa.runner.schema import TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Rows are sorted by length within pools of so many batches: enough to leave little padding, few enough for chance to
# keep the batches of two epochs different.
POOL_BATCHES = 50


@dataclass(frozen=True)
class EncodedRows:
    """Tokenised rows.

    Attributes:
        dataset: the model's inputs and `labels`, as lists.
        ids: each row's `idx` in its split of the task.
        lengths: tokens of each row.
    """

    dataset: Dataset
    ids: list[int]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> EncodedRows:
        """Return the rows from `start` to before `stop`."""
        some = slice(start, stop)
        chosen = range(*some.indices(len(self)))
        return EncodedRows(self.dataset.select(chosen), self.ids[some], self.lengths[some])


def encode(
    rows: Dataset, task: TaskConfig, max_length: int, tokenizer: PreTrainedTokenizerBase, by_length: bool = False
) -> EncodedRows:
    """Tokenise a split.

    Args:
        rows: the task's text columns, `label` and `idx`.
        task: names the columns.
        max_length: tokens per row at most.
        tokenizer: the model's.
        by_length: longest first, for splits whose order does not matter: evaluation in order then pads little.
    """
    from datasets import Dataset

    columns = [list(rows[column]) for column in task.columns]
    encoding = dict(tokenizer(*columns, truncation=True, max_length=max_length))
    lengths = [len(row) for row in encoding["input_ids"]]
    order: Sequence[int] = range(len(lengths))
    if by_length:
        order = sorted(order, key=lambda row: -lengths[row])
    inputs: dict[str, list[Any]] = {
        name: [values[row] for row in order] for name, values in encoding.items() if name in tokenizer.model_input_names
    }
    labels, ids = list(rows["label"]), list(rows["idx"])
    convert = int if task.labels else float
    inputs["labels"] = [convert(labels[row]) for row in order]
    return EncodedRows(Dataset.from_dict(inputs), [ids[row] for row in order], [lengths[row] for row in order])


# The label of a row that is there to keep a process busy, and counts for nothing; no task has it.
NO_ROW = -100


class RowsAndFillers:
    """Rows by index; a negative index -1 - i is row i with the label `NO_ROW`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataset[index if index >= 0 else -1 - index]
        return row if index >= 0 else row | {"labels": type(row["labels"])(NO_ROW)}


class ProcessBatches(Sampler[list[int]]):
    """The batches of one process of several: all together take the rows of each update, and each as many passes.

    Of the rows of an update, sorted by length, process p takes each N-th from p, so that all have rows of like length.
    Where the last update of an epoch leaves a process no row for a pass, it gets a filler (`RowsAndFillers`).

    Args:
        order: the rows, one update after the other.
        batch_size: rows per process and pass.
        passes: forward passes per update.
        rank: which process.
        processes: how many there are.
    """

    def __init__(self, order: LengthBucketSampler, batch_size: int, passes: int, rank: int, processes: int) -> None:
        self.order = order
        self.batch_size, self.passes = batch_size, passes
        self.rank, self.processes = rank, processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of one epoch."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.order) / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        per_pass = self.batch_size * self.processes
        per_update = per_pass * self.passes
        for first in range(0, len(rows), per_update):
            update = rows[first : first + per_update]
            mine = update[self.rank :: self.processes]
            for start in range(0, math.ceil(len(update) / per_pass) * self.batch_size, self.batch_size):
                yield mine[start : start + self.batch_size] or [-1 - update[-1]]


class LengthBucketSampler(Sampler[int]):
    """Every row once an epoch, in batches of rows of like length, in an order that depends on seed and epoch alone.

    That it uses no global random state is what lets a resumed run see the very batches it would have seen.

    Args:
        lengths: tokens of each row.
        batch_size: rows per update, over all accumulation steps and processes.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of one epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool = POOL_BATCHES * self.batch_size
        batches: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        # An incomplete batch must stay last, or every later batch would be cut out of two buckets.
        incomplete = [batch for batch in batches if len(batch) < self.batch_size]
        complete = [batch for batch in batches if len(batch) == self.batch_size]
        for position in generator.permutation(len(complete)):
            yield from complete[position].tolist()
        for batch in incomplete:
            yield from batch.tolist()
