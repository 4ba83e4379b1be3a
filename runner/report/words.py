"""Numbers as a report writes them, and what all its forms explain."""

from __future__ import annotations

from collections.abc import Sequence

from lorsa.runner.report.statistics import Difference, Summary
from lorsa.runner.report.tables import Cost, SectionTable

MISSING = "-"
NOISE = "Welch's t-test at 5 %, two seeds or more"
COST_HEADS = (
    *("adapter", "adapter %", "head", "head %", "training", "tokens/s", "memory", "on disk"),
)  # fmt: skip
DIFFERENCE_HEADS = ("difference", "95 % interval", "p", "p (Holm)", "pairs")


def legend_difference(baseline: str) -> str:
    """Return how the differences to the baseline were computed."""
    return (
        f"Differences to {baseline} in points, paired by seed and task: the mean over tasks of the mean over seeds. "
        "Interval and p: t-test of that mean, over seeds alone: with other rows to score or another choice of rates it "
        "would vary more. Holm's correction is over the methods of this table; the intervals are not corrected. Both "
        "need two pairs in every task, and pairs that do not all differ alike."
    )


def points(value: float) -> str:
    """Return a score."""
    return f"{round(value, 1) + 0.0:.1f}"  # never -0.0


def signed(value: float) -> str:
    """Return a difference of scores."""
    return f"{round(value, 1) + 0.0:+.1f}"


def spread(summary: Summary) -> str:
    """Return the deviation; nothing is claimed of one seed."""
    return "" if summary.std is None else f"± {summary.std:.1f}"


def whole(summary: Summary) -> str:
    """Return mean, deviation and number of seeds."""
    return " ".join(part for part in (points(summary.mean), beside(summary)) if part)


def beside(summary: Summary) -> str:
    """Return deviation and number of seeds; an average over tasks may have no seed that is in all of them."""
    return " ".join(part for part in (spread(summary), f"({summary.count})" if summary.count else "") if part)


def parameters(bounds: tuple[int, int]) -> str:
    """Return a number of parameters, or a range."""
    low, high = bounds
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def percent(value: float) -> str:
    """Return a share."""
    return f"{value:.3g} %"


def seconds(value: float | None) -> str:
    """Return a time."""
    if value is None:
        return MISSING
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: float) -> str:
    """Return a number of bytes."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:.0f} B"


def p_value(value: float | None) -> str:
    """Return a p-value."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def cost_cells(cost: Cost) -> list[str]:
    """Return the cells under `COST_HEADS`."""
    return [
        parameters(cost.adapter), percent(cost.adapter_percent), parameters(cost.head), percent(cost.head_percent),
        seconds(cost.train_seconds), MISSING if cost.tokens_per_s is None else f"{cost.tokens_per_s:,.0f}",
        size(cost.peak_bytes), size(cost.adapter_bytes),
    ]  # fmt: skip


def difference_cells(difference: Difference | None, p_holm: float | None) -> list[str]:
    """Return the cells under `DIFFERENCE_HEADS`."""
    if difference is None:
        return [MISSING] * (len(DIFFERENCE_HEADS) - 1) + ["0"]
    low, high = difference.low, difference.high
    interval = MISSING if low is None or high is None else f"[{signed(low)}, {signed(high)}]"
    tasks = len(difference.tasks)
    pairs = f"{difference.pairs} on {tasks} {'task' if tasks == 1 else 'tasks'}"
    return [signed(difference.mean), interval, p_value(difference.p), p_value(p_holm), pairs]


def names(table: SectionTable) -> list[str]:
    """Return how the rows are called: with their model where there are several."""
    several = len(table.section.models) > 1
    return [f"{line.row.model} {line.row.label}" if several else line.row.label for line in table.lines]


def heading(table: SectionTable) -> str:
    """Return what a section is about, its model included where there is one."""
    models: Sequence[str] = table.section.models
    return f"{table.section.title}; {models[0] if len(models) == 1 else f'{len(models)} models'}"
