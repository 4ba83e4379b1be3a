"""Which singular components LoRSA chose in which layer and how far they moved, for the page."""

from __future__ import annotations

from lorsa.runner.errors import UserError
from lorsa.runner.report.figures import drawing, svg
from lorsa.runner.report.html_parts import bullets, details, figure, table, text
from lorsa.runner.report.record import Run
from lorsa.runner.report.tables import SectionTable
from lorsa.runner.report.words import names

MOST_RUNS = 8  # of one section: the first seed of each LoRSA method and task; each is a figure of its own


def components_part(shown: SectionTable, name: str) -> str:
    """Return a figure and a table of the modules for some LoRSA runs of a section; nothing where there are none."""
    runs = [
        (label, cell.runs[0])
        for label, line in zip(names(shown), shown.lines, strict=True)
        for cell in line.row.cells.values()
        if cell.runs[0].has_components
    ]
    if not runs:
        return ""
    parts, problems = [], []
    for number, (label, run) in enumerate(runs[:MOST_RUNS]):
        try:
            parts.append(_run_part(label, run, f"{name}-{number}"))
        except UserError as error:
            problems.append(str(error))
    if len(runs) > MOST_RUNS:
        problems.append(f"The first {MOST_RUNS} of {len(runs)} methods and tasks; lorsa analyze shows any run.")
    return f'<div class="figures">{"".join(parts)}</div>{bullets(problems)}'


def _run_part(label: str, run: Run, name: str) -> str:
    from lorsa.runner.analysis import read_run
    from lorsa.runner.analysis_tables import LEGEND, MODULE_HEADS, layer, module_cells
    from lorsa.runner.plots import draw

    analysis = read_run(run.path)
    title = f"{label} on {run.task}, seed {run.seed}"
    with drawing(name):
        drawn = svg(draw([analysis]), name, f"Components of {title}", f"By module, as in the table below. {LEGEND}")
    heads = ["layer", "module", *(" ".join(head.split()) for head in MODULE_HEADS)]
    rows = [[text(layer(module)), text(module.type), *map(text, module_cells(module))] for module in analysis.modules]
    numbers = table(f"{name}-table", f"Modules of {title}", " ".join(LEGEND.split()), heads, [False] * len(heads), rows)
    return figure(drawn, title, details("Numbers", numbers), large=True)
