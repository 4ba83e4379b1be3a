"""Building blocks of the page: every text that comes from a run is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: what it shows; escaped already.
        value: what it is sorted by; None where it is missing, "" where it is its text.
        kind: class names.
    """

    html: str
    value: float | str | None = ""
    kind: str = ""


def text(content: object, kind: str = "text") -> Cell:
    """Return a cell of text."""
    return Cell(escape(str(content)), kind=kind)


def number(shown: str, value: float | None) -> Cell:
    """Return a cell that is sorted by a number."""
    return Cell(escape(shown), value)


def table(
    name: str,
    caption: str,
    explanation: str,
    heads: Sequence[str],
    numeric: Sequence[bool],
    rows: Sequence[Sequence[Cell]],
) -> str:
    """Return a table that can be sorted, inside a region that scrolls where it is too wide.

    Args:
        name: unique on the page.
        caption: its name.
        explanation: how to read it.
        heads: of the columns; the first column has the rows' names.
        numeric: for each column whether it is sorted by numbers.
        rows: the cells.
    """
    columns = "".join(
        f'<th scope="col"{" data-type=number" if is_number else ""}>{escape(head)}</th>'
        for head, is_number in zip(heads, numeric, strict=True)
    )
    described = f' aria-describedby="{name}-text"' if explanation else ""
    said = f'<p class="soft" id="{name}-text">{escape(explanation)}</p>\n' if explanation else ""
    body = "\n".join(f"<tr>{''.join(_cell(cell, place) for place, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">\n'
        f'<table class="sortable"{described}>\n<caption id="{name}">{escape(caption)}</caption>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n{said}"
    )


def _cell(cell: Cell, place: int) -> str:
    value = "" if cell.value == "" else f' data-value="{"" if cell.value is None else escape(str(cell.value))}"'
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f'<th scope="row"{kind}{value}>{cell.html}</th>' if place == 0 else f"<td{kind}{value}>{cell.html}</td>"


def figure(svg: str, caption: str, more: str = "", large: bool = False) -> str:
    """Return a figure with its caption and what is to be read beside it."""
    kind = ' class="large"' if large else ""
    if large:
        svg = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{svg}</div>'
    return f"<figure{kind}>\n<figcaption>{escape(caption)}</figcaption>\n{svg}\n{more}</figure>"


def details(summary: str, content: str) -> str:
    """Return what is folded until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def bullets(sentences: Sequence[str]) -> str:
    """Return a list of sentences, or nothing of none."""
    return f"<ul class=soft>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>" if sentences else ""
