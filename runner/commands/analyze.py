"""`lorsa analyze`: which singular components LoRSA runs chose, and how far they moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.errors import UserError

PLOT_TYPES = (".png", ".svg", ".pdf")
MAX_PLOTTED = 6


def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of finished LoRSA runs.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
    top: Annotated[int, typer.Option(min=0, help="How many of the components that moved most to list.")] = 10,
) -> None:
    """Say which singular components of which layers LoRSA chose, and how far they moved.

    Several runs on the same base model are also compared: how many components they share, and how many they would
    share by chance.
    """
    _check_plot(plot, len(runs))
    from lorsa.runner.analysis import read_run

    analyses = [read_run(run) for run in runs]
    if plot is not None:
        from lorsa.runner.plots import save_figure

        save_figure(analyses, plot)
    if as_json:
        from lorsa.runner.analysis_document import document

        print(json.dumps(document(analyses, top), allow_nan=False))
        return
    from lorsa.runner.analysis_tables import show

    show(analyses, top)
    if plot is not None:
        from lorsa.runner.terminal import say

        say(f"Figure: {plot}")


def _check_plot(plot: Path | None, runs: int) -> None:
    """Refuse before anything is read what cannot be drawn."""
    if plot is None:
        return
    if plot.suffix.lower() not in PLOT_TYPES:
        raise UserError(f"--plot {plot}: the file's name has to end in {', '.join(PLOT_TYPES)}.")
    if not plot.expanduser().absolute().parent.is_dir():
        raise UserError(f"--plot {plot}: there is no folder {plot.parent}.")
    if runs > MAX_PLOTTED:
        raise UserError(f"--plot draws up to {MAX_PLOTTED} runs in one figure, not {runs}.")
