"""From a matplotlib figure to an SVG inside a page.

matplotlib, because its SVG is a few kilobytes of text that every browser and screen reader shows without a script; a
plotting library in JavaScript would put 4 MB into each report, most of it never used. Colours become variables of the
page's style sheet and black its text colour, so that one file is right in light and in dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from lorsa.runner.plots import IN, INK, OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As wide as a phone, so that their text can be read there.
WIDTH = 4.6
SERIES = 8
MOST_LETTERS = 36  # of a label
MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
_GRID = "#b0b0b0"


def color(number: int) -> str:
    """Return the colour of a series: a place-holder for the style sheet's `--series-<number>`."""
    return f"#0f0f{number % SERIES:02x}"


def marker(number: int) -> str:
    """Return the marker of a series, which tells it apart without its colour."""
    return MARKERS[number % len(MARKERS)]


def dash(number: int) -> str:
    """Return the line of a series: another one for each round of colours."""
    return DASHES[number // SERIES % len(DASHES)]


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Set matplotlib up for `svg`; ids depend on `name`, so that figures of one page have different ones."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": _GRID, "grid.alpha": 0.35, "grid.linewidth": 0.6,
        "legend.frameon": False, "legend.fontsize": 8,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with `rows` axes above each other; without pyplot: no display, and nothing global."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)
    return figure, list(axes[:, 0])


def short(label: str) -> str:
    """Return a label that leaves room for what it names; the tables have all of it."""
    return label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"


def legend_height(labels: Sequence[str]) -> float:
    """Return how many inches `add_legend` takes."""
    return 0.19 * -(-len(labels) // _columns(labels)) + 0.1


def add_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Put the legend below, in two columns where its labels are short."""
    figure.legend(loc="outside lower center", ncols=_columns(labels))


def _columns(labels: Sequence[str]) -> int:
    return 1 if max(map(len, labels), default=0) > MOST_LETTERS // 2 else 2


def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return the figure as an SVG element, to be called inside `drawing(name)`.

    Args:
        figure: what to draw.
        name: unique on the page.
        title: what a screen reader calls it.
        description: what it shows, for those who do not see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1, axes_1: the same in every figure
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    head = (
        f'<svg viewBox="{view[1]}" role="img" aria-labelledby="{name}-title" aria-describedby="{name}-text" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>'
    )
    text = head + text[text.index(">") + 1 :]
    text = re.sub("#0f0f0([0-7])", r"var(--series-\1)", text)
    for fixed, themed in ((OUT, "var(--series-0)"), (IN, "var(--series-1)"), (INK, "currentColor")):
        text = text.replace(fixed.lower(), themed)
    return text.replace("#000000", "currentColor").strip()
