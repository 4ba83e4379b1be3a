"""The zip for the GLUE server: complete, in its terms, and refused with a sentence where it cannot be."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from sample_result import sample_result

from lorsa.methods import apply, save
from lorsa.runner import app, terminal
from lorsa.runner.commands.diagnostic import predict
from lorsa.runner.commands.finished import read_run
from lorsa.runner.compose import compose
from lorsa.runner.glue.source import load_task
from lorsa.runner.glue.submission import FILES, ROWS, archive, in_servers_terms, most_frequent
from lorsa.runner.glue.submission_check import faults
from lorsa.runner.method import build_method
from lorsa.runner.models import load_model, load_tokenizer


def predicted(task: str, row: int) -> float:
    """Return a made-up prediction that differs from row to row."""
    return row * 7 % (3 if task in ("mnli", "ax") else 2) if task != "stsb" else row / 100 - 1


def leave_run(folder: Path, *overrides: str, dev: float | None = 0.75) -> Path:
    """Leave what a finished run on GLUE leaves, its test predictions made up and its adapter empty."""
    cfg = compose("data=glue", *overrides)
    for split, file in FILES[cfg.task.name].items():
        lines = (f'{{"idx": {row}, "prediction": {predicted(cfg.task.name, row)}}}\n' for row in range(ROWS[file]))
        path = folder / "predictions" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    (folder / "adapter").mkdir()
    (folder / "result.json").write_text(json.dumps(sample_result(cfg, dev)))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of every task, the diagnostic set among them; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: leave_run(folder / task, f"task={task}") for task in FILES}


@pytest.fixture
def cola(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A CoLA run of its own for a test to change."""
    return Path(shutil.copytree(runs["cola"], tmp_path / "cola"))


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lorsa submit-glue … OUT.zip`; returns what it prints, on stderr alone if it is refused."""

    def command(*arguments: Any, refused: bool = False) -> str:
        out = tmp_path / "glue.zip"
        before = out.read_bytes() if out.exists() else None
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["lorsa", "submit-glue", *map(str, arguments), str(out)])
        with pytest.raises(SystemExit) as end:
            app.main()
        printed = capsys.readouterr()
        assert list(tmp_path.glob(".*")) == []
        if not refused:
            assert not end.value.code, printed.err
            return printed.out
        assert end.value.code == app.EXIT_BAD_INPUT
        assert (out.read_bytes() if out.exists() else None) == before
        (sentence,) = printed.err.splitlines()
        return sentence

    return command


def lines(out: Path, name: str) -> list[str]:
    with zipfile.ZipFile(out) as zipped:
        return zipped.read(name).decode().splitlines()


def test_a_run_of_every_task_makes_a_whole_submission(runs, submit, tmp_path):
    out = tmp_path / "glue.zip"
    printed = submit(*runs.values())
    assert "390,965" in printed and str(out) in printed
    assert faults(out.read_bytes()) == []
    with zipfile.ZipFile(out) as zipped:
        assert sorted(zipped.namelist()) == sorted(ROWS)
    assert lines(out, "CoLA.tsv")[:3] == ["index\tprediction", "0\t0", "1\t1"]
    assert lines(out, "MNLI-m.tsv")[1:4] == ["0\tentailment", "1\tneutral", "2\tcontradiction"]
    assert lines(out, "MNLI-mm.tsv")[-1] == f"9846\t{('entailment', 'neutral', 'contradiction')[9846 * 7 % 3]}"
    assert lines(out, "AX.tsv")[2] == "1\tneutral"
    for name in ("QNLI.tsv", "RTE.tsv"):
        assert lines(out, name)[1:3] == ["0\tentailment", "1\tnot_entailment"]
    scores = lines(out, "STS-B.tsv")
    assert (scores[1], scores[251], scores[-1]) == ("0\t0.000", "250\t1.500", "1378\t5.000")
    assert lines(out, "QQP.tsv")[-1] == "390964\t0"
    first = out.read_bytes()
    submit(*reversed(runs.values()), "--force")
    assert out.read_bytes() == first


def test_a_task_without_a_run_is_refused_or_filled(runs, submit, tmp_path):
    given = [runs[task] for task in ("cola", "stsb", "mnli", "ax")]
    sentence = submit(*given, refused=True)
    assert "no run of task=sst2, mrpc, qqp, qnli, rte, wnli," in sentence and "--fill most-frequent" in sentence
    assert "most frequent label" in submit(*given, "--fill", "most-frequent")
    out = tmp_path / "glue.zip"
    assert faults(out.read_bytes()) == []
    assert set(lines(out, "QNLI.tsv")[1:]) == {f"{row}\tnot_entailment" for row in range(ROWS["QNLI.tsv"])}
    assert lines(out, "CoLA.tsv")[2] == "1\t1"


def test_every_filler_is_what_the_server_takes():
    filled = {file: most_frequent(task, file) for task, splits in FILES.items() for file in splits.values()}
    assert faults(archive(filled)) == []
    assert len(set(filled["STS-B.tsv"])) == 2, "a constant has no correlation"


def test_of_several_seeds_one_is_named_or_the_best_is_taken(runs, submit, tmp_path, monkeypatch):
    given = [run for task, run in runs.items() if task != "wnli"]
    seeds = [leave_run(tmp_path / f"wnli-{seed}", "task=wnli", f"seed={seed}", dev=0.5 + seed / 10) for seed in (0, 1)]
    assert f"{seeds[0]} and {seeds[1]} are of task=wnli; name one" in submit(*given, *seeds, refused=True)
    monkeypatch.setattr(terminal.console, "_width", 400)  # no path is cut
    printed = submit(*given, *seeds, "--best")
    assert "wnli-1" in printed and "wnli-0" not in printed
    # The same folder twice is one run.
    submit(*given, seeds[0], seeds[0], "--force")
    third = leave_run(tmp_path / "wnli-2", "task=wnli", "seed=2", "protocol=best_epoch")
    assert "and 1 more, are of task=wnli" in submit(*given, *seeds, third, "--force", refused=True)
    sentence = submit(*given, *seeds, third, "--best", "--force", refused=True)
    assert "protocol=best_epoch and split, not to be compared" in sentence
    unscored = [leave_run(tmp_path / f"none-{seed}", "task=wnli", f"seed={seed}", dev=None) for seed in (0, 1)]
    assert "no run of task=wnli has a dev score" in submit(*given, *unscored, "--best", "--force", refused=True)


def test_the_folder_of_the_sweeps_among_the_runs_is_passed_over(runs, submit, tmp_path):
    (tmp_path / "sweeps").mkdir()
    submit(tmp_path / "sweeps", *runs.values())


def test_runs_that_cannot_be_submitted_are_refused(cola, submit, tmp_path):
    result = json.loads((cola / "result.json").read_text())

    def refusal(**changes: Any) -> str:
        (cola / "result.json").write_text(json.dumps(result | changes))
        return submit(cola, refused=True)

    assert f"{cola} was trained on demo data" in refusal(is_demo=True)
    assert "task=mine, which is none of GLUE's: cola, sst2" in refusal(task="mine")
    (cola / "result.json").unlink()
    assert "has no result.json" in submit(cola, refused=True)
    assert "There is no run" in submit(tmp_path / "nothing", refused=True)


def test_test_predictions_that_are_not_those_of_the_published_rows_are_refused(cola, submit):
    file = cola / "predictions" / "test.jsonl"
    rows = file.read_text().splitlines(keepends=True)

    def refusal(*content: str) -> str:
        file.write_text("".join(content))
        return submit(cola, refused=True)

    assert "has 1,062 predictions, but the test set of CoLA.tsv has 1,063 rows" in refusal(*rows[1:])
    assert "not numbered from 0 to 1,062" in refusal(rows[1], *rows[1:])
    assert "is damaged" in refusal(*rows[:-1], rows[-1][:-5])
    assert "is damaged" in refusal(*rows[:-1], "[]\n")
    file.unlink()
    assert "the data of that run has no test set" in submit(cola, refused=True)


def test_labels_that_the_server_does_not_know_are_refused(runs, submit, tmp_path):
    rte = Path(shutil.copytree(runs["rte"], tmp_path / "rte"))
    result = json.loads((rte / "result.json").read_text())
    result["config"]["task"]["labels"] = ["yes", "no"]
    (rte / "result.json").write_text(json.dumps(result))
    sentence = submit(*(run for task, run in runs.items() if task != "rte"), rte, refused=True)
    assert "RTE.tsv: row 0 predicts 'yes'; valid: entailment, not_entailment" in sentence


def test_the_file_to_write_is_checked_before_anything_is_read(cola, submit, tmp_path, monkeypatch, capsys):
    (tmp_path / "glue.zip").write_text("something else")
    assert "exists already; --force replaces it" in submit(cola, refused=True)
    (tmp_path / "a.zip").mkdir()
    for out, words in ((cola, "has to end in .zip"), (tmp_path / "a.zip", "is a folder")):
        monkeypatch.setattr(sys, "argv", ["lorsa", "submit-glue", str(cola), str(out)])
        with pytest.raises(SystemExit):
            app.main()
        assert words in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(runs, submit, tmp_path, monkeypatch):
    (tmp_path / "glue.zip").write_text("before")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorsa.runner.rundir.write_atomic", full)
    assert "No space left on device" in submit(*runs.values(), "--force", refused=True)


@pytest.fixture
def mnli(tmp_path: Path) -> Path:
    """An MNLI run with a model, and AX in the folder of its data."""
    glue = tmp_path / "glue"
    for name, split, count, label in (
        ("mnli", "train", 30, 1),
        ("mnli", "validation_matched", 3, 1),
        ("mnli", "validation_mismatched", 3, 1),
        ("ax", "test", ROWS["AX.tsv"], -1),
    ):
        (glue / name).mkdir(parents=True, exist_ok=True)
        texts = ["the film was " + "very " * (row % 5) + "good" for row in range(count)]
        table = {"premise": texts, "hypothesis": ["a film"] * count, "label": [label] * count, "idx": range(count)}
        pq.write_table(pa.table(table), glue / name / f"{split}-00000-of-00001.parquet")
    overrides = ("task=mnli", "method=head", "data=local", f"data.path={glue}")
    folder = leave_run(tmp_path / "mnli", *overrides)
    cfg = compose(*overrides)
    base = load_model(cfg, load_tokenizer(cfg))
    method = build_method(cfg.method)
    save(apply(base.model, method, base.head, total_steps=1)[0], method, folder / "adapter")
    return folder


def test_the_diagnostic_set_is_predicted_by_the_mnli_run(runs, mnli, submit, tmp_path):
    others = [run for task, run in runs.items() if task not in ("mnli", "ax")]
    assert "predicted now" in submit(*others, mnli)
    ax = tmp_path / "glue" / "ax" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(ax).slice(4), ax)
    assert "has 1,100 rows of AX, but the test set 1,104" in submit(*others, mnli, "--force", refused=True)
    ax.unlink()
    sentence = submit(*others, mnli, "--force", refused=True)
    assert "has no AX. A run of task=ax would do; --fill most-frequent" in sentence
    assert "AX.tsv is filled, because" in submit(*others, mnli, "--force", "--fill", "most-frequent")
    assert "predicted now" not in submit(*others, mnli, runs["ax"], "--force")


def test_a_finished_run_predicts_what_it_predicted(job, tmp_path):
    result = job("debug=smoke", "task=mnli", "data.train_rows=40", "method=lorsa")
    run = read_run(tmp_path / "runs" / result["signature"])
    rows = load_task(run.cfg.task, run.cfg.data).prediction["test_matched"]
    recorded = (run.directory.predictions / "test_matched.jsonl").read_text().splitlines()
    assert predict(run, run.cfg.task, rows) == [json.loads(line)["prediction"] for line in recorded]


def test_scores_are_cut_to_the_range_and_words_are_the_runs_own():
    assert in_servers_terms("stsb", [], [-0.2, 5.3, 2.34567]) == ["0.000", "5.000", "2.346"]
    assert in_servers_terms("rte", ["not_entailment", "entailment"], [0, 1]) == ["not_entailment", "entailment"]
    assert in_servers_terms("wnli", ["not_entailment", "entailment"], [0, 1]) == ["0", "1"]


def zipped(**changes: str | None) -> bytes:
    """Return a sound zip with some files replaced, added, or left out."""
    sound = {file: most_frequent(task, file) for task, splits in FILES.items() for file in splits.values()}
    texts = {
        file: "index\tprediction\n" + "".join(f"{row}\t{value}\n" for row, value in enumerate(values))
        for file, values in sound.items()
        if file in ("WNLI.tsv", "STS-B.tsv")
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in (texts | changes).items():
            if text is not None:
                archive.writestr(name, text)
    return buffer.getvalue()


def faults_of(name: str, **changes: str | None) -> list[str]:
    return [fault for fault in faults(zipped(**changes)) if fault.startswith(name)]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("index\tprediction", "id\tlabel", "its first line is 'id\\tlabel'"),
        ("145\t0\n", "", "it has 145 predictions, and the test set 146 rows"),
        ("145\t0\n", "146\t0\n", "row 145 is numbered '146'"),
        ("145\t0\n", "145\t0.0\n", "row 145 predicts '0.0'; valid: 0, 1"),
        ("145\t0\n", "145\t0", "its last line is cut off"),
        ("145\t0\n", "145\té\n", "not ASCII"),
        ("\n", "\r\n", "its first line is"),
    ],
)
def test_the_checker_finds_what_is_wrong_in_a_file(old, new, fault):
    sound = "index\tprediction\n" + "".join(f"{row}\t0\n" for row in range(146))
    assert faults_of("WNLI.tsv", **{"WNLI.tsv": sound}) == []
    (found,) = faults_of("WNLI.tsv", **{"WNLI.tsv": sound.replace(old, new)})
    assert fault in found


@pytest.mark.parametrize("score", ["5.001", "-0.100", "nan", "2.5", "1e0", "06.00"])
def test_the_checker_takes_scores_from_0_to_5_with_three_decimals(score):
    text = "index\tprediction\n" + "".join(f"{row}\t5.000\n" for row in range(1379))
    assert faults_of("STS-B.tsv", **{"STS-B.tsv": text}) == []
    (found,) = faults_of("STS-B.tsv", **{"STS-B.tsv": text.replace("7\t5.000", f"7\t{score}", 1)})
    assert f"row 7 predicts '{score}'" in found


def test_the_checker_wants_the_servers_files_and_no_others():
    assert "CoLA.tsv is missing" in faults(zipped())
    assert "folder/CoLA.tsv is none of the server's files" in faults(zipped(**{"folder/CoLA.tsv": ""}))
    (found,) = faults(b"no zip")
    assert "it is no zip" in found
