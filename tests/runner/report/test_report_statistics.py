"""Every number of a report is what scipy or statsmodels give for the same scores."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from lorsa.runner.report.statistics import LEVEL, differ, holm, mean_difference, paired, summary

SCORES = np.random.default_rng(1).normal(80, 3, size=(20, 7)).tolist()


@pytest.mark.parametrize("scores", SCORES)
def test_mean_and_deviation_are_numpys(scores):
    found = summary(scores)
    assert found.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.std == pytest.approx(np.std(scores, ddof=1), rel=1e-12)
    assert found.count == 7


def test_one_score_has_no_deviation_and_none_has_no_mean():
    assert (summary([3.5]).mean, summary([3.5]).std, summary([3.5]).count) == (3.5, None, 1)
    assert summary([]) is None


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize(("first", "second"), list(zip(SCORES[::2], SCORES[1::2], strict=True)))
def test_noise_is_judged_by_welchs_test(first, second, shift):
    first, second = [score + shift for score in first[:5]], second[:3]
    assert differ(first, second) == (stats.ttest_ind(first, second, equal_var=False).pvalue < LEVEL)


def test_noise_is_unknown_with_one_seed_and_where_no_score_varies():
    assert differ([80.0], [70.0, 71.0]) is None
    assert differ([80.0, 80.0], [80.0, 80.0]) is None
    assert differ([80.0, 80.0], [79.0, 79.0]) is None
    assert differ([80.0, 80.0], [79.0, 79.1]) is True


@pytest.mark.parametrize("place", range(0, 20, 2))
def test_with_one_task_p_value_and_interval_are_those_of_the_paired_t_test(place):
    first, second = SCORES[place][:5], SCORES[place + 1][:5]
    found = paired({"cola": dict(enumerate(first))}, {"cola": dict(enumerate(second))})
    assert found.mean == pytest.approx(fmean(first) - fmean(second))
    reference = stats.ttest_rel(first, second)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    interval = reference.confidence_interval(1 - LEVEL)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("place", range(0, 16, 4))
def test_with_two_tasks_they_are_those_of_welchs_test_of_their_differences(place):
    a, b, c, d = (SCORES[place + i] for i in range(4))
    found = paired({"cola": dict(enumerate(a[:5])), "rte": dict(enumerate(b[:3]))},
                   {"cola": dict(enumerate(c)), "rte": dict(enumerate(d))})  # fmt: skip
    first = [x - y for x, y in zip(a[:5], c[:5], strict=True)]
    second = [x - y for x, y in zip(b[:3], d[:3], strict=True)]
    # (mean(first) + mean(second)) / 2 is zero where mean(first) is mean(-second).
    reference = stats.ttest_ind(first, [-each for each in second], equal_var=False)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.mean == pytest.approx((fmean(first) + fmean(second)) / 2)
    interval = reference.confidence_interval(1 - LEVEL)
    assert (found.low, found.high) == pytest.approx((interval.low / 2, interval.high / 2), rel=1e-9)
    assert found.pairs == 8


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 3), (1, 5), (3, 3), (4, 5)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(tasks, seeds):
    drawn = np.random.default_rng(tasks * seeds).normal(0, 2, size=(2000, tasks, seeds))
    found = [mean_difference(dict(enumerate(each.tolist()))) for each in drawn]
    covered = fmean(each.low < 0 < each.high for each in found)
    assert 0.935 < covered < 0.985  # with few degrees of freedom Satterthwaite's are a little wide
    assert all((each.p < LEVEL) == (each.low > 0 or each.high < 0) for each in found)


def test_only_seeds_and_tasks_that_both_have_are_paired():
    first = {"cola": {0: 50.0, 1: 52.0, 2: 60.0}, "rte": {0: 10.0}}
    found = paired(first, {"cola": {1: 50.0, 2: 56.0, 3: 0.0}, "mrpc": {0: 1.0}})
    assert (found.mean, found.pairs, found.tasks) == (3.0, 2, ("cola",))
    assert paired(first, {"rte": {1: 2.0}}) is None


def test_a_task_with_one_pair_gives_a_difference_without_an_interval():
    found = paired({"cola": {0: 5.0, 1: 6.0}, "rte": {0: 3.0}}, {"cola": {0: 4.0, 1: 4.0}, "rte": {0: 1.0}})
    assert found.mean == pytest.approx((1.5 + 2) / 2)
    assert (found.low, found.high, found.p) == (None, None, None)


@pytest.mark.parametrize("shift", [0.0, 0.36])
def test_pairs_that_all_differ_alike_say_nothing_of_the_noise(shift):
    # One of RTE's 277 rows is 0.36 points: two seeds that both gain one row are no certainty.
    scores = {"rte": {0: 70.04, 1: 71.12}}
    found = paired({"rte": {seed: score + shift for seed, score in scores["rte"].items()}}, scores)
    assert found.mean == pytest.approx(shift)
    assert (found.low, found.high, found.p) == (None, None, None)


@pytest.mark.parametrize("p_values", [[0.01], [0.04, 0.01, 0.03], [0.5, 0.5, 0.001, 0.02, 0.9], [0.0, 1.0, 0.02], []])
def test_holm_is_statsmodels(p_values):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    expected = multitest.multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_welchs_test_is_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats", reason="statsmodels is not installed")
    for first, second in zip(SCORES[::2], SCORES[1::2], strict=True):
        assert differ(first, second) == (weightstats.ttest_ind(first, second, usevar="unequal")[1] < LEVEL)
