"""Submitting: what was taken is recorded, what was refused is as before, and the same command goes on."""

import errno
import json
import os
import shutil
import sys
from functools import partial

import pytest
from launch_settings import SLURM

from lorsa.runner.errors import UserError
from lorsa.runner.launch import launch as module
from lorsa.runner.launch.launch import launch
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.states import read_runs
from lorsa.runner.launch.sweep import Sweep, find_sweep
from lorsa.runner.signature import signature
from lorsa.runner.terminal import console

SETTINGS = {key: value for key, value in SLURM.items() if key != "kind"}


@pytest.fixture
def start(tmp_path, monkeypatch, compose_run):
    """Launch a sweep of runs with these overrides."""
    monkeypatch.setattr(sys, "argv", ["lorsa-run", "-m"])

    def start_sweep(folder, *override_lists, kind="slurm", **settings):
        shared = [f"runs_dir={tmp_path / 'runs'}"]
        composed = [(each, partial(compose_run, *shared, *each)) for each in override_lists]
        return launch(kind, composed, tmp_path / "runs" / "sweeps" / folder, SETTINGS | settings)

    return start_sweep


FIVE = [[f"seed={shape}", f"resources.minutes={10 + shape}"] for shape in range(5)]


def recorded(sweep):
    lines = (sweep.path / "jobs.jsonl").read_text().splitlines()
    return {job["job_id"]: job["runs"] for job in map(json.loads, lines)}


def in_queue(slurm, *sweeps):
    slurm.queue(*(f"{job_id}|PENDING|None" for sweep in sweeps for job_id in recorded(sweep)))


def refuse_from(slurm, number, first_id=101):
    slurm.command(
        "sbatch",
        '[ "$1" = --test-only ] && exit 0\n'
        "number=0; while read -r line; do [[ $line = --test-only* ]] || number=$((number + 1)); done < $calls\n"
        f"if [ $number -ge {number} ]; then echo 'sbatch: error: no more jobs' >&2; exit 1; fi\n"
        f'echo "Submitted batch job $(({first_id - 1} + number))"',
    )


def test_when_the_third_of_five_arrays_is_refused_the_same_command_submits_the_rest(slurm, start, tmp_path):
    refuse_from(slurm, 3)
    with pytest.raises(UserError, match=r"SLURM refused: .*no more jobs"):
        start("first", *FIVE)
    first = find_sweep("first", tmp_path / "runs")
    names = [run.signature for run in first.runs]
    assert recorded(first) == {"101": names[:1], "102": names[1:2]}
    in_queue(slurm, first)
    states = read_runs([tmp_path / "runs" / name for name in names], Scheduler())
    assert [run.state for run in states] == ["queued", "queued", "new", "new", "new"]
    assert not any((tmp_path / "runs" / name).exists() for name in names[2:])

    (slurm.folder / "sbatch.calls").unlink()
    refuse_from(slurm, 100, first_id=201)
    start("second", *FIVE)
    second = find_sweep("second", tmp_path / "runs")
    assert recorded(second) == {"201": names[2:3], "202": names[3:4], "203": names[4:]}
    in_queue(slurm, first, second)
    start("third", *FIVE)
    assert len(slurm.calls("sbatch")) == 6  # three arrays, each looked at first
    assert not (tmp_path / "runs" / "sweeps" / "third" / "jobs.jsonl").exists()


def test_a_script_that_slurm_would_refuse_ends_it_before_the_first_is_submitted(slurm, start, tmp_path):
    slurm.command(
        "sbatch",
        'if [[ "$(< "${@: -1}")" = *--time=14* ]]; then\n'
        "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1; fi\n"
        "echo Submitted batch job 1",
    )
    with pytest.raises(UserError, match="SLURM refused: allocation failure: Requested node configuration"):
        start("s", *FIVE)
    assert all(call.startswith(("--test-only", "--hold")) for call in slurm.calls("sbatch"))
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["sweeps"]
    assert not list((tmp_path / "runs" / "sweeps").iterdir())


def test_what_waits_for_nodes_that_are_down_is_submitted(slurm, start, capsys):
    slurm.command(
        "sbatch",
        'if [ "$1" = --test-only ]; then\n'
        "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1; fi\n"
        '[ "$1" = --hold ] && echo "7;cluster" || echo Submitted batch job 8',
    )
    start("s", ["seed=1"])
    assert "nodes that it needs may be down" in " ".join(capsys.readouterr().out.split())
    assert slurm.calls("scancel") == ["7"]
    assert len(slurm.calls("sbatch")) == 3


