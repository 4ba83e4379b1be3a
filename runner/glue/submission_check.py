"""What the GLUE server takes, as it publishes it: a check of a finished zip that knows nothing of how it was made.

A flat zip with exactly the eleven files below; each has the header `index<TAB>prediction` and one line for every row of
the test set as published, numbered from 0 in order.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass


@dataclass(frozen=True)
class _Rule:
    """One file: its number of rows, and what a prediction may be; without labels it is a score."""

    rows: int
    labels: tuple[str, ...] = ()


_NUMBERS = ("0", "1")
_TWO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")

_RULES = {
    "AX.tsv": _Rule(1_104, _THREE),
    "CoLA.tsv": _Rule(1_063, _NUMBERS),
    "MNLI-m.tsv": _Rule(9_796, _THREE),
    "MNLI-mm.tsv": _Rule(9_847, _THREE),
    "MRPC.tsv": _Rule(1_725, _NUMBERS),
    "QNLI.tsv": _Rule(5_463, _TWO),
    "QQP.tsv": _Rule(390_965, _NUMBERS),
    "RTE.tsv": _Rule(3_000, _TWO),
    "SST-2.tsv": _Rule(1_821, _NUMBERS),
    "STS-B.tsv": _Rule(1_379),
    "WNLI.tsv": _Rule(146, _NUMBERS),
}

_SCORE = re.compile(r"[0-5]\.[0-9]{3}")


def faults(content: bytes) -> list[str]:
    """Return what the server would not take in a zip, a sentence each; nothing if it is sound."""
    try:
        zipped = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        return [f"it is no zip ({error})"]
    with zipped:
        names = zipped.namelist()
        found = [f"{name} is missing" for name in _RULES if name not in names]
        found += [f"{name} is none of the server's files" for name in names if name not in _RULES]
        found += [f"{name} is there twice" for name in sorted({name for name in names if names.count(name) > 1})]
        if damaged := zipped.testzip():
            return [*found, f"{damaged} is damaged"]
        for name in _RULES:
            if name in names:
                found += [f"{name}: {fault}" for fault in _faults_of_file(zipped.read(name), _RULES[name])]
    return found


def _faults_of_file(content: bytes, rule: _Rule) -> list[str]:
    """Return the first fault of a file, if it has one: others often follow from it."""
    try:
        lines = content.decode("ascii").split("\n")
    except UnicodeDecodeError:
        return ["it has characters that are not ASCII"]
    if lines[-1]:
        return ["its last line is cut off"]
    if lines[0] != "index\tprediction":
        return [f"its first line is {lines[0]!r}, not index<TAB>prediction"]
    rows = lines[1:-1]
    if len(rows) != rule.rows:
        return [f"it has {len(rows):,} predictions, and the test set {rule.rows:,} rows"]
    for number, row in enumerate(rows):
        index, _, prediction = row.partition("\t")
        if index != str(number):
            return [f"row {number} is numbered {index!r}"]
        if not (prediction in rule.labels if rule.labels else _is_score(prediction)):
            valid = ", ".join(rule.labels) or "a number from 0 to 5 with three decimals"
            return [f"row {number} predicts {prediction!r}; valid: {valid}"]
    return []


def _is_score(text: str) -> bool:
    return _SCORE.fullmatch(text) is not None and float(text) <= 5
