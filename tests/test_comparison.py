"""The comparison's bookkeeping and statistics, against scipy and by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from scipy import stats

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


comparison, comparison_report = script("comparison"), script("comparison_report")

PLAN = {
    "tasks": ["sst2", "cola"],
    "search_seeds": [0],
    "stages": {
        "A": {
            "title": "Small",
            "experiment": "compare_minilm",
            "seeds": [1, 2],
            "methods": [
                {"label": "lora r=8", "overrides": ["method=lora"], "lr": [1e-3, 2e-3]},
                {"label": "later", "overrides": ["method=lorsa"], "lr": [4e-3], "round": 2},
            ],
        }
    },
}


def row(cell: comparison.Cell, dev: float = 0.5, validation: float = 0.5, **changes: object) -> comparison.Row:
    values = {"metric": "accuracy", "dev": dev, "validation": validation, "adapter_params": 100, "head_params": 2}
    values |= {"total_params": 1000, "adapt_seconds": 1.5, "train_seconds": 60.0, "peak_bytes": 2**30, "best_step": 3}
    values |= {"signature": "s", "commit": "c", "torch": "t", "peft": "p", "cpu": "x", "overrides": '["a=1", "b=2"]'}
    return comparison.Row(**dataclasses.asdict(cell), **{**values, **changes})


@pytest.fixture
def plan(tmp_path: Path) -> comparison.Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return comparison.Plan(path, [], [], [])


def test_rows_survive_the_csv(tmp_path: Path):
    rows = [row(comparison.Cell("A", "lora r=8", "sst2", "search", 1e-3, seed), dev=1 / 3) for seed in range(3)]
    for each in rows:
        comparison.append_row(tmp_path / "deep" / "runs.csv", each)
    assert comparison.read_rows(tmp_path / "deep" / "runs.csv") == rows
    assert comparison.read_rows(tmp_path / "none.csv") == []


@pytest.mark.parametrize("kept", [15, 60, -12])
def test_a_torn_line_is_named(tmp_path: Path, kept: int):
    path = tmp_path / "runs.csv"
    for seed in range(2):
        comparison.append_row(path, row(comparison.Cell("A", "lora r=8", "sst2", "search", 1e-3, seed)))
    *whole, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + last[:kept])
    with pytest.raises(SystemExit, match=r"runs\.csv, line 3: not a whole run; delete the line\."):
        comparison.read_rows(path)


def test_searches_start_first_and_seeds_at_the_best_dev_rate(plan: comparison.Plan):
    cells = [cell for cell, _ in plan.ready([])]
    assert all(cell.phase == "search" and cell.seed == 0 for cell in cells)
    assert [(cell.method, cell.lr) for cell in cells if cell.task == "sst2"] == [
        ("lora r=8", 1e-3),
        ("lora r=8", 2e-3),
        ("later", 4e-3),
    ]
    assert [cell.method for cell in cells] == ["lora r=8"] * 4 + ["later"] * 2  # by round
    rows = [row(cell, dev=0.9 if cell.lr == 2e-3 else 0.2) for cell in cells if cell.task == "sst2"]
    finals = [cell for cell, _ in plan.ready(rows) if cell.phase == "final"]
    assert {(cell.method, cell.task, cell.lr, cell.seed) for cell in finals} == {
        ("lora r=8", "sst2", 2e-3, 1),
        ("lora r=8", "sst2", 2e-3, 2),
        ("later", "sst2", 4e-3, 1),
        ("later", "sst2", 4e-3, 2),
    }


def test_a_rate_is_chosen_by_its_mean_over_the_search_seeds(tmp_path: Path):
    settings = yaml.safe_load(yaml.safe_dump(PLAN))
    settings["stages"]["A"]["search_seeds"] = {"sst2": [0, 10]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    plan = comparison.Plan(tmp_path / "plan.yaml", [], [], [])
    dev = {(1e-3, 0): 0.6, (1e-3, 10): 0.7, (2e-3, 0): 0.9, (2e-3, 10): 0.3}
    cells = [cell for cell, _ in plan.ready([]) if (cell.method, cell.task) == ("lora r=8", "sst2")]
    assert [(cell.lr, cell.seed) for cell in cells] == list(dev)[::2] + list(dev)[1::2]  # a seed at all rates first
    rows = [row(cell, dev=dev[cell.lr, cell.seed]) for cell in cells]
    assert not [cell for cell, _ in plan.ready(rows[:-1]) if cell.phase == "final"]
    assert {cell.lr for cell, _ in plan.ready(rows) if cell.phase == "final"} == {1e-3}
    method = plan.settings["stages"]["A"]["methods"][0]
    shown = comparison_report.rates(rows[:-1], [method], ["sst2"])
    assert shown[2:] == ["| lora r=8 | 0.001 | 65.0 |"]  # the other has half of its search
    assert comparison_report.rates(rows, [method], ["sst2"])[2] == "| lora r=8 | 0.001 | **65.0** |"
    text = comparison_report.report(rows, plan.settings, tmp_path)
    assert "dev score with seed 0, on sst2 the mean over seeds 0 and 10:" in text
    assert {cell.seed for cell, _ in plan.ready([]) if cell.task == "cola"} == {0}


def test_rows_that_the_plan_no_longer_asks_for_are_left_out(plan: comparison.Plan):
    rows = []
    for cell, overrides in plan.ready([]):
        rows.append(row(cell, dev=cell.lr, overrides=json.dumps(overrides)))
    finals = [(cell, overrides) for cell, overrides in plan.ready(rows) if cell.phase == "final"]
    rows += [row(cell, overrides=json.dumps(overrides)) for cell, overrides in finals]
    assert plan.current(rows) == rows
    other_rate = dataclasses.replace(rows[-1], lr=1.0)
    other_recipe = dataclasses.replace(rows[0], overrides='["method=lora"]')
    assert plan.current([*rows, other_rate]) == rows
    kept = plan.current([other_recipe, *rows[1:]])
    assert {each.cell for each in rows} - {each.cell for each in kept} >= {rows[0].cell}


def test_a_run_in_another_precision_is_the_plans_and_says_so(plan: comparison.Plan, tmp_path: Path):
    cell, overrides = next(plan.ready([]))
    given = row(cell, overrides=json.dumps([*overrides, "engine.precision=fp32"]))
    assert plan.current([given]) == [given]
    assert "1 run on x in fp32, one thread each" in comparison_report.report([given], plan.settings, tmp_path)
    assert row(cell, overrides=json.dumps(overrides)).precision == "bf16"


def run_of(method: str, seed: int, validation: float, precision: str, phase: str = "final") -> comparison.Row:
    cell = comparison.Cell("A", method, "sst2", phase, {"lora r=8": 1e-3, "later": 4e-3}[method], seed)
    overrides = comparison.in_precision(["method=lora"], precision)
    return row(cell, validation=validation, overrides=json.dumps(overrides))


def test_differences_are_between_runs_of_one_precision(plan: comparison.Plan):
    rows = [run_of("lora r=8", 1, 0.50, "bf16"), run_of("later", 1, 0.51, "bf16")]
    rows += [run_of("lora r=8", 2, 0.50, "bf16"), run_of("later", 2, 0.60, "fp32"), run_of("later", 3, 0.7, "fp32")]
    results = comparison_report.Results(rows, ["sst2"])
    assert results.pairs("later", {"lora r=8": 1.0}, "sst2") == {1: pytest.approx(1.0)}
    assert results.mixed("later", "sst2") and not results.mixed("lora r=8", "sst2")
    rows += [run_of("lora r=8", 2, 0.57, "fp32"), run_of("later", 1, 0.9, "fp32"), run_of("lora r=8", 1, 0.1, "fp32")]
    results = comparison_report.Results(rows, ["sst2"])
    assert results.pairs("later", {"lora r=8": 1.0}, "sst2") == pytest.approx(
        {1: 1.0, 2: 3.0}
    )  # the plan's before others
    assert results.points("lora r=8", "sst2") == [50.0, 50.0]
    lines = comparison_report.table(results, plan.settings["stages"]["A"], "lora r=8")
    assert any("60.3 ± 9.5† (3)" in line for line in lines if "later" in line)


def test_a_rate_is_chosen_among_searches_of_one_precision(plan: comparison.Plan):
    (first, overrides), (second, _) = [pair for pair in plan.ready([]) if pair[0].task == "sst2"][:2]
    rows = [row(first, overrides=json.dumps(overrides))]
    asked = [cell for cell, _ in plan.missing(rows, "fp32") if (cell.method, cell.task) == ("lora r=8", "sst2")]
    assert asked == [first, second]
    given = dict(plan.missing(rows, "fp32"))
    rows.append(row(second, dev=0.9, overrides=json.dumps(given[second])))
    assert first in {cell for cell, _ in plan.missing(rows, "fp32")}
    assert not [cell for cell, _ in plan.ready(rows) if cell.phase == "final"]
    rows.append(row(first, dev=0.1, overrides=json.dumps(given[first])))
    finals = [cell for cell, _ in plan.missing(rows, "bf16") if cell.phase == "final"]
    assert {(cell.method, cell.task, cell.lr, cell.seed) for cell in finals} == {
        ("lora r=8", "sst2", 2e-3, 1),
        ("lora r=8", "sst2", 2e-3, 2),
    }
    assert second not in {cell for cell, _ in plan.missing(rows, "bf16")}  # the rate is chosen


def test_partners_are_the_references_runs_that_others_have_in_a_precision(plan: comparison.Plan):
    rows = [row(cell, dev=cell.lr, overrides=json.dumps(words)) for cell, words in plan.ready([])]
    finals = {cell: words for cell, words in plan.ready(rows) if cell.phase == "final"}
    rows += [row(cell, overrides=json.dumps(words)) for cell, words in finals.items() if cell.method == "lora r=8"]
    (theirs,) = [cell for cell in finals if (cell.method, cell.task, cell.seed) == ("later", "cola", 2)]
    rows.append(row(theirs, overrides=json.dumps(comparison.in_precision(finals[theirs], "fp32"))))
    assert list(plan.partners(rows, "bf16")) == []
    ((cell, words),) = plan.partners(rows, "fp32")
    assert (cell.method, cell.task, cell.seed, words[-1]) == ("lora r=8", "cola", 2, "engine.precision=fp32")
    rows.append(row(cell, overrides=json.dumps(words)))
    assert list(plan.partners(rows, "fp32")) == []
    assert plan.current(rows) == rows
    with pytest.raises(SystemExit, match="2 lines of one run in fp32"):
        plan.current([*rows, rows[-1]])


def test_a_precision_is_no_methods_own(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN).replace("method=lorsa", "engine.precision=fp32"))
    with pytest.raises(SystemExit, match=r"later may not set engine\.precision"):
        comparison.Plan(tmp_path / "plan.yaml", [], [], [])


@pytest.mark.parametrize(
    ("stage", "method", "said"),
    [
        ({"tasks": ["sst2", "qqq"]}, {}, "stage A may not have tasks that the plan has not: qqq"),
        ({"search_seeds": {"qqq": [1]}}, {}, "stage A may not have tasks that the plan has not: qqq"),
        ({"tasks": ["sst2"]}, {"tasks": ["cola"]}, "stage A: later may not have other tasks: cola"),
        ({}, {"tasks": []}, "stage A has no task that all its methods have"),
        ({"reference": "lora r=9"}, {}, "stage A compares with what it does not have: lora r=9"),
        ({"curve": ["lora r=8", "lora"]}, {}, "stage A compares with what it does not have: lora"),
        ({"pairs": [["later", "sooner"]]}, {}, "stage A compares with what it does not have: sooner"),
    ],
)
def test_a_plan_that_would_not_show_or_compare_something_is_refused(tmp_path: Path, stage, method, said: str):
    settings = yaml.safe_load(yaml.safe_dump(PLAN))
    settings["stages"]["A"] |= stage
    settings["stages"]["A"]["methods"][1] |= method
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match=said):
        comparison.Plan(tmp_path / "plan.yaml", [], [], [])


def test_the_real_plan_composes():
    from lorsa.runner.compose import compose
    from lorsa.runner.validate import check

    real = comparison.Plan(SCRIPTS / "comparison.yaml", [], [], [])
    overrides = [overrides for cell, overrides in real.ready([]) if cell.task == "cola"]
    assert len(overrides) > 10
    for each in overrides:
        check(compose(*each, "data.path=somewhere"))


def test_a_stage_that_does_not_exist_is_refused(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    with pytest.raises(SystemExit, match=r"There is no stage Z; the stages are A\."):
        comparison.Plan(tmp_path / "plan.yaml", ["Z"], [], [])


def test_the_report_says_what_is_there_and_what_is_missing(plan: comparison.Plan, tmp_path: Path):
    rows = []
    for task in PLAN["tasks"]:
        for seed in (1, 2):
            cell = comparison.Cell("A", "lora r=8", task, "final", 1e-3, seed)
            rows.append(row(cell, validation=0.5 + seed / 100))
            if task == "sst2":
                later = dataclasses.replace(cell, method="later")
                scores = {"validation": 0.7 + seed / 50, "dev": 0.6 - seed / 50}
                rows.append(row(later, **scores, peak_bytes=3 * 2**29, adapter_params=5))
    text = comparison_report.report(rows, plan.settings, tmp_path)
    table = text.partition("| minus lora r=8 [95 %] | sst2")[0]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert "51.5 ± 0.7 | 51.5 ± 0.7 | 51.50 | - | 1.00 |" in lines["lora r=8"]
    assert "| 5 | 73.0 ± 1.4 | - | - | - | 1.50 |" in lines["later"]
    assert text.index("| later |") < text.index("| lora r=8 |")  # fewest parameters first
    (differences,) = [line for line in text.splitlines() if line.startswith("| later | +")]
    interval = stats.ttest_1samp([21.0, 22.0], 0).confidence_interval(0.95)
    assert differences == f"| later | +21.50 [{interval.low:+.2f}, {interval.high:+.2f}] | - | - |"
    assert (tmp_path / "stage_a.svg").read_text().startswith("<?xml")


def test_differences_by_task_are_given_for_the_dev_part_too_and_partners_are_shown(plan: comparison.Plan, tmp_path):
    given = {"lora r=8": ([0.5, 0.52], [0.7, 0.71]), "later": ([0.6, 0.61], [0.6, 0.64])}
    rows = [
        row(comparison.Cell("A", method, task, "final", 1e-3, seed), validation=score, dev=dev, adapter_params=9)
        for method, (scores, devs) in given.items()
        for task in PLAN["tasks"]
        for seed, score, dev in zip((1, 2), scores, devs, strict=True)
    ]
    words = json.dumps(["engine.precision=fp32"])
    rows.append(row(comparison.Cell("A", "lora r=8", "cola", "final", 1e-3, 1), validation=0.3, overrides=words))
    text = comparison_report.report(rows, plan.settings, tmp_path)
    one = stats.ttest_1samp([10.0, 9.0], 0).confidence_interval(0.95)
    dev = stats.ttest_ind([-10.0, -7.0], [10.0, 7.0], equal_var=False).confidence_interval(0.95)
    task = f"+9.50 [{one.low:+.2f}, {one.high:+.2f}]"
    assert "| minus lora r=8 [95 %] | sst2 | cola | dev part, mean |" in text
    assert f"| later | {task} | {task} | -8.50 [{dev.low / 2:+.2f}, {dev.high / 2:+.2f}] |" in text
    assert "\nlora r=8 in fp32, with which runs in fp32 are paired: cola 30.0 (1).\n" in text


def test_the_rate_that_is_chosen_alone_is_bold(plan: comparison.Plan):
    method = plan.settings["stages"]["A"]["methods"][0]
    cells = [cell for cell, _ in plan.ready([]) if cell.method == method["label"] and cell.task == "sst2"]
    rows = [row(cell, dev=0.5) for cell in cells]
    shown = comparison_report.rates(rows[:-1], [method], ["sst2"])
    assert not any("**" in line for line in shown)  # the search is not whole
    shown = comparison_report.rates(rows, [method], ["sst2"])
    bold = ["**50.0**" in line for line in shown[2:]]
    assert bold == [True] + [False] * (len(cells) - 1)  # of equals the first


def test_a_method_may_have_fewer_tasks_and_seeds_than_its_stage(tmp_path: Path):
    settings = yaml.safe_load(yaml.safe_dump(PLAN))
    settings["stages"]["A"]["seeds"] = [1, 2, 3]
    settings["stages"]["A"]["methods"][1] |= {"tasks": ["sst2"], "seeds": [1, 2]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    plan = comparison.Plan(tmp_path / "plan.yaml", [], [], [])
    searches = [row(cell, overrides=json.dumps(overrides)) for cell, overrides in plan.ready([])]
    cells = [(cell, overrides) for cell, overrides in plan.ready(searches) if cell.phase == "final"]
    assert {(cell.task, cell.seed) for cell, _ in cells if cell.method == "later"} == {("sst2", 1), ("sst2", 2)}
    rows = [
        row(cell, validation=(0.6 if cell.task == "sst2" else 0.2) + cell.seed / 100, overrides=json.dumps(overrides))
        for cell, overrides in cells
    ]
    lines = comparison_report.table(
        comparison_report.Results(rows, PLAN["tasks"]), plan.settings["stages"]["A"], "lora r=8"
    )
    assert "| mean of 1 tasks | minus lora r=8 [95 %] | mean of 2 tasks | minus lora r=8 [95 %] |" in lines[0]
    assert "| 61.5 ± 0.7 (2) | - | 61.50 (2) | - | - | - |" in next(x for x in lines if "later" in x)
    assert "| 62.0 ± 1.0 | 22.0 ± 1.0 | 62.00 | - | 42.00 | - |" in next(x for x in lines if "| lora" in x)
    assert comparison_report.plot(
        comparison_report.Results(rows, PLAN["tasks"]), plan.settings["stages"]["A"], tmp_path / "plot.svg"
    )
    assert "Small: sst2" in (tmp_path / "plot.svg").read_text()


def test_a_method_is_compared_with_the_line_between_two_others(tmp_path: Path):
    settings = yaml.safe_load(yaml.safe_dump(PLAN))
    stage = settings["stages"]["A"]
    stage |= {"seeds": [1, 2, 3], "tasks": ["sst2"], "curve": ["small", "large"], "reference": "large"}
    stage["methods"] = [{"label": label, "overrides": [], "lr": [1e-3]} for label in ("small", "between", "large")]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
    plan = comparison.Plan(tmp_path / "plan.yaml", [], [], [])
    scores = {"small": [0.50, 0.52, 0.51], "between": [0.60, 0.61, 0.65], "large": [0.70, 0.71, 0.78]}
    sizes = {"small": 10, "between": 20, "large": 80}  # a third of the way, in the logarithm
    rows = [
        row(comparison.Cell("A", label, "sst2", "final", 1e-3, seed), validation=score, adapter_params=sizes[label])
        for label, found in scores.items()
        for seed, score in enumerate(found, 1)
    ]
    results = comparison_report.Results(rows, ["sst2"])
    assert results.on_curve("between", ["small", "large"]) == pytest.approx({"small": 2 / 3, "large": 1 / 3})
    assert all(results.on_curve(label, ["small", "large"]) is None for label in ("small", "large", "not there"))
    assert results.on_curve("large", ["small", "between"]) is None
    nothing = [dataclasses.replace(each, adapter_params=0) if each.method == "small" else each for each in rows]
    assert comparison_report.Results(nothing, ["sst2"]).on_curve("between", ["small", "large"]) is None
    assert comparison_report.plot(
        comparison_report.Results(nothing, ["sst2"]), stage | plan.settings["stages"]["A"], tmp_path / "plot.svg"
    )
    assert "small" not in (tmp_path / "plot.svg").read_text()
    small, between, large = (100 * np.array(scores[label]) for label in ("small", "between", "large"))
    expected = stats.ttest_rel(between, (2 * small + large) / 3)
    interval = expected.confidence_interval(0.95)
    said = f"{(between - (2 * small + large) / 3).mean():+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    text = comparison_report.report(rows, plan.settings, tmp_path)
    assert f"\nbetween minus the line from small to large: {said}, 3 pairs on sst2.\n" in text