def test_without_slurm_nothing_is_left(no_slurm, start, tmp_path):
    with pytest.raises(UserError, match="There is no scontrol on this machine"):
        start("s", ["seed=1"])
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_a_refused_run_keeps_what_was_known_of_it(slurm, start, tmp_path, make_run, compose_run):
    job = {"job_id": "7_0", "launcher": "slurm", "sweep": "/earlier", "cancelled": True}
    path = make_run(signature(compose_run()), "running", job, step=7)
    (path / "checkpoints").mkdir()
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    refuse_from(slurm, 1)
    with pytest.raises(UserError, match="no more jobs"):
        start("s", ["seed=0"])
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
    assert (path / "checkpoints").is_dir()


def test_runs_are_frozen_and_know_their_job(slurm, start, tmp_path):
    start("s", ["seed=0", "task=cola"], ["seed=1", "task=cola"])
    sweep = find_sweep("latest", tmp_path / "runs")
    assert list(recorded(sweep)) == ["101_0", "101_1"]
    for i, run in enumerate(sweep.runs):
        config = sweep.config(run.signature).read_text()
        assert f"seed: {i}" in config
        assert "${" not in config
        path = tmp_path / "runs" / run.signature
        status, job = (json.loads((path / name).read_text()) for name in ("status.json", "job.json"))
        assert (status["state"], status["task"], status["seed"]) == ("queued", "cola", i)
        assert (job["job_id"], job["sweep"]) == (f"101_{i}", str(sweep.path))
    text = (sweep.jobs / "101_submission.sh").read_text()
    assert "--array=0-1%2" in text
    assert (sweep.jobs / "101_0_submitted.pkl").is_file()


def test_jobs_share_and_arrays_are_cut_where_the_cluster_says(slurm, start, tmp_path):
    slurm.command("scontrol", "echo 'MaxArraySize = 2'")
    start("s", *([f"seed={seed}"] for seed in range(7)), runs_per_job=2)
    sweep = find_sweep("s", tmp_path / "runs")
    names = [run.signature for run in sweep.runs]
    assert recorded(sweep) == {
        "101_0": names[:2],
        "101_1": names[2:4],
        "102_0": names[4:6],
        "102_1": names[6:],
    }


def test_a_dry_run_shows_scripts_and_writes_nothing(slurm, start, tmp_path, capsys):
    states = start("s", ["seed=0", "dry_run=true"], ["seed=1", "dry_run=true", "resources.minutes=7"])
    assert [run.state for run in states] == ["new", "new"]
    assert not (tmp_path / "runs").exists()
    assert slurm.calls("sbatch") == []
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash") == 2
    assert "--time=7" in printed
    assert "to be submitted" in printed


def test_a_dry_run_needs_no_slurm(no_slurm, start, tmp_path, capsys):
    start("s", ["seed=0", "dry_run=true"])
    assert "#SBATCH --time=60" in capsys.readouterr().out


def test_a_run_that_another_command_submits_meanwhile_is_not_submitted_twice(slurm, start, tmp_path, monkeypatch):
    planned = module.describe

    def meanwhile(plan):
        monkeypatch.setattr(module, "describe", planned)
        start("other", ["seed=0"])
        in_queue(slurm, find_sweep("other", tmp_path / "runs"))
        return planned(plan)

    # Before that, the first command has asked SLURM.
    start("earlier", ["seed=5"])
    monkeypatch.setattr(module, "describe", meanwhile)
    start("mine", ["seed=0"], ["seed=5"], ["seed=1"])
    mine, other = (find_sweep(name, tmp_path / "runs") for name in ("mine", "other"))
    seeds = {run.signature: run.overrides[0] for run in mine.runs}
    assert [seeds[name] for names in recorded(other).values() for name in names] == ["seed=0"]
    assert "seed=0" not in [seeds[name] for names in recorded(mine).values() for name in names]


def test_waiting_starts_with_runs_that_are_queued(slurm, start, tmp_path, monkeypatch):
    """SLURM's last answer is from before the submission; the runs in it are not lost."""
    seen = []

    def look(sweep, paths, scheduler):
        seen.extend(run.state for run in read_runs(paths, scheduler))

    monkeypatch.setattr(module, "wait", look)
    start("earlier", ["seed=5"])
    in_queue(slurm, find_sweep("earlier", tmp_path / "runs"))
    start("s", ["seed=5"], ["seed=0"], wait=True)
    assert seen == ["queued", "queued"]


