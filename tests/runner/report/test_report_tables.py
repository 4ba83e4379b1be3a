"""Which runs stand beside each other, and what is said of them."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
from report_runs import add, document, grid, lorsa_report, result, rows

from lorsa.runner.report.compare import GLUE
from lorsa.runner.report.record import read_record


def test_a_cell_is_mean_deviation_and_number_of_seeds(tmp_path):
    scores = [0.61, 0.58, 0.7]
    for seed, score in enumerate(scores):
        add(tmp_path, "lora", "cola", seed, score)
    (table,) = document(tmp_path)["tables"]
    cell = rows(table)["lora"]["scores"]["cola"]
    assert cell["mean"] == pytest.approx(100 * fmean(scores))
    assert cell["std"] == pytest.approx(100 * stdev(scores))
    assert cell["seeds"] == 3


def test_one_seed_claims_no_deviation(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lorsa", "cola", 0, 0.5)
    (table,) = document(tmp_path, "--baseline", "lora")["tables"]
    found = rows(table)
    assert found["lora"]["scores"]["cola"]["std"] is None
    assert found["lorsa"]["difference"]["mean"] == pytest.approx(-10)
    assert found["lorsa"]["difference"]["p"] is None
    assert found["lorsa"]["scores"]["cola"]["mark"] == ""  # whether it is within noise is not known
    assert any(note.startswith("One seed each") for note in table["notes"])
    assert "±" not in lorsa_report(tmp_path).split("Cost")[0]


def test_the_glue_average_is_over_tasks_and_without_wnli(tmp_path):
    for number, task in enumerate((*GLUE, "wnli", "ax")):
        for seed in range(2):
            add(tmp_path, "lora", task, seed, 0.1 * (number % 8) + 0.01 * seed)
    (table,) = document(tmp_path)["tables"]
    assert table["tasks"] == [*GLUE, "wnli", "ax"]
    assert (table["average_name"], table["average_tasks"]) == ("GLUE average", list(GLUE))
    average = rows(table)["lora"]["average"]
    assert average["mean"] == pytest.approx(100 * fmean(0.1 * number + 0.005 for number in range(8)))
    assert average["std"] == pytest.approx(stdev([0.0, 1.0]))
    (with_wnli,) = document(tmp_path, "--with-wnli")["tables"]
    assert with_wnli["average_tasks"] == [*GLUE, "wnli"]
    assert rows(with_wnli)["lora"]["average"]["mean"] == pytest.approx((8 * average["mean"] + 0.5) / 9)
    assert any("MNLI is the mean of its matched and mismatched parts" in note for note in table["notes"])


def test_a_method_that_lacks_a_task_has_no_average_and_a_visible_gap(tmp_path):
    grid(tmp_path, {"lora": 0.6, "head": 0.5}, ("cola", "rte"))
    add(tmp_path, "lorsa", "cola", 0, 0.7)
    (table,) = document(tmp_path)["tables"]
    found = rows(table)["lorsa"]
    assert table["average_name"] == "average of 2 tasks"
    assert (found["scores"]["rte"]["mean"], found["average"]["mean"]) == (None, None)
    assert "| lorsa | 70.0 (1) | - | - |" in lorsa_report(tmp_path, "--format", "markdown")


def test_the_best_and_those_within_noise_of_it_are_marked(tmp_path):
    for method, scores in {"lora": (0.80, 0.82, 0.81), "lorsa": (0.79, 0.83, 0.80), "head": (0.3, 0.31, 0.3)}.items():
        for seed, score in enumerate(scores):
            add(tmp_path, method, "cola", seed, score)
    (table,) = document(tmp_path)["tables"]
    marks = {label: row["scores"]["cola"]["mark"] for label, row in rows(table).items()}
    assert marks == {"lora": "best", "lorsa": "near", "head": ""}
    add(tmp_path, "oft", "cola", 0, 0.9)  # one seed: it may be the best by luck alone
    (table,) = document(tmp_path)["tables"]
    assert {row["scores"]["cola"]["mark"] for row in rows(table).values()} == {""}


def test_an_average_of_tasks_that_share_no_seed_claims_no_seeds(tmp_path):
    for seed, task in enumerate(("cola", "cola", "rte", "rte")):
        add(tmp_path, "lora", task, seed, 0.5 + 0.1 * seed)
    assert "| lora | 55.0 ± 7.1 (2) | 75.0 ± 7.1 (2) | 65.0 |" in lorsa_report(tmp_path, "--format", "markdown")


def test_configs_of_one_name_are_rows_of_their_own(tmp_path):
    for seed in range(2):
        add(tmp_path, "lora", "cola", seed, 0.6)
        add(tmp_path, "lora", "cola", seed, 0.5, config__method__config={"_target_": "peft.lora", "r": 1, "alpha": 2})
        add(tmp_path, "lorsa", "cola", seed, 0.6, config__train__lr=4e-3)
        add(tmp_path, "lorsa", "cola", seed, 0.6, config__train__lr=2e-3)
        add(tmp_path, "head", "cola", seed, 0.6, config__engine__threads=seed, config__runs_dir=f"r{seed}")
        add(tmp_path, "oft", "cola", seed, 0.6)
        add(tmp_path, "oft", "cola", seed, 0.6, config__engine__name="zero3")
    (table,) = document(tmp_path)["tables"]
    labels = [
        "head",
        "lora r=1",
        "lora r=8",
        "lorsa lr=0.002",
        "lorsa lr=0.004",
        "oft engine=single",
        "oft engine=zero3",
    ]
    assert list(rows(table)) == labels
    assert all(row["scores"]["cola"]["seeds"] == 2 for row in table["rows"])


def test_runs_of_another_number_of_processes_are_rows_of_their_own_whoever_started_them(tmp_path):
    hardware = {"device": "cpu", "gpus": [], "cpu": "a processor"}
    for seed, processes in enumerate((1, 1, 2, 2)):  # torchrun's own: the resources ask for one
        add(tmp_path, seed=seed, score=0.5 + seed / 10, hardware=hardware | {"processes": processes})
    (table,) = document(tmp_path)["tables"]
    found = rows(table)
    assert list(found) == ["lora processes=1", "lora processes=2"]
    assert [row["scores"]["cola"]["seeds"] for row in found.values()] == [2, 2]


def test_a_methods_own_config_splits_also_between_tasks(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lora", "rte", 0, 0.6, config__method__config={"_target_": "peft.lora", "r": 1})
    assert list(rows(document(tmp_path)["tables"][0])) == ["lora r=1", "lora r=8"]


def test_a_learning_rate_for_each_task_is_one_row_with_a_note(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lora", "rte", 0, 0.6, config__train__lr=5e-4)
    (table,) = document(tmp_path)["tables"]
    assert list(rows(table)) == ["lora"]
    assert "lora: train.lr is 0.001 on cola, 0.0005 on rte." in table["notes"]


def test_what_a_task_sets_by_itself_is_not_said(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lora", "rte", 0, 0.6, config__task__epochs=9.0, config__train__epochs=9.0)
    (table,) = document(tmp_path)["tables"]
    assert list(rows(table)) == ["lora"]
    assert not any("epochs" in note for note in table["notes"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_demo": True, "data_source": "demo v1"}, ["Demo: made-up rows, not GLUE", "demo v1"]),
        ({"protocol": "best_epoch"}, ["best_epoch"]),
        ({"data_source": "nyu-mll/glue@abc"}, ["nyu-mll/glue@abc"]),
        ({"data_source": "local:1234"}, ["local files"]),
        ({"config__data__train_rows": 3000}, ["3,000 training rows"]),
    ],
)
def test_runs_that_do_not_compare_get_tables_that_say_so(tmp_path, changes, words):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lora", "cola", 0, 0.9, config__force=True, **changes)
    first, second = document(tmp_path)["tables"]
    titles = [table["title"] for table in (first, second)]
    assert titles[0] != titles[1]
    (title,) = [each for each in titles if all(word in each for word in words)]
    means = {table["title"]: rows(table)["lora"]["scores"]["cola"]["mean"] for table in (first, second)}
    assert means.pop(title) == pytest.approx(90)
    assert list(means.values()) == [pytest.approx(60)]


def test_local_files_have_a_fingerprint_per_task_and_still_share_a_table(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6, data_source="local:aaaa")
    add(tmp_path, "lora", "rte", 0, 0.6, data_source="local:bbbb")
    (table,) = document(tmp_path)["tables"]
    assert table["sources"] == {"cola": "local:aaaa", "rte": "local:bbbb"}
    add(tmp_path, "lora", "cola", 1, 0.6, data_source="local:cccc")
    first, second = document(tmp_path)["tables"]
    assert {first["sources"]["cola"], second["sources"]["cola"]} == {"local:aaaa", "local:cccc"}


def test_models_are_rows_of_their_own_and_compared_within_themselves(tmp_path):
    grid(tmp_path, {"lora": 0.6, "lorsa": 0.5}, ("cola",))
    for seed in range(3):
        for method, score in (("lora", 0.9), ("lorsa", 0.95)):
            add(tmp_path, method, "cola", seed, score + 0.01 * seed, model="big", config__model__name="big")
    (table,) = document(tmp_path, "--baseline", "lora")["tables"]
    differences = {(row["model"], row["label"]): row["difference"] for row in table["rows"]}
    assert differences["big", "lorsa"]["mean"] == pytest.approx(5)
    assert differences["big", "lora"] is differences["minilm", "lora"] is None
    by_model = document(tmp_path, "--by", "model")["tables"]
    assert [table["by"] for table in by_model] == ["big", "minilm"]


def test_undefined_scores_are_counted_and_said(tmp_path):
    add(tmp_path, "lora", "stsb", 0, 0.6)
    add(tmp_path, "lora", "stsb", 1, None)
    add(tmp_path, "lorsa", "stsb", 0, None)
    (table,) = document(tmp_path, "--baseline", "lora")["tables"]
    found = rows(table)
    assert (found["lora"]["scores"]["stsb"]["seeds"], found["lora"]["scores"]["stsb"]["undefined"]) == (1, 1)
    assert found["lorsa"]["scores"]["stsb"]["mean"] is None
    assert found["lorsa"]["difference"] is None
    assert any("1 of lora on stsb, 1 of lorsa on stsb" in note for note in table["notes"])
    assert "undefined" in lorsa_report(tmp_path)


def test_a_nan_that_slipped_into_a_result_is_an_undefined_score(tmp_path):
    path = add(tmp_path, "lora", "stsb", 0, 0.625)
    text = (path / "result.json").read_text().replace("0.625", "NaN")
    (path / "result.json").write_text(text)
    assert read_record(path).score is None


def test_what_a_method_costs(tmp_path):
    add(tmp_path, "lora", "cola", 0, 0.6, head_params=770)
    add(tmp_path, "lora", "cola", 1, 0.6, head_params=770)
    add(tmp_path, "lora", "mnli", 0, 0.6, head_params=1155)
    add(tmp_path, "lora", "mnli", 1, 0.6, head_params=1155, resumed_from_step=5, timings__train=1.0)
    (table,) = document(tmp_path)["tables"]
    cost = rows(table)["lora"]["cost"]
    assert (cost["adapter"], cost["head"]) == ([147_456, 147_456], [770, 1155])
    assert cost["adapter_percent"] == pytest.approx(100 * 147_456 / 22_713_986)
    assert cost["train_seconds"] == pytest.approx((60.5 + 60) / 2)  # without the last attempt of a resumed run
    assert any("1 of 4 runs" in note for note in table["notes"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware__cpu": "another"}, ["different hardware", "another"]),
        ({"versions__torch": "2.14.0"}, ["different versions of torch", "2.14.0"]),
        ({"config__train__max_steps": 10}, ["Not whole trainings", "10"]),
        (
            {"config__train__max_steps": 10},
            ["Not the same for all methods: train.max_steps is -1 for lora; 10 for lorsa."],
        ),
        ({"config__engine__precision": "bf16"}, ["engine.precision is fp32 for lora; bf16 for lorsa."]),
        ({"git__commit": "abcdef012345"}, ["different commits of lorsa: abcdef0, no commit."]),
        ({"git__dirty": True}, ["changes that are in no commit: 1 of 2 runs."]),
    ],
)
def test_what_makes_numbers_hard_to_compare_is_said(tmp_path, changes, words):
    add(tmp_path, "lora", "cola", 0, 0.6)
    add(tmp_path, "lorsa", "cola", 0, 0.6, **changes)
    (table,) = document(tmp_path)["tables"]
    assert [note for note in table["notes"] if all(word in note for word in words)]


def test_p_values_are_corrected_over_the_methods_of_a_table(tmp_path):
    grid(tmp_path, {"lora": 0.6, "lorsa": 0.62, "bitfit": 0.3}, ("cola", "rte"), seeds=4)
    (table,) = document(tmp_path, "--baseline", "lora")["tables"]
    found = rows(table)
    assert found["lora"]["is_baseline"]
    assert found["lora"]["p_holm"] is None
    p_values = sorted((found[each]["difference"]["p"], found[each]["p_holm"]) for each in ("lorsa", "bitfit"))
    assert p_values[0][1] == pytest.approx(2 * p_values[0][0])


def test_components_are_not_read_and_nothing_else_is_lost(tmp_path):
    with_components = read_record(add(tmp_path, "lorsa", "cola", 0, 0.6))
    assert with_components.has_components
    assert not read_record(add(tmp_path, "lora", "cola", 0, 0.6)).has_components
    assert with_components.train_seconds == result("lorsa")["timings"]["train"]
