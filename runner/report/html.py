"""A report as one HTML file that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

import time
from html import escape
from importlib.resources import files
from string import Template

from lorsa.runner.report.html_components import components_part
from lorsa.runner.report.html_parts import bullets, details, figure
from lorsa.runner.report.html_runs import left_out_part, runs_part
from lorsa.runner.report.html_tables import costs_table, differences_table, front_table, scores_table
from lorsa.runner.report.plot_costs import cost_figure
from lorsa.runner.report.plot_curves import MOST_RUNS, curve_figure, curves
from lorsa.runner.report.plot_scores import pareto_figure, task_figure, what
from lorsa.runner.report.tables import Report, SectionTable
from lorsa.runner.report.words import heading, names


def page(report: Report) -> str:
    """Return the page."""
    resources = files("lorsa.runner.report")
    parts = [_section(table, report.baseline, f"s{number}") for number, table in enumerate(report.tables, 1)]
    runs, tables = report.collection.runs, len(report.tables)
    parts.append(f'<section aria-labelledby="runs"><h2 id="runs">Runs</h2>\n{runs_part(runs)}</section>')
    titles = {f"s{number}": heading(table) for number, table in enumerate(report.tables, 1)} | {"runs": "Runs"}
    if report.collection.left_out:
        left_out = left_out_part(report.collection.left_out, report.left_out)
        parts.append(f'<section aria-labelledby="left-out"><h2 id="left-out">Left out</h2>\n{left_out}</section>')
        titles["left-out"] = "Left out"
    header = (
        f"<p>{len(runs):,} finished {'run' if len(runs) == 1 else 'runs'} in {tables} "
        f"{'table' if tables == 1 else 'tables, which do not compare with each other'}; made "
        f"<time>{time.strftime('%Y-%m-%d %H:%M')}</time>.</p>{bullets(report.left_out)}"
    )
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in titles.items())
    return Template((resources / "page.html").read_text(encoding="utf-8")).substitute(
        title="lorsa report",
        style=(resources / "report.css").read_text(encoding="utf-8"),
        script=(resources / "report.js").read_text(encoding="utf-8"),
        header=header,
        contents=f"<ul>{links}</ul>",
        body="\n".join(parts),
    )


def _section(table: SectionTable, baseline: str | None, name: str) -> str:
    parts = [f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading(table))}</h2>', bullets(table.notes)]
    parts.append(scores_table(table, f"{name}-scores"))
    if baseline is not None and any(line.is_baseline for line in table.lines):
        parts.append(differences_table(table, baseline, f"{name}-differences"))
    parts.append(costs_table(table, f"{name}-costs"))
    drawn = []
    if (pareto := pareto_figure(table, f"{name}-pareto")) is not None:
        more = details("Numbers", front_table(table, f"{name}-pareto-table"))
        drawn.append(figure(pareto, f"Score ({what(table)}) against trained parameters, with the Pareto front", more))
    drawn.append(figure(cost_figure(table, f"{name}-cost"), "Time and memory; the numbers are in the table of cost"))
    drawn.append(figure(task_figure(table, f"{name}-tasks"), "Scores by task; the numbers are in the table of scores"))
    parts.append(f'<h3>Figures</h3>\n<div class="figures">{"".join(drawn)}</div>')
    parts += [_curves(table, name), _components(table, name), "</section>"]
    return "\n".join(parts)


def _curves(table: SectionTable, name: str) -> str:
    drawn = []
    rows = [line.row for line in table.lines]
    for number, task in enumerate(table.section.tasks):
        found = curves(rows, names(table), task)
        if found:
            ends = bullets([_end(curve.label, curve.run.seed, curve.loss, curve.score) for curve in found])
            total = sum(len(row.cells[task].runs) for row in rows if task in row.cells)
            some = f", the first {MOST_RUNS} of {total} runs" if total > MOST_RUNS else ""
            figure_ = curve_figure(found, task, f"{name}-curve-{number}")
            drawn.append(figure(figure_, f"Training on {task}{some}", details("Numbers", ends)))
    return f'<h3>Training curves</h3>\n<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _end(label: str, seed: int, loss: list[tuple[float, float]], score: list[tuple[float, float]]) -> str:
    parts = [f"{label}, seed {seed}:"]
    if loss:
        parts.append(f"loss from {loss[0][1]:.3f} to {loss[-1][1]:.3f}")
    if score:
        parts.append(f"best score {max(value for _, value in score):.1f}, last {score[-1][1]:.1f}")
    return " ".join(parts)


def _components(table: SectionTable, name: str) -> str:
    content = components_part(table, f"{name}-components")
    return f"<h3>Components that LoRSA chose and moved</h3>\n{content}" if content else ""
