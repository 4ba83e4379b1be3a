"""`lorsa report --choose`: values that were tried are chosen by the dev part, not by what is scored."""

from __future__ import annotations

import pytest
from report_runs import add, document, rows

from lorsa.runner.errors import UserError


def tried(folder, method, task, rate, seed, dev, score, **changes):
    """A run at a learning rate."""
    return add(folder, method, task, seed, score, config__train__lr=rate, primary_metric__dev=dev, **changes)


def means(table, task="cola"):
    return {label: row["scores"][task]["mean"] for label, row in rows(table).items()}


def test_the_value_that_was_best_on_the_dev_part_is_kept_for_each_method_and_task(tmp_path):
    # On the dev part lora is best at 1e-3 on CoLA and at 2e-3 on RTE; on what is scored it is the other way round.
    for rate, cola, rte in ((1e-3, 0.9, 0.3), (2e-3, 0.5, 0.4)):
        tried(tmp_path, "lora", "cola", rate, 0, cola, 1 - cola)
        tried(tmp_path, "lora", "rte", rate, 0, rte, 1 - rte)
        tried(tmp_path, "lorsa", "cola", rate, 0, 1 - cola, cola)
    for seed in (1, 2):  # the rate that was chosen, with more seeds
        tried(tmp_path, "lora", "cola", 1e-3, seed, 0.1, 0.1)
    (table,) = document(tmp_path)["tables"]
    assert [note for note in table["notes"] if note.startswith("Rows of lora, lorsa differ in train.lr alone")]
    found = document(tmp_path, "--choose", "train.lr")
    (table,) = found["tables"]
    assert means(table) == pytest.approx({"lora": 10, "lorsa": 50})
    assert means(table, "rte")["lora"] == pytest.approx(60)
    assert rows(table)["lora"]["scores"]["cola"]["seeds"] == 3
    assert "lora: train.lr is 0.001 on cola, 0.002 on rte, chosen by the dev part." in table["notes"]
    assert "lorsa: train.lr is 0.002 on cola, chosen by the dev part." in table["notes"]
    assert not [note for note in table["notes"] if "alone" in note]
    (sentence,) = found["left_out"]
    assert sentence.startswith("Left out: 3 folders, another train.lr was better on the dev part (")


def test_only_seeds_that_all_values_have_choose(tmp_path):
    for rate, seed, dev in ((1e-3, 0, 0.6), (2e-3, 0, 0.5), (2e-3, 1, 0.9)):
        tried(tmp_path, "lora", "cola", rate, seed, dev, rate)
    (table,) = document(tmp_path, "--choose", "train.lr")["tables"]
    assert means(table) == pytest.approx({"lora": 0.1})


def test_several_settings_are_chosen_together(tmp_path):
    for rate, epochs, dev in ((1e-3, 3.0, 0.6), (1e-3, 9.0, 0.7), (2e-3, 3.0, 0.8), (2e-3, 9.0, 0.5)):
        tried(tmp_path, "lora", "cola", rate, 0, dev, dev, config__train__epochs=epochs)
    (table,) = document(tmp_path, "--choose", "train.lr", "--choose", "train.epochs")["tables"]
    assert means(table) == pytest.approx({"lora": 80})
    (table,) = document(tmp_path, "--choose", "train.lr")["tables"]
    assert means(table) == pytest.approx({"lora lr=0.001": 70, "lora lr=0.002": 80})  # of nine epochs, of three


def test_a_score_that_is_undefined_is_worse_than_any_and_of_equals_the_smallest_is_kept(tmp_path):
    for rate, dev in ((1e-3, None), (4e-3, -0.5), (2e-3, -0.5)):
        tried(tmp_path, "lora", "cola", rate, 0, dev, rate)
    (table,) = document(tmp_path, "--choose", "train.lr")["tables"]
    assert means(table) == pytest.approx({"lora": 0.2})


def test_what_cannot_choose_is_refused(tmp_path):
    tried(tmp_path / "a", "lora", "cola", 1e-3, 0, 0.5, 0.5)
    with pytest.raises(UserError, match=r"--choose train.lrr: no run's config has that key; did you mean 'train.lr'"):
        document(tmp_path / "a", "--choose", "train.lrr")
    tried(tmp_path / "a", "lora", "cola", 2e-3, 1, 0.5, 0.5)
    with pytest.raises(UserError, match=r"--choose train.lr: the values of lora on cola share no seed"):
        document(tmp_path / "a", "--choose", "train.lr")
    for rate in (1e-3, 2e-3):
        tried(tmp_path / "b", "lora", "cola", rate, 0, None, 0.5, protocol="best_epoch")
    with pytest.raises(UserError, match=r"have no dev part to choose by: they are of protocol=best_epoch"):
        document(tmp_path / "b", "--choose", "train.lr")
