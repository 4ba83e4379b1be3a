"""How far runs chose the same components, which is how the specialisation of a task is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from statistics import fmean, median
from typing import TYPE_CHECKING

from lorsa.runner.analysis import Analysis

if TYPE_CHECKING:
    from lorsa.runner.movement import Movement

TINY = 1e-30  # against 0 / 0


@dataclass(frozen=True)
class Overlap:
    """Components that two runs both chose.

    Attributes:
        modules: how many modules were compared.
        jaccard: |A ∩ B| / |A ∪ B| of a module's chosen components, averaged over the modules.
        expected: the same for choices of these sizes made at random.
    """

    modules: int
    jaccard: float
    expected: float


def overlap(first: Analysis, second: Analysis) -> Overlap | None:
    """Return how far two runs chose the same components; modules where neither chose any are left out.

    None where they have no module in common or not the same base weights: a component's index means nothing there.
    """
    others = {module.name: module.movement for module in second.modules}
    common = [(each.movement, others[each.name]) for each in first.modules if each.name in others]
    if first.result["model"] != second.result["model"] or not _same_spectra(common):
        return None
    pairs = [(a.indices, b.indices, a.count) for a, b in common]
    # Chosen from by one run, and left empty by the other's global allocation.
    for one, other in ((first, second), (second, first)):
        pairs += [(each.movement.indices, [], each.movement.count) for each in one.modules if each.name in other.empty]
    pairs = [(a, b, count) for a, b, count in pairs if a or b]
    if not pairs:
        return None
    return Overlap(
        modules=len(pairs),
        jaccard=fmean(jaccard(a, b) for a, b, _ in pairs),
        expected=fmean(expected_jaccard(count, len(a), len(b)) for a, b, count in pairs),
    )


def _same_spectra(modules: Sequence[tuple[Movement, Movement]]) -> bool:
    """Whether the components that two runs both chose have the same singular values, rounding apart."""
    differences = []
    for first, second in modules:
        if first.count != second.count:
            return False
        values = dict(zip(second.indices, second.s.tolist(), strict=True))
        shared = [(s, values[i]) for i, s in zip(first.indices, first.s.tolist(), strict=True) if i in values]
        differences += [abs(a - b) / max(a, b, TINY) for a, b in shared]
    # The median: the smallest values of a weight are rounding errors, other ones on another device.
    return not differences or median(differences) < 1e-3


def jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    """Return |A ∩ B| / |A ∪ B|; not both may be empty."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


@lru_cache
def expected_jaccard(count: int, a: int, b: int) -> float:
    """Return the mean Jaccard index of random choices of `a` and of `b` out of `count`, not both 0.

    The size of their intersection is hypergeometric.
    """
    ways = comb(count, b)
    common = range(max(0, a + b - count), min(a, b) + 1)
    return sum(comb(a, x) * comb(count - a, b - x) / ways * x / (a + b - x) for x in common)
