"""Batches: every row once, little padding, and an order that a resumed run can repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorsa.runner.batches import LengthBucketSampler, encode
from lorsa.runner.compose import compose


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=400),
    batch_size=st.integers(1, 33),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_every_row_once_and_depends_on_seed_and_epoch_alone(lengths, batch_size, seed, epoch):
    sampler = LengthBucketSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    np.random.seed(0)
    again = LengthBucketSampler(lengths, batch_size, seed)
    again.set_epoch(epoch)
    assert list(again) == order


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        sampler = LengthBucketSampler(list(range(1, 200)), 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) != order(0, 1) != order(1, 1) != order(1, 0)


def test_the_buckets_come_in_random_order():
    # Sorted batches would train on all long rows first.
    lengths = list(range(1, 1601))
    order = list(LengthBucketSampler(lengths, 16, 0))
    means = [np.mean([lengths[row] for row in order[first : first + 16]]) for first in range(0, 1600, 16)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def padding_waste(lengths: list[int], order: list[int], batch_size: int) -> float:
    batches = [
        [lengths[row] for row in order[first : first + batch_size]] for first in range(0, len(order), batch_size)
    ]
    padded = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("task", ["sst2", "cola", "mrpc", "stsb"])
def test_padding_is_at_most_a_tenth_of_the_tokens_of_a_real_task(shared, task):
    from transformers import AutoTokenizer

    from lorsa.runner.glue.source import load_task

    cfg = compose(f"task={task}", "data=local", f"data.path={shared / 'data' / 'glue'}")
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama2-tokenizer")
    rows = encode(load_task(cfg.task, cfg.data).train, cfg.task, cfg.train.max_length, tokenizer)
    sampler = LengthBucketSampler(rows.lengths, cfg.train.batch_size, seed=0)
    assert padding_waste(rows.lengths, list(sampler), cfg.train.batch_size) <= 0.10
    # What it replaces: a plain shuffle wastes a multiple of it.
    shuffled = np.random.default_rng(0).permutation(len(rows)).tolist()
    assert padding_waste(rows.lengths, shuffled, cfg.train.batch_size) > 0.15


def test_encoding_keeps_ids_with_their_rows_when_it_sorts_by_length():
    from datasets import Dataset
    from transformers import AutoTokenizer

    from lorsa.runner.signature import model_folder

    cfg = compose()
    tokenizer = AutoTokenizer.from_pretrained(model_folder(cfg.model.path))
    texts = ["a film", "the film was not good and the actor was bad", "the good film was good"]
    rows = Dataset.from_dict({"sentence": texts, "label": [0, 1, 0], "idx": [10, 11, 12]})
    encoded = encode(rows, cfg.task, 64, tokenizer, by_length=True)
    assert encoded.ids == [11, 12, 10]
    assert encoded.lengths == sorted(encoded.lengths, reverse=True)
    assert list(encoded.dataset["labels"]) == [1, 0, 0]
    for ids, length, idx in zip(encoded.dataset["input_ids"], encoded.lengths, encoded.ids, strict=True):
        assert tokenizer(texts[idx - 10])["input_ids"] == ids
        assert len(ids) == length
