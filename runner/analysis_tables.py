"""The tables of `lorsa analyze`."""

from __future__ import annotations

from itertools import combinations
from math import inf
from statistics import median

from rich import box
from rich.table import Table

from lorsa.runner.analysis import Analysis, Module
from lorsa.runner.analysis_document import moved_most
from lorsa.runner.overlap import overlap
from lorsa.runner.terminal import console, say

LEGEND = """Index 0 is the largest singular value. Quarters: of the spectrum, largest values first. First k:
chosen components that a principal selection would also have taken. R_out, R_in: largest angle of
each rotation."""
MODULE_HEADS = [
    *("chosen", "indices", "median", "quarters\n%", "first\nk %", "|d|/s\nmedian", "\nmax", "R_out\n°", "R_in\n°"),
]


def show(analyses: list[Analysis], top: int) -> None:
    """Print each run's modules and the `top` components that moved most, then how far the runs overlap."""
    for number, analysis in enumerate(analyses, 1):
        ranks = sorted({len(module.movement.rotation_out) for module in analysis.modules})
        if number > 1:
            say("")
        say(f"Run {number}: {analysis.label}; {analysis.form} form, r={'/'.join(map(str, ranks))}")
        say(f"{analysis.folder}")
        console.print(_modules_table(analysis))
        if analysis.empty:
            say(f"The global allocation gave {len(analysis.empty)} more modules no component.")
        if top:
            say("\nMoved most, by the Frobenius norm of the component's change:")
            console.print(_top_table(analysis, top))
    say(f"\n{LEGEND}")
    if len(analyses) > 1:
        say("\nChosen components in common, intersection over union, mean of the modules:")
        console.print(_overlap_table(analyses))


def _table(text: list[str], numbers: list[str]) -> Table:
    # Narrow: the modules' table has to fit into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, collapse_padding=True)
    for name in text:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _modules_table(analysis: Analysis) -> Table:
    table = _table(
        ["layer", "module"],
        MODULE_HEADS,
    )
    for module in analysis.modules:
        table.add_row(layer(module), module.type, *module_cells(module))
    return table


def module_cells(module: Module) -> list[str]:
    """Return the cells of a module under `MODULE_HEADS`."""
    moved = module.movement
    turned = [
        f"{angles.max().item():.1f}" if len(angles) else "-" for angles in (moved.rotation_out, moved.rotation_in)
    ]
    quartiles, share = module.quartiles, module.principal_share
    if quartiles is None or share is None:
        return [f"0/{moved.count}", *["-"] * 6, *turned]
    relative = moved.relative_d.tolist()
    return [
        f"{len(moved.indices)}/{moved.count}",
        f"{min(moved.indices)}-{max(moved.indices)}",
        f"{median(moved.indices):.0f}",
        "/".join(f"{100 * quarter:.0f}" for quarter in quartiles),
        f"{100 * share:.0f}",
        _ratio(median(relative)),
        _ratio(max(relative)),
        *turned,
    ]


def _top_table(analysis: Analysis, top: int) -> Table:
    table = _table(
        ["layer", "module"],
        ["index", "s", "d", "|d|/s", "u turned °", "v turned °", "change"],
    )
    modules = {module.name: module for module in analysis.modules}
    for row in moved_most(analysis, top):
        module = modules[row["module"]]
        relative = "inf" if row["relative_d"] is None else _ratio(row["relative_d"])
        table.add_row(
            layer(module), module.type, str(row["index"]), f"{row['s']:.3g}", f"{row['d']:+.2g}", relative,
            f"{row['turn_out']:.1f}", f"{row['turn_in']:.1f}", f"{row['change']:.3g}",
        )  # fmt: skip
    return table


def _overlap_table(analyses: list[Analysis]) -> Table:
    table = _table(
        ["runs", "tasks"],
        ["modules", "shared", "by chance"],
    )
    for (a, first), (b, second) in combinations(enumerate(analyses, 1), 2):
        tasks = f"{first.result['task']}, {second.result['task']}"
        shared = overlap(first, second)
        if shared is None:
            table.add_row(f"{a}, {b}", f"{tasks}: not the same base weights", "-", "-", "-")
        else:
            table.add_row(f"{a}, {b}", tasks, str(shared.modules), f"{shared.jaccard:.3f}", f"{shared.expected:.3f}")
    return table


def layer(module: Module) -> str:
    """Return the number of a module's layer."""
    return "-" if module.layer is None else str(module.layer)


def _ratio(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < inf else f"{value:.2g}"
