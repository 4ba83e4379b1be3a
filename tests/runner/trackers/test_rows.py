"""What trackers show of a run."""

import json

import pytest
from logged import lines
from sample_result import sample_result

from lorsa.runner.compose import compose
from lorsa.runner.errors import UserError
from lorsa.runner.trackers.rows import read_config, read_rows, summary, sweep_of, tags


def test_lines_of_one_step_are_one_row_and_a_torn_line_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text(lines(10, 100) + '{"step": 110, "lo')
    rows = read_rows(path)
    assert [row.step for row in rows] == list(range(10, 101, 10))
    assert rows[4].values == {
        "step": 50,
        "epoch": 1.0,
        "train/loss": 0.02,
        "train/num_input_tokens_seen": 400,
        "eval/primary": 0.1,
        "eval/dev_accuracy": 0.1,
    }


def test_what_is_null_or_no_number_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\n[]\n{"step": 2, "loss": "x", "grad_norm": 1.5}\n{"loss": 3}\n')
    assert [row.values for row in read_rows(path)] == [{"step": 1}, {"step": 2, "train/grad_norm": 1.5}]


def test_a_summary_has_the_scores_costs_and_where_lorsa_chose():
    result = sample_result(compose("method=lorsa")) | {"components": {"a": [0, 1, 9], "b": [], "c": [0, 1, 2]}}
    found = summary(result)
    assert found["score/dev"] == 0.75
    assert found["score/by_task/sst2"] == found["score/test"] == found["test/validation_accuracy"] == 0.5
    assert found["params/adapter"] == 1000
    assert found["memory/adapter_mib"] == 2**-20
    assert found["seconds/train"] == 1
    assert found["components/chosen"] == 6
    assert found["components/principal_share"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["components/median_index"] == 1
    undefined = summary(sample_result(compose("method=lora"), dev=None))
    assert "score/dev" not in undefined and not any(name.startswith("components/") for name in undefined)


def test_tags_and_sweep(make_run, config):
    run = make_run()
    assert tags(read_config(run)) == ["sst2", "lora", "tiny_llama", "demo", "mine"]
    assert sweep_of(run) is None
    (run / "job.json").write_text(json.dumps({"sweep": "/runs/sweeps/2026-01-01_00-00-00"}))
    assert sweep_of(run) == "2026-01-01_00-00-00"


@pytest.mark.parametrize("text", ["model: [", "- a\n", "seed: 0\n", "\x00"])
def test_a_config_that_is_damaged_or_none_of_ours_is_refused(make_run, text):
    run = make_run()
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        read_config(run)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="no run's folder"):
        read_config(run)
