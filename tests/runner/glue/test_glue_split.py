"""The cut is what the protocol says it is, row for row."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lorsa.runner.errors import UserError
from lorsa.runner.glue.split import cut
from lorsa.runner.schema import DataConfig


def rows(count):
    return Dataset.from_dict({"idx": list(range(count))})


def numbers(part):
    return part["idx"][:]


def config(**settings):
    return DataConfig(name="demo", **settings)


def test_is_a_seeded_shuffle_with_dev_at_its_end():
    shuffled = numbers(rows(100).shuffle(seed=5))
    train, dev = cut(rows(100), config(split_seed=5))
    assert numbers(train) == shuffled[:90]
    assert numbers(dev) == shuffled[90:]


def test_train_rows_are_the_first_of_the_shuffle_and_leave_dev_alone():
    small, dev = cut(rows(100), config(train_rows=3))
    large, same_dev = cut(rows(100), config(train_rows=50))
    assert numbers(small) == numbers(rows(100).shuffle(seed=0))[:3] == numbers(large)[:3]
    assert numbers(dev) == numbers(same_dev)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (4, 1), (100, 10), (9_999, 1000), (20_000, 1000)])
def test_dev_is_a_tenth_of_at_least_one_and_at_most_a_thousand(count, expected):
    assert len(cut(rows(count), config())[1]) == expected


@given(count=st.integers(2, 300), fraction=st.floats(0.001, 0.5), most=st.integers(1, 50), seed=st.integers(0, 9))
def test_parts_never_overlap_and_lose_no_row(count, fraction, most, seed):
    train, dev = cut(rows(count), config(dev_fraction=fraction, dev_max_rows=most, split_seed=seed))
    assert len(dev) == min(most, max(1, round(fraction * count)))
    assert sorted(numbers(train) + numbers(dev)) == list(range(count))


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (100, {"dev_fraction": 0.0}, r"data\.dev_fraction=0\.0 is out of range"),
        (100, {"dev_fraction": 0.51}, r"data\.dev_fraction=0\.51 is out of range"),
        (100, {"dev_fraction": float("nan")}, r"data\.dev_fraction=nan is out of range"),
        (100, {"dev_max_rows": 0}, r"data\.dev_max_rows=0 is out of range"),
        (100, {"train_rows": 0}, r"data\.train_rows=0 is out of range"),
        (100, {"train_rows": 91}, r"of 100 training rows 10 are the dev part, so it must be from 1 to 90"),
        (1, {}, r"training set of 1 row\(s\) cannot be cut"),
    ],
)
def test_refuses_what_does_not_fit(count, settings, message):
    with pytest.raises(UserError, match=message):
        cut(rows(count), config(**settings))


def test_without_holding_out_every_row_trains():
    train, dev = cut(rows(200), config(), hold_out=False)
    assert dev is None
    assert sorted(numbers(train)) == list(range(200))
