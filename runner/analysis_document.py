"""What analysed runs chose and moved, as rows and as one JSON document."""

from __future__ import annotations

from itertools import combinations
from math import isfinite
from statistics import median
from typing import Any

from lorsa.runner.analysis import Analysis, Module
from lorsa.runner.overlap import overlap


def document(analyses: list[Analysis], top: int) -> dict[str, Any]:
    """Return what `--json` prints.

    Angles are in degrees; s, d and change in the units of the weight; null where there is nothing to average.

    - runs: one object per run, in the order given, with folder, signature, task, model, method, seed, form, modules,
      empty_modules (left alone by a global allocation), and top: the components that moved most, each with module,
      index, s, d, relative_d, turn_out, turn_in and change.
    - modules: name, layer, type, count (components of the weight), chosen (their number), first, median and last (of
      the chosen indices), quartiles (shares of the chosen in each quarter of the spectrum), principal_share,
      relative_d (median and max of |d| / s), rotation_out and rotation_in (angle of each plane), and components:
      columns index, s, d, relative_d, turn_out, turn_in and change.
    - overlap: for each pair of runs, runs (their positions, from 0), modules, jaccard, expected; the last three null
      where the runs are not on the same base weights.
    """
    pairs = []
    for first, second in combinations(range(len(analyses)), 2):
        shared = overlap(analyses[first], analyses[second])
        found = {name: None if shared is None else getattr(shared, name) for name in ("modules", "jaccard", "expected")}
        pairs.append({"runs": [first, second], **found})
    return {"runs": [_run_document(analysis, top) for analysis in analyses], "overlap": pairs}


def _run_document(analysis: Analysis, top: int) -> dict[str, Any]:
    identity = {key: analysis.result[key] for key in ("signature", "task", "model", "method", "seed")}
    return {
        "folder": str(analysis.folder),
        **identity,
        "form": analysis.form,
        "modules": [_module_document(module) for module in analysis.modules],
        "empty_modules": analysis.empty,
        "top": moved_most(analysis, top),
    }


def _module_document(module: Module) -> dict[str, Any]:
    moved, components = module.movement, columns(module)
    indices, relative = moved.indices, moved.relative_d.tolist()
    return {
        "name": module.name,
        "layer": module.layer,
        "type": module.type,
        "count": moved.count,
        "chosen": len(indices),
        "first": min(indices, default=None),
        "median": median(indices) if indices else None,
        "last": max(indices, default=None),
        "quartiles": module.quartiles,
        "principal_share": module.principal_share,
        "relative_d": {
            "median": _finite(median(relative)) if relative else None,
            "max": _finite(max(relative)) if relative else None,
        },
        "rotation_out": moved.rotation_out.tolist(),
        "rotation_in": moved.rotation_in.tolist(),
        "components": components,
    }


def columns(module: Module) -> dict[str, list[Any]]:
    """Return what is known of each chosen component of a module, as columns of equal length."""
    moved = module.movement
    return {
        "index": moved.indices,
        "s": moved.s.tolist(),
        "d": moved.d.tolist(),
        "relative_d": [_finite(value) for value in moved.relative_d.tolist()],
        "turn_out": moved.turn_out.tolist(),
        "turn_in": moved.turn_in.tolist(),
        "change": moved.change.tolist(),
    }


def moved_most(analysis: Analysis, top: int) -> list[dict[str, Any]]:
    """Return the `top` components of a run with the largest change, as rows of `columns` with their module's name."""
    rows = []
    for module in analysis.modules:
        table = columns(module)
        rows += [
            {"module": module.name, **dict(zip(table, row, strict=True))}
            for row in zip(*table.values(), strict=True)
        ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["change"])[:top]


def _finite(value: float) -> float | None:
    """Return None, which JSON has, for an infinite ratio to a singular value of zero."""
    return value if isfinite(value) else None
