"""Metrics equal scikit-learn's and SciPy's on any input; the module loads as GLUE's own would."""

import math
import subprocess
import sys
import warnings
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lorsa.runner import metrics
from lorsa.runner.errors import UserError
from lorsa.runner.metrics import glue_metric
from lorsa.runner.schema import TaskConfig

TASKS = {
    yaml.name.removesuffix(".yaml"): OmegaConf.merge(
        OmegaConf.structured(TaskConfig), OmegaConf.create(yaml.read_text())
    )
    for yaml in files("lorsa.conf").joinpath("task").iterdir()
}
EXAMPLES = settings(max_examples=60, deadline=None)


def labels(highest):
    pair = st.tuples(st.integers(0, highest), st.integers(0, highest))
    return st.lists(pair, min_size=1, max_size=40).map(lambda rows: tuple(map(list, zip(*rows, strict=True))))


score = st.integers(-100, 500).map(lambda hundredths: hundredths / 100)
scores = st.lists(st.tuples(score, score), min_size=2, max_size=40).map(
    lambda rows: tuple(map(list, zip(*rows, strict=True)))
)


@EXAMPLES
@given(labels(1))
def test_accuracy_and_f1_are_scikit_learns(rows):
    predictions, references = rows
    assert metrics.compute(TASKS["mrpc"], predictions, references) == {
        "accuracy": accuracy_score(references, predictions),
        "f1": f1_score(references, predictions, zero_division=0),
    }


@EXAMPLES
@given(labels(1), labels(2))
def test_matthews_is_scikit_learns(two, three):
    for name, (predictions, references) in (("cola", two), ("ax", three)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = matthews_corrcoef(references, predictions)
        assert metrics.compute(TASKS[name], predictions, references) == {"matthews_correlation": expected}


@EXAMPLES
@given(scores)
def test_correlations_are_scipys(rows):
    predictions, references = rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [stats.pearsonr(predictions, references)[0], stats.spearmanr(predictions, references)[0]]
    result = metrics.compute(TASKS["stsb"], np.array(predictions), np.array(references))
    assert list(result) == ["pearson", "spearman"]
    np.testing.assert_allclose(list(result.values()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("cola", [1, 1, 1], [0, 1, 1], {"matthews_correlation": 0.0}),
        ("cola", [1, 1], [1, 1], {"matthews_correlation": 0.0}),
        ("mrpc", [0, 0, 0, 0], [1, 1, 1, 0], {"accuracy": 0.25, "f1": 0.0}),
        ("mrpc", [0, 0], [0, 0], {"accuracy": 1.0, "f1": 0.0}),
        ("stsb", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], {"pearson": math.nan, "spearman": math.nan}),
        ("stsb", [math.nan, 2.0, 1.0], [1.0, 2.0, 3.0], {"pearson": math.nan, "spearman": math.nan}),
        ("stsb", [math.inf, 2.0, 1.0], [1.0, 2.0, 3.0], {"pearson": math.nan, "spearman": math.nan}),
        ("stsb", [2.0], [1.0], {"pearson": math.nan, "spearman": math.nan}),
    ],
)
def test_degenerate_input_gives_a_number_and_no_warning(name, predictions, references, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_equal(metrics.compute(TASKS[name], predictions, references), expected)


def test_loads_through_evaluate_without_a_network(tmp_path):
    script = (
        "import sys\n"
        "import evaluate\n"
        "for name in sys.argv[2:]:\n"
        "    metric = evaluate.load(sys.argv[1], config_name=name)\n"
        "    print(name, *metric.compute(predictions=[0, 1, 1], references=[0, 1, 1]))\n"
    )
    module = str(files("lorsa.runner.metrics").joinpath("glue_metric.py"))
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-c", script, module, *glue_metric.METRICS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [" ".join([name, *names]) for name, names in glue_metric.METRICS.items()]


def test_unknown_configuration_is_refused():
    with pytest.raises(KeyError, match="'snli' is not a GLUE configuration; valid: sst2"):
        glue_metric.GlueMetric(config_name="snli")


def test_processes_do_not_meet_in_a_cache(tmp_path):
    """Two at once, with one home: neither leaves anything in it."""
    script = (
        "from lorsa.runner.metrics import compute\n"
        "from lorsa.runner.schema import TaskConfig\n"
        "task = TaskConfig(name='sst2', metrics=['accuracy'])\n"
        "print([compute(task, [0, 1], [0, i % 2])['accuracy'] for i in range(20)])\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    runs = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        assert run.communicate()[0].strip() == str([0.5, 1.0] * 10)
        assert run.returncode == 0
    assert not list((tmp_path / "hf").rglob("*.arrow"))
    assert not (tmp_path / "hf" / "evaluate").exists()


def test_every_task_asks_for_what_the_module_computes():
    assert {name: tuple(task.metrics) for name, task in TASKS.items()} == {
        name: glue_metric.METRICS[name] for name in TASKS
    }
    assert len(TASKS) == 10
    for task in TASKS.values():
        metrics.check_metrics(task)


def test_metrics_of_a_task_are_checked_by_name():
    wrong = TaskConfig(name="mrpc", metrics=["acuracy"])
    with pytest.raises(UserError, match="Metric 'acuracy' is unknown for task 'mrpc'; did you mean 'accuracy'"):
        metrics.check_metrics(wrong)
    with pytest.raises(UserError, match="Metric 'acuracy' is unknown"):
        metrics.compute(wrong, [0], [0])
    with pytest.raises(UserError, match="no metrics for task 'boolq'"):
        metrics.check_metrics(TaskConfig(name="boolq", metrics=["accuracy"]))
    with pytest.raises(UserError, match=r"task\.metrics is empty; valid for 'mrpc': accuracy, f1"):
        metrics.check_metrics(TaskConfig(name="mrpc", metrics=[]))


def test_primary_is_the_mean_of_the_pair():
    assert metrics.primary(TASKS["mrpc"], {"accuracy": 0.5, "f1": 1.0}) == 0.75
    assert metrics.primary(TASKS["stsb"], {"pearson": 0.8, "spearman": 0.6}) == pytest.approx(0.7)
    assert metrics.primary(TASKS["cola"], {"matthews_correlation": -0.1, "loss": 3.0}) == -0.1
    assert math.isnan(metrics.primary(TASKS["stsb"], {"pearson": math.nan, "spearman": 1.0}))
    assert metrics.primary_name(TASKS["mrpc"]) == "mean(accuracy,f1)"
    assert metrics.primary_name(TASKS["mnli"]) == "accuracy"


def test_mnli_counts_as_one_task():
    by_split = {"validation_matched": {"accuracy": 0.8}, "validation_mismatched": {"accuracy": 0.9}}
    assert metrics.primary_over_splits(TASKS["mnli"], by_split) == pytest.approx(0.85)
