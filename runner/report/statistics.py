"""Means, deviations and tests of scores. The reference for each is scipy or statsmodels on the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

LEVEL = 0.05
RESAMPLES = 10_000
SEED = 0  # of the bootstrap: the same report from the same results


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
    p = _p_value(fmean(first) - fmean(second), errors)
    return None if p is None else p < LEVEL


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two methods, in points.

    Attributes:
        mean: mean over tasks of the mean over seeds.
        low: lower end of the 95 % bootstrap interval; None, as `high` and `p`, where a task has a single pair or all
            pairs of every task differ alike, as few seeds of a coarse metric may: the noise is not known then.
        high: its upper end.
        p: two-sided, uncorrected.
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

    Tasks are fixed and count alike; seeds are drawn, within each task. The p-value is that of a t-test of the mean
    over tasks of the mean paired difference, with Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics
    Bulletin 2): with one task the paired t-test. The interval is a percentile bootstrap that resamples the pairs of
    each task (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13).

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
    if not differences:
        return None
    samples = list(differences.values())
    mean = fmean(map(fmean, samples))
    pairs, tasks = sum(map(len, samples)), tuple(differences)
    if min(map(len, samples)) < 2:
        return Difference(mean, None, None, None, pairs, tasks)
    p = _p_value(mean, [(variance(each) / len(each) / len(samples) ** 2, len(each)) for each in samples])
    low, high = bootstrap(samples) if p is not None else (None, None)
    return Difference(mean, low, high, p, pairs, tasks)


def bootstrap(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of the samples' means, each resampled in itself."""
    import numpy as np

    # Drawn as scipy.stats.bootstrap draws them, sample by sample, without importing scipy.stats for it.
    generator = np.random.default_rng(SEED)
    total = np.zeros(RESAMPLES)
    for sample in samples:
        drawn = generator.integers(0, len(sample), (RESAMPLES, len(sample)))
        total += np.asarray(sample)[drawn].mean(axis=1)
    low, high = np.percentile(total / len(samples), (100 * LEVEL / 2, 100 * (1 - LEVEL / 2)))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order: Holm (1979), Scandinavian Journal of Statistics 6."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _p_value(mean: float, errors: Sequence[tuple[float, int]]) -> float | None:
    """Return the two-sided p-value of a sum of independent means, None where no value behind them varies.

    Args:
        mean: the sum.
        errors: of each mean its squared standard error and the number of values behind it.
    """
    from scipy.special import stdtr  # the t distribution, without the second that scipy.stats takes to load

    total = math.fsum(error for error, _ in errors)
    if math.sqrt(total) <= 1e-12 * max(1.0, abs(mean)):  # equal up to rounding
        return None
    freedom = total**2 / math.fsum(error**2 / (count - 1) for error, count in errors)
    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(total)))
