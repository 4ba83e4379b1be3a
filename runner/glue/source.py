"""The rows of a task from wherever they are: the embedded demo, the hub, or a local folder in either layout.

Whatever the source, the result is the same: datasets with the task's text columns, `label` and `idx`, checked row by
row, with the training set already cut into train and dev.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorsa.runner.errors import UserError, nearest
from lorsa.runner.glue import checks, tsv
from lorsa.runner.glue.fingerprint import HUB_DATASET, data_fingerprint
from lorsa.runner.glue.layout import find_files, required_splits
from lorsa.runner.glue.split import cut
from lorsa.runner.schema import DataConfig, TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

_Tables = dict[str, tuple["Table", str]]
"""For each split its rows, and what to call them in an error."""


@dataclass(frozen=True)
class TaskData:
    """Everything a run reads.

    Attributes:
        train: what is trained on.
        dev: the part of the training set that is held out for choosing a checkpoint, if any is.
        evaluation: for each split that is scored, its rows; every label is known.
        prediction: for each split whose predictions are written down, its rows; a label that is held back is -1.
        source: where the rows come from, as `data_fingerprint` says it.
    """

    train: "Dataset"
    dev: "Dataset | None"
    evaluation: dict[str, "Dataset"]
    prediction: dict[str, "Dataset"]
    source: str


def load_task(task: TaskConfig, data: DataConfig, hold_out: bool = True) -> TaskData:
    """Load, check and cut the rows of `task` from the source that `data` names.

    A task without a scored split of its own (AX) is scored on its prediction splits when these carry labels.

    Args:
        task: the task.
        data: the source.
        hold_out: whether to cut a dev part from the training set.

    Raises:
        UserError: the source cannot be reached or lacks the task, its rows are not sound, or the cut does not fit.
    """
    source = data_fingerprint(task, data)
    readers = {"demo": _read_demo, "glue": _read_hub, "local": _read_local}
    tables = readers[data.name](task, data)
    missing = [split for split in required_splits(task) if split not in tables]
    if missing:
        raise UserError(
            f"Task '{task.name}' of data={data.name} ({source}) has no split {' or '.join(missing)}; "
            f"it has: {', '.join(tables) or 'none'}."
        )
    labelled = required_splits(task)
    rows = {
        split: _dataset(checks.checked(table, task, where, split in labelled))
        for split, (table, where) in tables.items()
    }
    prediction = {split: rows[split] for split in task.predict_splits if split in rows}
    evaluation = {split: rows[split] for split in task.eval_splits}
    if not evaluation:
        evaluation = {
            split: dataset for split, dataset in prediction.items() if checks.NO_LABEL not in dataset["label"]
        }
    train, dev = cut(rows[task.train_split], data, hold_out)
    return TaskData(train, dev, evaluation, prediction, source)


def _dataset(table: "Table") -> "Dataset":
    from datasets import Dataset

    # In memory: the largest task is under 100 MB, and nothing is left behind in a cache shared by a whole sweep.
    return Dataset(table)


def _read_demo(task: TaskConfig, data: DataConfig) -> _Tables:
    import pyarrow as pa

    from lorsa.runner.demo.data import DEMO_TASKS, DEMO_VERSION, demo_rows

    if data.version not in (None, DEMO_VERSION):
        raise UserError(f"data.version={data.version}: this release generates version {DEMO_VERSION} of the demo data.")
    for name in (task.name, task.train_from):
        if name not in DEMO_TASKS:
            raise UserError(f"There is no demo data for task '{name}'{nearest(name, DEMO_TASKS)}")
    rows = demo_rows(task.name)
    if task.train_from != task.name:
        rows[task.train_split] = demo_rows(task.train_from)[task.train_split]
    return {split: (pa.Table.from_pylist(rows[split]), f"split '{split}' of the demo data") for split in rows}


def _read_local(task: TaskConfig, data: DataConfig) -> _Tables:
    files = find_files(task, data)
    tables: _Tables = {}
    for split, paths in files.splits.items():
        table = checks.read_parquet(paths) if files.layout == "parquet" else tsv.read_split(task, split, paths)
        tables[split] = table, f"split '{split}' ({paths[0]})"
    return tables


def _read_hub(task: TaskConfig, data: DataConfig) -> _Tables:
    repository = data.path or HUB_DATASET
    own = _download(repository, task.name, data.revision)
    training = own if task.train_from == task.name else _download(repository, task.train_from, data.revision)
    wanted = dict.fromkeys([*task.eval_splits, *task.predict_splits], own) | {task.train_split: training}
    return {
        split: (splits[split].with_format("arrow")[:], f"split '{split}' of {repository}")
        for split, splits in wanted.items()
        if split in splits
    }


def _download(repository: str, name: str, revision: str | None) -> Any:
    """Return the `DatasetDict` of one configuration of a repository, from the hub or from its cache."""
    import datasets

    try:
        return datasets.load_dataset(repository, name, revision=revision)
    except ConnectionError as error:
        raise UserError(
            f"{repository} is not in the cache and the hub cannot be reached ({error}); point at a copy on "
            "disk: data=local data.path=<folder with cola/train-*.parquet "
            "or CoLA/train.tsv>."
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{repository}{at} cannot be loaded as configuration '{name}': {reason}.") from error
