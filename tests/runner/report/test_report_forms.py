"""The same report as a table, Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_runs import add, document, grid, lorsa_report, rows

from lorsa.runner.report.compare import GLUE
from lorsa.runner.report.render import FORMS


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three methods, two tasks, three seeds; one method lacks a task; a name with signs that mean something."""
    folder = grid(tmp_path / "runs", {"lora": 0.6, "lorsa": 0.65}, ("cola", "rte"))
    for seed in range(2):
        add(folder, "my_method|<b>&$%#{}^~\\", "cola", seed, 0.695 + 0.01 * seed)
    return folder


def test_the_terminal_shows_scores_costs_and_differences(runs):
    printed = lorsa_report(runs, "--baseline", "lora")
    for word in ("GLUE; from nyu-mll/glue@main", "Scores", "Cost, mean over tasks", "Difference to the baseline"):
        assert word in printed
    for word in ("147,456", "0.649 %", "800", "1 GiB", "1 MiB", "lora (baseline)", "(3)"):
        assert word in printed


def test_a_file_has_what_the_terminal_shows(runs, tmp_path):
    for form in FORMS:
        assert lorsa_report(runs, "--format", form, "--out", tmp_path / form) == ""
        assert (tmp_path / form).read_text().endswith("\n")
    assert "\x1b" not in (tmp_path / "table").read_text()
    assert (tmp_path / "csv").read_text() == lorsa_report(runs, "--format", "csv")


def test_csv_has_a_line_for_every_cell_also_for_the_missing(runs):
    lines = list(csv.DictReader(io.StringIO(lorsa_report(runs, "--format", "csv", "--baseline", "lora"))))
    assert len(lines) == 3 * (2 + 1)
    by_cell = {(line["label"], line["task"]): line for line in lines}
    expected = rows(document(runs, "--baseline", "lora")["tables"][0])
    for label, row in expected.items():
        for task, cell in row["scores"].items():
            line = by_cell[label, task]
            assert int(line["seeds"]) == cell["seeds"]
            assert line["mean"] == ("" if cell["mean"] is None else str(cell["mean"]))
    missing = by_cell[next(label for label in expected if label.startswith("my")), "rte"]
    assert (missing["seeds"], missing["mean"], missing["adapter_params"]) == ("0", "", "")
    average = by_cell["lorsa", "average"]
    assert float(average["p"]) == expected["lorsa"]["difference"]["p"]
    assert by_cell["lora", "cola"]["train_seconds"] == "61"


def test_json_is_strict_and_names_its_version(runs):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(lorsa_report(runs, "--format", "json"), parse_constant=refuse)
    assert found["report_version"] == 1
    assert set(found) == {"report_version", "baseline", "left_out", "tables"}
    assert json.loads(lorsa_report(runs, "--json")) == found


def test_markdown_tables_have_as_many_cells_in_every_line(runs):
    text = lorsa_report(runs, "--format", "markdown", "--baseline", "lora")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1
    assert r"my\_method\|\<b\>" in text


def compiled(folder: Path) -> str:
    """What the compiler says of tables.tex, in a paper that loads booktabs."""
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("neither pdflatex nor tectonic here")
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    (folder / "paper.tex").write_text(paper)
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in compiler else []
    done = subprocess.run([compiler, *options, "paper.tex"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return done.stdout + done.stderr


@pytest.mark.slow
def test_all_of_glue_fits_between_the_margins(tmp_path):
    grid(tmp_path / "runs", {"lora": 0.3, "lorsa": 0.35, "head": 0.2}, (*GLUE, "wnli"))
    lorsa_report(tmp_path / "runs", "--format", "latex", "--baseline", "lora", "--out", tmp_path / "tables.tex")
    assert "Overfull" not in compiled(tmp_path)


@pytest.mark.slow
def test_the_latex_compiles_and_shows_the_numbers(runs, tmp_path):
    lorsa_report(runs, "--format", "latex", "--baseline", "lora", "--out", tmp_path / "tables.tex")
    assert "undefined" not in compiled(tmp_path).lower()


def test_latex_marks_the_best_and_escapes_names(runs):
    text = lorsa_report(runs, "--format", "latex")
    assert r"my\_method\textbar{}\textless{}b\textgreater{}\&\$\%\#\{\}\textasciicircum{}" in text
    assert r"\textbf{70.0} & --" in text
    assert r"\scriptsize $\pm$0.7 (2) & " in text
    assert r"\scriptsize $\pm$1.0 (3)" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
