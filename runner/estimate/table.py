"""The estimate as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE
from rich.table import Table

from lorsa.runner.estimate.document import Document
from lorsa.runner.estimate.memory import PARTS
from lorsa.runner.estimate.parameters import size_text
from lorsa.runner.estimate.pool import KEPT
from lorsa.runner.terminal import console, say

_FITS = {True: "yes", False: "no", None: "-"}


def show(document: Document) -> None:
    """Print an estimate: one run with all its engines, or a sweep with a line for each method and task."""
    if len(document["runs"]) == 1:
        _show_run(document["runs"][0], document)
    else:
        _show_sweep(document)


def _show_run(run: Document, document: Document) -> None:
    parameters, batch, disk = run["parameters"], run["batch"], run["disk"]
    say(f"{run['method']} on {run['task']}, {run['model']}")
    say(
        f"Trains {parameters['adapter']:,} adapter and {parameters['head']:,} head parameters of "
        f"{parameters['total']:,} ({parameters['trainable_percent']:.3g} %), in {run['updates']:,} updates."
    )
    say(f"Largest batch: {batch['rows']} rows of {batch['tokens']} tokens; {batch['lengths']}.")
    _show_memory(run, document["card_bytes"] is not None)
    if len(run["memory"]) > 1:
        say("* the run's engine")
    for memory in run["memory"].values():
        if "refused" in memory:
            say(f"Not possible: {memory['refused']}")
    _say_time(document)
    say(
        f"Disk: {size_text(disk['run_bytes'])} a run, up to {size_text(disk['while_running_bytes'])} while it lasts"
        + (f"; bases {size_text(disk['bases_bytes'])}, shared." if disk["bases_bytes"] else ".")
    )


def _show_memory(run: Document, card: bool) -> None:
    """Print a column for each engine; all in one unit, so that seven columns fit a terminal."""
    possible = {name: memory for name, memory in run["memory"].items() if "refused" not in memory}
    if not possible:
        return
    large = max(memory["needed_bytes"] for memory in possible.values()) >= 10 * 2**30
    unit, name, digits = (2**30, "GiB", 2) if large else (2**20, "MiB", 0)

    def cells(values: Iterable[int]) -> list[str]:
        return [f"{value / unit:,.{digits}f}" if value else "-" for value in values]

    where = "GPU" if run["device"] == "cuda" else "process, in main memory"
    title = f"Memory per {where}, at its peak, in {name}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for engine in possible:
        header = engine.replace("_", "\n") + (" *" if engine == run["engine"] else "")
        table.add_column(header, justify="right", no_wrap=True)
    table.add_row("processes", *(str(memory["processes"]) for memory in possible.values()))
    for part in (*PARTS, KEPT):
        sizes = [memory["parts"].get(part, 0) for memory in possible.values()]
        if any(sizes):
            table.add_row(part, *cells(sizes))
    table.add_row("needed", *cells(memory["needed_bytes"] for memory in possible.values()), style="bold")
    if card:
        table.add_row("fits", *(_FITS[memory["fits"]] for memory in possible.values()))
    console.print(table)
    if run["engine"] in possible:
        say(f"With engine={run['engine']} the peak is reached at: {possible[run['engine']]['phase']}.")


def _show_sweep(document: Document) -> None:
    models = {run["model"] for run in document["runs"]}
    several, card = len(models) > 1, document["card_bytes"] is not None
    title = "Estimate" if several else f"Estimate, {models.pop()}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    names = (*(["model"] if several else []), "method", "task", "runs", "trains", "memory", *(["fits"] if card else []))
    for name in (*names, "hours each", "GPU-hours", "disk"):
        left = name in ("model", "method", "task")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for run in document["runs"]:
        memory, time = run["memory"][run["engine"]], run["time"]
        table.add_row(
            *([run["model"]] if several else []),
            run["method"],
            run["task"],
            str(run["runs"]),
            f"{run['parameters']['trainable']:,}",
            size_text(memory["needed_bytes"]) if "needed_bytes" in memory else "refused",
            *([_FITS[memory.get("fits")]] if card else []),
            f"{time['seconds'] / 3600:.2f}" if time else "-",
            f"{time['gpu_hours'] * run['runs']:.2f}" if time else "-",
            size_text(run["disk"]["run_bytes"] * run["runs"]),
        )
    console.print(table)
    for reason in dict.fromkeys(run["memory"][run["engine"]].get("refused") for run in document["runs"]):
        if reason:
            say(f"Not possible: {reason}")
    _say_time(document)
    say(f"Disk: {size_text(document['total']['disk_bytes'])} for {document['total']['runs']} runs, bases among it.")


def _say_time(document: Document) -> None:
    total = document["total"]
    if total["seconds"] is None:
        say("Time: unknown; nothing like it has run here. lorsa estimate --calibrate runs a few updates and measures.")
        return
    source = ", ".join(sorted({run["time"]["source"] for run in document["runs"]}))
    # A CPU's process hours are counted as a GPU's.
    kind = "GPU-hours" if document["runs"][0]["device"] == "cuda" else "process-hours"
    hours, minutes = divmod(round(total["seconds"] / 60), 60)
    runs = "one run" if total["runs"] == 1 else f"{total['runs']} runs, one after the other"
    say(f"Time: {hours} h {minutes:02} min for {runs}, {total['gpu_hours']:.2f} {kind}; from {source}.")
