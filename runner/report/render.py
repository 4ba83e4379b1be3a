"""A report as text for other programs, or for a file."""

from __future__ import annotations

from collections.abc import Callable

from lorsa.runner.report.render_csv import csv_text
from lorsa.runner.report.render_json import json_text
from lorsa.runner.report.render_latex import latex_text
from lorsa.runner.report.render_markdown import markdown_text
from lorsa.runner.report.render_table import text
from lorsa.runner.report.tables import Report

FORMS: dict[str, Callable[[Report], str]] = {
    "table": text,
    "markdown": markdown_text,
    "csv": csv_text,
    "latex": latex_text,
    "json": json_text,
}


def render(report: Report, form: str) -> str:
    """Return the report as one of `FORMS`, with a line break at its end."""
    return FORMS[form](report)
