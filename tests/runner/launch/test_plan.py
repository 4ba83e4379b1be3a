"""From a sweep's overrides to jobs and arrays: every run is checked before anything is written."""

import json
from functools import partial
from pathlib import Path

import pytest
from launch_settings import RESOURCES

from lorsa.runner.errors import UserError
from lorsa.runner.launch.plan import check_one_node, check_settings, check_sharing, freeze_paths, group, make_plan
from lorsa.runner.launch.scheduler import Scheduler
from lorsa.runner.launch.sweep import SweepRun
from lorsa.runner.signature import signature


def run(name, **resources):
    return SweepRun(name, [f"name={name}"], RESOURCES | resources)


@pytest.fixture
def planned(tmp_path, compose_run):
    """Plan runs in a folder of the test's own."""
    shared = [f"runs_dir={tmp_path / 'runs'}"]

    def plan(*override_lists):
        return make_plan([(each, partial(compose_run, *shared, *each)) for each in override_lists], Scheduler())

    return plan


def test_runs_that_ask_for_the_same_share_an_array():
    runs = [run("a"), run("b", mem_gb=8.0), run("c"), run("d", extra={"x": 1}), run("e", mem_gb=8.0)]
    arrays = group(runs, 1, 1000)
    assert [jobs for _, jobs in arrays] == [[["a"], ["c"]], [["b"], ["e"]], [["d"]]]
    assert arrays[0][0] == RESOURCES


@pytest.mark.parametrize("runs_per_job", [1, 2, 3, 100])
@pytest.mark.parametrize("max_array", [1, 2, 4, 1000])
def test_arrays_hold_every_run_once_in_order_and_none_is_too_long(runs_per_job, max_array):
    names = [f"{i:02}" for i in range(23)]
    arrays = group([run(name) for name in names], runs_per_job, max_array)
    assert [name for _, jobs in arrays for job in jobs for name in job] == names
    jobs = [job for _, jobs in arrays for job in jobs]
    assert all(len(job) == runs_per_job for job in jobs[:-1])
    assert all(len(jobs) == max_array for _, jobs in arrays[:-1])
    assert 0 < len(arrays[-1][1]) <= max_array


def test_nothing_makes_no_array():
    assert group([], 1, 1000) == []


def test_a_run_that_is_asked_for_twice_is_planned_once(no_slurm, tmp_path, planned):
    plan = planned(["seed=1"], ["seed=2"], ["seed=1", "train.profile=true"])
    assert len(plan.runs) == 2
    assert len(plan.asked) == 3
    assert plan.asked[0] == plan.asked[2] != plan.asked[1]
    assert plan.wanted == plan.runs


def test_runs_that_are_done_or_on_their_way_are_not_wanted(slurm, tmp_path, make_run, planned, compose_run):
    names = [signature(compose_run(f"seed={seed}")) for seed in range(4)]
    slurm.queue("7_1|PENDING|None")
    make_run(names[0], "done")
    make_run(names[1], "queued", {"job_id": "7_1"})
    make_run(names[2], "failed")
    plan = planned(*([f"seed={seed}"] for seed in range(4)))
    assert [run.state.state for run in plan.runs] == ["done", "queued", "failed", "new"]
    assert [run.run.signature for run in plan.wanted] == names[2:]
    forced = planned(*([f"seed={seed}", "force=true"] for seed in range(2)))
    assert [run.run.signature for run in forced.wanted] == names[:1]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("train.batch_size=0", "train.batch_size=0 must be above 0"),
        ("task=sst3", "did you mean 'sst2'"),
        ("train.nothing=3", "no key 'train.nothing'"),
        ("optim.name=adamm", "optim.name=adamm is not known"),
        ("optim.schedule=greedy", "optim.schedule=greedy is not known"),
        ("seed=x", "'x'"),
        ("method.config.ranks=3", "method.config.ranks"),
        ("+method.config.nonsense=3", "nonsense"),
        ("method.config.k=0", "k=0"),
        ("method.config.k=100000", "k=100000 is more than the 128 components"),
        ("method=lora method.config.r=-4", "-4"),
        ("method=lora method.config.r=abc", "method.config.r=abc must be a whole number"),
        ("method=lora method.config.lora_dropout=much", "method.config.lora_dropout=much must be a number"),
        ("resources.nodes=0", "resources.nodes=0"),
    ],
)
def test_one_bad_run_is_named_and_nothing_is_written(no_slurm, tmp_path, bad, words, planned):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refused:
        planned(["seed=1"], bad.split(" "), ["seed=2"])
    sentence = str(refused.value)
    assert sentence.startswith(f"{bad}: ")
    assert sentence.endswith("Nothing was submitted.")
    assert words in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "override",
    [
        "+method.config.layers_to_transform=[3]",
        "method.config.target_modules='.*layers.3.self_attn.v_proj'",
        "method=lorsa_subspace method.config.budget=3",
    ],
)
def test_a_method_for_some_layers_or_by_a_budget_is_no_bad_run(no_slurm, planned, override):
    method = [] if "method=" in override else ["method=lora"]
    assert len(planned([*method, *override.split(" ")]).wanted) == 1


