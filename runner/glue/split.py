"""The protocol's cut: a fixed dev part of the training set, on which a checkpoint is chosen.

GLUE hides its test labels, so the validation set is what gets reported; choosing the checkpoint on it as well would
report a maximum instead of a measurement.
"""

from typing import TYPE_CHECKING

from lorsa.runner.errors import UserError
from lorsa.runner.schema import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_FRACTION = 0.5


def cut(train: "Dataset", data: DataConfig, hold_out: bool = True) -> tuple["Dataset", "Dataset | None"]:
    """Shuffle the training set by `data.split_seed` and cut it into (train, dev).

    Dev is taken from the end, `data.dev_fraction` of the rows but at most `data.dev_max_rows`; train is the first
    `data.train_rows` of what remains, or all of it. So `data.train_rows=3000` is the first 3,000 rows of the shuffled
    training set, a larger value only adds rows, and the dev part is the same for all of them.

    Args:
        train: the training set.
        data: says how many rows go where.
        hold_out: False keeps every row for training, and the dev part is None.

    Raises:
        UserError: `dev_fraction`, `dev_max_rows` or `train_rows` is out of range for this training set.
    """
    rows = len(train)
    if not 0 < data.dev_fraction <= _MAX_FRACTION:
        raise UserError(f"data.dev_fraction={data.dev_fraction} is out of range; it must be above 0 and at most 0.5.")
    if data.dev_max_rows < 1:
        raise UserError(f"data.dev_max_rows={data.dev_max_rows} is out of range; it must be at least 1.")
    dev_rows = min(data.dev_max_rows, max(1, round(data.dev_fraction * rows))) if hold_out else 0
    remaining = rows - dev_rows
    if remaining < 1:
        raise UserError(f"A training set of {rows} row(s) cannot be cut into a training and a dev part; it needs two.")
    train_rows = remaining if data.train_rows is None else data.train_rows
    if not 1 <= train_rows <= remaining:
        raise UserError(
            f"data.train_rows={train_rows} is out of range; of {rows} training rows {dev_rows} are the dev part, "
            f"so it must be from 1 to {remaining}, or null for all."
        )
    permuted = train.shuffle(seed=data.split_seed, keep_in_memory=True)
    return permuted.select(range(train_rows)), permuted.select(range(remaining, rows)) if hold_out else None
