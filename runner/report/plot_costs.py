"""The figure of training time and peak memory."""

from __future__ import annotations

from lorsa.runner.report.figures import color, drawing, new, short, svg
from lorsa.runner.report.tables import SectionTable
from lorsa.runner.report.words import names, seconds, size


def cost_figure(table: SectionTable, name: str) -> str:
    """Return bars of training time and peak memory by method, as SVG."""
    labels, costs = names(table), [line.cost for line in table.lines]
    places = range(len(labels))
    with drawing(name):
        figure, axes = new(min(1.4 + 0.44 * len(labels), 40.0), rows=2)
        panels = (
            ("training, seconds per run", [cost.train_seconds or 0.0 for cost in costs]),
            ("peak memory, MiB", [cost.peak_bytes / 2**20 for cost in costs]),
        )
        for axis, (title, values) in zip(axes, panels, strict=True):
            axis.barh(places, values, color=[color(place) for place in places], height=0.6)
            axis.set_yticks(places, list(map(short, labels)), fontsize=8)
            axis.set_ylim(len(labels) - 0.4, -0.6)
            axis.grid(axis="y", visible=False)
            axis.set_xlabel(title)
        parts = (
            f"{label} {seconds(cost.train_seconds)} and {size(cost.peak_bytes)}"
            for label, cost in zip(labels, costs, strict=True)
        )
        return svg(figure, name, "Training time and peak memory", f"Means over tasks: {'; '.join(parts)}.")
