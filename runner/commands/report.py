"""`lorsa report`: from runs to tables, and to the answer whether a difference is real."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir
from lorsa.runner.errors import UserError


class Format(StrEnum):
    """What the tables are written as."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    JSON = "json"


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUNS", help="Run directories, folders of runs, sweeps, or latest; default: --runs-dir."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Compare the others with this method, or row such as 'lora r=8'."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Only these runs: task=cola,rte, seed=0, train.lr=1e-3, … May be repeated."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="KEY", help="One table for each model, or other key that --where takes.")
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Of several values of this setting, such as train.lr, keep the one that was best on the dev part, for "
            "each method, task and model. May be repeated.",
        ),
    ] = None,
    with_wnli: Annotated[bool, typer.Option("--with-wnli", help="Count WNLI in the average.")] = False,
    form: Annotated[
        Format | None, typer.Option("--format", help="What to print the tables as; default: table.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: --format json.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of printing.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write all of it, with plots, as one file for a browser.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say which method is better on which task, at what cost, and whether the difference is more than noise.

    Runs that do not compare (demo and GLUE, other protocols, other rows) get tables of their own, and only runs that
    differ in nothing but the seed are averaged.
    """
    if as_json and form not in (None, Format.JSON):
        raise UserError(f"--json and --format {form.value} ask for different forms; leave one of them out.")
    form = Format.JSON if as_json else form or Format.TABLE
    for option, path in (("--out", out), ("--html", html)):
        if path is not None:
            _check_place(option, path)
    from lorsa.runner.report.collect import collect
    from lorsa.runner.report.tables import report as make_report

    collection = collect(runs or [], runs_dir, where or [])
    if choose:
        from lorsa.runner.report.choose import choose as choose_values

        collection = choose_values(collection, choose)
    document = make_report(collection, baseline, by, with_wnli, choose or ())
    if html is not None:
        from lorsa.runner.report.html import page

        _write("--html", html, page(document))
    if form is Format.TABLE and out is None:
        from lorsa.runner.report.render_table import show
        from lorsa.runner.terminal import say

        show(document)
        if html is not None:
            say(f"HTML: {html}")
        return
    from lorsa.runner.report.render import render

    text = render(document, form.value)
    if out is None:
        print(text, end="")
    else:
        _write("--out", out, text)


def _check_place(option: str, path: Path) -> None:
    """Refuse before anything is read what cannot be written."""
    path = path.expanduser().absolute()
    if path.is_dir():
        raise UserError(f"{option} {path}: this is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}.")


def _write(option: str, path: Path, text: str) -> None:
    from lorsa.runner.rundir import write_atomic

    try:
        write_atomic(path.expanduser().absolute(), text)
    except OSError as error:
        raise UserError(f"{option} {path}: it cannot be written: {error.strerror or error}.") from error
