"""`lorsa status`, `logs`, `errors`, `retry`, `cancel` and `run` on made-up run directories."""

import json
import os
import pickle
import shutil

import pytest
from typer.testing import CliRunner

from lorsa.runner.app import app
from lorsa.runner.commands import run as run_command
from lorsa.runner.errors import UserError
from lorsa.runner.launch import again
from lorsa.runner.launch.states import read_runs
from lorsa.runner.launch.sweep import find_sweep
from lorsa.runner.terminal import console


@pytest.fixture
def lorsa(tmp_path, monkeypatch):
    """Run a command; returns what it printed. What it refuses is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_width", 200)

    def run(*words):
        done = CliRunner().invoke(app, list(words), catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def sweep(slurm, make_sweep, make_run):
    """A sweep with a run in each of the usual states; the jobs 7_0 and 7_1 are in the queue."""
    names = ["aaaa1111", "aaaa2222", "bbbb", "cccc", "dddd"]
    made = make_sweep(*names)
    slurm.queue("7_0|RUNNING|None", "7_1|PENDING|Priority")
    slurm.accounting("7_2|TIMEOUT")
    states = ["running", "queued", "running", "failed", "done"]
    methods = ["lora", "lora", "lora", "lorsa", "lorsa"]
    for i, (name, state, method) in enumerate(zip(names, states, methods, strict=True)):
        job = {"job_id": f"7_{i}", "launcher": "slurm", "sweep": str(made.path)}
        about = {"model": "tiny", "method": method, "task": "cola", "seed": i, "step": 3, "max_steps": 9}
        error = {"error": "ValueError: no", "traceback": "Traceback\n" + "  more\n" * 30 + "ValueError: no"}
        make_run(name, state, job, **about, **(error if state == "failed" else {}))
    lines = [{"job_id": f"7_{i}", "runs": [name]} for i, name in enumerate(names)]
    (made.path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def in_json(lorsa, *words):
    return {run["signature"]: run["state"] for run in json.loads(lorsa("status", "--json", *words))}


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_says_how_each_run_is_doing(sweep, lorsa):
    text = lorsa("status")
    assert "5 runs: 1 queued, 1 running, 1 done, 1 failed, 1 timed out" in text
    for word in ("aaaa1111", "3/9", "failed: ValueError: no", "7_2", "cola"):
        assert word in text
    assert in_json(lorsa) == {
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
def test_filters(sweep, lorsa, words, expected):
    assert set(in_json(lorsa, *words)) == expected


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


def test_status_knows_runs_of_no_sweep_and_of_other_versions(sweep, lorsa, make_run):
    make_run("eeee", "interrupted", launcher=None)
    make_run("ffff", None)
    make_run("gggg", "dreaming")
    states = in_json(lorsa)
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


# --- retry ----------------------------------------------------------------------------------------------------------


def tasks(sweep):
    """The runs of each job that was submitted."""
    delayed = [pickle.loads(path.read_bytes()) for path in sorted(sweep.jobs.glob("*_submitted.pkl"))]
    return [(each.args[0] if each.args else each.function).runs for each in delayed]


def test_retry_submits_what_did_not_end_well_and_nothing_else(sweep, slurm, lorsa):
    assert "2 runs would be submitted again" in lorsa("retry", "--dry-run")
    assert slurm.calls("sbatch") == []
    assert "Submitted 2 runs as jobs 101_0 to 101_1" in lorsa("retry")
    slurm.queue("7_0|RUNNING|None", "7_1|PENDING|Priority", "101_0|PENDING|None", "101_1|PENDING|None")
    assert set(in_json(lorsa, "state=queued")) == {"aaaa2222", "bbbb", "cccc"}
    assert tasks(sweep) == [("bbbb",), ("cccc",)]
    assert "None of the 5 runs needs that" in lorsa("retry")
    status = json.loads((sweep.runs_dir / "cccc" / "status.json").read_text())
    assert (status["method"], status["seed"]) == ("lorsa", 3)
    assert "error" not in status


def test_retry_with_other_resources(sweep, lorsa):
    words = ["--set", "resources.mem_gb=64", "--set", "resources.extra.nice=5", "--set", "resources.partition=high"]
    lorsa("retry", "state=failed", *words)
    script = (sweep.jobs / "101_submission.sh").read_text()
    for option in ("--mem=65536M", "--nice=5", "--partition=high"):
        assert option in script
    assert "mem_gb: 64" in sweep.config("cccc").read_text()
    assert "mem_gb: null" in sweep.config("bbbb").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("seed=3", "only resources can be changed"),
        ("resources.minutes", "only resources can be changed"),
        ("resources.minutes=long", "--set resources.minutes=long: "),
        ("resources.memory=3", "resources has name, nodes"),
        ("resources.nodes=2", "makes another run"),
        ("resources.partition=[a", "--set resources.partition=.a: "),
        ("resources.minutes=0", "resources.minutes=0 must be above 0"),
        ("resources.minutes=1", "more than half of resources.minutes=1"),
    ],
)
def test_a_change_that_cannot_be_is_refused_before_anything_is_submitted(sweep, slurm, lorsa, change, sentence):
    with pytest.raises(UserError, match=sentence):
        lorsa("retry", "--set", change)
    assert slurm.calls("sbatch") == []
    assert in_json(lorsa, "state=failed") == {"cccc": "failed"}


def test_retry_of_a_forced_run_goes_on_from_its_checkpoint(sweep, lorsa):
    path = sweep.runs_dir / "cccc" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": True}))
    lorsa("retry", "state=failed")
    assert json.loads(path.read_text())["training"] is True


def test_a_run_that_another_command_submitted_before_is_not_submitted_twice(sweep, slurm, lorsa, monkeypatch):
    real = again.submitting

    def submitting(runs_dir):
        job = {"job_id": "7_0", "launcher": "slurm", "sweep": str(sweep.path)}
        (sweep.runs_dir / "bbbb" / "job.json").write_text(json.dumps(job))
        return real(runs_dir)

    monkeypatch.setattr(again, "submitting", submitting)
    lorsa("retry")
    assert tasks(sweep) == [("cccc",)]


def test_retry_says_which_run_was_of_no_sweep(sweep, slurm, lorsa, make_run):
    make_run("eeee", "failed", launcher=None)
    with pytest.raises(UserError, match=r"eeee was not part of a sweep .*; run its command again"):
        lorsa("retry")
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize("what", ["config", "sweep.json", "all"])
def test_retry_with_half_of_the_sweeps_folder_says_what_is_gone(sweep, slurm, lorsa, what):
    if what == "all":
        shutil.rmtree(sweep.path)
    else:
        (sweep.config("cccc") if what == "config" else sweep.path / what).unlink()
    with pytest.raises(UserError) as refused:
        lorsa("retry", "state=failed")
    assert ("no config of cccc any more" if what == "config" else "has no sweep.json") in str(refused.value)
    assert slurm.calls("sbatch") == []
    assert set(in_json(lorsa)) == {"aaaa1111", "aaaa2222", "bbbb", "cccc", "dddd"}


def test_a_refused_retry_leaves_runs_as_they_were(sweep, slurm, lorsa):
    slurm.command("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    before = in_json(lorsa)
    with pytest.raises(UserError, match="invalid account"):
        lorsa("retry")
    assert in_json(lorsa) == before
    slurm.command("sbatch", '[ "$1" = --test-only ] || { echo no more jobs >&2; exit 1; }')
    with pytest.raises(UserError, match="no more jobs"):
        lorsa("retry")
    assert in_json(lorsa) == before


@pytest.mark.parametrize("refuses", ["everything", "the submission"])
def test_resources_that_slurm_refuses_are_not_kept(sweep, slurm, lorsa, refuses):
    only = "" if refuses == "everything" else '[ "$1" = --test-only ] || '
    slurm.command("sbatch", only + "{ echo too much memory >&2; exit 1; }")
    with pytest.raises(UserError, match="too much memory"):
        lorsa("retry", "--set", "resources.mem_gb=4000")
    assert {run.resources["mem_gb"] for run in find_sweep(str(sweep.path), sweep.runs_dir).runs} == {None}
    assert all("mem_gb: null" in sweep.config(run.signature).read_text() for run in sweep.runs)


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_cancel_cancels_jobs_that_wait_or_run(sweep, slurm, lorsa):
    with pytest.raises(UserError, match="Name a sweep or filters"):
        lorsa("cancel")
    assert "2 runs would be cancelled" in lorsa("cancel", "--all", "--dry-run")
    assert slurm.calls("scancel") == []
    assert lorsa("cancel", "latest", "method=lora") == "Cancelled 2 runs.\n"
    assert [set(call.split()) for call in slurm.calls("scancel")] == [{"7_0", "7_1"}]
    assert set(in_json(lorsa, "state=cancelled")) == {"aaaa1111", "aaaa2222"}
    assert "None of the 5 runs waits or runs" in lorsa("cancel", "--all")


def share(sweep, slurm, make_run, names, state):
    """Runs that share job 8."""
    slurm.queue("8|RUNNING|None")
    for name in names:
        make_run(name, state, {"job_id": "8", "launcher": "slurm", "sweep": str(sweep.path)})
    with (sweep.path / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"job_id": "8", "runs": names}) + "\n" + '{"job_id": "9", "ru')


def test_cancel_of_one_run_leaves_the_others_of_its_job(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "running")
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == ["--signal=SIGUSR1 8"]
    lorsa("cancel", "--all")
    assert slurm.calls("scancel")[1:] == ["8"]


def test_cancel_of_one_run_of_a_job_that_waits_needs_no_signal(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "queued")
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    slurm.queue("8|PENDING|Priority")
    slurm.command("scancel", "sleep 100")  # as the real one does until the job runs
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == []
    assert in_json(lorsa, "task=qqp") == {"xxxx": "cancelled"}


def test_a_job_whose_other_runs_were_retried_elsewhere_is_cancelled_as_a_whole(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, ["xxxx", "yyyy"], "running")
    slurm.queue("8|RUNNING|None", "10|PENDING|None")
    job = {"job_id": "10", "launcher": "slurm", "sweep": str(sweep.path)}
    (sweep.runs_dir / "yyyy" / "job.json").write_text(json.dumps(job))
    path = sweep.runs_dir / "xxxx" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "qqp"}))
    lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == ["8"]


def test_another_clusters_job_of_the_same_number_is_left_alone(sweep, slurm, lorsa, make_run):
    slurm.command("scontrol", "echo 'ClusterName             = blue'")
    slurm.queue("8|RUNNING|None")
    there = {"job_id": "8", "launcher": "slurm", "sweep": str(sweep.path), "cluster": "red", "user": "someone"}
    make_run("xxxx", "running", there, task="qqp")
    with pytest.raises(UserError, match=r"xxxx is job 8 of user someone on cluster red, and this is .* on blue"):
        lorsa("cancel", "task=qqp")
    assert slurm.calls("scancel") == []
    assert "cancelled" not in json.loads((sweep.runs_dir / "xxxx" / "job.json").read_text())


def test_cancel_asks_slurm_no_more_for_more_jobs(sweep, slurm, lorsa, make_run):
    share(sweep, slurm, make_run, [f"x{i}" for i in range(6)], "running")
    lorsa("cancel", "--all")
    assert len(slurm.calls("squeue")) <= 2


def test_a_cancel_that_slurm_refuses_leaves_runs_as_they_are(sweep, slurm, lorsa):
    slurm.command("scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    with pytest.raises(UserError, match="SLURM refused: scancel: error: Access/permission denied"):
        lorsa("cancel", "--all")
    assert set(in_json(lorsa, "state=running,queued")) == {"aaaa1111", "aaaa2222"}


def test_cancel_without_the_sweeps_folder(sweep, slurm, lorsa):
    shutil.rmtree(sweep.path)
    lorsa("cancel", "--all")
    assert [set(call.split()) for call in slurm.calls("scancel")] == [{"7_0", "7_1"}]


def test_cancel_of_a_sweep_on_this_machine_is_a_note_for_its_process(no_slurm, make_sweep, make_run, lorsa):
    sweep = make_sweep("a", "b", kind="local")
    job = {"job_id": str(os.getpid()), "launcher": "local", "sweep": str(sweep.path)}
    paths = [make_run("a", "running", job, launcher="local"), make_run("b", "queued", {"sweep": "s"}, launcher="local")]
    assert lorsa("cancel", "--all") == "Cancelled 2 runs.\n"
    assert [run.state for run in read_runs(paths, again.Scheduler())] == ["cancelled", "cancelled"]
    assert json.loads((paths[1] / "job.json").read_text())["sweep"] == "s"


# --- run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(sweep, compose_run):
    """The config of run bbbb, frozen with force=true."""
    from omegaconf import OmegaConf

    cfg = compose_run(f"runs_dir={sweep.runs_dir}", "force=true", "seed=5")
    sweep.config("bbbb").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return sweep


@pytest.fixture
def did(monkeypatch):
    """The configs that were run."""
    configs = []
    monkeypatch.setattr("lorsa.runner.job.run", configs.append)
    return configs


def test_run_does_one_run_here_with_its_frozen_config(frozen, lorsa, did):
    lorsa("run", "bb")
    assert (did[0].seed, did[0].runs_dir, did[0].force) == (5, str(frozen.runs_dir), False)


def test_run_writes_where_it_found_the_run(frozen, lorsa, did, tmp_path):
    shutil.copytree(frozen.runs_dir / "bbbb", tmp_path / "moved" / "bbbb")
    lorsa("run", "bb", "--runs-dir", "moved")
    assert did[0].runs_dir == str(tmp_path / "moved")


def test_run_for_debugging_leaves_the_run_alone(frozen, lorsa, did):
    text = lorsa("run", "bb", "--debug")
    assert did[0].runs_dir in text
    assert did[0].runs_dir != str(frozen.runs_dir)
    shutil.rmtree(did[0].runs_dir)


def test_run_for_debugging_opens_a_debugger_on_an_error(frozen, lorsa, monkeypatch):
    opened = []

    def fail(cfg):
        raise ZeroDivisionError

    monkeypatch.setattr("lorsa.runner.job.run", fail)
    with pytest.raises(ZeroDivisionError):  # no terminal: the traceback
        run_command.run("bb", debug=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pdb.post_mortem", lambda: opened.append(True))
    with pytest.raises(run_command.typer.Exit):
        run_command.run("bb", debug=True)
    assert opened


def test_run_takes_the_runs_own_config_where_the_sweep_is_gone(frozen, lorsa, did):
    (frozen.runs_dir / "bbbb" / "config.yaml").write_text(frozen.config("bbbb").read_text())
    shutil.rmtree(frozen.path)
    lorsa("run", "bb")
    assert did[0].seed == 5
    (frozen.runs_dir / "bbbb" / "config.yaml").unlink()
    with pytest.raises(UserError, match="bbbb has no config any more"):
        lorsa("run", "bb")


@pytest.mark.parametrize("text", ["seed: {", "newer_key: 3", "seed: x"])
def test_run_of_a_config_of_another_version_is_a_sentence(frozen, lorsa, did, text):
    frozen.config("bbbb").write_text(text)
    with pytest.raises(UserError, match=r"bbbb.yaml is damaged, or of another version"):
        lorsa("run", "bb")
    assert did == []
