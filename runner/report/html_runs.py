"""The runs behind a report, for the page: their configs, and what became of those without a result."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from lorsa.runner.report.collect import NO_RUN, LeftOut
from lorsa.runner.report.html_parts import Cell, bullets, details, number, table, text
from lorsa.runner.report.record import Run
from lorsa.runner.report.words import MISSING, seconds

MOST_RUNS = 1000  # listed one by one; a browser takes seconds for more
ERROR_END = 4000  # characters; the end of a traceback says what went wrong


def runs_part(runs: Sequence[Run]) -> str:
    """Return every run with its config: once what is the same for all, then for each run what is its own."""
    shown = runs[:MOST_RUNS]
    common = _common(shown)
    rows = []
    for run in shown:
        own = {key: value for key, value in run.settings.items() if key not in common}
        score = number(MISSING if run.score is None else f"{100 * run.score:.2f}", run.score)
        rows.append(
            [
                text(run.signature), text(run.model), text(run.method), text(run.task), number(str(run.seed), run.seed),
                score, number(seconds(run.train_seconds), run.train_seconds),
                Cell(details(f"{len(own)} settings", _settings(own)), float(len(own)), "text wide"),
            ]
        )  # fmt: skip
    heads = ["run", "model", "method", "task", "seed", "score", "training", "config"]
    numeric = [False, False, False, False, True, True, True, True]
    hidden = f"The first {MOST_RUNS:,} of {len(runs):,}. " if len(runs) > len(shown) else ""
    explanation = f"{hidden}Config: what is not the same for all of these runs; that is below the table."
    shared = details(f"Config that all these runs share: {len(common)} settings", _settings(common))
    return table("runs-table", "Runs", explanation, heads, numeric, rows) + shared


def _common(runs: Sequence[Run]) -> dict[str, Any]:
    common = dict(runs[0].settings) if len(runs) > 1 else {}
    for run in runs[1:]:
        settings = run.settings
        for key in [key for key, value in common.items() if key not in settings or settings[key] != value]:
            del common[key]
    return common


def _settings(settings: dict[str, Any]) -> str:
    return "<pre>" + escape("\n".join(f"{key}: {value}" for key, value in sorted(settings.items()))) + "</pre>"


def left_out_part(left_out: Sequence[LeftOut], reasons: Sequence[str]) -> str:
    """Return what is not in the tables, with the error of each run that failed."""
    told = [each for each in left_out if each.reason != NO_RUN][:MOST_RUNS]
    rows = []
    for each in told:
        end = f"<pre>{escape(each.error[-ERROR_END:])}</pre>"
        error = details(_last_line(each.error), end) if each.error else ""
        about = [text(each.about.get(key, "")) for key in ("model", "method", "task", "seed")]
        kind = "text bad" if each.state == "failed" else "text"
        rows.append([text(each.path.name), *about, text(each.reason, kind), Cell(error, kind="text wide")])
    if not rows:
        return bullets(reasons)
    heads = ["folder", "model", "method", "task", "seed", "why", "error"]
    return bullets(reasons) + table("left-out-table", "Left out", "", heads, [False] * len(heads), rows)


def _last_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""
