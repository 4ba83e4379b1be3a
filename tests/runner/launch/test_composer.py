"""The fast way to compose a sweep's runs gives what Hydra gives."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lorsa.runner.cli import check_names, explain
from lorsa.runner.compose import CONFIG_DIR
from lorsa.runner.errors import UserError
from lorsa.runner.launch.composer import SweepComposer
from lorsa.runner.schema import register_resolvers, typed

register_resolvers()
LOADER = ConfigLoaderImpl(create_config_search_path(CONFIG_DIR))
MASTER = LOADER.load_configuration("config", ["hydra/launcher=slurm", "hydra.launcher.parallel=4"], RunMode.MULTIRUN)
COMPOSER = SweepComposer(LOADER)

OVERRIDES = [
    "seed=3",
    "seed=4",
    "task=cola",
    "task=mrpc",
    "method=lora",
    "method=lorsa_subspace",
    "model=minilm",
    "resources=gpu",
    "+experiment=smollm2_3000",
    "+debug=smoke",
    "~tracker",
    "train.lr=1e-3",
    "train.lr=${method.head_lr}",
    "train.batch_size=8",
    "method.config.r=2",
    "method.config.k=16",
    "resources.minutes=5",
    "+resources.extra.mail-type=FAIL",
    "+resources.extra={a: 1, b: [1, 2]}",
    "++train.lr=7e-3",
    "++train.new=1",
    "~train.profile",
    "~train.probe_rows",
    "+train.more=1",
    "train.more=2",
    "train.profile=true",
    "task.labels=[a,b]",
    "task.name=x",
    "runs_dir='a b, c'",
    "data.train_rows=null",
]
WRONG = [
    "sead=3",
    "method=lors",
    "train.nothing=1",
    "~nothing",
    "+seed=1",
    "task.nothing.at.all=1",
    "optim@train=adamw",
]


def composed(loader, overrides):
    """What a loader makes of overrides: the config and its choices, or the error."""
    try:
        config = loader.load_sweep_config(MASTER, overrides)
    except HydraException as error:
        return type(error), str(error), type(error.__cause__)
    return OmegaConf.to_container(config, resolve=False)


def job_config(make):
    """The typed, resolved config of a job that `make` makes, or the error."""
    try:
        config = make()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        return explain(error)
    return OmegaConf.to_container(config), OmegaConf.to_yaml(config, resolve=True)


def from_hydra(overrides):
    config = LOADER.load_sweep_config(MASTER, overrides)
    check_names(config, config.hydra.runtime.choices)
    with open_dict(config):
        config.pop("hydra")
    return typed(config)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(OVERRIDES), min_size=2, max_size=6, unique=True))
def test_every_list_of_overrides_gives_what_hydra_gives(overrides):
    assert composed(COMPOSER, overrides) == composed(LOADER, overrides)
    job = job_config(lambda: COMPOSER.job_config(MASTER, overrides))
    assert job == job_config(lambda: from_hydra(overrides))


@pytest.mark.parametrize("overrides", [["task.name=x"], ["task=cola", "task.name=sst2"], ["train.lr=x"], ["seed=1.5"]])
def test_a_wrong_value_of_a_job_is_refused_in_the_same_words(overrides):
    job = job_config(lambda: COMPOSER.job_config(MASTER, overrides))
    assert isinstance(job, str)
    assert job == job_config(lambda: from_hydra(overrides))


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_gives_hydras_error(override):
    error = composed(LOADER, ["seed=1", override])
    assert isinstance(error, tuple)
    assert composed(COMPOSER, ["seed=1", override]) == error


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.lr=1e-3", "++train.lr=2e-3"],
        ["++train.lr=2e-3", "train.lr=1e-3"],
        ["train.profile=true", "~train.profile"],
        ["~train.profile", "train.profile=true"],
        ["+train.more=1", "train.more=2"],
        ["train.more=2", "+train.more=1"],
        ["seed=1", "task=cola", "seed=2"],
    ],
)
def test_values_additions_and_deletions_keep_their_order(overrides):
    assert composed(COMPOSER, overrides) == composed(LOADER, overrides)


def test_interpolated_values_follow_each_run():
    runs = [COMPOSER.load_sweep_config(MASTER, [f"data.epochs={n}", f"method.lr={n}e-3"]) for n in (1, 2)]
    assert [(run.train.epochs, run.train.lr) for run in runs] == [(1, 1e-3), (2, 2e-3)]
    # A copy: one run's values do not reach the next.
    assert COMPOSER.load_sweep_config(MASTER, []).train.lr not in (1e-3, 2e-3)


def test_runs_that_differ_in_values_alone_are_composed_once():
    class Counting(ConfigLoaderImpl):
        count = 0

        def load_sweep_config(self, *arguments):
            self.count += 1
            return super().load_sweep_config(*arguments)

    loader = Counting(create_config_search_path(CONFIG_DIR))
    composer = SweepComposer(loader)
    for task in ("cola", "sst2"):
        for seed in range(10):
            composer.load_sweep_config(MASTER, [f"task={task}", f"seed={seed}", "+resources.extra.comment=x"])
    assert loader.count == 2


def test_all_else_is_asked_of_hydras_own_loader():
    assert COMPOSER.get_search_path() is LOADER.get_search_path()
