"""Model cards: front matter that the hub's own library reads back, and numbers that are those of the run."""

import re

import pytest
from huggingface_hub import ModelCard
from sample_result import sample_result

from lorsa.runner.card import card
from lorsa.runner.compose import compose

GLUE = ["data=glue", "model=roberta_base"]


def read(text: str) -> ModelCard:
    return ModelCard(text, ignore_metadata_errors=False)


def test_a_card_of_a_glue_run_says_what_the_run_was():
    result = sample_result(compose(*GLUE, "task=mrpc", "method=lorsa", "seed=3", "train.lr=0.0123"))
    result["data_source"] = "nyu-mll/glue@main"
    data = read(card(result, "adapter")).data
    assert (data.base_model, data.datasets) == ("FacebookAI/roberta-base", "nyu-mll/glue")
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-classification")
    assert {"lorsa", "glue"} <= set(data.tags)
    scores = {(each.dataset_split, each.metric_type): each.metric_value for each in data.eval_results}
    held_out = "train (held-out part)"
    assert scores == {(held_out, "accuracy"): 0.75, (held_out, "f1"): 0.75} | {
        ("validation", "accuracy"): 0.5,
        ("validation", "f1"): 0.5,
    }
    assert {each.dataset_name for each in data.eval_results} == {"GLUE MRPC"}
    text = read(card(result, "adapter")).text
    for words in ("Protocol `split`", "0.0123", "| seed | 3 |", "nyu-mll/glue@main", "1,000", "import lorsa.methods"):
        assert words in text
    assert "Demo data" not in text
    assert "More Information Needed" not in text


def test_demo_data_is_labelled_and_never_called_glue():
    document = read(card(sample_result(compose("task=cola")), "merged"))
    assert "**Demo data, not GLUE.**" in document.text
    assert document.data.datasets is None
    assert "demo-data" in document.data.tags and "glue" not in document.data.tags
    assert all(each.dataset_type == "lorsa-demo" for each in document.data.eval_results)
    assert all("not GLUE" in each.dataset_name for each in document.data.eval_results)


def test_a_best_epoch_is_called_one_and_scored_once():
    cfg = compose(*GLUE, "task=stsb", "protocol=best_epoch")
    result = sample_result(cfg)
    result["metrics"]["dev"] = result["metrics"]["test"]
    document = read(card(result, "adapter"))
    assert "Protocol `best_epoch`" in document.text
    assert [each.metric_type for each in document.data.eval_results] == ["pearsonr", "spearmanr"]


def test_a_local_base_model_is_not_passed_off_as_a_repository():
    result = sample_result(compose(*GLUE, "model.path=/home/someone/roberta")) | {"model_content": "0" * 16}
    text = card(result, "lora")
    assert read(text).data.base_model is None
    assert "/home/someone" not in text


def test_an_approximation_has_no_scores_of_its_own():
    result = sample_result(compose(*GLUE))
    document = read(card(result, "lora", relative_error=0.125))
    assert document.data.eval_results is None
    assert "relative error of 0.125; it was not scored" in document.text


@pytest.mark.parametrize("value", [None, 0.5])
def test_a_score_that_is_not_a_number_is_a_dash(value):
    result = sample_result(compose(*GLUE), dev=value)
    document = read(card(result, "selected"))
    assert len(document.data.eval_results) == (1 if value is None else 2)
    assert ("| accuracy | - |" in document.text) == (value is None)


@pytest.mark.parametrize("kind", ["adapter", "selected", "lora", "merged"])
def test_how_to_load_it_is_python(kind):
    text = card(sample_result(compose(*GLUE, "method=full" if kind == "selected" else "method=lorsa")), kind)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "README.md", "exec")
    assert ("import lorsa" in code) == (kind == "adapter")
    assert ("roberta-base" in code) == (kind != "merged")