def test_a_result_of_another_schema_is_named(no_slurm, tmp_path, make_run, planned, compose_run):
    path = make_run(signature(compose_run()), "done")
    (path / "result.json").write_text('{"schema_version": 0}')
    with pytest.raises(UserError, match=r"seed=0: .* schema version 1; run again with force=true. Nothing was submi"):
        planned(["seed=0"])
    assert len(planned(["seed=0", "force=true"]).wanted) == 1


def test_a_sweep_has_one_folder_of_runs(no_slurm, tmp_path, compose_run):
    runs = [
        (["seed=1"], partial(compose_run, "seed=1")),
        (["seed=2"], partial(compose_run, "seed=2", "runs_dir=other")),
    ]
    with pytest.raises(UserError, match=r"seed=2: .*other, and .*runs in another run"):
        make_plan(runs, Scheduler())


def test_relative_paths_are_frozen_and_the_signature_stays(tmp_path, monkeypatch, compose_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = Path(compose_run().model.path.replace("embedded:", ""))
    for folder in ("model", "rows"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cfg = compose_run("model.path=./model", "runs_dir='~/here'", "data=local", "data.path=rows")
    assert not source.is_absolute()
    freeze_paths(cfg)
    assert cfg.model.path == str(tmp_path / "model")
    assert cfg.runs_dir == str(tmp_path / "here")
    assert cfg.data.path == str(tmp_path / "rows")
    hub = compose_run("model=roberta_base", "data=glue")
    before = (hub.model.path, hub.data.path)
    freeze_paths(hub)
    assert (hub.model.path, hub.data.path) == before
    embedded = compose_run()
    freeze_paths(embedded)
    assert embedded.model.path.startswith("embedded:")
    assert signature(embedded) == signature(compose_run())


def test_a_planned_run_knows_what_its_job_asks_for(no_slurm, tmp_path, planned):
    (planned_run,) = planned(["resources=gpu", "+resources.extra.mail-type=FAIL"]).runs
    resources = planned_run.run.resources
    assert resources.keys() == RESOURCES.keys()
    assert (resources["gpus_per_node"], resources["extra"]) == (1, {"mail-type": "FAIL"})
    assert json.loads(json.dumps(resources)) == resources


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("wait", "yes", "true or false"),
        ("snapshot", 1, "true or false"),
        ("offline", None, "true or false"),
        ("runs_per_job", 0, "above 0"),
        ("parallel", -1, "above 0"),
        ("parallel", 1.5, "above 0"),
        ("setup", "module load cuda", "a list of shell lines"),
        ("setup", [1], "a list of shell lines"),
    ],
)
def test_a_setting_of_the_launcher_that_cannot_be_is_refused(key, value, words):
    with pytest.raises(UserError, match=f"hydra.launcher.{key}=.*{words}"):
        check_settings({key: value})


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UserError, match=r"no key 'hydra.launcher.paralel'; did you mean 'parallel'"):
        check_settings({"paralel": 3})
    check_settings({"parallel": 3, "setup": ["module load cuda"], "wait": True})


def test_runs_of_several_processes_share_no_job():
    several = run("a", tasks_per_node=2)
    check_sharing([several], 1)
    check_sharing([run("a")], 2)
    with pytest.raises(UserError, match=r"name=a: hydra.launcher.runs_per_job=2 .* has 2; use runs_per_job=1"):
        check_sharing([run("b"), several], 2)


def test_this_machine_is_one_node():
    check_one_node([run("a")])
    with pytest.raises(UserError, match=r"name=b: resources.nodes must be 1"):
        check_one_node([run("a"), run("b", nodes=2)])
