"""Training curves, from the runs' metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsa.runner.report.compare import Row
from lorsa.runner.report.figures import add_legend, color, dash, drawing, legend_height, new, short, svg
from lorsa.runner.report.record import Run

MOST_RUNS = 60  # in one figure; more are neither seen nor worth their bytes
MOST_POINTS = 200  # of one curve


@dataclass(frozen=True, slots=True)
class Curve:
    """How one run went.

    Attributes:
        number: of its row.
        label: of its row.
        run: the run.
        loss: (epoch, mean training loss since the entry before).
        score: (epoch, primary metric on what chooses the checkpoint, in points).
    """

    number: int
    label: str
    run: Run
    loss: list[tuple[float, float]]
    score: list[tuple[float, float]]


def curves(rows: Sequence[Row], labels: Sequence[str], task: str) -> list[Curve]:
    """Return the curves of the runs of a task, first seeds first, as many as fit into a figure; unreadable ones not."""
    chosen: list[tuple[int, int, Run]] = []
    for number, row in enumerate(rows):
        if task in row.cells:
            chosen += [(place, number, run) for place, run in enumerate(row.cells[task].runs)]
    found = []
    for _, number, run in sorted(chosen, key=lambda each: each[:2])[:MOST_RUNS]:
        loss, score = _read(run.path / "metrics.jsonl")
        if loss or score:
            found.append(Curve(number, labels[number], run, loss, score))
    return found


def _read(path: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    loss: list[tuple[float, float]] = []
    score: list[tuple[float, float]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return loss, score
    for line in lines:
        try:
            entry = json.loads(line)
            if entry.get("loss") is not None:
                loss.append((float(entry["epoch"]), float(entry["loss"])))
            if entry.get("primary") is not None:
                score.append((float(entry["epoch"]), 100 * float(entry["primary"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the line being written when a run died
    return _thinned(loss), _thinned(score)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // MOST_POINTS)
    return points[::every] if every > 1 else points


def curve_figure(found: Sequence[Curve], task: str, name: str) -> str:
    """Return training loss and selection score by epoch, a line per run, as SVG."""
    with drawing(name):
        labels = [short(label) for label in dict.fromkeys(curve.label for curve in found)]
        figure, (losses, scores) = new(4.0 + legend_height(labels), rows=2)
        named: set[int] = set()
        for curve in found:
            style: dict[str, Any] = {"color": color(curve.number), "linestyle": dash(curve.number), "linewidth": 1.0}
            label = short(curve.label) if curve.number not in named else None
            losses.plot(*_columns(curve.loss), label=label, **style)
            scores.plot(*_columns(curve.score), marker="o", markersize=3, **style)
            named.add(curve.number)
        losses.sharex(scores)
        losses.set_ylabel("training loss")
        scores.set_ylabel("chooses the checkpoint,\npoints")
        scores.set_xlabel("epoch")
        add_legend(figure, labels)
        description = (
            f"A line per run, {len(found)} runs: training loss above, the score that chooses the checkpoint below."
        )
        return svg(figure, name, f"Training on {task}", description)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
