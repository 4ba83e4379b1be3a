"""What a task's rows must be before anything is trained on them, and a sentence for each way in which they are not."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsa.runner.errors import UserError
from lorsa.runner.schema import TaskConfig

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray, Table

log = logging.getLogger(__name__)

_MAX_SCORE = 5.0
NO_LABEL = -1  # how the hub marks the rows of a split whose labels are held back
# QQP as published has a handful of pairs with an empty question among its 400,000. Dropping them would make the scores
# incomparable, so they stay; anything beyond such a trace is a damaged file.
_EMPTY_PAIRS = 0.001


def read_parquet(files: list[Path]) -> "Table":
    """Read Parquet files into one table, and verify that their text is UTF-8.

    Raises:
        UserError: a file is not Parquet, is damaged, or differs in columns from the first.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables: list[Table] = []
    for file in files:
        try:
            table = pq.read_table(file)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(f"{file} cannot be read as Parquet ({reason}); download it again.") from error
        if tables and table.schema.names != tables[0].schema.names:
            raise UserError(
                f"{file} has the columns {', '.join(table.schema.names)}, but {files[0].name} next to it has "
                f"{', '.join(tables[0].schema.names)}."
            )
        tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


def checked(table: "Table", task: TaskConfig, where: str, labelled: bool) -> "Table":
    """Return `table` with exactly the task's text columns, `label` and `idx`, in their types, if its rows are sound.

    Labels become int64, or float32 for a regression (the hub's type, so that every source gives the same numbers). A
    table without `idx` gets the row number.

    Args:
        table: rows of one split.
        task: the task.
        where: what to call the split in an error, with the file it came from.
        labelled: whether every row needs a label; otherwise -1 stands for an unknown one and the column may be absent.

    Raises:
        UserError: the split is empty, a column is missing or of another type, a text is null or empty, or a label is
            null or outside the task's range.
    """
    import pyarrow as pa

    _check_columns(table, task, where, labelled)
    if table.num_rows == 0:
        raise UserError(f"{where} is empty; task '{task.name}' needs at least one row in it.")
    texts = {column: _text(table[column], task, f"column '{column}' of {where}") for column in task.columns}
    if "label" in table.column_names:
        labels = _labels(table["label"], task, where, labelled)
    else:
        labels = pa.array([NO_LABEL] * table.num_rows)
    idx = table["idx"] if "idx" in table.column_names else pa.array(range(table.num_rows))
    return pa.table(
        {**texts, "label": labels.cast(pa.int64() if task.labels else pa.float32()), "idx": idx.cast(pa.int64())}
    )


def _check_columns(table: "Table", task: TaskConfig, where: str, labelled: bool) -> None:
    wanted = [*task.columns, *(["label"] if labelled else [])]
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise UserError(
            f"{where} lacks the column(s) {', '.join(missing)} of task '{task.name}'; "
            f"it has: {', '.join(table.column_names)}."
        )


def _text(column: "ChunkedArray", task: TaskConfig, where: str) -> "ChunkedArray":
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where} holds {column.type}, not text.")
    if column.null_count:
        raise UserError(f"{where} is null in {_rows(pc.is_null(column))}; every row needs a text.")
    empty = pc.equal(pc.utf8_trim_whitespace(column), "")
    count = pc.sum(empty).as_py()
    if count > (_EMPTY_PAIRS * len(column) if len(task.columns) > 1 else 0):
        raise UserError(f"{where} is empty in {_rows(empty)}; every row needs a text.")
    if count:
        log.warning("%s is empty in %s; they are kept, as in the published set.", where, _rows(empty))
    return column.cast(pa.string())


def _labels(column: "ChunkedArray", task: TaskConfig, where: str, labelled: bool) -> "ChunkedArray":
    import pyarrow as pa
    import pyarrow.compute as pc

    regression = not task.labels
    if not (pa.types.is_integer(column.type) or (regression and pa.types.is_floating(column.type))):
        kind = "numbers" if regression else "whole numbers"
        raise UserError(f"Column 'label' of {where} holds {column.type}; task '{task.name}' has {kind} as labels.")
    if column.null_count:
        raise UserError(f"Column 'label' of {where} is null in {_rows(pc.is_null(column))}.")
    highest = _MAX_SCORE if regression else len(task.labels) - 1
    # NaN compares as false, so it is not among the valid.
    valid = pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, highest))
    if not labelled:
        valid = pc.or_(valid, pc.equal(column, NO_LABEL))
    if not pc.all(valid).as_py():
        wrong = pc.invert(valid)
        value: Any = column[pc.index(wrong, True).as_py()].as_py()
        words = "" if regression else f" ({', '.join(task.labels)})"
        raise UserError(
            f"Label {value} in {_rows(wrong)} of {where} is out of range; "
            f"task '{task.name}' has labels from 0 to {highest:g}{words}."
        )
    return column


def _rows(mask: "Array | ChunkedArray") -> str:
    """Say which rows a boolean `mask` picks: the first, counting from 0, and how many more."""
    import pyarrow.compute as pc

    first, count = pc.index(mask, True).as_py(), pc.sum(mask).as_py()
    return f"row {first}" + (f" and {count - 1} more" if count > 1 else "")
