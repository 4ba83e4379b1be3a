"""The figure of `lorsa analyze`: what each module's adapter chose and moved, one column of panels per run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lorsa.runner.analysis import Analysis, Module
from lorsa.runner.errors import UserError
from lorsa.runner.rundir import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 24  # of the spectrum, in the heat map
OUT, IN, INK = "#0072B2", "#D55E00", "#333333"  # blue and vermilion of Okabe and Ito: apart for every colour vision
MAX_WIDTH = 24.0  # inches


def save_figure(analyses: Sequence[Analysis], path: Path) -> None:
    """Draw the runs and write the figure, atomically, in the format that the ending of `path` names.

    Raises:
        UserError: the file cannot be written.
    """
    path = path.expanduser()
    figure = draw(analyses)
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:].lower(), dpi=150)
    try:
        write_atomic(path, image.getvalue())
    except OSError as error:
        raise UserError(f"Cannot write the figure {path}: {error.strerror or error}.") from error


def draw(analyses: Sequence[Analysis]) -> Figure:
    """Return the figure: chosen positions, |d|/s and rotation angles by module, modules of one type side by side."""
    # A figure of its own, without pyplot: no display, and nothing global.
    from matplotlib.figure import Figure

    most = max(len(analysis.modules) for analysis in analyses)
    width = min(max(5.5, 2.5 + 0.11 * most), MAX_WIDTH / len(analyses))
    figure = Figure(figsize=(width * len(analyses) + 1, 8.5), layout="constrained")
    axes = figure.subplots(3, len(analyses), squeeze=False, sharey="row", sharex="col", height_ratios=(3, 2, 2))
    image: Any = None
    for column, analysis in enumerate(analyses):
        positions, ratios, angles = axes[:, column]
        modules = sorted(analysis.modules, key=lambda module: module.type)  # stable: layers stay in order
        positions.set_title(f"{analysis.result['method']} on {analysis.result['task']}\n{_base(analysis)}", fontsize=10)
        image = _draw_positions(positions, modules)
        _draw_ratios(ratios, modules)
        _draw_angles(angles, modules)
        for axis in (positions, ratios, angles):
            _mark_types(axis, modules)
        _label_modules(angles, modules, width)
    axes[0, 0].set_ylabel("index / K of the chosen components\n(0: largest singular value)", fontsize=9)
    axes[1, 0].set_ylabel("|d| / s\n(dot: median, bar: to max)", fontsize=9)
    axes[2, 0].set_ylabel("rotation angle, degrees\n(mark: largest, bar: to smallest)", fontsize=9)
    axes[2, 0].set_ylim(0, 1.08 * axes[2, 0].get_ylim()[1])  # the scale that all runs share
    axes[2, 0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, borderpad=0)
    figure.colorbar(image, ax=list(axes[0]), label="share chosen", pad=0.01)
    return figure


def _base(analysis: Analysis) -> str:
    return f"{analysis.result['model']}, seed {analysis.result['seed']}"


def _draw_positions(axis: Axes, modules: Sequence[Module]) -> Any:
    """Draw a column per module, and in it per part of the spectrum the share of its components that was chosen."""
    bins = min(BINS, *(module.movement.count for module in modules))
    shares = [[0.0] * len(modules) for _ in range(bins)]
    for column, module in enumerate(modules):
        count = module.movement.count
        sizes = [0] * bins
        for index in range(count):
            sizes[index * bins // count] += 1
        for index in module.movement.indices:
            bin_ = index * bins // count
            shares[bin_][column] += 1 / sizes[bin_]
    extent = (-0.5, len(modules) - 0.5, 1.0, 0.0)
    return axis.imshow(
        shares, extent=extent, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest", rasterized=True
    )


def _draw_ratios(axis: Axes, modules: Sequence[Module]) -> None:
    for column, module in enumerate(modules):
        # A logarithmic scale has no place for untouched components, nor for the ratio to a singular value of zero.
        ratios = [ratio for ratio in module.movement.relative_d.tolist() if isfinite(ratio)]
        if ratios and median(ratios) > 0:
            axis.vlines(column, median(ratios), max(ratios), color=INK, alpha=0.5, linewidth=1)
            axis.plot(column, median(ratios), "o", color=INK, markersize=3)
    axis.set_yscale("log")
    axis.grid(axis="y", alpha=0.3)


def _draw_angles(axis: Axes, modules: Sequence[Module]) -> None:
    for name, color, marker, shift in (("out", OUT, "o", -0.18), ("in", IN, "^", 0.18)):
        turning = [
            (column + shift, angles)
            for column, module in enumerate(modules)
            if (angles := getattr(module.movement, f"rotation_{name}").tolist())  # one chosen component has no plane
        ]
        places, largest = [place for place, _ in turning], [max(angles) for _, angles in turning]
        axis.vlines(places, [min(angles) for _, angles in turning], largest, color=color, alpha=0.4)
        label = f"R_{name} ({'output' if name == 'out' else 'input'} side)"
        axis.plot(places, largest, marker, color=color, markersize=3.5, label=label)
    axis.grid(axis="y", alpha=0.3)


def _mark_types(axis: Axes, modules: Sequence[Module]) -> None:
    for column in range(1, len(modules)):
        if modules[column].type != modules[column - 1].type:
            axis.axvline(column - 0.5, color="white" if axis.images else INK, linewidth=1)
    axis.set_xlim(-0.5, len(modules) - 0.5)


def _label_modules(axis: Axes, modules: Sequence[Module], width: float) -> None:
    """Put layer numbers under the columns, and under them the types; as many as fit into `width` inches."""
    inches = (width - 0.8) / len(modules)  # of one column
    every = max(1, round(0.2 / inches))
    ticks = [
        (column, "" if module.layer is None else str(module.layer))
        for column, module in enumerate(modules)
        if (module.layer or 0) % every == 0
    ]
    axis.set_xticks([column for column, _ in ticks], [text for _, text in ticks], fontsize=7)
    groups = [(name, list(group)) for name, group in groupby(range(len(modules)), key=lambda i: modules[i].type)]
    crowded = any(0.09 * len(name) > len(group) * inches for name, group in groups)
    for name, group in groups:
        axis.annotate(
            name,
            ((group[0] + group[-1]) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -18),
            textcoords="offset points",
            ha="right" if crowded else "center",
            va="top",
            rotation=40 if crowded else 0,
            rotation_mode="anchor" if crowded else "default",
            fontsize=9,
        )
