"""`lorsa status`, `logs` and `errors` on made-up run directories."""

import json

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.launch.sweep import find_sweep
from lorsa.runner.terminal import console

# --- status ---------------------------------------------------------------------------------------------------------


def test_status_says_how_each_run_is_doing(sweep, lorsa, in_json):
    text = lorsa("status")
    assert "5 runs: 1 queued, 1 running, 1 done, 1 failed, 1 timed out" in text
    for word in ("aaaa1111", "3/9", "failed: ValueError: no", "7_2", "cola"):
        assert word in text
    assert in_json() == {
        "aaaa1111": "running",
        "aaaa2222": "queued",
        "bbbb": "timed out",
        "cccc": "failed",
        "dddd": "done",
    }


def test_status_fits_a_narrow_terminal_and_a_limit(sweep, lorsa, monkeypatch):
    monkeypatch.setattr(console, "_width", 80)
    text = lorsa("status", "--limit", "2")
    assert "(3 are not shown; --limit)" in " ".join(text.split())
    assert "dddd" not in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["state=failed"], {"cccc"}),
        (["state=failed,timed_out"], {"bbbb", "cccc"}),
        (["state=timed out"], {"bbbb"}),
        (["method=lora", "seed=0,2"], {"aaaa1111", "bbbb"}),
        (["latest", "task=cola", "method=lorsa"], {"cccc", "dddd"}),
        (["2026-01-01_00-00-00", "task=sst2"], set()),
    ],
)
def test_filters(sweep, words, expected, in_json):
    assert set(in_json(*words)) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tusk=cola"], "told apart by state, task, method, model, seed; there is no tusk"),
        (["state=fialed"], "there is no state 'fialed'; did you mean 'failed'"),
        (["earlier"], "There is no sweep earlier in runs/sweeps; the sweeps there are 2026-01-01_00-00-00"),
        (["latest", "latest"], "one sweep at a time"),
        (["--runs-dir", "nowhere"], "nowhere: No such file or directory; name the folder of the runs with --runs-dir"),
    ],
)
def test_what_is_not_there_is_named(sweep, lorsa, words, sentence):
    with pytest.raises(UserError) as refused:
        lorsa("status", *words)
    assert sentence in str(refused.value)


def test_status_knows_runs_of_no_sweep_and_of_other_versions(sweep, lorsa, make_run, in_json):
    make_run("eeee", "interrupted", launcher=None)
    make_run("ffff", None)
    make_run("gggg", "dreaming")
    states = in_json()
    assert [states[name] for name in ("eeee", "ffff", "gggg")] == ["interrupted", "new", "lost"]
    assert "dreaming" in lorsa("status", "state=lost")


# --- logs -----------------------------------------------------------------------------------------------------------


def test_logs_prints_what_a_process_of_a_run_printed(sweep, lorsa):
    logs = sweep.runs_dir / "aaaa1111" / "logs"
    logs.mkdir()
    (logs / "output.log").write_bytes(b"first\n\xff[bold]second\nthird\n")
    (logs / "output.rank3.log").write_text("of three\n")
    assert lorsa("logs", "aaaa1") == "first\n�[bold]second\nthird\n"
    assert lorsa("logs", "aaaa1111", "--tail", "1") == "third\n"
    assert lorsa("logs", str(logs.parent), "--rank", "3") == "of three\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["aaaa"], "aaaa is the beginning of 2 runs, such as aaaa1111 and aaaa2222"),
        (["zzzz"], "There is no run zzzz in runs"),
        (["aaaa2222"], "aaaa2222 has not begun"),
        (["aaaa2222", "--rank", "1"], "has no process 1"),
        (["eeee"], "eeee was not part of a sweep"),
    ],
)
def test_logs_that_are_not_there(sweep, lorsa, make_run, words, sentence):
    make_run("eeee", "done", launcher=None)
    with pytest.raises(UserError, match=sentence):
        lorsa("logs", *words)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_latest_is_the_sweep_that_was_made_last_whatever_its_name(tmp_path):
    def make(name, created):
        folder = tmp_path / "sweeps" / name
        folder.mkdir(parents=True)
        about = {"created": created, "runs_dir": str(tmp_path), "launcher": {"kind": "slurm"}, "runs": []}
        (folder / "sweep.json").write_text(json.dumps(about))

    make("ablation", "2026-01-01 09:00:00")
    make("2026-01-02_10-00-00", "2026-01-02 10:00:00")
    assert find_sweep("latest", tmp_path).path.name == "2026-01-02_10-00-00"
    make("a-third", "2026-01-03 10:00:00")
    assert find_sweep("latest", tmp_path).path.name == "a-third"
    (tmp_path / "sweeps" / "a-third" / "sweep.json").write_text("{")  # written now, after all others
    assert find_sweep("latest", tmp_path).path.name == "a-third", "another sweep in the place of a damaged one"


def test_errors_tells_each_failure_once(sweep, lorsa, make_run):
    make_run("eeee", "failed", error="ValueError: no", traceback="Traceback\nValueError: no")
    text = lorsa("errors")
    assert "2 x failed" in text
    assert "Runs: cccc eeee" in text
    assert text.count("  more") == 11
    assert lorsa("errors", "--full").count("  more") == 30
    assert "1 x timed out" in text


def test_errors_of_a_run_that_was_killed_are_the_end_of_its_log(sweep, lorsa):
    logs = sweep.runs_dir / "bbbb" / "logs"
    logs.mkdir()
    (logs / "output.log").write_text("line\n" * 50 + "the last\n")
    assert lorsa("errors", "state=timed out").count("line") == 11
    (logs / "output.rank1.log").write_text("Traceback\nRuntimeError: of another process\n")
    assert "of another process" in lorsa("errors", "state=timed out")


def test_errors_of_a_job_that_never_began_its_run_are_the_jobs_own(sweep, lorsa):
    sweep.jobs.mkdir()
    (sweep.jobs / "7_2_0_log.out").write_text("No module named lorsa\n")
    (found,) = json.loads(lorsa("errors", "state=timed out", "--json"))
    assert found == {"state": "timed out", "reason": "", "runs": ["bbbb"], "text": "No module named lorsa"}


def test_no_errors_is_said(sweep, lorsa):
    assert lorsa("errors", "state=done") == "No run failed.\n"
    assert json.loads(lorsa("errors", "state=done", "--json")) == []
