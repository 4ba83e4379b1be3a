"""Which runs are meant, and what is said of those that cannot be read; everything else is one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import add, document, grid, lorsa_report, rows

from lorsa.runner.errors import UserError
from lorsa.runner.launch.sweep import Sweep, SweepRun


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods, two tasks, three seeds."""
    return grid(tmp_path / "runs", {"lora": 0.6, "lorsa": 0.65}, ("cola", "rte"))


def half_written(folder: Path) -> None:
    path = folder / "result.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(folder: Path, **changes: object) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


def without_result(folder: Path) -> None:
    (folder / "result.json").unlink()
    status = {"state": "failed", "error": "OOM", "task": "cola", "method": "lora", "seed": 0}
    (folder / "status.json").write_text(json.dumps(status))


def damaged_status(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "status.json").write_text("{")


def not_ours(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (half_written, ["result.json is damaged or half-written"]),
        (lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe"), ["damaged"]),
        (lambda folder: (folder / "result.json").write_text("[]"), ["result.json is not of lorsa"]),
        (lambda folder: (folder / "result.json").write_text('{"loss": 1}'), ["result.json is not of lorsa"]),
        (lambda folder: change(folder, schema_version=7), ["schema version 7, not 1"]),
        (lambda folder: change(folder, primary_metric={"name": "x"}), ["result.json lacks 'test'"]),
        (lambda folder: change(folder, timings=[1]), ["value of a wrong type"]),
        (without_result, ["not finished, state failed"]),
        (not_ours, ["no run's folder"]),
        (damaged_status, ["no result.json, and a damaged status.json"]),
    ],
)
def test_a_bad_folder_is_left_out_counted_and_explained(runs, damage, words):
    folder = sorted(runs.iterdir())[0]
    damage(folder)
    found = document(runs)
    assert sum(len(row["signatures"]) for row in found["tables"][0]["rows"]) == 11
    (sentence,) = found["left_out"]
    assert sentence.startswith("Left out: 1 folder, ")
    for word in [folder.name, *words]:
        assert word in sentence
    for form in ("table", "markdown", "latex"):
        assert folder.name[:8] in lorsa_report(runs, "--format", form).replace("\n", " ")


def test_folders_are_counted_by_reason(runs):
    for folder in sorted(runs.iterdir())[:3]:
        half_written(folder)
    assert document(runs)["left_out"][0].startswith("Left out: 3 folders, result.json is damaged")


def test_the_folder_of_the_sweeps_is_no_run(runs):
    (runs / "sweeps" / "1").mkdir(parents=True)
    (runs / ".hidden").mkdir()
    assert document(runs)["left_out"] == []


def test_runs_are_named_in_every_way_that_other_commands_take(runs, monkeypatch):
    paths = sorted(runs.iterdir())
    sweep = Sweep(runs / "sweeps" / "2026")
    sweep.write(runs, ["lorsa-run"], {"kind": "local"}, [SweepRun(p.name, [], {}) for p in paths[:5]], ["{}"] * 5)
    monkeypatch.chdir(runs.parent)

    def count(*names: object) -> int:
        return sum(len(row["signatures"]) for table in document(*names)["tables"] for row in table["rows"])

    assert count() == count("runs") == count("--runs-dir", runs) == 12
    assert count(paths[0]) == count(paths[0].name) == count(paths[0].name[:10]) == count(paths[0], paths[0]) == 1
    assert count(sweep.path) == count("2026") == count("latest") == 5
    assert count("latest", paths[7], paths[0]) == 6


def test_a_copied_run_counts_once(runs):
    folder = sorted(runs.iterdir())[0]
    shutil.copytree(folder, runs / "copy")
    found = document(runs)
    assert sum(len(row["signatures"]) for row in found["tables"][0]["rows"]) == 12
    assert "1 folder, the same run as another of these" in found["left_out"][0]


@pytest.mark.parametrize(
    ("filters", "methods", "tasks"),
    [
        (["task=cola"], ["lora", "lorsa"], ["cola"]),
        (["method=lora", "seed=0,2"], ["lora"], ["cola", "rte"]),
        (["train.lr=1e-3", "method=lorsa"], ["lorsa"], ["cola", "rte"]),
        (["data.train_rows=null"], ["lora", "lorsa"], ["cola", "rte"]),
    ],
)
def test_filters(runs, filters, methods, tasks):
    (table,) = document(runs, *[word for each in filters for word in ("--where", each)])["tables"]
    assert (list(rows(table)), table["tasks"]) == (methods, tasks)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--baseline", "dora"], ["--baseline dora", "there are lora, lorsa"]),
        (["--where", "task"], ["--where task", "KEY=VALUE", "task=cola"]),
        (["--where", "taks=cola"], ["there is no 'taks'", "did you mean 'task'?"]),
        (["--where", "train.lrr=1"], ["no run's config has that key", "did you mean 'train.lr'?"]),
        (["--where", "task=sst2"], ["No run has task=sst2", "task is cola, rte"]),
        (["--by", "colour"], ["--by colour", "Valid:", "model"]),
        (["--html", "nowhere/report.html"], ["--html", "there is no folder", "nowhere"]),
        (["--html", "."], ["--html", "this is a folder"]),
        (["--out", "nowhere/report.csv", "--format", "csv"], ["--out", "there is no folder"]),
        (["--json", "--format", "csv"], ["--json", "--format csv"]),
        (["--json", "--format", "table"], ["--json", "--format table"]),
        (["gone"], ["gone"]),
    ],
)
def test_bad_input_gets_one_sentence_that_says_what_would_be_valid(runs, monkeypatch, arguments, words):
    monkeypatch.chdir(runs.parent)
    with pytest.raises(UserError) as error:
        lorsa_report(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert [path.name for path in runs.parent.iterdir()] == ["runs"]


def test_a_baseline_with_two_configs_has_to_be_named_in_full(runs):
    add(runs, "lora", "cola", 0, 0.5, config__method__config={"_target_": "peft.lora", "r": 1})
    with pytest.raises(UserError, match="2 rows of minilm have that name; name one of 'lora r=1', 'lora r=8'"):
        lorsa_report(runs, "--baseline", "lora")
    (table,) = document(runs, "--baseline", "lora r=8")["tables"]
    assert rows(table)["lora r=8"]["is_baseline"]


def test_a_folder_without_a_finished_run_says_why(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="There is no finished run in"):
        lorsa_report(tmp_path / "runs")
    without_result(add(tmp_path / "runs", "lora", "cola", 0, 0.5))
    with pytest.raises(UserError, match=r"There is no finished run in .* 1 folder, not finished, state failed"):
        lorsa_report(tmp_path / "runs")
    with pytest.raises(UserError, match="gone"):
        lorsa_report("--runs-dir", tmp_path / "gone")


@pytest.mark.parametrize("option", ["--html", "--out"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(runs, tmp_path, monkeypatch, option):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "report").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=f"{option} .*report: it cannot be written: No space left on device"):
        lorsa_report(runs, option, tmp_path / "report")
    assert (tmp_path / "report").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_neither_the_command_nor_a_report_loads_anything_heavy(runs):
    code = (
        "import sys; from lorsa.runner import app; heavy = {'torch', 'transformers', 'pandas', 'matplotlib'};"
        "assert not (heavy | {'numpy', 'scipy'}) & set(sys.modules);"
        f"sys.argv = ['lorsa', 'report', {str(runs)!r}, '--baseline', 'lora', '--format', 'csv'];\n"
        "try: app.main()\nexcept SystemExit: pass\nprint(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
