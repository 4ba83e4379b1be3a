"""The TSV files of the official GLUE download, quirks and all, as tables with the hub's columns.

The files have no quoting (a lone `"` is text), CoLA's have no header, MRPC's open with a byte-order mark, labels are
words in some tasks and numbers in others, and a few rows of QQP are cut short. Rows are numbered as on the hub: by
their place in the file, counting those that are dropped.
"""

import csv
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lorsa.runner.errors import UserError
from lorsa.runner.glue.checks import NO_LABEL
from lorsa.runner.schema import TaskConfig

if TYPE_CHECKING:
    from pyarrow import Table

log = logging.getLogger(__name__)

# What the files call the hub's columns where the two differ (MNLI and AX, MRPC; the label of each task).
_HEADERS = {
    "premise": ("sentence1", "Premise"),
    "hypothesis": ("sentence2", "Hypothesis"),
    "sentence1": ("#1 String",),
    "sentence2": ("#2 String",),
    "label": ("gold_label", "score", "Quality", "is_duplicate", "Label"),
}
_COLA_HEADER = ["source", "label", "mark", "sentence"]
_NO_CONSENSUS = "-"

_Rows = Iterator[tuple[int, list[str]]]


def read_split(task: TaskConfig, split: str, files: list[Path]) -> "Table":
    """Read one split into a table with the task's text columns, `label` and `idx`.

    Rows with too few columns are dropped, and a warning says how many; so are rows whose annotators did not agree
    (MNLI's gold label `-`) wherever labels are needed. Without a label column, a prediction split gets -1.

    Args:
        task: the task.
        split: the hub's name of the split.
        files: the file, or MRPC's raw corpus followed by its dev ids.

    Raises:
        UserError: a file cannot be read or is not UTF-8, a column is missing, or a label is neither one of the task's
            words nor a number.
    """
    import pyarrow as pa

    file, *dev_ids = files
    header, rows = _open(task, file)
    texts = [_position(file, header, column) for column in task.columns]
    to_predict = split in task.predict_splits
    label = _find(header, "label") if to_predict else _position(file, header, "label")
    rows = _complete(file, rows, width=max([*texts, label or 0]) + 1)
    if dev_ids:
        rows = _part_of_corpus(file, header, rows, split, dev_ids[0])

    records: list[tuple[str | float, ...]] = []
    for number, row in rows:
        value = None if label is None else _label(task, row[label], f"row {number} of {file}")
        if value is not None or to_predict:
            records.append((*(row[text] for text in texts), NO_LABEL if value is None else value, number))
    types = [pa.string()] * len(texts) + [pa.int64() if task.labels else pa.float32(), pa.int64()]
    columns = zip(*records, strict=True) if records else [()] * len(types)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, names=[*task.columns, "label", "idx"])


def _open(task: TaskConfig, file: Path) -> tuple[list[str], _Rows]:
    """Return the header of `file` and its numbered rows."""
    lines = _lines(file)
    first = next(lines, [])
    if task.name == "cola" and "sentence" not in first:
        return _COLA_HEADER, enumerate(chain([first], lines))
    return first, enumerate(lines)


def _lines(file: Path) -> Iterator[list[str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from filter(None, csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason}); "
            "convert it (iconv -t utf-8) or download it again."
        ) from error
    except csv.Error as error:
        raise UserError(f"{file} is not a tab-separated file: {error}.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error


def _find(header: list[str], column: str) -> int | None:
    names = (column, *_HEADERS.get(column, ()))
    return next((header.index(name) for name in names if name in header), None)


def _position(file: Path, header: list[str], column: str) -> int:
    position = _find(header, column)
    if position is None:
        names = " or ".join(f"'{name}'" for name in (column, *_HEADERS.get(column, ())))
        raise UserError(f"{file} has no column {names}; its first line names: {', '.join(header)}.")
    return position


def _complete(file: Path, rows: _Rows, width: int) -> _Rows:
    """Yield the rows that have `width` columns; warn about the rest."""
    short = 0
    for number, row in rows:
        if len(row) < width:
            short += 1
        else:
            yield number, row
    if short:
        log.warning("%s: skipped %d broken row(s) with fewer than %d columns.", file, short, width)


def _part_of_corpus(file: Path, header: list[str], rows: _Rows, split: str, dev_ids: Path) -> _Rows:
    """Yield the rows of MRPC's raw corpus that belong to `split`: validation is what the list of dev ids names."""
    first, second = _position(file, header, "#1 ID"), _position(file, header, "#2 ID")
    dev = {tuple(ids) for ids in _lines(dev_ids)}
    for number, row in rows:
        if ((row[first], row[second]) in dev) == (split == "validation"):
            yield number, row


def _label(task: TaskConfig, cell: str, where: str) -> float | None:
    """Return the label that `cell` says, a word or a number; None when the annotators did not agree."""
    if cell == _NO_CONSENSUS:
        return None
    words = list(task.labels)
    if cell in words:
        return words.index(cell)
    try:
        return int(cell) if words else float(cell)
    except ValueError:
        valid = f"{', '.join(words)}, or 0 to {len(words) - 1}" if words else "a number"
        raise UserError(f"Label '{cell}' in {where} is not valid for task '{task.name}'; valid: {valid}.") from None