def test_another_sweep_in_the_same_folder_is_refused_and_the_same_one_is_not(slurm, start, tmp_path):
    start("s", ["seed=0"])
    with pytest.raises(UserError, match="is another sweep's; start this one again"):
        start("s", ["seed=1"])
    start("s", ["seed=0"], ["seed=1"])
    assert len(find_sweep("s", tmp_path / "runs").runs) == 2


def test_a_command_waits_for_another_that_submits(slurm, start, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    with (
        module.submitting(str(tmp_path / "runs")),
        pytest.raises(UserError, match=r"Another command is submitting .* \.?.*submit.lock is its lock"),
    ):
        start("s", ["seed=0"])


def test_a_snapshot_of_the_code_is_whole_and_used(slurm, start, tmp_path):
    start("s", ["seed=0"], snapshot=True, offline=True, setup=["module load cuda"])
    sweep = find_sweep("s", tmp_path / "runs")
    for file in ("conf/config.yaml", "runner/job.py", "runner/demo/tiny_llama/config.json", "methods/apply.py"):
        assert (sweep.code / "lorsa" / file).is_file()
    assert not list(sweep.code.rglob("__pycache__"))
    script = (sweep.jobs / "101_submission.sh").read_text()
    places = [script.index(line) for line in ("module load cuda", "HF_HUB_OFFLINE=1", f"PYTHONPATH={sweep.code}")]
    assert places == sorted(places)


def test_a_sweep_that_is_started_again_keeps_its_snapshot_if_it_is_whole(slurm, start, tmp_path, monkeypatch):
    def cut(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lorsa.runner.launch.launch.shutil.copytree", cut)
        start("s", ["seed=0"], snapshot=True)
    sweep = find_sweep("s", tmp_path / "runs")
    assert not sweep.code.exists() and not list(sweep.path.glob(".code*"))
    start("s", ["seed=0"], snapshot=True)
    (sweep.code / "lorsa" / "mine").touch()
    in_queue(slurm, sweep)
    start("s", ["seed=0"], ["seed=1"], snapshot=True)
    assert (sweep.code / "lorsa" / "mine").exists() and (sweep.code / "lorsa" / "runner" / "job.py").is_file()
    assert len(slurm.calls("sbatch")) == 4


def test_a_sweeps_folder_that_cannot_be_written_is_a_sentence(slurm, start, tmp_path):
    (tmp_path / "runs" / "sweeps").mkdir(parents=True)
    (tmp_path / "runs" / "sweeps" / "s").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        start("s", ["seed=0"])
    assert slurm.calls("sbatch") == []


def test_a_lock_that_cannot_be_taken_is_a_sentence(slurm, start, monkeypatch):
    def forbidden(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    with pytest.raises(UserError, match=r"Cannot write .*\.submit\.lock: Permission denied"):
        start("s", ["seed=0"])
    assert slurm.calls("sbatch") == []


def test_a_dry_run_shows_overrides_as_they_are(slurm, start, capsys, monkeypatch):
    monkeypatch.setattr(console, "_width", 200)
    start("s", *(["dry_run=true", f"model.modules.attention=[{name}]"] for name in ("q_proj", "v_proj")))
    assert "model.modules.attention=[q_proj]" in capsys.readouterr().out


def test_a_sweep_that_is_half_deleted_is_named(tmp_path, make_sweep):
    sweep = make_sweep("a")
    (sweep.path / "sweep.json").write_text('{"runs": [')
    with pytest.raises(UserError, match=r"sweep.json is damaged \(JSONDecodeError"):
        Sweep(sweep.path).runs  # noqa: B018
    (sweep.path / "sweep.json").unlink()
    with pytest.raises(UserError, match=r"has no sweep\.json"):
        Sweep(sweep.path).runs  # noqa: B018
    with pytest.raises(UserError, match=r"There is no sweep latest in .*; there are none, which hydra/launcher=local"):
        find_sweep("latest", tmp_path / "runs")


def test_sweeps_are_found_by_folder_name_and_as_the_latest(tmp_path, make_sweep):
    sweep = make_sweep("a")
    shutil.copytree(sweep.path, sweep.path.with_name("2025-12-31"))
    for name in ("latest", sweep.path.name, str(sweep.path), os.path.relpath(sweep.path)):
        assert find_sweep(name, tmp_path / "runs").path.resolve() == sweep.path
    with pytest.raises(UserError, match=r"There is no sweep 2024.*the sweeps there are 2025-12-31, 2026-01-01"):
        find_sweep("2024", tmp_path / "runs")
