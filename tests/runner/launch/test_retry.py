"""`lorsa retry` on made-up run directories."""

import json
import pickle
import shutil

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.launch import again
from lorsa.runner.launch.sweep import find_sweep


def tasks(sweep):
    """The runs of each job that was submitted."""
    delayed = [pickle.loads(path.read_bytes()) for path in sorted(sweep.jobs.glob("*_submitted.pkl"))]
    return [(each.args[0] if each.args else each.function).runs for each in delayed]


def test_retry_submits_what_did_not_end_well_and_nothing_else(sweep, slurm, lorsa, in_json):
    assert "2 runs would be submitted again" in lorsa("retry", "--dry-run")
    assert slurm.calls("sbatch") == []
    assert "Submitted 2 runs as jobs 101_0 to 101_1" in lorsa("retry")
    slurm.queue("7_0|RUNNING|None", "7_1|PENDING|Priority", "101_0|PENDING|None", "101_1|PENDING|None")
    assert set(in_json("state=queued")) == {"aaaa2222", "bbbb", "cccc"}
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
def test_a_change_that_cannot_be_is_refused_before_anything_is_submitted(
    sweep, slurm, lorsa, change, sentence, in_json
):
    with pytest.raises(UserError, match=sentence):
        lorsa("retry", "--set", change)
    assert slurm.calls("sbatch") == []
    assert in_json("state=failed") == {"cccc": "failed"}


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
def test_retry_with_half_of_the_sweeps_folder_says_what_is_gone(sweep, slurm, lorsa, what, in_json):
    if what == "all":
        shutil.rmtree(sweep.path)
    else:
        (sweep.config("cccc") if what == "config" else sweep.path / what).unlink()
    with pytest.raises(UserError) as refused:
        lorsa("retry", "state=failed")
    assert ("no config of cccc any more" if what == "config" else "has no sweep.json") in str(refused.value)
    assert slurm.calls("sbatch") == []
    assert set(in_json()) == {"aaaa1111", "aaaa2222", "bbbb", "cccc", "dddd"}


def test_a_refused_retry_leaves_runs_as_they_were(sweep, slurm, lorsa, in_json):
    slurm.command("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    before = in_json()
    with pytest.raises(UserError, match="invalid account"):
        lorsa("retry")
    assert in_json() == before
    slurm.command("sbatch", '[ "$1" = --test-only ] || { echo no more jobs >&2; exit 1; }')
    with pytest.raises(UserError, match="no more jobs"):
        lorsa("retry")
    assert in_json() == before


@pytest.mark.parametrize("refuses", ["everything", "the submission"])
def test_resources_that_slurm_refuses_are_not_kept(sweep, slurm, lorsa, refuses):
    only = "" if refuses == "everything" else '[ "$1" = --test-only ] || '
    slurm.command("sbatch", only + "{ echo too much memory >&2; exit 1; }")
    with pytest.raises(UserError, match="too much memory"):
        lorsa("retry", "--set", "resources.mem_gb=4000")
    assert {run.resources["mem_gb"] for run in find_sweep(str(sweep.path), sweep.runs_dir).runs} == {None}
    assert all("mem_gb: null" in sweep.config(run.signature).read_text() for run in sweep.runs)
