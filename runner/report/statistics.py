"""Means, deviations and tests of scores. The reference for each is scipy or statsmodels on the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and spread of scores.

    Attributes:
        mean: in their units.
        std: sample standard deviation (n - 1), None for one score: nothing is claimed about its spread.
        count: how many scores.
    """

    mean: float
    std: float | None
    count: int


def summary(scores: Sequence[float]) -> Summary | None:
    """Return mean and sample standard deviation, or None of nothing."""
    if not scores:
        return None
    return Summary(fmean(scores), stdev(scores) if len(scores) > 1 else None, len(scores))


def differ(first: Sequence[float], second: Sequence[float]) -> bool | None:
    """Say whether two means differ by more than noise: Welch's two-sided t-test at 5 %, uncorrected.

    Welch (1947), The generalization of Student's problem, Biometrika 34.

    Returns:
        None where either has fewer than two scores, or no score differs from its mean: how large the noise is, is not
        known.
    """
    if min(len(first), len(second)) < 2:
        return None
    errors = [(variance(each) / len(each), len(each)) for each in (first, second)]
    test = _t_test(fmean(first) - fmean(second), errors)
    return None if test is None else test[0] < LEVEL


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two methods, in points.

    Attributes:
        mean: mean over tasks of the mean over seeds.
        low: lower end of the 95 % confidence interval; None, as `high` and `p`, where a task has a single pair or all
            pairs of every task differ alike, as few seeds of a coarse metric may: the noise is not known then.
        high: its upper end.
        p: two-sided, uncorrected; below 0.05 where the interval is clear of zero.
        pairs: how many pairs of runs.
        tasks: the tasks that both have.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int
    tasks: tuple[str, ...]


def paired(first: Mapping[str, Mapping[int, float]], second: Mapping[str, Mapping[int, float]]) -> Difference | None:
    """Compare two methods on the tasks and seeds that both have.

    Args:
        first: scores by task and seed.
        second: the same of the baseline.

    Returns:
        first minus second, or None where they share no task and seed.
    """
    differences: dict[str, list[float]] = {}
    for task, mine in first.items():
        theirs = second.get(task, {})
        if shared := sorted(mine.keys() & theirs.keys()):
            differences[task] = [mine[seed] - theirs[seed] for seed in shared]
    return mean_difference(differences) if differences else None


def mean_difference(differences: Mapping[str, Sequence[float]]) -> Difference:
    """Return the mean over tasks of the mean paired difference over seeds, with its interval and p-value.

    Tasks are fixed and count alike; seeds are drawn, within each task. Both are a t-test's, with Satterthwaite's
    degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2): with one task those of the paired t-test. A
    percentile bootstrap would be too narrow: with three seeds of one task it covers 75 % where it says 95 %.

    Args:
        differences: for each task one difference per seed, in points; one task and one seed at least.
    """
    samples = list(differences.values())
    mean = fmean(map(fmean, samples))
    pairs, tasks = sum(map(len, samples)), tuple(differences)
    errors = [(variance(each) / len(each) / len(samples) ** 2, len(each)) for each in samples if len(each) > 1]
    test = _t_test(mean, errors) if len(errors) == len(samples) else None
    if test is None:
        return Difference(mean, None, None, None, pairs, tasks)
    p, half = test
    return Difference(mean, mean - half, mean + half, p, pairs, tasks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order: Holm (1979), Scandinavian Journal of Statistics 6."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _t_test(mean: float, errors: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """Return the two-sided p-value of a sum of independent means, and half the width of its 95 % interval.

    None where no value behind them varies.

    Args:
        mean: the sum.
        errors: of each mean its squared standard error and the number of values behind it.
    """
    from scipy.special import stdtr, stdtrit  # the t distribution, without the second that scipy.stats takes to load

    total = math.fsum(error for error, _ in errors)
    if math.sqrt(total) <= 1e-12 * max(1.0, abs(mean)):  # equal up to rounding
        return None
    freedom = total**2 / math.fsum(error**2 / (count - 1) for error, count in errors)
    deviation = math.sqrt(total)
    return float(2 * stdtr(freedom, -abs(mean) / deviation)), float(stdtrit(freedom, 1 - LEVEL / 2)) * deviation
